"""One look for all figures: colours and sizes, intervals, and axes that claim no more than is so.

`drawing` begins a figure. Tasks have an order, so they share one sequential range of colours;
methods have none, so each has a hue of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from jcl.measures import metrics
from jcl.report.labels import SMALL, settle

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
    "xtick.major.pad": 6,
    "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False,
    "axes.grid": True, "axes.grid.axis": "y", "grid.color": GRID, "grid.linewidth": 0.8,
    "axes.axisbelow": True, "axes.titlelocation": "left", "axes.titlesize": 11,
    "axes.titleweight": "bold", "axes.titlepad": 14, "axes.labelsize": 9.5,
    "xtick.labelsize": SMALL, "ytick.labelsize": SMALL, "font.size": 10, "legend.frameon": False,
    "legend.fontsize": 9.5, "text.parse_math": False, "lines.solid_capstyle": "round",
    "lines.linewidth": 1.8, "lines.markersize": 4.5, "figure.dpi": 150,
    "figure.constrained_layout.h_pad": 0.09, "figure.constrained_layout.w_pad": 0.09,
}  # fmt: skip
WIDE = 10.0
"""Inches of the widest figure, of which a page shows about half; small letters stay readable."""
BARS = 12
"""Intervals along a line of many points."""
Bounds = tuple[float | None, float | None]


@contextmanager
def drawing(width: float, height: float) -> Iterator[Figure]:
    """A figure of so many inches in this style; after the block its texts are moved apart."""
    with rc_context(STYLE):
        figure = Figure(figsize=(min(width, WIDE), height), layout="constrained")
        yield figure
        settle(figure)


def hue(number: int) -> str:
    """The colour of a method; they come again after eight."""
    return HUES[number % len(HUES)]


def interval(samples: np.ndarray) -> np.ndarray:
    """`metrics.interval`'s half width over the first axis, [...]; 0 for a single sample."""
    count = samples.shape[0]
    if count < 2:
        return np.zeros(samples.shape[1:])
    ramp = np.arange(count)  # any sample will do: the half width is a multiple of the spread
    factor = (metrics.interval(ramp)[1] or 0.0) / ramp.std(ddof=1)
    return factor * np.std(samples, axis=0, ddof=1)


def draw_intervals(
    axes: Axes,
    x: Any,
    y: Any,
    half: Any,
    color: Any = INK,
    across: Literal["x", "y"] = "y",
    bounds: Bounds = (None, None),
) -> tuple[np.ndarray, np.ndarray]:
    """Intervals as thin bars about points, none where one is 0 or unknown.

    Args:
      axes: where.
      x: [n] places of the points.
      y: [n], likewise.
      half: [n] half widths.
      color: of the bars.
      across: the axis along which they run.
      bounds: what the quantity can't be beyond, such as (0, 1); there the bars end.

    Returns:
      Lower and upper ends [n], those of no interval too.
    """
    x, y, half = (np.atleast_1d(np.asarray(v, float)) for v in (x, y, half))
    middle = x if across == "x" else y
    low, high = (np.clip(middle + sign * half, *bounds) for sign in (-1, 1))
    some = np.isfinite(half) & (half > 0) & np.isfinite(middle)
    if some.any():
        lines = axes.hlines if across == "x" else axes.vlines
        place = y if across == "x" else x
        lines(place[some], low[some], high[some], color=color, linewidth=1.0, alpha=0.75, zorder=3)
    return low, high


def draw_line(
    axes: Axes,
    x: Any,
    samples: np.ndarray,
    color: Any,
    turn: int = 0,
    bounds: Bounds = (None, None),
    **look: Any,
) -> np.ndarray:
    """The mean of samples [seeds, n] over x [n], with some intervals; returns the mean.

    Args:
      axes: where.
      x: [n].
      samples: [seeds, n].
      color: of the line.
      turn: which line of the axes it is: lines of many points have their intervals in turn.
      bounds: of the quantity, as for `draw_intervals`.
      look: what else `Axes.plot` takes.
    """
    x, mean = np.asarray(x, float), samples.mean(axis=0)
    axes.plot(x, mean, **{"color": color, "clip_on": False, **look})
    every = max(1, -(-len(x) // BARS))
    some = slice(turn * max(every // 5, 1) % every, None, every)
    draw_intervals(axes, x[some], mean[some], interval(samples)[some], color, bounds=bounds)
    return mean


def set_limits(
    axes: Axes, which: Literal["x", "y"], least: float = 0.0, bounds: Bounds = (None, None)
) -> None:
    """The limits around what is drawn, at least so far apart and not beyond the bounds.

    Without `least` an axis of values that are all but equal would show nothing but rounding.
    """
    low, high = getattr(axes, f"get_{which}lim")()
    turned = low > high
    low, high = min(low, high), max(low, high)
    least = max(least, 1e-3 * max(abs(low), abs(high)))
    if high - low < least:
        middle = (low + high) / 2
        low, high = middle - least / 2, middle + least / 2
        if bounds[0] is not None and low < bounds[0]:
            low, high = bounds[0], bounds[0] + least
        if bounds[1] is not None and high > bounds[1]:
            low, high = bounds[1] - least, bounds[1]
    low, high = (float(np.clip(v, *bounds)) for v in (low, high))
    getattr(axes, f"set_{which}lim")(*((high, low) if turned else (low, high)))


def across(axes: Axes) -> None:
    """Turns the grid for bars and points that lie in rows."""
    axes.grid(True, axis="x")
    axes.grid(False, axis="y")


def note_seeds(figure: Figure, seeds: Collection[int], row: str = "") -> None:
    """Says under a figure what its thin bars are; nothing where each row has a single seed.

    Args:
      figure: which.
      seeds: how many each row has.
      row: what else is to be said there.
    """
    said = [row] if row else []
    if max(seeds, default=1) > 1:
        several = {n for n in seeds if n > 1}
        number = f"{several.pop()} seeds" if len(several) == 1 else "each one's seeds"
        some = ", one where there is no bar" if min(seeds) == 1 else ""
        said.append(f"thin bars: 95 % intervals over {number}{some}")
    if said:
        text = "; ".join(said)
        figure.supxlabel(text, x=0.99, ha="right", fontsize=SMALL, color=MUTED)


def number(value: float, digits: int) -> str:
    """A number to print, never -0; a dash where it is undefined."""
    if not np.isfinite(value):
        return "–"
    return f"{value:z.{digits}f}" if abs(value) < 1e5 else f"{value:.2g}"
