"""The figures of a report, drawn from score matrices [seeds, stages + 1, tasks].

A report shows the same pictures on a dark page by inverting them. How they look is in `style`, and
how their texts keep apart in `labels`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jcl.report.folder import Scores
from jcl.report.format import scale_of
from jcl.report.labels import name_ends, shorten, write_value
from jcl.report.style import (
    GRID,
    HEAT,
    HUES,
    INK,
    MUTED,
    ORDER,
    Bounds,
    draw_intervals,
    draw_line,
    drawing,
    hue,
    interval,
    note_seeds,
    number,
    set_limits,
)

MANY = 12
"""Above so many tasks, lines get thin and lose their names."""


def _text(value: float, scale: int) -> str:
    return number(value, 0 if scale == 100 else 2)


def _unit(run: Scores) -> str:
    if scale_of(run) == 100:
        return f"{run.measure} (%)"
    return f"{run.measure} ({'higher' if run.higher_is_better else 'lower'} is better)"


def _loss_unit(run: Scores) -> str:
    return "percentage points lost" if scale_of(run) == 100 else f"{run.measure} lost"


def _score_bounds(scale: int) -> Bounds:
    return (0, 100) if scale == 100 else (None, None)


def _loss_bounds(scale: int) -> Bounds:
    return (-100, 100) if scale == 100 else (None, None)


def _least(scale: int) -> float:
    """The least length of an axis: of per cent, or of a score in its own unit."""
    return 2.0 if scale == 100 else 0.05


def _ticks(axes: Axes, at: Any, names: Sequence[str]) -> None:
    """Names under the x axis, some left out where there are many; `settle` tilts long ones."""
    every = max(1, -(-len(names) // 16))
    axes.set_xticks(np.asarray(at)[::every], [shorten(n, 14) for n in names[::every]])


def matrix(run: Scores) -> Figure:
    """The score matrix as a heat map: a row a stage, a column a task."""
    scale = scale_of(run)
    mean = scale * np.mean(run.scores, axis=0)
    rows, columns = mean.shape
    shade = mean if run.higher_is_better else -mean
    low, high = (0.0, 100.0) if scale == 100 else (np.nanmin(shade), np.nanmax(shade))
    high = max(high, low + 1e-9)
    with drawing(2.4 + 0.72 * columns, min(1.5 + 0.4 * rows, 8)) as figure:
        axes = figure.add_subplot()
        axes.imshow(shade, cmap=HEAT, vmin=low, vmax=high, aspect="auto")
        axes.grid(False)
        axes.spines[:].set_visible(False)
        if columns <= MANY and rows <= 24:
            for r, c in np.ndindex(rows, columns):
                dark = (shade[r, c] - low) / (high - low) > 0.55
                axes.text(
                    c, r, _text(mean[r, c], scale), ha="center", va="center", fontsize=9,
                    color="white" if dark else INK,
                )  # fmt: skip
            axes.set_xticks(np.arange(0.5, columns - 1), minor=True)
            axes.set_yticks(np.arange(0.5, rows - 1), minor=True)
            axes.grid(True, which="minor", axis="both", color="white", linewidth=2)
        _ticks(axes, range(columns), run.tasks)
        every = max(1, -(-rows // 24))
        names = ["before", *(f"after {shorten(s, 12)}" for s in run.stages)]
        axes.set_yticks(range(0, rows, every), names[::every])
        axes.set_title(f"{run.measure[:1].upper()}{_unit(run)[1:]} of each task")
    return figure


def _lines(axes: Axes, run: Scores) -> None:
    """One line a task over stages, faint until it is trained on, with its interval over seeds."""
    scale = scale_of(run)
    mean, half = scale * np.mean(run.scores, axis=0), scale * interval(run.scores)
    many = len(run.tasks) > MANY
    x = np.arange(len(mean))
    for t in range(len(run.tasks)):
        color = ORDER(t / max(len(run.tasks) - 1, 1))
        at = run.learned[t] - 1  # the last row before it is trained on
        width = 0.8 if many else 2
        parts = (
            (slice(0, at + 1), 0.0 if many else 0.25),
            (slice(at, at + 2), 0.15 if many else 0.4),
            (slice(at + 1, None), 0.6 if many else 1.0),
        )
        for rows, alpha in parts:
            if len(x[rows]) > 1:
                axes.plot(x[rows], mean[rows, t], color=color, alpha=alpha, lw=width, clip_on=False)
        if not many and len(x[at + 1 :]):
            axes.plot(x[at + 1 :], mean[at + 1 :, t], "o", color=color, clip_on=False)
            draw_intervals(
                axes, x[at + 1 :], mean[at + 1 :, t], half[at + 1 :, t], color,
                bounds=_score_bounds(scale),
            )  # fmt: skip
    if many:
        axes.plot(x[1:], _mean_seen(run), color=INK, linewidth=2.2)
    if scale == 100:
        axes.set_ylim(0, 100)
    set_limits(axes, "y", _least(scale), _score_bounds(scale))
    axes.set_xlim(0, len(run.stages))
    if len(run.stages) <= 40:
        for boundary in range(1, len(run.stages)):
            axes.axvline(boundary, color=GRID, linewidth=0.8, zorder=0)


def _mean_seen(run: Scores) -> np.ndarray:
    """The mean score after each stage over the tasks seen so far [stages], as it is shown."""
    mean = scale_of(run) * np.mean(run.scores[:, 1:], axis=0)
    known = np.asarray(run.learned)[None, :] <= np.arange(1, len(mean) + 1)[:, None]
    return np.array(
        [np.mean(m[k]) if k.any() else np.nan for m, k in zip(mean, known, strict=True)]
    )


def _names(axes: Axes, run: Scores) -> None:
    """Each task's name at the end of its line; of many tasks the mean's alone."""
    if len(run.tasks) > MANY:
        name_ends(axes, len(run.stages), [_mean_seen(run)[-1]], ["mean of the\ntasks seen"], [INK])
        return
    last = scale_of(run) * np.mean(run.scores[:, -1], axis=0)
    colors = [ORDER(t / max(len(run.tasks) - 1, 1)) for t in range(len(run.tasks))]
    name_ends(axes, len(run.stages), last, [shorten(n) for n in run.tasks], colors)


def _stages(axes: Axes, run: Scores) -> None:
    _ticks(axes, np.arange(len(run.stages)) + 0.5, run.stages)


def curves(run: Scores) -> Figure:
    """Each task's score over time, with the boundaries between the stages."""
    with drawing(7, 3.9) as figure:
        axes = figure.add_subplot()
        _lines(axes, run)
        _names(axes, run)
        _stages(axes, run)
        axes.set_ylabel(_unit(run))
        axes.set_xlabel("trained on, in turn")
        axes.set_title("What each task scores while training moves on")
        note_seeds(figure, [len(run.scores)] if len(run.tasks) <= MANY else [])
    return figure


