"""A comparison of runs as a table for LaTeX, which `booktabs` rules."""

from __future__ import annotations

from pathlib import Path

from jcl.report.comparison import Cell, Comparison
from jcl.report.format import title
from jcl.training.folder import whole

SPECIAL = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "±": r"$\pm$", "–": "--", "†": r"$^\dagger$", "<": "$<$", ">": "$>$",
    **{c: "\\" + c for c in "&%$#_{}"},
}  # fmt: skip


def escape(text: str) -> str:
    r"""A text in which nothing is a command of LaTeX.

    >>> escape("er_ace(rows=8) & 50 %")
    'er\\_ace(rows=8) \\& 50 \\%'
    """
    return "".join(SPECIAL.get(c, c) for c in text)


def table(found: Comparison) -> str:
    """A floating table; its best cells are bold, and the notes are its caption."""
    arrows = [r"$\uparrow$" if up else r"$\downarrow$" for up in found.rising]
    names = [escape(title(measure)) for measure in found.measures]
    heads = [f"{name} {arrow}" for name, arrow in zip(names, arrows, strict=True)]
    labels = map(escape, found.labels)
    rows = [[x, *map(_cell, cells)] for x, cells in zip(labels, found.cells, strict=True)]
    lines = [
        r"\begin{table}  % needs \usepackage{booktabs}",
        r"\centering",
        rf"\begin{{tabular}}{{l{'r' * len(heads)}}}",
        r"\toprule",
        _row(["method", *heads]),
        r"\midrule",
        *map(_row, rows),
        r"\bottomrule",
        r"\end{tabular}",
        rf"\caption{{{'; '.join(map(escape, found.notes))}.}}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def write(found: Comparison, path: Path) -> None:
    """Writes the table to a file, all or nothing.

    Raises:
      OSError: if it can't be written.
    """
    with whole(path) as partial:
        partial.write_text(table(found))


def _row(cells: list[str]) -> str:
    return " & ".join(cells) + r" \\"


def _cell(cell: Cell) -> str:
    text = escape(cell.text)
    text = rf"\textbf{{{text}}}" if cell.best else text
    return text + escape("†") if cell.apart else text
