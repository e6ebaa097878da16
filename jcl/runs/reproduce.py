"""Published numbers, run again: protocols, their cells, what came out, and a verdict on each.

A file under `experiments/published/` is a protocol. Its docstring is the protocol in words, the
first line a headline; `SOURCE` says where the published numbers stand, `CELLS` are the cells of the
table, and `QUICK` is a short form of some of them, whose expectations are our own.
"""

from __future__ import annotations

import inspect
import json
import os
import platform
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypeVar

import numpy as np

from jcl.measures import metrics
from jcl.method import check
from jcl.report import screen
from jcl.report.folder import save_json
from jcl.report.format import replace_between
from jcl.runs import experiment, expression, files, launch
from jcl.runs.cache import cache

T = TypeVar("T")
Verdict = Literal["reproduced", "differs", "direction only", "nothing published", "not run yet"]
BEGIN, END = "<!-- jcl reproduce --table -->", "<!-- end of the table -->"
"""What stands in experiments/README.md before and after the table."""


@dataclass(frozen=True)
class Cell:
    """A published number, and how it is measured here."""

    name: str
    """What the row of the table is called, unlike the protocol's others."""
    run: Callable[[Path], Mapping[int, float]]
    """`(folder) -> {seed: value}`, in the unit of `published`. A run that was stopped may go on
    from what it left in the folder, which is removed once the cell is done."""
    published: float | None = None
    """The paper's number; None where it gives none, or only a direction."""
    half: float = 0.0
    """Half the width of its 95 % interval; 0 where none is known."""
    tolerance: float | None = None
    """By what share of the published number ours may differ, in place of intervals."""
    below: str = ""
    """The cell whose values these stay below, where the paper is about a direction only."""
    source: str = ""
    """Where this number stands, if elsewhere than the protocol's `SOURCE` says."""
    finding: str = ""
    """Why ours differs, as far as an experiment has shown."""


def once(run: Callable[[Path], T]) -> Callable[[Path], T]:
    """A run that several cells measure: made in the folder of the first that asks, and kept."""
    made: list[T] = []

    def get(folder: Path) -> T:
        if not made:
            made.append(run(folder))
        return made[0]

    return get


def by_seed(run: Callable[[int], np.ndarray], seeds: int, folder: Path) -> dict[int, np.ndarray]:
    """What `run` gives for each seed; seeds that are in the folder aren't run again."""
    found = {}
    for seed in range(seeds):
        kept = folder / f"{seed}.npy"
        if not kept.exists():
            np.save(kept, run(seed))
        found[seed] = np.load(kept)
    return found


@dataclass(frozen=True)
class Outcome:
    """What a cell came to."""

    values: Mapping[int, float]
    """By seed."""
    facts: Mapping[str, Any]
    """`seconds`, `commit`, `machine` and `versions`."""

    @property
    def mean(self) -> float:
        """The mean over seeds."""
        return metrics.interval(list(self.values.values()))[0]

    @property
    def half(self) -> float:
        """Half the width of its 95 % interval over seeds; 0 for a single one."""
        return metrics.interval(list(self.values.values()))[1] or 0.0


@dataclass(frozen=True)
class Protocol:
    """A protocol, from its file."""

    name: str
    words: str
    """The protocol in words; its first line is a headline."""
    source: str
    cells: tuple[Cell, ...]
    quick: tuple[Cell, ...]

    @property
    def headline(self) -> str:
        """The first line of the words."""
        return self.words.partition("\n")[0]


def judge(cell: Cell, outcomes: Mapping[str, Outcome | None]) -> Verdict:
    """The verdict on a cell, from the protocol's outcomes by cell.

    A number is reproduced if ours is within the stated tolerance, or else if the two 95 % intervals
    meet. A direction holds if the two cells' intervals are apart the right way round.
    """
    ours = outcomes.get(cell.name)
    other = outcomes.get(cell.below) if cell.below else None
    if ours is None or (cell.below and other is None):
        return "not run yet"
    if other is not None:
        apart = ours.mean + ours.half < other.mean - other.half
        return "direction only" if apart else "differs"
    if cell.published is None:
        return "nothing published"
    room = ours.half + cell.half
    if cell.tolerance is not None:
        room = cell.tolerance * abs(cell.published)
    return "reproduced" if abs(ours.mean - cell.published) <= room else "differs"


def folder() -> Path:
    """The folder of the protocols, beside or inside the package as the experiments are."""
    return experiment.folder() / "published"


def available() -> dict[str, Path]:
    """The protocols' files by name."""
    return {p.stem: p for p in sorted(folder().glob("*.py")) if "\nCELLS" in p.read_text()}


