"""Plans a stage: sorts its rows, and refuses what can't be, before anything is written."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jcl.method import check
from jcl.runs import own
from jcl.runs.life import accept, matrix
from jcl.runs.life.book import Book, Stage, load_rows
from jcl.runs.life.forget import ITEMS
from jcl.runs.life.rows import Kind, Row, Sorted, digest_of, hash_of, read_rows, sort, take_rows
from jcl.runs.life.settings import Settings, room_for
from jcl.training.folder import whole

Given = Iterable[Row] | str | Path
"""Rows as dicts with the columns of a file's, or a file or a folder with them."""


def read_given(
    rows: Given, tests: Given | None, source: Mapping[str, Any] | None, kind: Kind
) -> tuple[Sequence[Row], Sequence[Row] | None, Mapping[str, Any] | None]:
    """The rows of what `Life.stage` was given, and where they are from."""
    if isinstance(rows, str | Path) and source is None:
        source = source_of([Path(rows)])
    taken = [x if x is None else rows_of(x, kind) for x in (rows, tests)]
    return taken[0] or (), taken[1], source


def rows_of(given: Given, kind: Kind | None) -> list[Row]:
    """The rows that were given or are in files, in the form of their kind."""
    return read_rows(given, kind) if isinstance(given, str | Path) else take_rows(given, kind)


def plan_stage(
    book: Book,
    settings: Settings,
    name: str,
    rows: Sequence[Row],
    tests: Sequence[Row] | None,
    wanted: Sequence[accept.Condition],
    method: str | None,
    source: Mapping[str, Any] | None,
    repeats: bool,
    files: Mapping[str, str],
) -> tuple[dict[str, Any], Sorted]:
    """What a stage is to be, as JSON, and its rows sorted; arguments as for `Life.stage`.

    Args:
      files: the sums of users' files in the method that the life was begun with, by path.

    Raises:
      ValueError: if something can't be as it is given.
    """
    line = book.lineage()
    taken = [stage.name for stage in line]
    check(name not in taken, "name of the stage", name, f"none of {', '.join(taken)}")
    check(bool(rows), "number of rows", 0, "at least 1")
    asked = [f"probe.{one}" for one in settings.probe]
    accept.check_names(wanted, [*matrix.MEASURES, *taken, name, *asked])
    known: set[str] = set()
    tested: set[str] = set()
    for stage in line:
        place = book.place(stage.number)
        known |= {hash_of(row) for row in load_rows(place / "train.jsonl")}
        tested |= {hash_of(row) for row in load_rows(place / "test.jsonl")}
    parts = sort(
        rows, tests, settings.held_out, frozenset(known), frozenset(tested),
        frozenset(book.forgotten), repeats,
    )  # fmt: skip
    labels, room = list(book.labels), room_of(line, settings)
    if settings.task == "classify":
        seen = {row["label"] for row in [*parts.train, *parts.test]}
        labels += sorted(seen - set(labels))
        room = room if len(labels) <= room else room_for(len(labels))
    if method:
        method = own.absolute(method, Path.cwd())
        files = own.digests([method])
    elif line:
        method, files = line[-1].facts["method"], line[-1].facts["files"]
    plan = {
        "name": name, "digest": digest_of(rows, tests), "parent": book.current, "labels": labels,
        "room": room, "method": method or settings.method, "files": dict(files),
        "accept": ", ".join(map(str, wanted)), "counts": parts.counts, "source": dict(source or {}),
    }  # fmt: skip
    return plan, parts


def room_of(line: Sequence[Stage], settings: Settings) -> int:
    """How many columns the head has after the stages that led to a state."""
    return line[-1].facts["room"] if line else settings.room


def keep_log(place: Path) -> None:
    """Keeps a stage's log, which its training's folder has, for as long as the stage is kept."""
    shutil.copyfile(place / "training" / "metrics.jsonl", place / "metrics.jsonl")


def write_items(
    place: Path, tests: Mapping[int, Sequence[Row]], items: Mapping[int, np.ndarray]
) -> None:
    """Writes what each row of each test scored after a stage, by the row's hash.

    Args:
      place: the stage's folder.
      tests: the rows of each test, by its stage's number.
      items: of the first of them, [items, 2], what each added to the score, and its weight.

    Raises:
      OSError: if it can't be written.
    """
    found = {
        number: dict(zip(map(hash_of, tests[number]), each.tolist(), strict=False))
        for number, each in items.items()
    }
    with whole(place / ITEMS) as partial:
        partial.write_text(json.dumps(found))


def read_items(place: Path) -> dict[int, dict[str, list[float]]]:
    """What `write_items` wrote."""
    found = json.loads((place / ITEMS).read_text())
    return {int(number): of for number, of in found.items()}


def source_of(files: Sequence[Path]) -> dict[str, Any]:
    """What the book says of files: path, sha256 and bytes of each."""
    found = []
    for path in files:
        inside = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        digest = hashlib.sha256()
        for one in inside:
            digest.update(one.read_bytes())
        size = sum(p.stat().st_size for p in inside)
        found.append({"path": str(path), "sha256": digest.hexdigest(), "bytes": size})
    return {"files": found}
