import warnings

import numpy as np
import pytest

from jcl import metrics, report
from jcl.report import figures


def make(tasks=3, stages=None, seeds=2, higher=True, label="naive()", top=1.0, names=None):
    stage_tasks = list(range(tasks)) if stages is None else stages
    rng = np.random.default_rng(len(label))
    scores = top * rng.random((seeds, len(stage_tasks) + 1, tasks))
    names = names or [f"task {t}" for t in range(tasks)]
    stage_names = [names[t] if t >= 0 else "all" for t in stage_tasks]
    trained = [[s + 1 for s, t in enumerate(stage_tasks) if t in (j, -1)] for j in range(tasks)]
    learned = [rows[0] if rows else len(stage_tasks) + 1 for rows in trained]
    forgotten = report.forgetting(scores, stage_tasks, higher)
    measure = "accuracy" if higher else "loss"
    return report.Scores(label, scores, forgotten, learned, stage_names, names, measure, higher)


def drawn(figure):
    """All text of a figure, once it has really been laid out and drawn."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a layout that doesn't fit warns
        figure.draw_without_rendering()
    return [t.get_text() for t in figure.findobj(lambda a: hasattr(a, "get_text"))]


@pytest.mark.quick
def test_interval_is_that_of_metrics():
    samples = np.random.default_rng(0).random((6, 2, 3))
    expected = [[metrics.interval(samples[:, i, j])[1] for j in range(3)] for i in range(2)]
    np.testing.assert_allclose(figures.interval(samples), expected)
    assert figures.interval(samples[:1]).tolist() == np.zeros((2, 3)).tolist()


def test_the_heat_map_has_the_mean_in_every_cell():
    run = make()
    figure = figures.matrix(run)
    shown = np.asarray(figure.axes[0].images[0].get_array())
    np.testing.assert_allclose(shown, 100 * run.scores.mean(axis=0))
    words = drawn(figure)
    for value in 100 * run.scores.mean(axis=0).reshape(-1):
        assert f"{value:.0f}" in words
    assert "before" in words and "after task 2" in words


def test_in_a_heat_map_better_is_darker_also_for_losses():
    for higher in (True, False):
        run = make(higher=higher, top=1 if higher else 5)
        shade = np.asarray(figures.matrix(run).axes[0].images[0].get_array())
        mean = run.scores.mean(axis=0)
        assert np.argmax(shade) == (np.argmax(mean) if higher else np.argmin(mean))


def test_bars_are_as_high_as_what_was_forgotten():
    runs = [make(label="naive()"), make(label="er()", seeds=1)]
    axes = figures.comparison(runs).axes[-1]
    heights = [bar.get_height() for bar in axes.patches]
    expected = [
        x for r in runs for x in (*r.forgetting[:, :2].mean(axis=0), r.forgetting[:, :2].mean())
    ]
    np.testing.assert_allclose(heights, 100 * np.asarray(expected))


def test_the_swept_values_are_drawn_in_their_order():
    runs = [make(label=x) for x in ("b", "ccc", "aa")]
    figure = figures.sweep("ewc.strength", [10.0, 100.0, 0.0], runs, [make(label="naive()")])
    line = figure.axes[0].lines[0].get_ydata()
    np.testing.assert_allclose(line, [100 * runs[i].average.mean() for i in (2, 0, 1)])
    words = drawn(figure)
    assert "ewc.strength" in words and "naive()" in words
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["0", "10", "100"]


@pytest.mark.parametrize(
    "run",
    [
        make(tasks=1),
        make(tasks=2, stages=[-1]),
        make(tasks=3, stages=[0, 1, 0, 1, 2]),
        make(tasks=3, stages=[2, 1]),
        make(tasks=100, seeds=1),
        make(higher=False, top=9.0),
        make(names=["a very long name of a task indeed", "b$_2$", "c"]),
        make(label="er(capacity=500, rows=16, policy='class') + ewc(strength=100.0) + si()"),
    ],
    ids=["one task", "joint", "recurring", "unseen", "hundred", "loss", "names", "label"],
)
def test_every_kind_of_run_can_be_drawn(run):
    for draw in (figures.matrix, figures.curves, figures.forgetting):
        assert drawn(draw(run))
    for count in (2, 6):
        assert drawn(figures.comparison([run] * count))


@pytest.mark.quick
def test_scores_that_are_undefined_are_drawn_as_such():
    run = make()
    run.scores[:, :, 1] = np.nan
    assert "–" in drawn(figures.matrix(run))
    assert drawn(figures.curves(run))
