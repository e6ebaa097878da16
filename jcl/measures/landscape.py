"""Loss along the line between two checkpoints, and likeness of their features."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from jcl.mechanisms import merging
from jcl.method import Params


def along(
    score: Callable[[Params], jax.Array], start: Params, end: Params, points: int = 11
) -> jax.Array:
    """`score` at θ = (1 - t) θ_start + t θ_end, t evenly from 0 to 1, float32 [points, ...].

    Source: linear mode connectivity, Frankle et al., arXiv 1912.05671, section 2.

    Args:
      score: a pure function of a whole parameter tree.
      start: the parameters at t = 0.
      end: the parameters at t = 1.
      points: how many points there are, both ends included.
    """
    return lax.map(lambda t: score(merging.lerp(t, start, end)), jnp.linspace(0.0, 1.0, points))


def barrier(losses: jax.Array) -> jax.Array:
    """max_t [L(t) - ((1 - t) L(0) + t L(1))], float32 [...], from `along`'s losses [points, ...].

    It is 0 if the loss is nowhere above the straight line between the ends' losses. For scores, of
    which higher is better, pass their negatives.

    Source: Entezari et al., arXiv 2110.06296, definition 2.1.
    """
    t = jnp.linspace(0.0, 1.0, losses.shape[0]).reshape(-1, *(1,) * (losses.ndim - 1))
    return jnp.max(losses - ((1 - t) * losses[0] + t * losses[-1]), axis=0)


def cka(x: jax.Array, y: jax.Array) -> jax.Array:
    """Linear CKA, ‖YᵀX‖² / (‖XᵀX‖ ‖YᵀY‖), of features [n, p] and [n, q] of the same n inputs.

    Features are centred; float32 [], 1 where one is a turned and scaled copy of the other.

    Source: Kornblith et al., arXiv 1905.00414, equation 5 and section 3.
    """
    x, y = (z.astype(jnp.float32) - jnp.mean(z.astype(jnp.float32), axis=0) for z in (x, y))
    return jnp.sum((y.T @ x) ** 2) / (jnp.linalg.norm(x.T @ x) * jnp.linalg.norm(y.T @ y))
