"""The plane of the survey: every system as a dot, by its stage and its mechanism."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from matplotlib.figure import Figure

from jcl.report.labels import SMALL
from jcl.report.style import GRID, HUES, INK, MUTED, drawing
from jcl.survey.table import FAMILIES, SECTIONS, Paper, Status, counts

COLOURS: dict[Status, str] = {
    "ready": HUES[2], "recipe": HUES[0], "planned": HUES[1], "outside": MUTED,
}  # fmt: skip
HOLLOW = ("planned", "outside")
"""What isn't here is drawn as a ring, so that colour isn't all that tells."""
LATER = "later"
SHORT = {"CFT-general": "CFT"}
ACROSS = 6
"""Dots beside one another in a cell, a sixth of an inch wide with what is between cells."""
STEP = 0.135
"""Between two dots, where a cell is 1 wide."""


def column_of(paper: Paper) -> str:
    """The stage of a row: its section, or that it came later."""
    return LATER if paper.later else paper.section.partition("/")[0]


def draw(rows: Sequence[Paper]) -> Figure:
    """A dot for each row, in the cell of its stage and its mechanism, coloured by its status.

    At the right is how many of a mechanism are ready or a recipe, of how many; below of a stage.
    """
    columns = [*SECTIONS, LATER]
    cells: dict[tuple[str, str], list[Paper]] = {}
    order = [*COLOURS]
    for paper in sorted(rows, key=lambda paper: order.index(paper.status)):
        cells.setdefault((paper.family, column_of(paper)), []).append(paper)
    number = Counter({key: len(found) for key, found in cells.items()})
    lines = {f: max(1, max(-(-number[f, c] // ACROSS) for c in columns)) for f in FAMILIES}
    high = {family: STEP * (count + 1.2) for family, count in lines.items()}
    total = sum(high.values())
    with drawing(10, 1.5 + 0.88 * total) as figure:
        axes = figure.add_subplot()
        axes.grid(False)
        axes.set_xlim(-0.06, len(columns) + 0.72)
        axes.set_ylim(total + 0.32, 0)
        top = 0.0
        middles = []
        for family in FAMILIES:
            axes.axhline(top, color=GRID, linewidth=0.8)
            middles.append(top + high[family] / 2)
            for x, column in enumerate(columns):
                for i, paper in enumerate(cells.get((family, column), [])):
                    axes.plot(
                        x + 0.12 + STEP * (i % ACROSS), top + STEP * (i // ACROSS + 1.1), "o",
                        color=COLOURS[paper.status], markersize=6, markeredgewidth=1.2,
                        markerfacecolor="white" if paper.status in HOLLOW else None,
                    )  # fmt: skip
            here = [paper for paper in rows if paper.family == family]
            axes.text(len(columns) + 0.06, middles[-1], _share(here), va="center", color=INK)
            top += high[family]
        axes.axhline(top, color=GRID, linewidth=0.8)
        for x, column in enumerate(columns):
            here = [paper for paper in rows if column_of(paper) == column]
            axes.text(x + 0.46, top + 0.2, _share(here), ha="center", va="center", color=INK)
        names = [SHORT.get(column, column) for column in columns]
        axes.set_xticks([x + 0.46 for x in range(len(columns))], names)
        axes.xaxis.tick_top()
        axes.set_yticks(middles, list(FAMILIES.values()))
        axes.spines["bottom"].set_visible(False)
        number_of = counts(rows)
        for status, colour in COLOURS.items():
            axes.plot(
                [], [], "o", color=colour, label=f"{status} ({number_of[status]})", markersize=6,
                markerfacecolor="white" if status in HOLLOW else None,
            )  # fmt: skip
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower left", ncols=4)
        figure.supxlabel(
            "numbers: ready or a recipe / all", x=0.99, ha="right", fontsize=SMALL, color=MUTED
        )
    return figure


def _share(rows: Sequence[Paper]) -> str:
    found = counts(rows)
    return f"{found['ready'] + found['recipe']} / {len(rows)}"
