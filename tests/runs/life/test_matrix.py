"""The growing matrix: which entries there are, and that measures leave the others out."""

from __future__ import annotations

import numpy as np
import pytest

from jcl.measures import metrics
from jcl.runs.life import matrix
from jcl.runs.life.book import Stage

pytestmark = pytest.mark.quick
LINE = [
    Stage(0, "a", -1, True, {"base": 0.1, "before": 0.1, "scores": {"a": 0.9}}),
    Stage(1, "b", 0, True, {"base": 0.2, "before": 0.3, "scores": {"a": 0.5, "b": 0.8}}),
    Stage(2, "c", 1, True, {"base": 0.1, "before": 0.2, "scores": {"a": 0.4, "b": 0.6, "c": 0.7}}),
]


def test_it_has_what_was_scored() -> None:
    none = np.nan
    np.testing.assert_array_equal(
        matrix.scores(LINE),
        [[0.1, 0.2, 0.1], [0.9, 0.3, none], [0.5, 0.8, 0.2], [0.4, 0.6, 0.7]],
    )


def test_measures_are_those_of_what_is_known() -> None:
    found = matrix.measured(LINE, True)
    full = np.where(np.isnan(matrix.scores(LINE)), 0.0, matrix.scores(LINE))
    expected = metrics.summary(full)
    for name in matrix.MEASURES:
        assert found[name] == pytest.approx(100 * expected[name]["mean"])
    assert found["b"] == pytest.approx(60) and found["forgetting"] == pytest.approx(35)
    assert found["forward_transfer"] == pytest.approx(10)
    assert matrix.measured(LINE[:1], True)["forgetting"] is None
    assert matrix.measured(LINE[:1], False)["a"] == pytest.approx(0.9)
