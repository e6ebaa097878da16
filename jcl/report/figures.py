"""The figures of a report, drawn from score matrices [seeds, stages + 1, tasks].

Tasks have an order, so they share one sequential range of colours; methods have none, so each has
a hue of its own. A report shows the same pictures on a dark page by inverting them.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from jcl.measures import metrics
from jcl.report.folder import Scores
from jcl.report.format import scale_of

INK, MUTED, GRID = "#1c1e21", "#5f6672", "#e3e6ea"
HUES = (
    "#2563c9", "#d9622b", "#1a8f6a", "#a34fb5", "#b38600", "#c23b5a", "#4b5563", "#0891a5",
)  # fmt: skip
HEAT = LinearSegmentedColormap.from_list(
    "heat", ("#f4f7fb", "#b9d3ee", "#5b98d2", "#1f5fa8", "#0b2f63")
)
ORDER = LinearSegmentedColormap.from_list(
    "order", ("#3b2a86", "#2b6cb0", "#159a8c", "#5f9e2f", "#d07d17", "#c93f36")
)
STYLE: Any = {
    "text.color": INK, "axes.labelcolor": MUTED, "axes.edgecolor": "#c3c8cf",
    "xtick.color": MUTED, "ytick.color": MUTED,
    "xtick.major.size": 0, "ytick.major.size": 0, "xtick.minor.size": 0, "ytick.minor.size": 0,
    "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False,
    "axes.grid": True, "axes.grid.axis": "y", "grid.color": GRID, "grid.linewidth": 0.8,
    "axes.axisbelow": True, "axes.titlelocation": "left", "axes.titlesize": 11,
    "axes.titleweight": "bold", "axes.titlepad": 10, "axes.labelsize": 9.5,
    "xtick.labelsize": 9, "ytick.labelsize": 9, "font.size": 10, "legend.frameon": False,
    "legend.fontsize": 9.5, "text.parse_math": False, "lines.solid_capstyle": "round",
    "figure.dpi": 150,
    "figure.constrained_layout.h_pad": 0.09, "figure.constrained_layout.w_pad": 0.09,
}  # fmt: skip
MANY = 12
"""Above so many tasks, lines get thin and lose their names."""


def interval(samples: np.ndarray) -> np.ndarray:
    """`metrics.interval`'s half width over the first axis, [...]; 0 for a single sample."""
    count = samples.shape[0]
    if count < 2:
        return np.zeros(samples.shape[1:])
    ramp = np.arange(count)  # any sample will do: the half width is a multiple of the spread
    factor = (metrics.interval(ramp)[1] or 0.0) / ramp.std(ddof=1)
    return factor * np.std(samples, axis=0, ddof=1)


@contextmanager
def _figure(width: float, height: float) -> Iterator[Figure]:
    with rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure


def _text(value: float, scale: int) -> str:
    if not np.isfinite(value):
        return "–"
    text = f"{value:.0f}" if scale == 100 else f"{value:.2f}"
    return text.removeprefix("-") if float(text) == 0 else text


def _unit(run: Scores) -> str:
    if scale_of(run) == 100:
        return f"{run.measure} (%)"
    return f"{run.measure} ({'higher' if run.higher_is_better else 'lower'} is better)"


def _loss_unit(run: Scores) -> str:
    return "percentage points lost" if scale_of(run) == 100 else f"{run.measure} lost"


def _short(name: str, limit: int = 16) -> str:
    return name if len(name) <= limit else name[: limit - 1] + "…"


