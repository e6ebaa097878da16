"""Forgets rows: in the memory of every state that is kept and in every file of the folder.

What is to be forgotten is written down first and is done again after a kill, so that it is never
done by half; then the book says that it was done, and the note goes. Of the weights, and of what
methods keep of gradients or outputs, nothing is claimed: the book says what was trained with it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jcl import memory
from jcl.chain import chain
from jcl.method import Method
from jcl.program import State
from jcl.runs import expression
from jcl.runs.life.book import Book, Stage, load_rows, write_rows
from jcl.runs.life.rows import Row, hash_of
from jcl.runs.life.states import WorkOf
from jcl.runs.life.tasks import Task
from jcl.runs.life.work import zeros_of
from jcl.training.folder import whole

NOTE = "forget.jsonl"
"""What is being forgotten, there only until it is done: a line with the number of the stage that
goes whole, and a line for each row."""
ITEMS = "items.json"
"""In a stage's folder: for each test, by its stage's number, what each row added to the score, and
its weight, by the row's hash."""


class Forgotten(NamedTuple):
    """What was found of rows, and is gone."""

    rows: int
    """How many of them some stage was trained on or tested on."""
    stages: list[str]
    """The stages that were."""
    slots: int
    """How many slots of memory held one, in all states that are kept."""
    said: str
    """All of it in a sentence, and what stays."""


def begin(book: Book, rows: Sequence[Row], whole: int) -> None:
    """Notes what is to be forgotten, and the number of a stage that goes whole, -1 if none does.

    Raises:
      OSError: if that can't be written.
    """
    write_rows(book.folder / NOTE, [{"whole": whole}, *rows])


def pending(book: Book) -> tuple[list[Row], int] | None:
    """What was to be forgotten when the process ended; None if nothing was."""
    path = book.folder / NOTE
    if not path.is_file():
        return None
    first, *rows = load_rows(path)
    return rows, first["whole"]


def purge_files(book: Book, stage: Stage, hashes: frozenset[str]) -> int:
    """Takes rows out of a stage's files, and says how many of its own there were."""
    place, found = book.place(stage.number), 0
    for name in ("train.jsonl", "test.jsonl"):
        rows = load_rows(place / name)
        left = [row for row in rows if hash_of(row) not in hashes]
        found += len(rows) - len(left)
        if len(left) < len(rows):
            write_rows(place / name, left)
    items = json.loads((place / ITEMS).read_text())
    kept = {t: {h: x for h, x in of.items() if h not in hashes} for t, of in items.items()}
    if kept != items:
        with whole(place / ITEMS) as partial:
            partial.write_text(json.dumps(kept))
    return found


def keys_of(arrays: Mapping[str, Any]) -> list[set[bytes]]:
    """For each row of arrays what it is known by: the tokens of each document or pair in it."""
    tokens, segments = np.asarray(arrays["tokens"]), np.asarray(arrays["segments"])
    if "rejected_tokens" in arrays:
        both = zip(tokens, np.asarray(arrays["rejected_tokens"]), strict=True)
        return [{one.tobytes() + other.tobytes()} for one, other in both]
    return [
        {row[part == number].tobytes() for number in range(1, int(part.max(initial=0)) + 1)}
        for row, part in zip(tokens, segments, strict=True)
    ]


def purge_state(state: State, gone: set[bytes]) -> tuple[State, int]:
    """A state whose memories hold none of some documents, and how many slots held one.

    A slot of several documents goes whole.

    Args:
      state: any.
      gone: what they are known by, from `keys_of`.
    """
    slots = 0

    def drop(node: Any) -> Any:
        nonlocal slots
        if not isinstance(node, memory.Buffer):
            return node
        held = np.asarray(node.rows["weight"]) > 0
        hit = np.array([bool(keys & gone) for keys in keys_of(node.rows)]) & held
        slots += int(hit.sum())
        return memory.drop(node, hit) if hit.any() else node

    methods = jax.tree.map(drop, state.methods, is_leaf=lambda x: isinstance(x, memory.Buffer))
    return state._replace(methods=methods), slots