def _bars(axes: Axes, runs: Sequence[Scores]) -> None:
    """Forgetting of each task and its mean, the runs side by side; lines where tasks are many."""
    scale = scale_of(runs[0])
    tasks = [t for t in range(len(runs[0].tasks)) if np.isfinite(runs[0].forgetting[:, t]).all()]
    axes.set_ylabel(_loss_unit(runs[0]))
    if not tasks:
        axes.text(0.5, 0.5, "one task: nothing to forget", ha="center", color=MUTED)
        axes.set_axis_off()
        return
    names = [runs[0].tasks[t] for t in tasks]
    axes.axhline(0, color=MUTED, linewidth=0.8)
    if len(tasks) > 2 * MANY:
        for m, run in enumerate(runs):
            axes.plot(scale * np.mean(run.forgetting[:, tasks], axis=0), color=hue(m))
        _ticks(axes, range(len(tasks)), names)
        set_limits(axes, "y", _least(scale), _loss_bounds(scale))
        return
    groups = len(tasks) + (len(tasks) > 1)
    x = np.arange(groups) + 0.35 * (np.arange(groups) == len(tasks))  # the mean stands apart
    width = 0.8 / len(runs)
    for m, run in enumerate(runs):
        samples = scale * run.forgetting[:, tasks]
        samples = np.concatenate([samples, samples.mean(1, keepdims=True)], axis=1)[:, :groups]
        mean = samples.mean(axis=0)
        place = x + (m - (len(runs) - 1) / 2) * width
        axes.bar(place, mean, 0.9 * width, color=hue(m))
        low, high = draw_intervals(
            axes, place, mean, interval(samples), bounds=_loss_bounds(scale)
        )  # fmt: skip
        for at, value, *ends in zip(place, mean, low, high, strict=True):
            text = _text(value, scale)
            hangs = value < 0 and text != _text(0, scale)
            end = min(ends[0], 0) if hangs else max(ends[1], 0)
            write_value(axes, text, (at, end), (0, -1 if hangs else 1))
    _ticks(axes, x, [*names, "mean"][:groups])
    axes.margins(y=0.15)
    set_limits(axes, "y", _least(scale), _loss_bounds(scale))


