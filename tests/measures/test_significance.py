"""Intervals and tests over seeds, held against scipy, published tables and closed forms."""

from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from jcl import metrics
from jcl.measures import significance

pytestmark = pytest.mark.quick
# hours of sleep gained by ten patients with each of two drugs: Student, Biometrika 6 (1908)
SLEEP = (
    [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0],
    [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4],
)


@pytest.mark.parametrize("count", [2, 3, 4, 5, 8, 11, 40])
def test_interval_is_student_s(count):
    values = np.random.default_rng(count).normal(size=count)
    mean, half = metrics.interval(values)
    assert half is not None
    low, high = stats.t.interval(0.95, count - 1, values.mean(), stats.sem(values))
    np.testing.assert_allclose([mean - half, mean + half], [low, high], rtol=1e-9)


# column t.975 of NIST/SEMATECH's e-Handbook of Statistical Methods, 1.3.6.7.2
@pytest.mark.parametrize(
    "freedom, quantile",
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (9, 2.262), (30, 2.042), (100, 1.984)],
)
def test_interval_has_the_quantiles_of_a_table(freedom, quantile):
    values = np.arange(freedom + 1.0)
    error = np.std(values, ddof=1) / np.sqrt(freedom + 1)
    half = metrics.interval(values)[1]
    assert half is not None and round(half / error, 3) == quantile


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.99, 0.999])
def test_interval_of_two_and_three_is_the_closed_form(level):
    two, three = (metrics.interval(np.arange(n), level)[1] for n in (2.0, 3.0))
    assert two == pytest.approx(np.tan(np.pi * level / 2) * np.sqrt(1 / 2 / 2), rel=1e-9)
    exact = level * np.sqrt(2 / (1 - level**2))
    assert three == pytest.approx(exact * np.sqrt(1 / 3), rel=1e-9)


def test_interval_of_one_has_no_width():
    assert metrics.interval([3.0]) == (3.0, None)


def test_the_paired_test_is_student_s_own_example():
    # R's documentation of `sleep`: t = -4.0621, df = 9, p-value = 0.002833
    assert significance.paired_t(*SLEEP) == pytest.approx(0.002833, abs=5e-7)
    assert significance.paired_t(*SLEEP) == pytest.approx(stats.ttest_rel(*SLEEP).pvalue)


def test_pairs_of_which_one_diverged_are_left_out():
    a, b = (np.array(x) for x in SLEEP)
    a[3], b[7] = np.nan, np.nan
    left = [i for i in range(10) if i not in (3, 7)]
    expected = stats.ttest_rel(a[left], b[left]).pvalue
    assert significance.paired_t(a, b) == pytest.approx(expected)
    assert significance.paired_t([1.0, np.nan], [2.0, 3.0]) is None


def test_pairs_without_spread_are_equal_or_apart():
    assert significance.paired_t([1.0, 2.0], [1.0, 2.0]) == 1.0
    assert significance.paired_t([1.0, 2.0], [0.5, 1.5]) == 0.0


@pytest.mark.parametrize("seed", range(5))
def test_holm_is_bonferroni_over_all_sets_of_hypotheses(seed):
    """Its adjusted p is the largest of Bonferroni's over the sets that have the hypothesis."""
    p = np.random.default_rng(seed).uniform(0, 0.4, 5)
    sets = [s for size in range(1, 6) for s in combinations(range(5), size)]
    closed = [max(min(1, len(s) * min(p[list(s)])) for s in sets if i in s) for i in range(5)]
    np.testing.assert_allclose(significance.holm(p), closed)
