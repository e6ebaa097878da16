"""Shows a run in the terminal: progress while it runs, tables when it is done."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table

from jcl.parallel.mesh import Placed
from jcl.report.comparison import Comparison
from jcl.report.folder import Run, without_diverged
from jcl.report.format import format_mean, interval_note, labelled, measures_of, scale, title

WIDE = 12
"""How many tasks fit into a table."""
EVERY = 10.0
"""Seconds between lines of progress where there is no terminal."""


def console() -> Console:
    """A console: a terminal as it is; a file or pipe without colours, wide enough for tables."""
    terminal = Console(highlight=False)
    return terminal if terminal.is_terminal else Console(width=120, highlight=False)


class Watch:
    """Shows a run's events."""

    def __init__(
        self, title: str, stages: int, tasks: Sequence[str], unit: tuple[str, int]
    ) -> None:
        """`unit` is what is counted, such as `("tokens", 64)`: 64 tokens a row."""
        self.title, self.stages, self.tasks, self.unit = escape(title), stages, tasks, unit
        self.console = console()
        self.step = 0
        self.said = time.monotonic()
        self.progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=16),
            TextColumn("[dim]{task.fields[facts]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.bar = self.progress.add_task("", total=None, facts="compiling")

    def __enter__(self) -> Watch:
        self.console.print(f"[bold]{self.title}")
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: Any, traceback: TracebackType | None
    ) -> None:
        self.progress.stop()

    def __call__(self, event: dict[str, Any]) -> None:
        """Takes an event of `jcl.fit`."""
        if event["kind"] == "progress":
            self._progress(event)
        elif event["kind"] == "diverged":
            self.console.print(f"  member {event['member']} diverged at step {event['step']}")
        elif event["kind"] == "scores":
            self._scores(event)

    def _progress(self, event: dict[str, Any]) -> None:
        self.step = event["step"]
        what, each = self.unit
        rate = event["examples_per_second"] * each
        facts = (
            f"step {self.step}/{event['steps']} · loss {event['loss']:.3f} · "
            f"{rate:,.0f} {what}/s · {_clock(event['seconds_left'])} left"
        )
        where = escape(f"{event['stage'] + 1}/{self.stages} {event['name']}")
        self.progress.update(
            self.bar, total=event["steps"], completed=self.step, facts=facts,
            description=where,
        )  # fmt: skip
        if not self.console.is_terminal and time.monotonic() - self.said > EVERY:
            self.said = time.monotonic()
            self.console.print(f"  {where}: {facts}")

    def _scores(self, event: dict[str, Any]) -> None:
        scores = np.asarray(event["scores"])
        scores = without_diverged(scores.reshape(-1, scores.shape[-1])).mean(axis=0)
        if not self.console.is_terminal:
            when = escape(f"after {event['name']}") if event["stage"] else "before"
            shown = "  ".join(f"{s:.3f}" for s in scores[:WIDE]) + ("  …" * (len(scores) > WIDE))
            self.console.print(f"  {when:<16} {shown}")


def _clock(seconds: float) -> str:
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def _titled(heading: str) -> Table:
    """An empty table under a bold heading at its left."""
    return Table(box=box.SIMPLE_HEAD, title=heading, title_justify="left", title_style="bold")


def matrix(run: Run) -> None:
    """Prints a run's mean score matrix, if it isn't too wide."""
    shown, factor = run.shown(), scale([run])
    if len(shown.tasks) > WIDE:
        return
    unit = f"{shown.measure}{' (%)' if factor == 100 else ''}"
    table = _titled(escape(f"{shown.label}: {unit}"))
    table.add_column("")
    for task in shown.tasks:
        table.add_column(escape(task), justify="right")
    for r, row in enumerate(shown.scores.mean(axis=0)):
        name = f"after {shown.stages[r - 1]}" if r else "before"
        cells = [f"{factor * x:.{1 if factor == 100 else 3}f}" for x in row]
        cells = [
            f"[bold]{c}" if shown.learned[t] == r else c if shown.learned[t] < r else f"[dim]{c}"
            for t, c in enumerate(cells)
        ]
        table.add_row(escape(name), *cells)
    console().print(table)


