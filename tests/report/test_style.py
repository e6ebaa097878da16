"""One style: intervals, limits and numbers as all figures draw them."""

import numpy as np
import pytest
from scipy import stats

from jcl.report import style

pytestmark = pytest.mark.quick


def test_an_interval_is_student_s_and_0_for_one_sample():
    samples = np.random.default_rng(0).normal(size=(4, 3))
    wanted = stats.t.ppf(0.975, 3) * samples.std(axis=0, ddof=1) / 2
    np.testing.assert_allclose(style.interval(samples), wanted)
    np.testing.assert_array_equal(style.interval(samples[:1]), [0, 0, 0])


def test_intervals_end_at_the_bounds_and_none_is_drawn_of_a_single_seed():
    with style.drawing(4, 3) as figure:
        axes = figure.subplots()
        low, high = style.draw_intervals(axes, [0, 1], [0.9, 0.5], [0.3, 0.0], bounds=(0, 1))
        np.testing.assert_allclose(low, [0.6, 0.5])
        np.testing.assert_allclose(high, [1.0, 0.5])
        (bars,) = axes.collections
        assert len(bars.get_segments()) == 1  # the other has no width


def test_an_axis_of_values_that_are_all_but_equal_shows_no_rounding():
    with style.drawing(4, 3) as figure:
        axes = figure.subplots()
        axes.set_ylim(0.0, 1e-17)
        style.set_limits(axes, "y", least=0.1, bounds=(0.0, 1.0))
        assert axes.get_ylim() == (0.0, 0.1)
        axes.set_ylim(1.0, 0.9999)  # turned, and at the other bound
        style.set_limits(axes, "y", least=0.1, bounds=(0.0, 1.0))
        np.testing.assert_allclose(axes.get_ylim(), (1.0, 0.9))


def test_numbers_have_no_minus_zero_and_a_dash_where_they_are_undefined():
    assert style.number(-1e-17, 2) == "0.00"
    assert style.number(float("nan"), 2) == "–"
    assert style.number(1.23e7, 1) == "1.2e+07"


def test_colours_come_again_after_eight():
    assert style.hue(0) == style.hue(len(style.HUES)) != style.hue(1)
