"""How able to learn a network still is: dead units, the rank of its features, the size of weights.

They are of what hidden units answer to rows, [rows, units], as `hidden` gives it.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcl import taps
from jcl.method import Apply, Batch, Params


def hidden(apply: Apply, params: Params, batch: Batch) -> dict[str, np.ndarray]:
    """What hidden units answer, float32 [rows, units] by the dense layer that reads them.

    It is what flows into every dense layer but the first, seen as a matrix.

    Raises:
      ValueError: if the model calls no taps around dense layers.
    """
    paths = list(taps.dense_sites(apply, params, batch))[1:]
    wanted = {f"{path}:in": (0, lambda h: h.reshape(-1, h.shape[-1])) for path in paths}
    found, _ = taps.read(apply, params, batch, wanted)
    return {path: np.asarray(found[f"{path}:in"]) for path in paths}


def dead_units(answers: Any, threshold: float = 0.0) -> float:
    """The share of units that answer no row by more than `threshold` in size.

    Source: Dohare et al., Loss of plasticity in deep continual learning, Nature 632 (2024).

    Args:
      answers: [rows, units].
      threshold: what still counts as no answer.

    >>> dead_units([[0.0, 1.0, 0.0], [0.0, -2.0, 3.0]])
    0.3333333333333333
    """
    return float(np.mean(np.abs(np.asarray(answers)).max(axis=0) <= threshold))


def effective_rank(answers: Any) -> float:
    """exp H(p), p being singular values of `answers` [rows, units] divided by their sum.

    It is the rank of a matrix of equal singular values, and 0 of nothing but zeros.

    Source: Roy & Vetterli, The effective rank, EUSIPCO 2007, which Dohare et al. (2024) measure.

    >>> round(effective_rank(np.eye(4)), 6), round(effective_rank(np.ones((3, 5))), 6)
    (4.0, 1.0)
    """
    sizes = np.linalg.svd(np.asarray(answers, np.float64), compute_uv=False)
    if sizes.sum() == 0:
        return 0.0
    p = sizes / sizes.sum()
    p = p[p > 0]
    return float(np.exp(-np.sum(p * np.log(p))))


def weight_magnitude(params: Params) -> jax.Array:
    """The mean of |w| over all entries of all leaves, float32 [].

    Source: Dohare et al., Loss of plasticity in deep continual learning, Nature 632 (2024).
    """
    leaves = jax.tree.leaves(params)
    total = sum((jnp.sum(jnp.abs(x.astype(jnp.float32))) for x in leaves), jnp.float32(0))
    return total / max(sum(x.size for x in leaves), 1)
