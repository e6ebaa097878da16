import re

import drawn_texts
import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from scipy.optimize import minimize

from jcl import metrics, report
from jcl.report import figures, labels, style


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
    """All words of a figure, whose texts keep apart."""
    return [text.get_text() for text in drawn_texts.check(figure)]


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


def nothing_forgotten(size):
    """A run whose forgetting is but rounding."""
    run = make(seeds=1)
    lost = np.where(np.isnan(run.forgetting), np.nan, size)
    return run._replace(scores=np.full_like(run.scores, 0.5), forgetting=lost)


def all_forgotten():
    """A run in which all is right, or nothing."""
    run = make(tasks=5)
    lost = np.where(np.isnan(run.forgetting), np.nan, 1.0)
    return run._replace(scores=np.round(run.scores), forgetting=lost)


def nearly_equal():
    """A run whose scores differ in the sixth digit."""
    run = make(tasks=8, higher=False)
    scores = 3.5 + 1e-6 * run.scores
    return run._replace(scores=scores, forgetting=1e-6 * run.forgetting)


LONG = "er(capacity=500, rows=16, policy='class') + ewc(strength=100.0) + si() + lwf(strength=2.0)"
VALUES = (0, 1e-3, 1, 15e3, 1e8)
AWKWARD = {
    "one task": make(tasks=1),
    "one seed": make(seeds=1),
    "joint": make(tasks=2, stages=[-1]),
    "recurring": make(tasks=3, stages=[0, 1, 0, 1, 2]),
    "unseen": make(tasks=3, stages=[2, 1]),
    "twelve": make(tasks=12, seeds=3),
    "thirty": make(tasks=30),
    "hundred": make(tasks=100, seeds=1),
    "loss": make(higher=False, top=9.0),
    "large loss": make(higher=False, top=3e7),
    "names": make(names=["a very long name of a task indeed", "b$_2$", "c"]),
    "label": make(label=LONG),
    "measure": make(higher=False, top=9)._replace(measure="log perplexity of right answers"),
    "nothing": nothing_forgotten(0.0),
    "rounding": nothing_forgotten(1e-17),
    "all": all_forgotten(),
    "nearly equal": nearly_equal(),
}
DRAWINGS = {
    "matrix": figures.matrix,
    "curves": figures.curves,
    "forgetting": figures.forgetting,
    "one": lambda run: figures.comparison([run]),
    "two": lambda run: figures.comparison([run, run._replace(label=LONG)]),
    "four": lambda run: figures.comparison([run, run._replace(label=LONG)] * 2),
    "twelve": lambda run: figures.comparison([run, run._replace(label=LONG)] * 6),
    "sweep": lambda run: figures.sweep(
        "ewc.strength", (0, 1e-3, 1, 15e3, 1e8), [run] * 5, [run] * 2
    ),
}


@pytest.mark.parametrize("name", DRAWINGS)
@pytest.mark.parametrize("kind", AWKWARD)
def test_texts_keep_apart_and_axes_claim_no_more_than_is_so(kind, name):
    run = AWKWARD[kind]
    figure = DRAWINGS[name](run)
    words = drawn(figure)
    assert words
    several = len(run.scores) > 1
    assert several or not drawn_texts.intervals(figure)
    assert several or not [word for word in words if "95 %" in word]
    assert not [word for word in words if re.search(r"\de[-−]\d|^[-−]0(\.0+)?$", word)]
    for axes in figure.axes:
        low, high = axes.get_ylim()
        if axes.get_ylabel().replace("\n", " ") == "accuracy (%)":
            assert low >= 0 and high <= 100
        if axes.get_ylabel().replace("\n", " ") == "percentage points lost":
            assert low >= -100 and high <= 100
        if name == "twelve" and run.measure == "accuracy":
            assert axes.get_xlim()[1] <= 100


@pytest.mark.parametrize("name", ["curves", "forgetting", "two", "twelve", "sweep"])
def test_intervals_are_drawn_and_said_of_several_seeds(name):
    figure = DRAWINGS[name](make(seeds=3))
    assert drawn_texts.intervals(figure)
    assert "thin bars: 95 % intervals over 3 seeds" in drawn(figure)


def test_a_run_of_one_seed_beside_one_of_three_has_no_bar():
    figure = figures.ranking([make(seeds=3), make(seeds=1)])
    assert drawn_texts.intervals(figure) == 2  # of the first, in either panel
    said = "thin bars: 95 % intervals over 3 seeds, one where there is no bar"
    assert said in drawn(figure)


