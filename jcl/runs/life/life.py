"""`Life`: stages come one by one, each on the state of the last, and judged before it counts.

A stage's folder has its rows, its tests, what each item scored, and the state after it. What counts
is what the book says (`jcl.runs.life.book`), which is replaced when all else of a stage is written.
"""

from __future__ import annotations

import contextlib
import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from jcl import models
from jcl.method import check
from jcl.parallel import processes, signals
from jcl.program import State
from jcl.report import load_settings
from jcl.runs.life import accept as conditions
from jcl.runs.life import forget, matrix, states
from jcl.runs.life.book import Book, Stage, load_rows
from jcl.runs.life.drifting import Drift, compare
from jcl.runs.life.forget import Forgotten
from jcl.runs.life.plan import (
    Given,
    keep_log,
    plan_stage,
    read_given,
    read_items,
    room_of,
    write_items,
)
from jcl.runs.life.rows import Row, digest_of, words_of
from jcl.runs.life.settings import CHUNK, Settings, restored
from jcl.runs.life.tasks import Exam, stage_of
from jcl.runs.life.work import Work, mean_of, shapes_of, zeros_of
from jcl.runs.life.works import Works
from jcl.training import checkpoint
from jcl.training import folder as folders
from jcl.training.fit import Diverged, fit

Event = Callable[[dict[str, Any]], None]


class Outcome(NamedTuple):
    """What became of a stage."""

    name: str
    accepted: bool
    why: str
    """Why it wasn't accepted; empty if it was."""
    scores: dict[str, float]
    """After it, by test."""
    before: float
    """The score on its own test before it was trained."""