def find(name: str) -> Protocol:
    """A protocol by name.

    Raises:
      ValueError: if there is none, or its file can't be run or lacks something.
    """
    known = available()
    if name not in known:
        raise ValueError(f"no protocol is called {name!r}{expression.near(name, known)}")
    return read(known[name])


def read(path: Path) -> Protocol:
    """The protocol of a file.

    Raises:
      ValueError: if it can't be run or lacks something.
    """
    module: ModuleType = files.run(path, f"jcl_published_{path.stem}")
    words = inspect.cleandoc(module.__doc__ or "")
    check(bool(words), f"docstring of {path}", words, "the protocol in words")
    parts = [getattr(module, part, ()) for part in ("CELLS", "QUICK")]
    for part, cells in zip(("CELLS", "QUICK"), parts, strict=True):
        ok = isinstance(cells, tuple) and bool(cells) and all(isinstance(c, Cell) for c in cells)
        check(ok, f"{part} of {path}", cells, "a tuple of jcl.runs.reproduce.Cell, at least one")
        names = [slug(c.name) for c in cells]
        check(len(set(names)) == len(names), f"names in {part} of {path}", names, "all different")
    return Protocol(path.stem, words, getattr(module, "SOURCE", ""), *parts)


def slug(name: str) -> str:
    """A cell's name as that of a file.

    >>> slug("EWC, domain")
    'ewc-domain'
    """
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


def kept(protocol: Protocol, results: Path) -> dict[str, Outcome | None]:
    """The outcomes that are kept in a folder of results, by cell; None of a cell not yet run."""
    found: dict[str, Outcome | None] = {}
    for cell in protocol.cells:
        path = results / protocol.name / f"{slug(cell.name)}.json"
        found[cell.name] = None
        if path.is_file():
            facts = json.loads(path.read_text())
            values = dict(zip(facts.pop("seeds"), facts.pop("values"), strict=True))
            found[cell.name] = Outcome(values, facts)
    return found


def measure(cell: Cell, work: Path) -> Outcome:
    """Runs a cell in a folder of its own, which holds what an interrupted run left."""
    cache()
    work.mkdir(parents=True, exist_ok=True)
    commit, before = _commit(), time.monotonic()
    values = {int(seed): float(value) for seed, value in cell.run(work).items()}
    seconds = round(time.monotonic() - before, 1)
    return Outcome(values, {"seconds": seconds, "commit": commit, **_machine()})


def complete(protocol: Protocol, results: Path, only: Sequence[str] = ()) -> None:
    """Runs the cells that aren't kept yet, and keeps each as JSON when it is done.

    Args:
      protocol: whose cells.
      results: the folder of results.
      only: the names of the cells to run; all by default.

    Raises:
      ValueError: if a cell that is named isn't there.
    """
    names = {slug(cell.name): cell.name for cell in protocol.cells}
    for wanted in only:
        if slug(wanted) not in names:
            near = expression.near(slug(wanted), names)
            raise ValueError(f"{protocol.name} has no cell {wanted!r}{near}")
    chosen = {names[slug(wanted)] for wanted in only} or set(names.values())
    for cell in protocol.cells:
        path = results / protocol.name / f"{slug(cell.name)}.json"
        if cell.name not in chosen or path.exists():  # by now, for others may run cells beside
            continue
        work = path.with_suffix(".work")
        found = measure(cell, work)
        seeds = {
            "seeds": list(found.values),
            "values": [round(v, 6) for v in found.values.values()],
        }
        save_json(path, {"cell": cell.name, **seeds, **found.facts})
        shutil.rmtree(work)
        screen.console().print(f"{cell.name}: {_amount(found.mean, found.half)}")


def _commit() -> str:
    """The commit of the checkout that runs, with a plus if files have changed since; "" in none."""
    ask = ["git", "-C", str(experiment.folder()), "describe", "--always", "--abbrev=12"]
    try:
        done = subprocess.run([*ask, "--dirty=+"], capture_output=True, text=True, check=False)
    except OSError:  # no git on this machine
        return ""
    return done.stdout.strip()


def _machine() -> dict[str, Any]:
    info = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    kind = named[1] if named else platform.processor()
    made = launch.versions()
    return {"machine": f"{os.cpu_count()} cores of {kind}", **made}


def _amount(mean: float, half: float) -> str:
    """A number with its interval: two decimals, or four where it is below 1 in size."""
    digits = 2 if abs(mean) >= 1 else 4
    return f"{mean:.{digits}f}" + (f" ± {half:.{digits}f}" if half else "")


