"""Texts of a figure that keep apart: measured once it is laid out, then wrapped, tilted or moved.

What is drawn first says what a text belongs to (`name_ends`, `name_points`, `write_value`), and
`settle` finds the places in the end, when the sizes of everything are known.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation, Text
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, ScalarFormatter
from matplotlib.transforms import Bbox

SMALL = 9.0
"""Points of the smallest letters: 9 pixels high in a picture of half its size."""
END, POINT, VALUE = "the end of a line", "a point", "a value beside a bar"
"""What a text belongs to, kept as its `gid`."""
GAP = 9.0
"""Points between a line's end and its name."""
DISTANCES = (3.0, 7.0, 12.0, 18.0, 26.0, 36.0, 48.0, 62.0, 80.0, 100.0)
"""Points between a mark and its name, of which the first that has room is taken."""


def shorten(name: str, limit: int = 16) -> str:
    """A name of at most `limit` letters."""
    return name if len(name) <= limit else name[: limit - 1] + "…"


def _name(
    axes: Axes, name: str, at: tuple[float, float], gid: str, color: Any, **look: Any
) -> None:
    line = {"arrowstyle": "-", "color": color, "lw": 0.6, "shrinkA": 0, "shrinkB": 2}
    apart = GAP if gid == END else 0  # the layout keeps room for it beside the axes
    text = axes.annotate(
        name, at, (apart, 0), textcoords="offset points", va="center", color=color, fontsize=SMALL,
        gid=gid, arrowprops=line, annotation_clip=False, **look,
    )  # fmt: skip
    text.set_path_effects([withStroke(linewidth=2, foreground="white")])


def name_ends(
    axes: Axes, x: float, heights: Sequence[float], names: Sequence[str], colors: Sequence[Any]
) -> None:
    """Each line's name to the right of its end (x, height); at the bottom where it is NaN."""
    low = axes.get_ylim()[0]
    for height, name, color in zip(heights, names, colors, strict=True):
        at = (x, height if np.isfinite(height) else low)
        _name(axes, name, at, END, color, ha="left")


def name_points(
    axes: Axes, points: Sequence[tuple[float, float]], names: Sequence[str], colors: Sequence[Any]
) -> None:
    """Each point's name beside it, where there is room; a thin line leads to it from afar."""
    for at, name, color in zip(points, names, colors, strict=True):
        _name(axes, name, at, POINT, color, ha="center")


def write_value(axes: Axes, text: str, at: tuple[float, float], side: tuple[int, int]) -> None:
    """A bar's value beside its end; those of an axes go where two of them would overlap.

    Args:
      axes: where.
      text: the value.
      at: the end of the bar.
      side: its direction, such as (0, -1) for a bar that hangs down.
    """
    across = {1: "left", -1: "right", 0: "center"}[side[0]]
    upright = {1: "bottom", -1: "top", 0: "center"}[side[1]]
    axes.annotate(
        text, at, (4 * side[0], 2 * side[1]), textcoords="offset points", fontsize=SMALL, gid=VALUE,
        color=axes.yaxis.label.get_color(), ha=across, va=upright, annotation_clip=False,
    )  # fmt: skip


def settle(figure: Figure) -> None:
    """Moves, wraps, tilts and leaves out texts until none lies over another; the layout stays."""
    for axes in figure.axes:
        _show_plain_numbers(axes)
    words: dict[Text, str] = {}
    for _ in range(3):  # what is wrapped takes less room, so that the layout changes
        figure.draw_without_rendering()  # lays it out, without which nothing has a size
        if not any([_wrap_titles(figure, axes, words) | _fit_ticks(axes) for axes in figure.axes]):
            break
    else:
        figure.draw_without_rendering()
    for axes in figure.axes:
        _drop_values(axes)
        _spread_ends(axes)
        _place_points(axes)
    figure.set_layout_engine("none")


def spread(wanted: np.ndarray, gap: float, low: float, high: float) -> np.ndarray:
    """The places [n] nearest to those wanted that are `gap` apart, between `low` and `high`.

    It is isotonic regression, by pooling neighbours, of the places less their gaps. Where there is
    no room for all they are around the middle.

    >>> spread(np.array([5.0, 5.0, 0.0]), 2.0, 0.0, 10.0)
    array([4., 6., 0.])
    """
    order = np.argsort(wanted, kind="stable")
    steps = gap * np.arange(len(wanted))
    pools: list[list[float]] = []
    for place in wanted[order] - steps:
        pools.append([place])
        while len(pools) > 1 and np.mean(pools[-2]) > np.mean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    level = np.concatenate([np.full(len(pool), np.mean(pool)) for pool in pools])
    last = high - steps[-1]
    middle = (low + last) / 2
    found = np.empty(len(wanted))
    found[order] = np.clip(level, min(low, middle), max(last, middle)) + steps
    return found


