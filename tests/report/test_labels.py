"""Where names go: places that are apart, and as near to those wanted as can be."""

import numpy as np
import pytest
from scipy.optimize import LinearConstraint, minimize

from jcl.report import labels

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("seed", range(5))
def test_places_are_the_nearest_that_are_a_gap_apart(seed):
    wanted = np.random.default_rng(seed).uniform(2, 8, 6)
    found = labels.spread(wanted, 1.2, 0.0, 10.0)
    order = np.argsort(wanted)
    assert np.diff(found[order]).min() > 1.2 - 1e-9
    assert found.min() >= 0 and found.max() <= 10
    steps = np.diff(np.eye(6)[order], axis=0)
    best = minimize(
        lambda x: np.sum((x - wanted) ** 2), found + 0.01, method="trust-constr",
        constraints=LinearConstraint(steps, 1.2, np.inf), bounds=[(0, 10)] * 6,
    )  # fmt: skip
    assert np.sum((found - wanted) ** 2) <= best.fun + 1e-3


def test_where_there_is_no_room_they_are_around_the_middle():
    found = labels.spread(np.array([0.0, 1.0, 2.0]), 5.0, 0.0, 4.0)
    np.testing.assert_allclose(found, [-3.0, 2.0, 7.0])


def test_a_long_name_is_cut_with_an_ellipsis():
    assert labels.shorten("progressive_prompts", 8) == "progres…"
    assert labels.shorten("er()", 8) == "er()"