def _published(cell: Cell) -> str:
    if cell.below:
        return f"below {cell.below}"
    return "–" if cell.published is None else _amount(cell.published, cell.half)


def rows(protocol: Protocol, outcomes: Mapping[str, Outcome | None]) -> list[list[str]]:
    """A protocol's table: cell, published, ours, seeds, seconds, verdict."""
    lines = []
    for cell in protocol.cells:
        ours, verdict = outcomes[cell.name], judge(cell, outcomes)
        shown = ["–", "", ""]
        if ours is not None:
            seconds = f"{ours.facts['seconds']:.0f}"
            shown = [_amount(ours.mean, ours.half), str(len(ours.values)), seconds]
        said = f"differs: {cell.finding}" if verdict == "differs" and cell.finding else verdict
        lines.append([cell.name, _published(cell), *shown, said])
    return lines


HEADS = ("cell", "published", "ours", "seeds", "seconds", "verdict")


def tally(verdicts: Iterable[Verdict]) -> str:
    """How many there are of each verdict, in words; of none, nothing."""
    found = list(verdicts)
    counts = {kind: found.count(kind) for kind in dict.fromkeys(found)}
    return ", ".join(f"{number} {kind}" for kind, number in counts.items())


def markdown(results: Path) -> str:
    """The table of all protocols, as experiments/README.md has it."""
    parts = []
    for path in available().values():
        protocol = read(path)
        outcomes = kept(protocol, results)
        counts = tally(judge(cell, outcomes) for cell in protocol.cells)
        parts.append(f"### {protocol.name}: {protocol.headline.rstrip('.')}\n\n{counts}.\n")
        parts.append("| " + " | ".join(HEADS) + " |\n|" + "---|" * len(HEADS))
        parts += ["| " + " | ".join(row) + " |" for row in rows(protocol, outcomes)]
        parts.append(f"\nSource: {protocol.source}\n")
    return "\n".join(parts)


def show_all(results: Path) -> None:
    """Prints the protocols with the counts of their verdicts."""
    for path in available().values():
        protocol = read(path)
        outcomes = kept(protocol, results)
        counts = tally(judge(cell, outcomes) for cell in protocol.cells)
        screen.lines(f"{protocol.name:<12} {protocol.headline}", f"{'':<12} {counts}")


def show(protocol: Protocol, results: Path) -> None:
    """Prints a protocol in words, its source, and its table of what is published and ours."""
    screen.lines(protocol.words, "", f"Source: {protocol.source}", "")
    screen.rows(HEADS, rows(protocol, kept(protocol, results)))


def try_quick(protocol: Protocol, work: Path) -> bool:
    """Runs the short form and prints it; whether every cell came out as is expected here."""
    found: dict[str, Outcome | None] = {}
    for cell in protocol.quick:
        found[cell.name] = measure(cell, work / protocol.name / slug(cell.name))
    short = Protocol(protocol.name, protocol.words, protocol.source, protocol.quick, ())
    lines = rows(short, found)
    fine = ("reproduced", "direction only", "nothing published")
    good = [judge(cell, found) in fine for cell in protocol.quick]
    for line, well in zip(lines, good, strict=True):
        line[-1] = "as expected" if well else "not as expected"
    screen.lines(f"{protocol.name}, short form")
    screen.rows(("cell", "expected", *HEADS[2:]), lines)
    return all(good)


def command(
    name: str, quick: bool, table: bool, show_only: bool, cells: Sequence[str], out: Path | None
) -> int:
    """What `jcl reproduce` does; see its help. Gives the exit code.

    Raises:
      ValueError: if the arguments don't go together, or name what isn't there.
    """
    results = folder() / "results" if out is None else out
    if quick + table + show_only > 1:
        raise ValueError("jcl reproduce takes one of --quick, --table and --show at a time")
    if name and table:
        raise ValueError(f"--table is of all protocols, but {name!r} is named; leave it out")
    if not name and (show_only or cells):
        raise ValueError("--show and --cells are of one protocol, whose NAME is missing")
    if table:
        page = experiment.folder() / "README.md"
        page.write_text(replace_between(page.read_text(), BEGIN, END, markdown(results)))
        print(page)
        return 0
    if quick:
        chosen = [find(name)] if name else [read(path) for path in available().values()]
        with tempfile.TemporaryDirectory() as work:
            return 0 if all([try_quick(one, Path(work)) for one in chosen]) else 1
    if not name:
        show_all(results)
        return 0
    protocol = find(name)
    if not show_only:
        complete(protocol, results, cells)
    show(protocol, results)
    return 0