def _ticks(axes: Axes, at: Any, names: Sequence[str], room: int) -> None:
    """Names under the x axis: some left out where there are many, tilted where they are long.

    Args:
      axes: where.
      at: [n] places.
      names: [n].
      room: how many characters fit side by side.
    """
    every = max(1, -(-len(names) // 16))
    shown = [_short(n, 14) for n in names[::every]]
    tilt = max(map(len, shown)) + 1.5 > room / len(shown)
    axes.set_xticks(
        np.asarray(at)[::every], shown, rotation=30 if tilt else 0,
        ha="right" if tilt else "center", rotation_mode="anchor" if tilt else "default",
    )  # fmt: skip


def matrix(run: Scores) -> Figure:
    """The score matrix as a heat map: a row a stage, a column a task."""
    scale = scale_of(run)
    mean = scale * np.mean(run.scores, axis=0)
    rows, columns = mean.shape
    shade = mean if run.higher_is_better else -mean
    low, high = (0.0, 100.0) if scale == 100 else (np.nanmin(shade), np.nanmax(shade))
    high = max(high, low + 1e-9)
    width, height = min(2.4 + 0.72 * columns, 11), min(1.5 + 0.4 * rows, 8)
    with _figure(width, height) as figure:
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
        _ticks(axes, range(columns), run.tasks, room=int(13 * (width - 1.2)))
        every = max(1, -(-rows // 24))
        names = ["before", *(f"after {_short(s, 12)}" for s in run.stages)]
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
            axes.plot(x[at + 1 :], mean[at + 1 :, t], "o", color=color, ms=4.5, clip_on=False)
            low, high = mean[:, t] - half[:, t], mean[:, t] + half[:, t]
            axes.fill_between(x[at:], low[at:], high[at:], color=color, alpha=0.12, linewidth=0)
    if many:
        known = np.asarray(run.learned)[None, :] <= x[1:, None]
        seen = [np.mean(mean[r + 1, k]) if k.any() else np.nan for r, k in enumerate(known)]
        axes.plot(x[1:], seen, color=INK, linewidth=2.2, label="mean of the tasks seen")
        axes.legend(loc="upper right")
    if scale == 100:
        axes.set_ylim(0, 102)
    axes.set_xlim(0, len(run.stages))
    if len(run.stages) <= 40:
        for boundary in range(1, len(run.stages)):
            axes.axvline(boundary, color=GRID, linewidth=0.8, zorder=0)


def _names(axes: Axes, run: Scores) -> None:
    """Each task's name at the end of its line, pushed apart where lines meet."""
    if len(run.tasks) > MANY:
        return
    last = scale_of(run) * np.mean(run.scores[:, -1], axis=0)
    bottom, top = axes.get_ylim()
    gap = 0.06 * (top - bottom)
    place = np.nan_to_num(last, nan=bottom)
    order = np.argsort(place)
    for below, above in pairwise(order):
        place[above] = max(place[above], place[below] + gap)
    place[order[-1]] = min(place[order[-1]], top)
    for above, below in pairwise(order[::-1]):
        place[below] = min(place[below], place[above] - gap)
    for t, name in enumerate(run.tasks):
        axes.annotate(
            _short(name), (len(run.stages), place[t]), (9, 0), textcoords="offset points",
            va="center", fontsize=9, color=ORDER(t / max(len(run.tasks) - 1, 1)),
            annotation_clip=False,
        )  # fmt: skip


def _stages(axes: Axes, run: Scores, room: int) -> None:
    _ticks(axes, np.arange(len(run.stages)) + 0.5, run.stages, room)


def curves(run: Scores) -> Figure:
    """Each task's score over time, with the boundaries between the stages."""
    with _figure(7, 3.9) as figure:
        axes = figure.add_subplot()
        _lines(axes, run)
        _names(axes, run)
        _stages(axes, run, room=74)
        axes.set_ylabel(_unit(run))
        axes.set_xlabel("trained on, in turn")
        axes.set_title("What each task scores while training moves on")
    return figure


def _bars(axes: Axes, runs: Sequence[Scores]) -> None:
    """Forgetting of each task and its mean, the runs side by side; lines where tasks are many."""
    scale = scale_of(runs[0])
    tasks = [t for t in range(len(runs[0].tasks)) if np.isfinite(runs[0].forgetting[:, t]).all()]
    axes.set_ylabel(_loss_unit(runs[0]))
    if not tasks:
        axes.text(0.5, 0.5, "one task: nothing to forget", ha="center", color=MUTED)
        return
    names = [runs[0].tasks[t] for t in tasks]
    if len(tasks) > 2 * MANY:
        for m, run in enumerate(runs):
            mean = scale * np.mean(run.forgetting[:, tasks], axis=0)
            axes.plot(mean, color=HUES[m % len(HUES)], linewidth=1.8, label=run.label)
        _ticks(axes, range(len(tasks)), names, room=90)
        axes.axhline(0, color=MUTED, linewidth=0.8)
        return
    groups = len(tasks) + (len(tasks) > 1)
    x = np.arange(groups) + 0.35 * (np.arange(groups) == len(tasks))  # the mean stands apart
    width = 0.8 / len(runs)
    for m, run in enumerate(runs):
        samples = scale * run.forgetting[:, tasks]
        samples = np.concatenate([samples, samples.mean(1, keepdims=True)], axis=1)[:, :groups]
        mean, half = samples.mean(axis=0), interval(samples)
        place = x + (m - (len(runs) - 1) / 2) * width
        axes.bar(
            place, mean, 0.9 * width, color=HUES[m % len(HUES)], label=run.label,
            yerr=half if half.any() else None,
            error_kw={"ecolor": MUTED, "elinewidth": 1, "capsize": 2},
        )  # fmt: skip
        if groups * len(runs) <= 24:
            for at, value, error in zip(place, mean, half, strict=True):
                side = 1 if value >= 0 else -1
                axes.annotate(
                    _text(value, scale), (at, value + side * error), (0, 3 * side),
                    textcoords="offset points", ha="center", fontsize=8.5, color=MUTED,
                    va="bottom" if side > 0 else "top",
                )  # fmt: skip
    _ticks(axes, x, [*names, "mean"][:groups], room=90)
    axes.axhline(0, color=MUTED, linewidth=0.8)
    axes.margins(y=0.15)


_FORGETTING = "Forgetting: how much worse than its best each task ends"


def forgetting(run: Scores) -> Figure:
    """How much of its best score each task has lost in the end."""
    with _figure(7, 3.1) as figure:
        axes = figure.add_subplot()
        _bars(axes, [run])
        axes.set_title(_FORGETTING)
    return figure


def comparison(runs: Sequence[Scores]) -> Figure:
    """Runs side by side: every task over time, and beneath it what was forgotten of it."""
    if len(runs) > 4:
        return ranking(runs)
    with _figure(max(4.4 * len(runs), 8.2), 7.2) as figure:
        grid = figure.add_gridspec(2, len(runs), height_ratios=(1.15, 1))
        panels: list[Axes] = []
        for m, run in enumerate(runs):
            axes = figure.add_subplot(grid[0, m], sharey=panels[0] if panels else None)
            panels.append(axes)
            _lines(axes, run)
            axes.set_title(_short(run.label, 48), color=HUES[m % len(HUES)])
            axes.tick_params(labelleft=not m)
        for axes, run in zip(panels, runs, strict=True):  # the shared range is known only now
            _names(axes, run)
            _stages(axes, run, room=58)
        panels[0].set_ylabel(_unit(runs[0]))
        axes = figure.add_subplot(grid[1, :])
        _bars(axes, runs)
        axes.set_title(_FORGETTING)
        if axes.get_legend_handles_labels()[0]:
            figure.legend(loc="outside lower center", ncols=len(runs))
    return figure


def ranking(runs: Sequence[Scores]) -> Figure:
    """Many runs: final average and forgetting, a bar each."""
    scale = scale_of(runs[0])
    y = np.arange(len(runs))[::-1]
    with _figure(8.2, 1.0 + 0.4 * len(runs)) as figure:
        left, right = figure.subplots(1, 2, sharey=True)
        panels = (
            (left, f"Average {_unit(runs[0])}", [r.average for r in runs]),
            (right, f"Forgetting, {_loss_unit(runs[0])}", [r.lost for r in runs]),
        )
        for axes, title, samples in panels:
            mean = np.asarray([scale * s.mean() for s in samples])
            half = np.asarray([scale * interval(s) for s in samples])
            axes.barh(
                y, mean, 0.66, color=[HUES[m % len(HUES)] for m in range(len(runs))],
                xerr=half if half.any() else None,
                error_kw={"ecolor": MUTED, "elinewidth": 1, "capsize": 2},
            )  # fmt: skip
            for at, value, error in zip(y, mean, half, strict=True):
                axes.annotate(
                    f"{value:.1f}" if scale == 100 else f"{value:.2f}",
                    (max(value, 0) + error, at), (4, 0), textcoords="offset points",
                    va="center", fontsize=8.5, color=MUTED,
                )  # fmt: skip
            axes.set_title(textwrap.fill(title, 24), fontsize=10)  # the panels may be narrow
            axes.grid(False)
            axes.axvline(0, color=MUTED, linewidth=0.8)
            axes.margins(x=0.14)
            axes.spines.bottom.set_visible(False)
            axes.set_xticks([])
        left.set_yticks(y, [_short(r.label, 44) for r in runs])
    return figure


def sweep(
    name: str, values: Sequence[Any], runs: Sequence[Scores], others: Sequence[Scores] = ()
) -> Figure:
    """Final average and forgetting over the values of one argument, with `others` as levels."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    scale = scale_of(runs[0])
    x = np.arange(len(runs))
    with _figure(7.6, 3.4) as figure:
        left, right = figure.subplots(1, 2)
        both = (*runs, *others)
        panels = (
            (left, "Average over tasks in the end", [r.average for r in both]),
            (right, "Forgetting", [r.lost for r in both]),
        )
        for axes, title, samples in panels:
            mean = np.asarray([scale * samples[i].mean() for i in order])
            half = np.asarray([scale * interval(samples[i]) for i in order])
            axes.plot(x, mean, color=HUES[0], linewidth=2, marker="o", markersize=5)
            axes.fill_between(x, mean - half, mean + half, color=HUES[0], alpha=0.15, linewidth=0)
            for m, (other, sample) in enumerate(
                zip(others, samples[len(runs) :], strict=True), start=1
            ):
                level = scale * sample.mean()
                axes.axhline(level, color=HUES[m % len(HUES)], linewidth=1.2, ls=(0, (4, 3)))
                axes.annotate(
                    _short(other.label, 30), (0, level), (2, 3),
                    xycoords=("axes fraction", "data"), textcoords="offset points",
                    fontsize=8.5, color=HUES[m % len(HUES)],
                )  # fmt: skip
            axes.set_title(title)
            # evenly spaced, since such a grid is mostly logarithmic and often begins at 0
            axes.set_xticks(x, [f"{values[i]:g}" for i in order])
            axes.set_xlabel(name)
            axes.margins(y=0.15)
        left.set_ylabel(_unit(runs[0]))
        right.set_ylabel(_loss_unit(runs[0]))
    return figure


def loss(step: np.ndarray, value: np.ndarray, stage: np.ndarray) -> Figure:
    """The training loss [n] over steps [n], with the boundaries between stages [n]."""
    with _figure(7, 2.4) as figure:
        axes = figure.add_subplot()
        axes.plot(step, value, color=HUES[0], linewidth=1.2)
        if stage.max(initial=0) <= 40:
            for at in step[:-1][np.diff(stage) > 0]:
                axes.axvline(at, color=GRID, linewidth=0.8, zorder=0)
        axes.margins(x=0)
        axes.set_xlabel("step")
        axes.set_title("Training loss")
    return figure


class Panel(NamedTuple):
    """One quantity through all nodes of a pipeline."""

    title: str
    unit: str
    values: list[np.ndarray]
    """Of each node [seeds, stages + 1], from before its training to its end."""


def pipeline(panels: Sequence[Panel], nodes: Sequence[str]) -> Figure:
    """What each node does to the tests of all: a panel a set of tests, a line a node, in order."""
    with _figure(7.5, 1.1 + 1.55 * len(panels)) as figure:
        all_axes = np.atleast_1d(figure.subplots(len(panels), sharex=True))
        for axes, panel in zip(all_axes, panels, strict=True):
            at = 0
            places = []
            for i, values in enumerate(panel.values):
                x = at + np.arange(values.shape[1])
                mean, half = values.mean(axis=0), interval(values)
                own = nodes[i] == panel.title
                axes.plot(
                    x, mean, color=HUES[i % len(HUES)], linewidth=2.4 if own else 1.4, marker="o",
                    markersize=4,
                )  # fmt: skip
                axes.fill_between(
                    x, mean - half, mean + half, color=HUES[i % len(HUES)], alpha=0.15, linewidth=0
                )
                places.append(x.mean())
                at = x[-1] + 1
                if i + 1 < len(nodes):
                    axes.axvline(at - 0.5, color=GRID, linewidth=1)
            axes.set_title(panel.title)
            axes.set_ylabel("\n".join(textwrap.wrap(panel.unit, 16)))
        _ticks(all_axes[-1], places, nodes, 60)
    return figure
