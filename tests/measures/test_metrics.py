"""The measures against values worked out by hand, and against scipy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jcl import metrics

pytestmark = pytest.mark.quick

# design.md's example, under a row from before training
R = np.array([[0.2, 0.1, 0.3], [0.9, 0.1, 0.1], [0.5, 0.8, 0.1], [0.4, 0.6, 0.7]])


def test_the_design_s_example():
    assert np.isclose(metrics.backward_transfer(R), -0.35)
    assert np.isclose(metrics.gem_backward_transfer(R), -0.7 / 3)
    assert np.isclose(metrics.all_pairs_backward_transfer(R), -1.1 / 3)
    assert np.isclose(metrics.forgetting(R), 0.35)
    assert np.isclose(metrics.average(R), 1.7 / 3)
    assert np.isclose(metrics.learning_accuracy(R), 0.8)
    assert np.isclose(metrics.forward_transfer(R), ((0.1 - 0.1) + (0.1 - 0.3)) / 2)
    assert np.isclose(metrics.any_time_average(R), (0.9 + 0.65 + 1.7 / 3) / 3)
    assert np.isclose(metrics.intransigence(R, [0.95, 0.9, 0.9]), (0.05 + 0.1 + 0.2) / 3)


def test_forgetting_takes_the_best_earlier_row_and_never_the_last_or_the_first():
    rising = np.array([[0.99, 0.99], [0.5, 0.1], [0.7, 0.9]])
    assert np.isclose(metrics.forgetting(rising), -0.2)
    early = np.array([[0, 0, 0], [0.5, 0.8, 0], [0.4, 0.6, 0], [0.5, 0.5, 0.9]])
    assert np.isclose(metrics.forgetting(early), (0.0 + 0.3) / 2)


def test_leading_axes_broadcast_and_jax_traces():
    many = np.stack([R, R + 0.01, 2 * R])
    for name in metrics.definitions:
        fn = getattr(metrics, name)
        each = [fn(r) for r in many]
        np.testing.assert_allclose(fn(many), each)
        np.testing.assert_allclose(jax.jit(fn)(jnp.asarray(many)), each, rtol=1e-5, atol=1e-6)


def test_recurring_streams_compare_with_the_last_visit():
    # a, b, a: b alone was left before the end
    M = np.array([[0.1, 0.1], [0.9, 0.2], [0.5, 0.8], [0.95, 0.7]])
    visits = (0, 1, 0)
    assert np.isclose(metrics.backward_transfer(M, visits), 0.7 - 0.8)
    assert np.isclose(metrics.forgetting(M, visits), 0.1)
    assert np.isclose(metrics.forward_transfer(M, visits), 0.2 - 0.1)
    assert np.isclose(metrics.learning_accuracy(M, visits), (0.9 + 0.8 + 0.95) / 3)
    pairs = [(0.5 - 0.9), (0.95 - 0.9), (0.7 - 0.8)]
    assert np.isclose(metrics.all_pairs_backward_transfer(M, visits), np.mean(pairs))


def test_fewer_stages_than_columns():
    M = np.array([[0.1, 0.2, 0.3], [0.9, 0.2, 0.3], [0.8, 0.9, 0.5]])
    assert np.isclose(metrics.backward_transfer(M), -0.1)
    assert np.isclose(metrics.average(M), (0.8 + 0.9 + 0.5) / 3)


def test_one_stage_of_everything():
    M = np.array([[0.1, 0.2], [0.6, 0.8]])
    found = metrics.summary(M, tasks=(-1,))
    assert np.isclose(found["average"]["mean"], 0.7)
    assert np.isclose(found["learning_accuracy"]["mean"], 0.7)
    assert found["backward_transfer"]["mean"] is None
    assert found["forgetting"]["ci95"] is None


def test_language_measures():
    assert np.isclose(metrics.perplexity(np.log(20.0)), 20.0)
    assert np.isclose(metrics.bits_per_byte(2 * np.log(2), tokens=10, size=40), 0.5)


def test_fuar():
    assert np.isclose(metrics.fuar([0.2, -0.1], [0.1, -0.5], [0.3, 0.0]), 0.5)
    assert metrics.fuar([0.2], [-0.1], [0.0]) == float("inf")


@pytest.mark.parametrize(
    "invariant, updated, new, published",
    [
        (12.89, 10.17, 3.77, 1.08),  # T5-Vanilla
        (13.20, 12.55, 4.02, 0.84),  # T5-RecAdam
        (13.92, 6.49, 2.89, 1.74),  # T5-MixReview
        (16.58, 12.77, 4.52, 0.55),  # T5-LoRA
        (19.59, 12.34, 5.03, 0.33),  # T5-Kadapters, k = 2
        (20.29, 12.66, 4.65, 0.28),  # T5-Modular
    ],
)
def test_fuar_is_as_published(invariant, updated, new, published):
    """Table 2 of arXiv 2110.03215: exact match on InvariantLAMA, UpdatedLAMA and NewLAMA."""
    before = (24.17, 1.62, 1.88)
    found = metrics.fuar(before[0] - invariant, updated - before[1], new - before[2])
    assert round(found, 2) == published


def test_summary_negates_what_is_lower_better():
    losses = np.stack([1 - R, 1.1 - R])  # a loss whose negative has R's differences
    found = metrics.summary(losses, higher_is_better=False)
    assert np.isclose(found["backward_transfer"]["mean"], -0.35)
    assert np.isclose(found["forgetting"]["mean"], 0.35)
    assert np.isclose(found["average"]["mean"], 1.05 - 1.7 / 3)
    assert "lower is better" in found["forgetting"]["definition"]
    assert "lower is better" not in found["average"]["definition"]
    assert np.isclose(found["backward_transfer"]["ci95"], 0, atol=1e-12)
    half = stats.t.ppf(0.975, 1) * np.std([0, 0.1], ddof=1) / np.sqrt(2)
    assert np.isclose(found["average"]["ci95"], half)
    assert set(found) == set(metrics.definitions)


def test_bad_shapes_are_refused():
    with pytest.raises(ValueError, match=r"tasks is \[0, 1\], but must be of length 3"):
        metrics.backward_transfer(R, (0, 1))
    with pytest.raises(ValueError, match="from -1 to 2"):
        metrics.backward_transfer(R, (0, 1, 3))
    with pytest.raises(ValueError, match="or tasks be given"):
        metrics.backward_transfer(np.zeros((5, 2)))


def test_vertical_forgetting_is_what_the_probes_lost():
    P = np.array([[0.5, 0.8], [0.6, 0.4], [0.4, 0.7]])
    assert metrics.vertical_forgetting(P) == pytest.approx(0.1)
    np.testing.assert_allclose(metrics.vertical_forgetting(np.stack([P, P[::-1]])), [0.1, -0.1])


@pytest.mark.parametrize(
    ("scores", "published"),
    [
        ((46.43, 3.49, 30.11, 33.23, 77.89, 76.50), -2.58),  # sequential
        ((42.28, 14.71, 33.61, 21.72, 53.43, 75.19), -7.03),  # with LoRA
        ((47.04, 3.03, 36.61, 31.57, 75.75, 75.30), -2.31),  # with replay
    ],
)
def test_trace_s_delta_is_as_published(scores, published) -> None:
    """LLaMA-2-7B-chat on MMLU, GSM, BBH, TyDiQA, BoolQ and PIQA: table 2 of arXiv 2310.06762."""
    before = (46.56, 26.08, 40.23, 23.47, 70.55, 76.22)
    P = np.array([before, scores])
    delta = metrics.trace_deltas(P, ["general"] * 6)["general"]
    assert delta == pytest.approx([published], abs=0.011)
    assert delta == pytest.approx([-metrics.vertical_forgetting(P)])


def test_trace_s_deltas_are_apart_by_kind_for_each_stage() -> None:
    P = np.array([[0.5, 0.2, 0.9], [0.4, 0.3, 0.9], [0.1, 0.2, 0.5]])
    deltas = metrics.trace_deltas(np.stack([P, P]), ["general", "safety", "general"])
    assert list(deltas) == ["general", "safety"]
    assert np.allclose(deltas["general"], [[-0.05, -0.4]] * 2)
    assert np.allclose(deltas["safety"], [[0.1, 0.0]] * 2)
    with pytest.raises(ValueError, match="kinds is"):
        metrics.trace_deltas(P, ["general"])


def test_overall_performance_is_over_the_tasks_seen() -> None:
    assert np.allclose(metrics.overall_performance(R), [0.9, 1.3 / 2, 1.7 / 3])
    assert np.isclose(np.mean(metrics.overall_performance(R)), metrics.any_time_average(R))
    again = metrics.overall_performance(R, tasks=[1, 0, 1])
    assert np.allclose(again, [0.1, 1.3 / 2, 1.0 / 2])
