"""Measures of what was scored along the way, not only where stages end: its dips and recoveries.

NumPy in, NumPy out; leading axes, of seeds say, broadcast. `jcl.metrics` offers all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jcl.method import check


def _mean(terms: list[Any]) -> Any:
    return sum(terms) / len(terms)


def _minima(curve: Any, ends: Sequence[int]) -> list[Any]:
    """The lowest score of each task but the last, from after its own stage to the end."""
    check(len(ends) >= 2, "number of stages", len(ends), "at least 2")
    check(list(ends) == sorted(set(ends)), "ends", list(ends), "increasing")
    check(
        curve.shape[-2] > ends[-1], "ends", list(ends), f"below {curve.shape[-2]}, curve's length"
    )
    last = ends[-1] + 1
    return [curve[..., ends[j] + 1 : last, j].min(-1) for j in range(len(ends) - 1)]


def minimum_accuracy(curve: Any, ends: Sequence[int]) -> Any:
    """min-ACC: mean over old tasks of their lowest score since their own stage ended.

    Args:
      curve: [..., evaluations, tasks], scores evaluated during training, task j being stage j's.
        The lowest depends on how often one evaluates: every step in the paper.
      ends: for each stage the row of `curve` that was evaluated at its end.

    Source: De Lange et al., arXiv 2205.13452.
    """
    return _mean(_minima(np.asarray(curve), ends))


def worst_case_accuracy(curve: Any, ends: Sequence[int]) -> Any:
    """WC-ACC: 1/k · A_k + (1 - 1/k) · min-ACC, with A_k the last task's score at the end.

    A lower bound of what the model would have scored at any time. Arguments as `minimum_accuracy`.

    Source: De Lange et al., arXiv 2205.13452.
    """
    curve, k = np.asarray(curve), len(ends)
    return curve[..., ends[-1], k - 1] / k + (1 - 1 / k) * minimum_accuracy(curve, ends)


def stability_gap(curve: Any, ends: Sequence[int]) -> Any:
    """How far old tasks' scores fall within a stage below their scores at its end, on average.

    Mean over switches k and old tasks j < k of (score at the end of stage k) - (minimum over stage
    k): the passing loss that scores at ends of stages don't show. Arguments as `minimum_accuracy`.

    Source: the phenomenon is De Lange et al.'s, arXiv 2205.13452; this one number for it is ours.
    """
    curve = np.asarray(curve)
    _minima(curve, ends)
    gaps = []
    for k in range(1, len(ends)):
        stage = curve[..., ends[k - 1] + 1 : ends[k] + 1, :k]
        gaps += [(stage[..., -1, j] - stage[..., j].min(-1)) for j in range(k)]
    return _mean(gaps)


def anticipatory_recovery(losses: Any) -> Any:
    """The share of its forgetting that a text recovers before its turn comes again, in [0, 1].

    (max - last) / (max - first) of a cycle's losses on one text, `losses` [..., steps]: the first
    is right after training on it, the last right before training on it again. 0: its loss is still
    at its highest; 1: the model knows it again as if it had just read it. 0 where nothing was
    forgotten.

    Source: the recovery score of Yang et al., arXiv 2403.09613, section 3, "the proportion of the
    initial forgetting during the current epoch that the model recovers before returning to the
    same document"; how the initial forgetting is measured is our reading of it.

    >>> anticipatory_recovery([1.0, 3.0, 5.0, 4.0]).item()
    0.25
    """
    losses = losses if hasattr(losses, "ndim") else np.asarray(losses, np.float64)
    highest = losses.max(-1)
    forgotten = highest - losses[..., 0]
    recovered = highest - losses[..., -1]
    return recovered / (forgotten + (forgotten <= 0))