def _plain(value: float, _: Any = None) -> str:
    return f"{value:z.6g}".replace("-", "−").replace("e+0", "e").replace("e−0", "e−")


def _show_plain_numbers(axes: Axes) -> None:
    """Numbers along the axes as they are, without a common offset or power of ten."""
    for axis in (axes.xaxis, axes.yaxis):
        if isinstance(axis.get_major_formatter(), ScalarFormatter) or axis.get_scale() == "log":
            if not isinstance(axis.get_major_locator(), FixedLocator):
                axis.set_major_formatter(FuncFormatter(_plain))
            axis.set_minor_formatter(NullFormatter())


def _box(text: Text) -> Bbox:
    return Text.get_window_extent(text)  # an annotation's own would have its line in it


def _clash(boxes: Sequence[Bbox], room: float = 0.0) -> bool:
    """Whether two of the boxes overlap, or come closer than `room` pixels."""
    wide = [b.padded(room / 2) for b in boxes]
    return any(a.overlaps(b) for i, a in enumerate(wide) for b in wide[:i])


def _wrap(text: Text, words: dict[Text, str], room: float, long: Callable[[Bbox], float]) -> bool:
    """Breaks a text into lines until it isn't longer than `room` pixels; whether it was longer.

    Args:
      text: which.
      words: by text what it said before it was first broken, which is added.
      room: for it.
      long: what of its box is to fit.
    """
    said = words.setdefault(text, text.get_text())
    longer = long(_box(text)) > room
    letters = max(map(len, said.split("\n")))
    while long(_box(text)) > room and letters > 8:
        letters = min(letters - 1, int(letters * room / long(_box(text))))
        lines = (textwrap.fill(line, max(letters, 8)) for line in said.split("\n"))
        text.set_text("\n".join(lines))
    return longer


def _wrap_titles(figure: Figure, axes: Axes, words: dict[Text, str]) -> bool:
    """Titles end where the next axes begin, and labels where their own side of the axes does.

    Returns whether one was wrapped.
    """
    box, edge = axes.get_window_extent(), figure.bbox
    beside = [
        b
        for b in (other.get_window_extent() for other in figure.axes if other is not axes)
        if b.y0 < box.y1 and b.y1 > box.y0
    ]
    after = min((b.x0 for b in beside if b.x0 > box.x0), default=edge.x1)
    before = max((b.x1 for b in beside if b.x1 < box.x1), default=edge.x0)
    changed = False
    titles = {axes.get_title(loc) for loc in ("left", "center")} - {""}
    for text in axes.get_children():
        if isinstance(text, Text) and text.get_text() in titles:
            room = after - box.x0 if text.get_horizontalalignment() == "left" else box.width
            changed |= _wrap(text, words, room - 12, lambda b: b.width)
    side = min((after - box.x1) / 2, (box.x0 - before) / 2)
    changed |= _wrap(axes.xaxis.label, words, box.width + 2 * max(side, 0) - 12, lambda b: b.width)
    return _wrap(axes.yaxis.label, words, box.height, lambda b: b.height) or changed


def _fit_ticks(axes: Axes) -> bool:
    """Tilts the names under the x axis if they meet, and leaves some out if they still would.

    Returns whether they met.
    """
    axis = axes.xaxis
    labels = [t for t in axes.get_xticklabels() if t.get_text() and t.get_visible()]
    if not isinstance(axis.get_major_locator(), FixedLocator) or len(labels) < 2:
        return False
    if labels[0].get_rotation() or not _clash([_box(t) for t in labels], room=4):
        return False
    at = axis.get_majorticklocs()
    places = axes.transData.transform([(x, 0) for x in at])[:, 0]
    high = max(_box(t).height for t in labels)
    pitch = np.min(np.diff(np.sort(places))) * np.sin(np.radians(30))
    every = max(1, int(np.ceil(1.15 * high / pitch)))
    names = [t.get_text() for t in axes.get_xticklabels()]
    axes.set_xticks(
        at[::every], names[::every], rotation=30, ha="right", rotation_mode="anchor"
    )  # fmt: skip
    return True


def _of(axes: Axes, gid: str) -> list[Text]:
    return [t for t in axes.texts if t.get_gid() == gid and t.get_text()]


