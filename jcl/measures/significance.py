"""What a few seeds can say: intervals for a mean, and paired tests with a correction for many."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from jcl.method import check


def interval(values: Any, level: float = 0.95) -> tuple[float, float | None]:
    """Mean and half-width of Student's t interval for it, over runs.

    Args:
      values: [n], a number for each seed.
      level: the level of confidence.

    Returns:
      `(mean, half)`; half is None for a single value, which says nothing about its spread.

    >>> mean, half = interval([1.0, 2.0, 3.0])
    >>> round(mean, 3), round(half, 3)
    (2.0, 2.484)
    """
    # the quantile of `scipy.stats.t`, without what `scipy.stats` takes to import
    from scipy.special import stdtrit

    values = np.asarray(values, np.float64).reshape(-1)
    check(values.size >= 1, "number of values", values.size, "at least 1")
    check(0 < level < 1, "level", level, "between 0 and 1")
    mean = float(values.mean())
    if values.size == 1:
        return mean, None
    error = float(values.std(ddof=1)) / math.sqrt(values.size)
    return mean, float(stdtrit(values.size - 1, (1 + level) / 2)) * error


def paired_t(a: Any, b: Any) -> float | None:
    """The two-sided p of Student's paired t test that two methods do equally well.

    Runs of one seed share their data, order and start, so that their difference varies less than
    either. A pair of which one is NaN, for its run diverged, is left out.

    Args:
      a: [n], a number for each seed.
      b: [n], the same measure of the other method over the same seeds.

    Returns:
      p, 1 where all pairs are equal; None where fewer than two pairs are left, which say nothing.

    Source: `scipy.stats.ttest_rel`.

    >>> round(paired_t([0.5, 0.6, 0.7], [0.4, 0.4, 0.6]), 3)
    0.057
    """
    from scipy import stats  # half a second, which nothing else waits for

    a, b = (np.asarray(x, np.float64).reshape(-1) for x in (a, b))
    check(a.shape == b.shape, "numbers of seeds", (a.size, b.size), "equal for paired tests")
    some = np.isfinite(a) & np.isfinite(b)
    if some.sum() < 2:
        return None
    apart = a[some] - b[some]
    if np.ptp(apart) == 0:  # no spread at all, of which the statistic is 0 / 0 or infinite
        return float(apart[0] == 0)
    return float(stats.ttest_1samp(apart, 0).pvalue)


def holm(p: Any) -> np.ndarray:
    """Holm's adjustment of p values [n], of tests that are looked at together.

    That one of them is below a level by chance is then as rare as the level says, however they hang
    together. In ascending order the i-th, from 0 on, is multiplied by n - i, and is at least the
    one before and at most 1.

    Source: Holm, A simple sequentially rejective multiple test procedure, 1979.

    >>> holm([0.01, 0.04, 0.03]).round(3).tolist()
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p, np.float64)
    order = np.argsort(p)
    steps = np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order])
    out = np.empty_like(p)
    out[order] = np.minimum(steps, 1)
    return out