def test_intervals_end_where_shares_do():
    run = make(seeds=2)
    run.scores[:, :, 0] = [[0.0], [1.0]]  # its interval is far wider than from 0 to 1
    figure = figures.curves(run)
    ends = [s[:, 1] for c in figure.findobj(LineCollection) for s in c.get_segments()]
    assert np.min(ends) == 0 and np.max(ends) == 100


@pytest.mark.parametrize("count", [2, 5, 7])
def test_names_of_lines_are_spread_as_little_as_can_be(count):
    wanted = 10 * np.random.default_rng(count).random(count)
    found = labels.spread(wanted, 1.0, 0.0, 10.0)
    best = minimize(
        lambda x: ((x - np.sort(wanted)) ** 2).sum(),
        np.arange(count) + 1.0,
        bounds=[(0, 10)] * count,
        constraints=[{"type": "ineq", "fun": lambda x: np.diff(x) - 1.0}],
    )
    np.testing.assert_allclose(np.sort(found), best.x, atol=1e-3)
    np.testing.assert_array_equal(np.argsort(found), np.argsort(wanted))


def test_names_of_points_that_lie_together_keep_apart():
    rng = np.random.default_rng(1)
    points = [(float(x), float(y)) for x, y in 0.5 + 0.02 * rng.random((12, 2))]
    names = [f"a method of number {i}" for i in range(12)]
    with style.drawing(6, 4) as figure:
        axes = figure.add_subplot()
        axes.set(xlim=(0, 1), ylim=(0, 1))
        for x, y in points:
            axes.plot(x, y, "o", color=style.INK)
        labels.name_points(axes, points, names, [style.INK] * 12)
    assert set(names) <= set(drawn(figure))


def test_the_check_sees_texts_that_overlap_and_that_are_cut_off():
    figure = Figure(figsize=(4, 3))
    for x, text in ((0.1, "one over another"), (0.15, "another"), (0.8, "a text that goes beyond")):
        figure.text(x, 0.5, text)
    figure.text(0.1, 0.8, "steep", rotation=45)
    figure.text(0.16, 0.78, "beneath")  # in the box about the turned one, but not over it
    texts = drawn_texts.draw(figure)
    assert drawn_texts.overlaps(texts) == [("one over another", "another")]
    assert drawn_texts.cut_off(figure, texts) == ["a text that goes beyond"]


@pytest.mark.parametrize("nodes", [1, 4, 9])
@pytest.mark.parametrize("seeds", [1, 3])
def test_a_pipeline_of_any_length(nodes, seeds):
    rng = np.random.default_rng(0)
    names = [f"a node of number {i}" for i in range(nodes)]
    panels = [
        figures.Panel(n, "log perplexity (lower is better)", list(rng.random((nodes, seeds, 3))))
        for n in names[:3]
    ]
    flat = np.full((nodes, seeds, 3), 0.28)
    panels.append(figures.Panel("general", "accuracy (%)", list(flat), share=True))
    figure = figures.pipeline(panels, names)
    said = [word for word in drawn(figure) if "95 %" in word]
    assert len(said) == (seeds > 1) and bool(drawn_texts.intervals(figure)) == (seeds > 1)
    low, high = figure.axes[-1].get_ylim()
    assert 0 <= low < 28 < high <= 100 and high - low >= 2


@pytest.mark.parametrize("value", [np.linspace(9, 1, 50), np.full(50, 1e-17), np.ones(1)])
def test_a_loss_of_any_size(value):
    stage = np.arange(len(value)) // 10
    words = drawn(figures.loss(np.arange(len(value)), value[None], stage, [{}]))
    assert not [word for word in words if re.search(r"\de[-−]\d", word)]


def test_a_sweep_has_a_loss_for_each_point_and_none_for_one_that_diverged_at_once():
    values = np.array([[3.0, 2.0, 1.0], [np.nan] * 3, [3.0, np.nan, np.nan]])
    points = [{"lr": 0.1}, {"lr": 1e30}, {"lr": 10.0}]
    figure = figures.loss(np.arange(3), values, np.zeros(3, int), points)
    words = drawn(figure)
    assert {"lr=0.1", "lr=10"} <= set(words) and not [word for word in words if "1e30" in word]


@pytest.mark.quick
def test_scores_that_are_undefined_are_drawn_as_such():
    run = make()
    run.scores[:, :, 1] = np.nan
    assert "–" in drawn(figures.matrix(run))
    assert drawn(figures.curves(run))