def purge(book: Book, work_of: WorkOf, rows: Sequence[Row], whole: int) -> Forgotten:
    """Does what `begin` noted: rows leave all files and memories, and then the book says so.

    Args:
      book: the life's.
      work_of: of its stages.
      rows: those that go.
      whole: the number of the stage that goes whole, -1 if none.

    Raises:
      OSError: if something can't be written; it can be done again.
    """
    hashes = frozenset(map(hash_of, rows))
    found, slots, stages = 0, 0, []
    exact: set[str] = set()
    beside = False  # whether something else than what forgets exactly was trained with the stage
    for stage in (s for s in book.stages if s.accepted):
        own = purge_files(book, stage, hashes)
        stages += [stage] if own else []
        found += own
        work, place = work_of(stage), book.place(stage.number)
        state, kept = work.load(place, zeros_of(stage.facts["example"]))
        left, count = purge_state(state, documents_of(work.task, rows))
        led = [s.number for s in book.lineage(stage.number)]
        if whole in led:
            left, able = purge_banks(left, work.program.method, led.index(whole))
            exact |= set(able)
            beside |= work.room > 0
        if count or whole in led:
            work.save(place, left, kept, replace=True)
        slots += count
    words = said(book, len(rows), stages, slots, sorted(exact), beside)
    done = Forgotten(found, [stage.name for stage in stages], slots, words)
    finish(book, done, sorted(hashes))
    return done


def documents_of(task: Task, rows: Sequence[Row]) -> set[bytes]:
    """What rows are known by in a memory."""
    return set().union(*keys_of(task.train(rows)))


def purge_banks(state: State, method: Method, at: int) -> tuple[State, list[str]]:
    """A state in which methods that can have forgotten a stage exactly, and the names of these.

    Args:
      state: after that stage, or a later one.
      method: its chain.
      at: the stage's place among those that led to the state.
    """
    able = [part for part in chain(method).parts if part.forgets is not None]
    gone = {p.name: p.forgets(state.methods[p.name], at) for p in able if p.forgets is not None}
    return state._replace(methods={**state.methods, **gone}), list(gone)


def said(
    book: Book,
    rows: int,
    stages: Sequence[Stage],
    slots: int,
    exact: Sequence[str] = (),
    head: bool = False,
) -> str:
    """What was forgotten, and what training it out of the weights would take.

    Args:
      book: the life's.
      rows: how many rows were to be forgotten.
      stages: which of them had any.
      slots: how many slots of memory held one.
      exact: methods that have forgotten the whole stage exactly.
      head: whether a head of classes was trained with it beside these.
    """
    if not stages:
        return f"{rows} rows forgotten, of which no stage was trained or tested on any"
    line = book.lineage()
    numbers = [stage.number for stage in stages]
    after = line[min((i for i, s in enumerate(line) if s.number in numbers), default=len(line)) :]
    keeps = {
        part.name
        for stage in line
        for part in chain(expression.build(expression.parse(stage.facts["method"]))).parts
        if set(part.reads) - {"samples"}
    }
    keeps -= set(exact)
    beside = f" and what {', '.join(sorted(keeps))} keeps" if keeps else ""
    steps = sum(stage.facts["steps"] for stage in after)
    seconds = sum(stage.facts["wall_seconds"] for stage in after)
    what = f"weights of the head{beside}" if exact else f"weights{beside}"
    again = (
        f"; the {what} were trained with it, and training "
        f"{', '.join(s.name for s in after)} again without it takes {steps} steps ({seconds:.0f} s "
        "then)" if after else ""
    )  # fmt: skip
    names = ", ".join(stage.name for stage in stages)
    whole = f"; {', '.join(exact)} has nothing of {names} any more" if exact else ""
    whole += again if head or not exact else ""
    return f"{rows} rows forgotten of {names}, in {slots} slots of memory{whole}"


def finish(book: Book, found: Forgotten, hashes: Sequence[str]) -> None:
    """Writes into the book what is done, and removes the note of it."""
    known = set(book.forgotten)
    if not set(hashes) <= known:  # else the process ended between the two
        book.forgotten += sorted(set(hashes) - known)
        book.add("purge", rows=found.rows, stages=found.stages, slots=found.slots, said=found.said)
        book.write()
    Path(book.folder / NOTE).unlink(missing_ok=True)
