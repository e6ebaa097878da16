"""A life's book: what was learned when, of what, with which scores, and which state is current.

It is one JSON file that is replaced whole, so that the current state is always a whole one,
whenever the process ends. A stage's rows, tests and state lie in a folder of its own, which counts
only once the book has it.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from jcl.parallel import processes
from jcl.report import save_json
from jcl.runs.life.rows import Row
from jcl.training.folder import whole

FILE = "book.json"
PLAN = "plan.json"
"""In a stage's folder: what is to be done, written before anything is."""


class Stage(NamedTuple):
    """A stage as the book has it."""

    number: int
    """From 0, in the order in which they came, whether accepted or not."""
    name: str
    parent: int
    """The stage on whose state it was trained; -1 is the model as it was given."""
    accepted: bool
    facts: dict[str, Any]
    """All that the book says of it: when, data, counts, method, steps, scores, and why not."""


class Book:
    """The book of the life in a folder, which several processes share; process 0 writes it."""

    def __init__(self, folder: Path) -> None:
        """Reads it; there is none before the first stage.

        Raises:
          ValueError: if it can't be read.
        """
        self.folder = folder
        self.current = -1
        """The number of the stage whose state is current; -1 is the model as it was given."""
        self.entries: list[dict[str, Any]] = []
        self.labels: list[str] = []
        self.forgotten: list[str] = []
        path = folder / FILE
        if not path.exists():
            return
        try:
            found = json.loads(path.read_text())
            self.current, self.entries = found["current"], found["entries"]
            self.labels, self.forgotten = found["labels"], found["forgotten"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} can't be read as the book of a life: {error!r}") from error

    def write(self) -> None:
        """Replaces the file: all that was changed counts from here on.

        Raises:
          OSError: if it can't be written; what was there before is untouched.
        """
        told = {
            "current": self.current, "labels": self.labels, "forgotten": self.forgotten,
            "entries": self.entries,
        }  # fmt: skip
        processes.from_leader(lambda: save_json(self.folder / FILE, told))

    def add(self, kind: str, **facts: Any) -> None:
        """Adds an entry, which `write` makes count."""
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self.entries.append({"kind": kind, "when": when, **facts})

    @property
    def stages(self) -> list[Stage]:
        """All stages, rejected ones too."""
        return [
            Stage(e["number"], e["name"], e["parent"], e["accepted"], e)
            for e in self.entries if e["kind"] == "stage"
        ]  # fmt: skip

    def lineage(self, to: int | None = None) -> list[Stage]:
        """The stages that led to a state, oldest first; None is the current one."""
        by_number = {stage.number: stage for stage in self.stages}
        found: list[Stage] = []
        number = self.current if to is None else to
        while number >= 0:
            found.insert(0, by_number[number])
            number = found[0].parent
        return found

    def find(self, name: str) -> Stage:
        """The accepted stage of that name, the latest if there are several.

        Raises:
          ValueError: if there is none.
        """
        known = [stage for stage in self.stages if stage.accepted]
        found = [stage for stage in known if stage.name == name]
        if not found:
            names = ", ".join(dict.fromkeys(s.name for s in known)) or "none as yet"
            raise ValueError(f"stage is {name!r}, but must be one of those learned: {names}")
        return found[-1]

    def sizes(self) -> dict[int, int]:
        """The bytes that each accepted stage's folder has, by number."""
        kept = [stage.number for stage in self.stages if stage.accepted]
        return {number: size_of(self.place(number)) for number in kept}

    def place(self, number: int) -> Path:
        """The folder of a stage."""
        return self.folder / "stages" / f"{number:04d}"

    def pending(self) -> dict[str, Any] | None:
        """The plan of a stage that was begun and isn't in the book, such as after a kill."""
        path = self.place(len(self.stages)) / PLAN
        # process 0 reads for all, for it may write a plan before another has looked
        found: dict[str, Any] | None = processes.from_leader(
            lambda: json.loads(path.read_text()) if path.is_file() else None
        )
        return found

    def tidy(self) -> None:
        """Removes what no entry speaks of any more; nobody else may hold the folder."""
        processes.from_leader(self._tidy)

    def _tidy(self) -> None:
        root = self.folder / "stages"
        if not root.is_dir():
            return
        accepted = {self.place(s.number).name for s in self.stages if s.accepted}
        next_one = self.place(len(self.stages)).name
        for path in sorted(root.iterdir()):
            if path.name in accepted:
                shutil.rmtree(path / "training", ignore_errors=True)
            elif path.name != next_one:
                shutil.rmtree(path, ignore_errors=True)

    def begin(self, plan: dict[str, Any], train: Iterable[Row], test: Iterable[Row]) -> Path:
        """Writes what the next stage is to be, all or nothing, and gives its folder.

        Raises:
          OSError: if it can't be written.
        """
        place = self.place(len(self.stages))
        processes.from_leader(lambda: _write_stage(place, plan, train, test))
        return place

    def drop_pending(self) -> None:
        """Removes a stage that was begun and isn't in the book."""
        place = self.place(len(self.stages))
        processes.from_leader(lambda: shutil.rmtree(place, ignore_errors=True))


def _write_stage(
    place: Path, plan: dict[str, Any], train: Iterable[Row], test: Iterable[Row]
) -> None:
    making = place.with_name(place.name + ".making")
    shutil.rmtree(making, ignore_errors=True)
    try:
        making.mkdir(parents=True)
        write_rows(making / "train.jsonl", train)
        write_rows(making / "test.jsonl", test)
        save_json(making / PLAN, plan)
        os.replace(making, place)
    except OSError as error:
        shutil.rmtree(making, ignore_errors=True)
        raise OSError(f"can't write {place}: {error.strerror or error}") from error


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Writes rows as JSON lines, all or nothing.

    Raises:
      OSError: if that can't be done.
    """
    with whole(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def load_rows(path: Path) -> list[Row]:
    """The rows that `write_rows` wrote."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def size_of(folder: Path) -> int:
    """How many bytes the files of a folder have."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
