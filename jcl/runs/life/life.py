"""`Life`: stages come one by one, each on the state of the last, and judged before it counts.

A stage's folder has its rows, its tests, what each item scored, and the state after it. What counts
is what the book says (`jcl.runs.life.book`), which is replaced when all else of a stage is written.
"""

from __future__ import annotations

import contextlib
import math
import shutil
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
from jcl.runs.life.book import Book, Stage, load_rows, size_of
from jcl.runs.life.drifting import Drift, detect
from jcl.runs.life.forget import Forgotten
from jcl.runs.life.plan import Given, plan_stage, read_given, read_items, write_items
from jcl.runs.life.rows import Row, digest_of, hash_of, words_of
from jcl.runs.life.settings import CHUNK, Settings, restored
from jcl.runs.life.tasks import Exam, stage_of
from jcl.runs.life.work import SLIM, Work, load_model, mean_of, shapes_of, zeros_of
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

    def __init__(self, folder: str | Path) -> None:
        """Opens a folder that `jcl run finetune` or `begin` made.

        Raises:
          ValueError: if it is none.
        """
        self.folder = Path(folder)
        saved = load_settings(self.folder)
        self.settings: Settings = restored(saved, self.folder)
        self.saved = saved
        self.book = Book(self.folder)
        self._model: models.Model | None = None

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
          ValueError: if it can't be loaded any more, or is another by now.
        """
        if self._model is None:
            self._model = load_model(self.settings)
        return self._model

    @property
    def state(self) -> State:
        """The current state."""
        work = self._work()
        return self._state(work, self.book.current)[0]

    @property
    def model(self) -> models.Model:
        """The model as the current state has it predict, adapters beside kernels and scaled."""
        work = self._work()
        state = self._state(work, self.book.current)[0]
        example = zeros_of(self.book.lineage()[-1].facts["example"])
        return self.base._replace(params=jax.jit(work.program.read_params)(state, example))

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
          rows: files or a folder, or rows as `rows.read_rows` gives them; none for a stage that was
            cut short.
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
                    self.book, self.settings, name, rows, tests, wanted, method, source, repeats
                )
                work = self._work(plan["method"], plan["labels"])  # it may refuse
                drift = self._drift(work, parts.train) if when == "drift" else None
                if drift is not None and not drift.fired:
                    self.book.add("skipped", name=name, why=drift.said, source=plan["source"])
                    self.book.write()
                    return Outcome(name, False, drift.said, {}, math.nan)
                self.book.begin(plan, parts.train, parts.test)
            elif rows and (plan["name"], plan["digest"]) != (name, digest_of(rows, tests)):
                self._refuse_pending()
            say(words_of(plan["name"], plan["counts"]))
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
            self._report()
            return stage

    def _drift(self, work: Work, rows: Sequence[Row]) -> Drift | None:
        """What the detector says of rows under the current state; None before the first stage."""
        line = self.book.lineage()
        if not line:
            return None
        items = read_items(self.book.place(line[-1].number))
        known = np.array([x for of in items.values() for x in of.values()])
        state = self._state(work, self.book.current)[0]
        new = work.score(state, work.exam(rows), len(line))
        sign = -1 if work.task.higher_is_better else 1
        tested, incoming = (x[x[:, 1] > 0] for x in (known, new))
        return detect(*(sign * x[:, 0] / x[:, 1] for x in (tested, incoming)))

    def forget(self, rows: Given = (), stage: str = "") -> Forgotten:
        """Takes rows out of every memory and every file that is kept; see `jcl.runs.life.forget`.

        They never come back: a later stage leaves them out, by their hashes.

        Args:
          rows: files, or rows as `rows.read_rows` gives them.
          stage: in their place all rows of a stage; a bank by task then forgets its entry too.

        Raises:
          ValueError: if a stage was cut short, there are no rows, or not one of the two is given.
          OSError: if something can't be written; the next command goes on with it.
        """
        check(bool(rows) != bool(stage), "rows", "given" if rows else "not given",
              "given, or a stage in their place")  # fmt: skip
        rows = read_given(rows, None, None, self.settings.task)[0]
        with self._held():
            self._refuse_pending()
            whole = self.book.find(stage).number if stage else -1
            if stage:
                place = self.book.place(whole)
                rows = [r for n in ("train", "test") for r in load_rows(place / f"{n}.jsonl")]
            forget.begin(self.book, rows, whole)
            return self._forget(rows, whole)

    def _forget(self, rows: Sequence[Row], whole: int) -> Forgotten:
        """Does what was noted; `whole` is the number of the stage that goes whole, -1 if none."""
        hashes = frozenset(map(hash_of, rows))
        found, slots, stages = 0, 0, []
        exact: set[str] = set()
        for stage in (s for s in self.book.stages if s.accepted):
            own = forget.purge_files(self.book, stage, hashes)
            stages += [stage] if own else []
            found += own
            work, place = self._work(stage.facts["method"]), self.book.place(stage.number)
            state, kept = work.load(place, zeros_of(stage.facts["example"]))
            gone = forget.documents_of(work.task, rows)
            left, count = forget.purge_state(state, gone)
            led = [s.number for s in self.book.lineage(stage.number)]
            if whole in led:
                left, able = forget.purge_banks(left, work.program.method, led.index(whole))
                exact |= set(able)
            if count or whole in led:
                work.save(place, left, kept, replace=True)
            slots += count
        said = forget.said(self.book, len(rows), stages, slots, sorted(exact))
        done = Forgotten(found, [stage.name for stage in stages], slots, said)
        forget.finish(self.book, done, sorted(hashes))
        return done

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        """Holds the folder, with the book as it is by then.

        Raises:
          ValueError: if another process holds it, or there are several.
        """
        alone = not processes.has_peers()
        check(alone, "number of processes", "several", "one, for a life is written by one")
        with signals.note(), folders.hold(self.folder), warnings.catch_warnings():
            self.book = Book(self.folder)
            self.book.tidy()
            unfinished = forget.pending(self.book)
            if unfinished is not None:
                self._forget(*unfinished)
            yield

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
        work = self._work(plan["method"], plan["labels"])
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
            given = states.start_of_stage(book, self._work, work, base, example)
        except ValueError:
            book.drop_pending()  # nothing was trained
            raise
        able = line[-1].facts["probes"]["after"] if line else work.ask(given)
        before = work.score(given, exams[number], task)
        first = work.score(base, exams[number], task) if line else before
        signals.stop()
        facts = {
            **{k: plan[k] for k in ("name", "parent", "method", "accept", "counts", "source")},
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
            log = place / "training" / "metrics.jsonl"
            shutil.copyfile(log, place / "metrics.jsonl")
            write_items(place, rows_of, items)
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
            states.slim(book, self.settings.keep, self._work)
        self._report()
        return Outcome(plan["name"], accepted, "; ".join(why), scores, facts["before"])

    def _state(self, work: Work, number: int) -> tuple[State, bool]:
        """The state after a stage, and whether its optimizer's is that of then."""
        if number < 0:
            raise ValueError(f"{self.folder} has learned nothing yet, so it has no state")
        stage = self.book.lineage(number)[-1]
        return work.load(self.book.place(number), zeros_of(stage.facts["example"]))

    def _work(self, method: str | None = None, labels: Sequence[str] | None = None) -> Work:
        line = self.book.lineage()
        method = method or (line[-1].facts["method"] if line else self.settings.method)
        labels = self.book.labels if labels is None else labels
        work = Work(self.settings, self.base, method, labels, self.settings.room)
        if work.fingerprint != self.saved["weights"]:
            raise ValueError(
                f"the weights of {self.settings.model} are others than those that {self.folder} "
                "began with, to which its states belong; put these back"
            )
        return work

    def _report(self) -> None:
        """Writes scores, figures and report.html of the current state."""
        from jcl.runs.life import shown  # matplotlib, which other commands shouldn't wait for

        shown.write(self)

    def sizes(self) -> dict[int, int]:
        """The bytes that each accepted stage's folder has, by number."""
        kept = [stage for stage in self.book.stages if stage.accepted]
        return {stage.number: size_of(self.book.place(stage.number)) for stage in kept}

    def has_optimizer(self, stage: Stage) -> bool:
        """Whether a stage's state is kept whole, or without the optimizer's."""
        return not (self.book.place(stage.number) / SLIM).is_dir()