_FORGETTING = "Forgetting: how much worse than its best each task ends"


def forgetting(run: Scores) -> Figure:
    """How much of its best score each task has lost in the end."""
    with drawing(7, 3.1) as figure:
        axes = figure.add_subplot()
        _bars(axes, [run])
        axes.set_title(_FORGETTING)
        note_seeds(figure, [len(run.scores)])
    return figure


def comparison(runs: Sequence[Scores]) -> Figure:
    """Runs side by side: every task over time, and beneath it what was forgotten of it.

    The titles have the colours of the bars.
    """
    if len(runs) > 4:
        return ranking(runs)
    wide = min(len(runs), 2)
    high = -(-len(runs) // wide)
    with drawing(8.8, 3.6 * high + 3.2) as figure:
        grid = figure.add_gridspec(high + 1, wide, height_ratios=[1.15] * high + [1])
        panels: list[Axes] = []
        for m, run in enumerate(runs):
            axes = figure.add_subplot(grid[m // wide, m % wide], sharey=panels[0] if m else None)
            panels.append(axes)
            _lines(axes, run)
            axes.set_title(shorten(run.label, 90), color=hue(m))
            axes.tick_params(labelleft=not m % wide)
        for axes, run in zip(panels, runs, strict=True):  # the shared range is known only now
            _names(axes, run)
            _stages(axes, run)
        for axes in panels[::wide]:
            axes.set_ylabel(_unit(runs[0]))
        axes = figure.add_subplot(grid[high, :])
        _bars(axes, runs)
        axes.set_title(_FORGETTING)
        note_seeds(figure, [len(run.scores) for run in runs])
    return figure


def ranking(runs: Sequence[Scores]) -> Figure:
    """Many runs: final average and forgetting, a bar each."""
    scale = scale_of(runs[0])
    y = np.arange(len(runs))[::-1]
    with drawing(9.0, 1.2 + 0.36 * len(runs)) as figure:
        left, right = figure.subplots(1, 2, sharey=True)
        panels = (
            (left, f"Average {_unit(runs[0])}", [r.average for r in runs], _score_bounds(scale)),
            (right, f"Forgetting, {_loss_unit(runs[0])}", [r.lost for r in runs],
             _loss_bounds(scale)),
        )  # fmt: skip
        for axes, title, samples, bounds in panels:
            mean = np.asarray([scale * s.mean() for s in samples])
            half = np.asarray([scale * interval(s) for s in samples])
            axes.barh(y, mean, 0.66, color=HUES[0])
            _, high = draw_intervals(axes, mean, y, half, across="x", bounds=bounds)
            for at, value, end in zip(y, mean, high, strict=True):
                text = number(value, 1 if scale == 100 else 2)
                write_value(axes, text, (max(end, 0), at), (1, 0))
            axes.set_title(title, fontsize=10)
            axes.grid(False)
            axes.axvline(0, color=MUTED, linewidth=0.8)
            axes.margins(x=0.14)
            set_limits(axes, "x", _least(scale), bounds)
            axes.spines.bottom.set_visible(False)
            axes.set_xticks([])
        left.set_yticks(y, [shorten(r.label, 44) for r in runs])
        note_seeds(figure, [len(r.scores) for r in runs])
    return figure


def _setting(value: float) -> str:
    """The value of an argument, short: 0.1, 300, 1e5."""
    power = int(np.floor(np.log10(abs(value)))) if value else 0
    return f"{value / 10.0**power:g}e{power}" if power >= 4 else f"{value:g}".replace("e-0", "e-")


def _side_by_side(samples: Sequence[np.ndarray]) -> np.ndarray:
    """Numbers [seeds] of each point as [seeds, points], as many as the fewest seeds left."""
    return np.stack([s[: min(map(len, samples))] for s in samples], axis=1)


def sweep(
    name: str, values: Sequence[Any], runs: Sequence[Scores], others: Sequence[Scores] = ()
) -> Figure:
    """Final average and forgetting over the values of one argument, with `others` as levels."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    scale = scale_of(runs[0])
    x = np.arange(len(runs))
    both = (*runs, *others)
    with drawing(9.4 if others else 7.6, 3.6) as figure:
        left, right = figure.subplots(1, 2)
        panels = (
            (left, "Average over tasks in the end", [r.average for r in both],
             _score_bounds(scale)),
            (right, "Forgetting", [r.lost for r in both], _loss_bounds(scale)),
        )  # fmt: skip
        for axes, title, samples, bounds in panels:
            swept = scale * _side_by_side([samples[i] for i in order])
            draw_line(axes, x, swept, HUES[0], marker="o", linewidth=2, bounds=bounds)
            levels = [scale * s.mean() for s in samples[len(runs) :]]
            for m, level in enumerate(levels, start=1):
                axes.axhline(level, color=hue(m), linewidth=1.2, ls=(0, (4, 3)))
            axes.set_title(title)
            # evenly spaced, since such a grid is mostly logarithmic and often begins at 0
            axes.set_xticks(x, [_setting(values[i]) for i in order])
            axes.set_xlabel(name)
            axes.margins(y=0.15)
            set_limits(axes, "y", _least(scale), bounds)
        names = [shorten(other.label, 28) for other in others]
        name_ends(
            right, right.get_xlim()[1], levels, names, [hue(m + 1) for m in range(len(names))]
        )
        left.set_ylabel(_unit(runs[0]))
        right.set_ylabel(_loss_unit(runs[0]))
        note_seeds(figure, [len(run.scores) for run in runs])
    return figure


def loss(
    step: np.ndarray, values: np.ndarray, stage: np.ndarray, points: Sequence[Mapping[str, float]]
) -> Figure:
    """The training losses [points, n] over steps [n], with the boundaries between stages [n].

    They are NaN where a point has diverged. Several are told apart by what was swept.
    """
    drawn = [i for i, value in enumerate(values) if np.isfinite(value).any()]
    with drawing(7, 2.4 if len(values) == 1 else 3.2) as figure:
        axes = figure.add_subplot()
        for i in drawn:
            axes.plot(step, values[i], color=hue(i), linewidth=1.2)
        if stage.max(initial=0) <= 40:
            for at in step[:-1][np.diff(stage) > 0]:
                axes.axvline(at, color=GRID, linewidth=0.8, zorder=0)
        axes.margins(x=0)
        set_limits(axes, "y", _least(1))
        axes.set_xlabel("step")
        axes.set_title("Training loss")
        if len(values) > 1:
            ends = [float(values[i][np.isfinite(values[i])][-1]) for i in drawn]
            names = [", ".join(f"{k}={_setting(v)}" for k, v in points[i].items()) for i in drawn]
            name_ends(axes, axes.get_xlim()[1], ends, names, [hue(i) for i in drawn])
    return figure


class Panel(NamedTuple):
    """One quantity through all nodes of a pipeline."""

    title: str
    unit: str
    values: list[np.ndarray]
    """Of each node [seeds, stages + 1], from before its training to its end."""
    share: bool = False
    """Whether it is a share, which is shown as per cent."""


def pipeline(panels: Sequence[Panel], nodes: Sequence[str]) -> Figure:
    """What each node does to the tests of all: a panel a set of tests, a line a node, in order."""
    with drawing(7.5, 1.1 + 1.6 * len(panels)) as figure:
        all_axes = np.atleast_1d(figure.subplots(len(panels), sharex=True))
        for axes, panel in zip(all_axes, panels, strict=True):
            scale = 100 if panel.share else 1
            at = 0
            places = []
            for i, values in enumerate(panel.values):
                x = at + np.arange(values.shape[1])
                own = nodes[i] == panel.title
                draw_line(
                    axes, x, scale * values, hue(i), bounds=_score_bounds(scale), marker="o",
                    markersize=4, linewidth=2.4 if own else 1.4,
                )  # fmt: skip
                places.append(x.mean())
                at = x[-1] + 1
                if i + 1 < len(nodes):
                    axes.axvline(at - 0.5, color=GRID, linewidth=1)
            set_limits(axes, "y", _least(scale), _score_bounds(scale))
            axes.set_title(panel.title)
            axes.set_ylabel(textwrap.fill(panel.unit, 16))
        _ticks(all_axes[-1], places, nodes)
        note_seeds(figure, [len(values) for values in panels[0].values])
    return figure