def ability(run: Run) -> None:
    """Prints general ability before and after a run's stages, if it was probed."""
    if run.probed is None:
        return
    table = _titled(escape(f"{run.labels[run.best]}: right answers (%) on probes"))
    table.add_column("")
    for name in run.probed["names"]:
        table.add_column(escape(name), justify="right")
    when = ["before", *(f"after {s}" for s in run.summary["stages"])]
    for name, row in zip(when, run.probed["matrix"], strict=True):
        table.add_row(escape(name), *(f"{100 * x:.1f}" for x in row))
    console().print(table)
    lost = format_mean(run.probed["vertical_forgetting"], 100)
    console().print(f"  vertical forgetting: {lost} points")


def shardings(title: str, rows: Sequence[Placed], totals: Sequence[tuple[str, int, int]]) -> None:
    """Prints where parameters lie on a mesh, and bytes of all that is kept: in all, on a device."""
    out = _titled(title)
    out.add_column("parameter", overflow="fold")
    for name in ("shape", "cut by", "MB a device"):
        out.add_column(name, justify="right")
    for row in rows:
        cuts = ", ".join("-" if axis is None else str(axis) for axis in row.spec)
        shape = " × ".join(map(str, row.shape))
        out.add_row(escape(row.path), shape, cuts, f"{row.bytes_per_device / 1e6:,.2f}")
    console().print(out)
    for name, whole, held in totals:
        sizes = f"{whole / 1e9:>9.3f} GB in all {held / 1e9:>9.3f} GB a device"
        console().print(f"  {name:<24} {sizes}, 1 / {whole / max(held, 1):.1f}")


def table(runs: Sequence[Run]) -> None:
    """Prints the measures of runs, one line for each run or point of a sweep."""
    factor = scale(runs)
    facts = runs[0].summary
    note = interval_note(runs)
    seeds = f", mean {note}" if note else ""
    unit = f"{facts['measure']}{' (%)' if factor == 100 else ''}"
    heading = f"{unit}, {'higher' if facts['higher_is_better'] else 'lower'} is better{seeds}"
    out = _titled(heading)
    out.add_column("method", overflow="fold")
    measures = measures_of(runs)
    for measure in measures:
        out.add_column(title(measure), justify="right")
    for run, shown in zip(runs, labelled(runs), strict=True):
        swept = run.summary.get("sweep")
        for p, point in enumerate(swept or [run.summary]):
            name = run.labels[p] if swept else shown.label
            cells = [format_mean(point[m], factor) for m in measures]
            best = "[bold]" if swept and p == run.best else ""
            out.add_row(best + escape(name), *cells)
    console().print(out)


def comparison(found: Comparison) -> None:
    """Prints a comparison whose differences were tested, and below it by which tests."""
    out = _titled(escape(found.notes[0]))
    out.add_column("method", overflow="fold")
    for measure in found.measures:
        out.add_column(title(measure), justify="right")
    for label, cells in zip(found.labels, found.cells, strict=True):
        shown = [f"{'[bold]' * cell.best}{cell.text}{' †' * cell.apart}" for cell in cells]
        out.add_row(escape(label), *shown)
    console().print(out)
    for note in found.notes[1:]:
        console().print(f"  {escape(note)}")


def lines(*text: str) -> None:
    """Prints lines of plain text."""
    for line in text:
        console().print(line, markup=False, soft_wrap=True)


def rows(heads: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    """Prints a table of plain texts."""
    out = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for head in heads:
        out.add_column(head, overflow="fold")
    for row in cells:
        out.add_row(*map(escape, row))
    console().print(out)