def _drop_values(axes: Axes) -> None:
    values, floor = _of(axes, VALUE), axes.get_window_extent().y0
    for text in values:
        if _box(text).y0 < floor:  # among the names under the axes: it goes beside the bar's end
            text.set(position=(4, 2), ha="left", va="bottom")
    if _clash([_box(t) for t in values], room=2):
        for text in values:
            text.set_visible(False)


def _dot(artist: Artist) -> float:
    """Pixels in a point, a 72nd of an inch."""
    assert artist.figure is not None
    return artist.figure.dpi / 72


def _move(text: Text, right: float, up: float, leads: bool) -> None:
    """Puts an annotation so many pixels from its point, with or without a line to it."""
    assert isinstance(text, Annotation) and text.arrow_patch is not None
    text.set_position((right / _dot(text), up / _dot(text)))
    text.arrow_patch.set_visible(leads)


def _spread_ends(axes: Axes) -> None:
    names = [t for t in _of(axes, END) if isinstance(t, Annotation)]
    if not names:
        return
    box = axes.get_window_extent()
    ends = axes.transData.transform([t.xy for t in names])
    places = spread(ends[:, 1], 1.05 * max(_box(t).height for t in names), box.y0, box.y1)
    for text, (_, end), place in zip(names, ends, places, strict=True):
        _move(text, GAP * _dot(axes), place - end, leads=abs(place - end) > 3)


def _traces(axes: Axes) -> np.ndarray:
    """Pixels [n, 2] that lines, marks and intervals run through, every few pixels."""
    paths = [axes.transData.transform(line.get_xydata()) for line in axes.lines]
    for line, path in list(zip(axes.lines, paths, strict=True)):
        if line.get_marker() not in ("None", None, "", " "):
            reach = line.get_markersize() / 2 * _dot(axes)
            paths += [at + reach * np.array([[1, 0], [0, 1], [-1, 0], [0, -1]]) for at in path]
    for collection in axes.collections:
        if isinstance(collection, LineCollection):
            paths += [axes.transData.transform(s) for s in collection.get_segments()]
    found = [np.zeros((0, 2))]
    for path in paths:
        path = path[np.isfinite(path).all(axis=1)]
        found.append(path)
        for a, b in pairwise(path):
            parts = np.linspace(0, 1, 2 + min(int(np.hypot(*(b - a)) / 5), 500))[1:-1]
            found.append(a + parts[:, None] * (b - a))
    return np.concatenate(found)


def _place_points(axes: Axes) -> None:
    """Each point's name goes where it hides least, near its point rather than far."""
    names = [t for t in _of(axes, POINT) if isinstance(t, Annotation)]
    if not names:
        return
    dot = _dot(axes)
    inside, traces = axes.get_window_extent(), _traces(axes)
    fixed = [_box(t) for t in axes.texts if t not in names and t.get_visible() and t.get_text()]
    sizes = [(_box(t).width + 2 * dot, _box(t).height) for t in names]
    points = axes.transData.transform([t.xy for t in names])
    angle = np.radians(np.arange(0, 360, 15))
    far = np.repeat(DISTANCES, len(angle))
    way = np.tile(np.stack([np.cos(angle), np.sin(angle)], axis=1), (len(DISTANCES), 1))
    placed: dict[int, Bbox] = {}
    for i in [*range(len(names)), *range(len(names))]:  # twice, for later ones may make room
        half = np.array(sizes[i]) / 2
        middle = points[i] + way * (dot * far[:, None] + half)
        low, high = middle - half, middle + half
        taken = fixed + [box for j, box in placed.items() if j != i]
        cost = 0.2 * far
        cost += 1e6 * ((low < inside.min) | (high > inside.max)).any(axis=1)
        lead = points[i] + np.linspace(0.2, 1, 9)[:, None, None] * (middle - points[i])
        for box in taken:
            cost += 1e3 * ((low < box.max) & (high > box.min)).all(axis=1)
            cost += 5 * ((lead > box.min) & (lead < box.max)).all(axis=2).sum(axis=0)
        edge = 2 * dot  # of the light rim about letters, and of lines
        hidden = (traces > low[:, None] - edge) & (traces < high[:, None] + edge)
        cost += hidden.all(axis=2).sum(axis=1)
        best = int(np.argmin(cost))
        placed[i] = Bbox([low[best], high[best]])
        right, up = middle[best] - points[i]
        _move(names[i], right, up, leads=far[best] > 10)
