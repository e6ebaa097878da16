"""From which state a stage begins, and what of old states is kept."""

from __future__ import annotations

import shutil
from collections.abc import Callable

from jcl import trees
from jcl.data.stream import Arrays
from jcl.parallel import processes
from jcl.program import State
from jcl.runs.life.book import Book, Stage
from jcl.runs.life.work import SLIM, WHOLE, Work, zeros_of
from jcl.training.carry import change_methods, widen

WorkOf = Callable[[Stage], Work]
"""What the state after a stage belongs to."""


def start_of_stage(book: Book, work_of: WorkOf, work: Work, base: State, example: Arrays) -> State:
    """The state that a stage begins from: the current one, under the stage's method and head.

    Args:
      book: the life's.
      work_of: of the stage before.
      work: of the stage.
      base: its state before any training, which is where the first stage begins.
      example: a batch, read for shapes and dtypes only.

    Raises:
      ValueError: if the stage's method can't go on from where the one before has ended.
    """
    line = book.lineage()
    if not line:
        return base
    stage, before = line[-1], work_of(line[-1])
    state = before.load(book.place(stage.number), example)[0]
    if before.room < work.room:
        state = widen(before.wider(work.room).first(example), state)
    if before.method == work.method:
        return state
    lost = sorted(trees.kinds(state.params).keys() - trees.kinds(base.params).keys())
    if lost:
        raise ValueError(
            f"method is {work.method!r}, but must keep what made {lost[0]!r}, a leaf of the model "
            f"by now; the stages before had {stage.facts['method']!r}"
        )
    return change_methods(work.first(example, state.params), state)


def has_optimizer(book: Book, stage: Stage) -> bool:
    """Whether a stage's state is kept whole, or without the optimizer's."""
    return not (book.place(stage.number) / SLIM).is_dir()


def slim(book: Book, keep: int, work_of: WorkOf) -> None:
    """Of all but the last `keep` stages drops what the optimizer had.

    Raises:
      OSError: if what is left can't be written; what was there stays.
    """
    for stage in book.lineage()[:-keep]:
        place = book.place(stage.number)
        if not (place / WHOLE).is_dir():
            continue
        work = work_of(stage)
        state, _ = work.load(place, zeros_of(stage.facts["example"]))
        work.save(place, state, whole=False)
        processes.from_leader(lambda old=place / WHOLE: shutil.rmtree(old))  # type: ignore[misc]