class Life:
    """A model that goes on learning in a folder; see `jcl.open`."""

    def __init__(
        self, folder: str | Path, model: models.Model | None = None, mesh: str | None = None
    ) -> None:
        """Opens a folder that `jcl run finetune` or `begin` made.

        Args:
          folder: where it is.
          model: the one that it began with, where that is loaded already.
          mesh: axes of devices, such as `fsdp=2`, where they are others than it was begun with.

        Raises:
          ValueError: if it is none.
        """
        self.folder = Path(folder)
        saved = load_settings(self.folder)
        self.settings: Settings = restored(saved, self.folder, mesh)
        self.saved = saved
        self.book = Book(self.folder)
        self.works = Works(self.folder, self.settings, saved, model)

    @property
    def stages(self) -> list[str]:
        """The names of the stages that led to the current state."""
        return [stage.name for stage in self.book.lineage()]

    @property
    def scores(self) -> np.ndarray:
        """The score matrix [stages + 1, tests] of the current state; NaN where nothing was scored.

        A test is scored by the model as it was given, by the one before its stage, and after its
        stage and all later ones. A stage of whose test all rows were forgotten is left out.
        """
        line = self.book.lineage()
        return matrix.scores(line) if line else np.zeros((1, 0))

    @property
    def base(self) -> models.Model:
        """The model that the life began with.

        Raises:
          ValueError: if it can't be loaded any more.
        """
        return self.works.base

    @property
    def state(self) -> State:
        """The current state."""
        if not self.book.lineage():
            raise ValueError(f"{self.folder} has learned nothing yet, so it has no state")
        return self.state_after(self.book.lineage()[-1])[0]

    @property
    def model(self) -> models.Model:
        """The model as the current state has it predict, adapters beside kernels and scaled."""
        state, example = self.state, zeros_of(self.book.lineage()[-1].facts["example"])
        read = self.work().program.read_params
        return self.base._replace(params=jax.jit(read)(state, example))

    def stage(
        self,
        name: str,
        rows: Given = (),
        tests: Given | None = None,
        *,
        accept: str = "",
        method: str | None = None,
        source: Mapping[str, Any] | None = None,
        repeats: bool = False,
        when: Literal["always", "drift"] = "always",
        on_event: Event | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> Outcome:
        """Learns a stage's rows on the current state, and scores every test.

        One that was cut short goes on where it was, if it is given again.

        Args:
          name: the stage's.
          rows: a file or a folder, or an iterable of rows as a file has them; none for a stage
            that was cut short.
          tests: likewise, to test on; None holds a part of `rows` out, by their hashes.
          accept: conditions for the new state to become the current one.
          method: another expression from here on; None is that of the stage before.
          source: what the book says of the data, such as files and their hashes.
          repeats: whether rows of earlier stages are trained on again.
          when: `drift` learns only if the model knows the rows less well than its tests, by
            `drifting.detect`; else the book says why not.
          on_event: see `jcl.fit`.
          say: takes lines for the user.

        Raises:
          ValueError: if something can't be as it is given, before anything is trained.
          OSError: if something can't be written; the current state stays.
        """
        check(when in ("always", "drift"), "when", when, "'always' or 'drift'")
        wanted = conditions.parse(accept)
        rows, tests, source = read_given(rows, tests, source, self.settings.task)
        with self._held():
            plan = self.book.pending()
            if plan is None:
                check(bool(rows), "number of rows", 0, "at least 1")
                plan, parts = plan_stage(
                    self.book, self.settings, name, rows, tests, wanted, method, source, repeats,
                    self.saved["files"],
                )  # fmt: skip
                self._planned(plan)  # which may refuse
                drift = self._drift(parts.train, plan["labels"]) if when == "drift" else None
                if drift is not None and not drift.fired:
                    self.book.add("skipped", name=name, why=drift.said, source=plan["source"])
                    self.book.write()
                    return Outcome(name, False, drift.said, {}, math.nan)
                self.book.begin(plan, parts.train, parts.test)
            elif rows and (plan["name"], plan["digest"]) != (name, digest_of(rows, tests)):
                self._refuse_pending()
            say(words_of(plan["name"], plan["counts"]))
            had = room_of(self.book.lineage(), self.settings)
            if plan["room"] > had:
                say(f"room: {plan['room']} classes from here on, where the head had {had}")
            return self._learn(plan, on_event)

    def drop(self) -> str | None:
        """Drops a stage that was cut short, and gives its name; None if there is none."""
        with self._held():
            plan = self.book.pending()
            self.book.drop_pending()
            return None if plan is None else plan["name"]

    def rollback(self, to: str) -> Stage:
        """Makes the state after the stage `to` the current one; later ones stay in the folder.

        Raises:
          ValueError: if there is no such stage, or one was cut short.
        """
        with self._held():
            self._refuse_pending()
            stage = self.book.find(to)
            self.book.current = stage.number
            self.book.add("rollback", to=stage.number, name=stage.name)
            self.book.write()
            return stage

    def _drift(self, rows: Sequence[Row], labels: Sequence[str]) -> Drift | None:
        """What the detector says of rows under the current state; None before the first stage."""
        line = self.book.lineage()
        if not line:
            return None
        known = read_items(self.book.place(line[-1].number))
        work = self.works.at(line[-1], labels)
        new = work.score(self.state, work.exam(rows), len(line))
        return compare(known, new, work.task.higher_is_better)

    def forget(self, rows: Given = (), stage: str = "") -> Forgotten:
        """Takes rows out of every memory and every file that is kept; see `jcl.runs.life.forget`.

        They never come back: a later stage leaves them out, by their hashes.

        Args:
          rows: a file or a folder, or an iterable of rows as a file has them.
          stage: in their place all rows of a stage; a bank by task then forgets its entry too.

        Raises:
          ValueError: if a stage was cut short, there are no rows, or not one of the two is given.
          OSError: if something can't be written; the next command goes on with it.
        """
        self._refuse_peers()
        rows = read_given(rows, None, None, self.settings.task)[0]
        check(bool(rows) != bool(stage), "rows", "given" if rows else "not given",
              "given, or a stage in their place")  # fmt: skip
        with self._held():
            self._refuse_pending()
            whole = self.book.find(stage).number if stage else -1
            if stage:
                place = self.book.place(whole)
                rows = [r for n in ("train", "test") for r in load_rows(place / f"{n}.jsonl")]
            forget.begin(self.book, rows, whole)
            return forget.purge(self.book, self.work, rows, whole)

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        """Holds the folder, with the book as it is by then.

        Raises:
          ValueError: if another run holds it, or the processes of this one don't share it.
        """
        shared = checkpoint.is_shared(self.folder)
        check(shared, "folder", str(self.folder), "one that all processes share")
        with (
            signals.note(), contextlib.ExitStack() as held, warnings.catch_warnings(),
        ):  # fmt: skip
            processes.from_leader(lambda: held.enter_context(folders.hold(self.folder)))
            Book(self.folder).tidy()
            self.book = Book(self.folder)
            unfinished = forget.pending(self.book)
            if unfinished is not None:
                self._refuse_peers()
                forget.purge(self.book, self.work, *unfinished)
            yield
            if self.book.lineage() and not processes.from_leader(self._is_reported):
                self.report()  # also what a process that was killed after its last line left

    def _refuse_peers(self) -> None:
        alone = not processes.has_peers()
        check(alone, "number of processes", "several", "one to forget rows, which reads all states")

    def _refuse_pending(self) -> None:
        plan = self.book.pending()
        if plan is not None:
            raise ValueError(
                f"{self.folder} has the stage {plan['name']!r}, which was cut short; go on with it "
                f"by jcl continue {self.folder}, or drop it with --drop"
            )

    def _learn(self, plan: dict[str, Any], on_event: Event | None) -> Outcome:
        """Trains, scores and judges the stage that was begun, and writes it into the book."""
        book, settings = self.book, self.settings
        number, line = len(book.stages), book.lineage()
        place = book.place(number)
        work = self._planned(plan)
        signals.stop()
        train = work.task.train(load_rows(place / "train.jsonl"))
        rows = len(next(iter(train.values())))
        task = len(line)  # its rows', and its place among those that led here
        stream = stage_of(
            plan["name"], task, train, settings.batch, settings.steps_for(rows), settings.seed
        )
        start = stream.chunk(0, 0, 1)
        example = {k: x[0] for k, x in start.items()}
        tests = {**{s.number: s.name for s in line}, number: plan["name"]}
        rows_of = {n: load_rows(book.place(n) / "test.jsonl") for n in tests}
        exams: dict[int, Exam] = {n: work.exam(rows) for n, rows in rows_of.items() if rows}
        base = work.first(example)
        try:
            given = states.start_of_stage(book, self.work, work, base, example)
        except ValueError:
            book.drop_pending()  # nothing was trained
            raise
        able = line[-1].facts["probes"]["after"] if line else work.ask(given)
        before = work.score(given, exams[number], task)
        first = work.score(base, exams[number], task) if line else before
        signals.stop()
        facts = {
            **{k: v for k, v in plan.items() if k not in ("digest", "labels")},
            "number": number, "steps": stream.steps[0], "optimizer": settings.optimizer,
            "before": mean_of(before), "base": mean_of(first), "example": shapes_of(example),
        }  # fmt: skip
        try:
            # a replay that begins with the second stage is idle in this one, but not in the life
            warnings.filterwarnings("ignore", message=".* changes nothing before stage")
            result = fit(
                work.program, given.params, work.key, stream, out=place / "training",
                resume=True, chunk=CHUNK, on_event=on_event, carried=given, carry="whole",
                collections=given.collections,
            )  # fmt: skip
        except Diverged as error:
            return self._close(plan, facts, {}, [str(error)])
        signals.stop()
        places = {n: at for at, n in enumerate(tests)}
        items = {n: work.score(result.state, exam, places[n]) for n, exam in exams.items()}
        signals.stop()
        facts |= {
            "probes": {"before": able, "after": work.ask(result.state)},
            "wall_seconds": result.wall_seconds, "compile_seconds": result.compile_seconds,
            "examples_per_second": result.examples_per_second,
            "step_traces": result.step_traces, "peak_memory_bytes": result.peak_memory_bytes,
        }  # fmt: skip
        scores = {tests[n]: mean_of(found) for n, found in items.items()}
        measured = matrix.measured(
            [*line, Stage(number, plan["name"], plan["parent"], True, {**facts, "scores": scores})],
            work.task.higher_is_better,
        )
        why = conditions.broken(conditions.parse(plan["accept"]), measured)
        if not why:
            work.save(place, result.state)
            processes.from_leader(lambda: keep_log(place))
            processes.from_leader(lambda: write_items(place, rows_of, items))
        return self._close(plan, facts, scores, why)

    def _close(
        self,
        plan: dict[str, Any],
        facts: dict[str, Any],
        scores: dict[str, float],
        why: list[str],
    ) -> Outcome:
        """Writes a stage into the book, which is when it counts."""
        book = self.book
        accepted = not why
        book.add("stage", **facts, scores=scores, accepted=accepted, why="; ".join(why))
        if accepted:
            book.current, book.labels = facts["number"], plan["labels"]
        book.write()
        book.tidy()
        if accepted:
            states.slim(book, self.settings.keep, self.work)
        return Outcome(plan["name"], accepted, "; ".join(why), scores, facts["before"])

    def state_after(self, stage: Stage) -> tuple[State, bool]:
        """The state after a stage, and whether its optimizer's is that of then; else it is new."""
        place = self.book.place(stage.number)
        return self.work(stage).load(place, zeros_of(stage.facts["example"]))

    def work(self, stage: Stage | None = None) -> Work:
        """What the state after a stage belongs to; None is the current one, or the first model.

        Raises:
          ValueError: if the model or a file of a method has changed since.
        """
        line = self.book.lineage()
        if stage is None and not line:
            return self.works.of(self.settings.method, (), self.settings.room)
        return self.works.at(stage or line[-1], self.book.labels)

    def _planned(self, plan: dict[str, Any]) -> Work:
        """What a stage is learned with."""
        return self.works.of(plan["method"], plan["labels"], plan["room"], plan["files"])

    def report(self) -> Path | None:
        """Writes scores, figures and report.html of the current state; None before any stage."""
        from jcl.runs.life import shown  # matplotlib, which other commands shouldn't wait for

        drawn = processes.from_leader(lambda: str(shown.write(self) or ""))
        return Path(drawn) if drawn else None

    def _is_reported(self) -> bool:
        """Whether the report is of all that the book says."""
        path = self.folder / "summary.json"
        if not path.is_file():
            return False
        said = json.loads(path.read_text())
        return bool(said["entries"] == len(self.book.entries))
