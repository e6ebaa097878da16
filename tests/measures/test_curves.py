"""Measures of scores from within stages, against values worked out by hand."""

import numpy as np
import pytest

from jcl import metrics
from jcl.measures import curves

pytestmark = pytest.mark.quick


def test_curves():
    # task 0 dips to .3 in stage 1 and to .2 in stage 2; task 1 to .5
    curve = np.array([[0.9, 0, 0], [0.3, 0.7, 0], [0.8, 0.9, 0], [0.2, 0.5, 0.1], [0.6, 0.8, 0.95]])
    ends = (0, 2, 4)
    assert np.isclose(metrics.minimum_accuracy(curve, ends), (0.2 + 0.5) / 2)
    assert np.isclose(metrics.worst_case_accuracy(curve, ends), 0.95 / 3 + 2 / 3 * 0.35)
    assert np.isclose(metrics.stability_gap(curve, ends), np.mean([0.5, 0.4, 0.3]))
    both = metrics.stability_gap(np.stack([curve, curve * 2]), ends)
    np.testing.assert_allclose(both, [0.4, 0.8])


def test_a_task_s_minimum_starts_after_its_own_stage():
    curve = np.array([[0.1, 0], [0.5, 0.2], [0.4, 0.9]])
    assert np.isclose(metrics.minimum_accuracy(curve, (0, 2)), 0.4)


def test_ends_that_do_not_rise_are_refused():
    with pytest.raises(ValueError, match="increasing"):
        metrics.minimum_accuracy(np.zeros((5, 2)), (3, 1))


def test_anticipatory_recovery() -> None:
    cycle = np.array([[1.0, 2.0, 3.0, 3.0], [1.0, 5.0, 4.0, 1.0], [2.0, 2.0, 2.0, 2.0]])
    np.testing.assert_allclose(metrics.anticipatory_recovery(cycle), [0.0, 1.0, 0.0])


def test_metrics_offers_them_too():
    own = [n for n, x in vars(curves).items() if getattr(x, "__module__", "") == curves.__name__]
    public = [name for name in own if not name.startswith("_")]
    assert len(public) == 4
    assert all(getattr(metrics, name) is getattr(curves, name) for name in public)
