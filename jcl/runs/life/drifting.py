"""Whether a model knows incoming rows less well than those that it was tested on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from jcl.training.drift import page_hinkley

THRESHOLD, TOLERANCE = 10.0, 0.5
"""Of the Page-Hinkley test, in standard deviations of the tested rows' losses."""


class Drift(NamedTuple):
    """What a detector found."""

    fired: bool
    said: str


def compare(
    known: Mapping[int, Mapping[str, Sequence[float]]], new: np.ndarray, higher_is_better: bool
) -> Drift:
    """What the detector finds between what rows of tests scored and what incoming ones do.

    Args:
      known: what each row of each test added to its score, and its weight.
      new: the same of incoming rows, [m, 2].
      higher_is_better: whether a score is no loss.
    """
    sign = -1 if higher_is_better else 1
    both = np.array([x for of in known.values() for x in of.values()]), new
    return detect(*(sign * x[:, 0] / x[:, 1] for x in (y[y[:, 1] > 0] for y in both)))


def detect(tested: np.ndarray, incoming: np.ndarray) -> Drift:
    """The Page-Hinkley test over the losses of tested rows and, after them, of incoming ones.

    Losses are in standard deviations from the mean of the tested ones, so that one threshold
    serves all models; where these don't differ at all, any higher loss counts fully.

    Args:
      tested: a loss for each row of all tests so far, [n].
      incoming: likewise for the new rows in their order, [m].

    Source: `jcl.drift.page_hinkley`.

    >>> rng = np.random.default_rng(0)
    >>> detect(rng.normal(size=40), rng.normal(size=40)).fired
    False
    >>> detect(rng.normal(size=40), 2 + rng.normal(size=40)).fired
    True
    """
    mean, spread = float(np.mean(tested)), max(float(np.std(tested)), 1e-6)
    values = (np.concatenate([tested, incoming]) - mean) / spread
    detector = page_hinkley(THRESHOLD, TOLERANCE, warm_up=max(len(tested), 1))
    _, since = lax.scan(detector.update, detector.init(), jnp.asarray(values, jnp.float32))
    at = np.flatnonzero(np.asarray(since)[len(tested) :])
    level = f"a loss of {float(np.mean(incoming)):.3f} where tests have {mean:.3f} ± {spread:.3f}"
    if len(at):
        return Drift(True, f"drift at row {int(at[0]) + 1} of {len(incoming)}: {level}")
    return Drift(False, f"no drift in {len(incoming)} rows: {level}")
