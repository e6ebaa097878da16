"""The host loop: it streams data to a program, evaluates, logs, checkpoints and resumes.

It runs the same program as `run`, a chunk of steps in each call. `State.stage` and
`State.stage_step` say where it stands, so a checkpoint holds the state and the scores so far and
nothing else. With several processes all run this loop, on parts of the same arrays; process 0 alone
writes the log.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jcl.data.stream import Stream
from jcl.method import Params, check
from jcl.parallel import processes, signals
from jcl.program import Evaluate, Program, State
from jcl.refusals import warn_of_idle
from jcl.training import checkpoint, inputs, origin
from jcl.training.carry import Carry, take_over
from jcl.training.compiled import compile_loop, start
from jcl.training.evaluations import BESIDE, Asked, Evaluations, Keep, as_json, asked
from jcl.training.events import Event, Listener, learning_rate
from jcl.training.feed import Feed, place
from jcl.training.folder import hold, prepare
from jcl.training.log import Log
from jcl.training.result import Result, peak_memory


class Diverged(RuntimeError):
    """The loss is no longer finite; the message names stage, step and the last good checkpoint."""


def chunk_size(steps: tuple[int, ...], limit: int) -> int:
    """How many steps a call takes, at most `limit`.

    It is a number that divides every stage's steps, if there is one of at least half the limit.

    >>> chunk_size((300, 200), 64)
    50
    >>> chunk_size((181, 179), 100)
    100
    """
    common, largest = math.gcd(*steps), min(limit, max(steps))
    best = max(n for n in range(1, largest + 1) if common % n == 0)
    return best if 2 * best > largest else largest


def _count(x: jax.Array) -> int:
    """A counter of the state, equal in all members, as an int."""
    return int(np.asarray(x).reshape(-1)[0])


def tree_of(state: State, scores: np.ndarray) -> dict[str, Any]:
    """The tree that is checkpointed."""
    where = state.step.sharding  # on a mesh, whole on every device
    return {"state": state, "scores": place(scores, where)}


def last_state(
    program: Program,
    params: Params,
    key: jax.Array,
    stream: Stream,
    evaluate: Evaluate | None,
    out: str | Path,
    collections: Any = (),
) -> State:
    """The state of the newest whole checkpoint in a folder of `fit`; arguments as for that run.

    Raises:
      ValueError: if there is no checkpoint, or it is of another program.
    """
    begun = start(program, params, key, Feed(stream, program.layout, 1), evaluate, collections)
    like = tree_of(begun.like, begun.scores)
    found = checkpoint.restore(Path(out) / "checkpoints", like, BESIDE)
    if found is None:
        raise ValueError(f"out is {str(out)!r}, which has no whole checkpoint, but must have one")
    return found[0]["state"]


class _Run:
    """A run under way: its state, scores and clocks, and the steps of the loop."""

    def __init__(
        self,
        program: Program,
        params: Params,
        collections: Any,
        key: jax.Array,
        carried: State | None,
        what: Carry,
        stream: Stream,
        evaluate: Evaluate | None,
        out: Path | None,
        resume: bool,
        chunk: int,
        wanted: Asked,
        emit: Listener,
    ) -> None:
        self.stream, self.emit = stream, emit
        self.feed = Feed(stream, program.layout, chunk_size(stream.steps, chunk))
        begun = start(program, params, key, self.feed, evaluate, collections)
        self.scores, self.width = begun.scores, begun.width
        self.within = Evaluations(wanted, stream, begun.scores.shape[:-2])
        self.saver = None if out is None else checkpoint.Saver(out / "checkpoints")
        self.saved: int | None = None
        found = None
        if resume and self.saver is not None:
            like = tree_of(begun.like, self.scores) | self.within.tree(begun.like)
            found = checkpoint.restore(self.saver.folder, like)
            signals.stop()
        if found is not None:
            tree, self.saved = found
            self.state, self.scores = tree["state"], np.array(tree["scores"])
            self.within.restore(tree)
        else:
            self.state = begun.make() if carried is None else take_over(begun.make(), carried, what)
        self.first_stage = 0 if carried is None else _count(carried.stage)
        self.first_step = 0 if carried is None else _count(carried.step)
        self.done = self.resumed_at = _count(self.state.step) - self.first_step
        self.total = sum(stream.steps)
        self.compiled = compile_loop(program, self.state, self.feed, evaluate)
        if out is not None:
            where = None if program.layout is None else str(dict(program.layout.mesh.shape))
            shape = self.scores.shape
            begun_with = origin.of(stream, key, self.compiled.programs, where, shape)
            origin.check(out, begun_with, found is not None)
        where_to = out if processes.is_leader() else None
        self.log = Log(where_to, self.done)
        kept = where_to if wanted.every is not None else None
        self.evaluations = Log(kept, self.done, "evaluations.jsonl")
        told = [line["diverged"] for line in self.log.lines if "diverged" in line]
        self.diverged = {int(m): step for m, step in told[-1].items()} if told else {}
        self.training, self.stopped = 0.0, False
        self.began = time.perf_counter()

    def save(self, replace: bool = False) -> None:
        """Saves; at a boundary with `replace`, for the step's number is that before it too."""
        if self.saver is not None:
            tree = tree_of(self.state, self.scores) | self.within.tree(self.state)
            self.saver.save(self.done, tree, replace)
            self.saved = self.done

    def save_at_once(self, replace: bool = False) -> None:
        self.save(replace)
        self.close()

    def stop(self) -> None:
        """Ends the run here for its listener, saved; a resumed one goes on."""
        self.stopped = True
        self.save_at_once()

    def close(self) -> None:
        if self.saver is not None:
            self.saver.finish()

    def evaluate(self) -> np.ndarray:
        """The scores [..., tasks] of the state as it is, NaN of members that have diverged."""
        assert self.compiled.evaluate is not None
        row = np.array(self.compiled.evaluate(self.state))
        row[list(self.diverged)] = np.nan
        return row

    def evaluate_within(self, stage: int) -> None:
        """Evaluates within a stage, and keeps the best."""
        row, name = self.evaluate(), self.stream.names[stage]
        best = self.within.take(self.state, row, stage)
        line = {"stage": stage, "name": name, "step": self.done, "scores": as_json(row)}
        self.evaluations.write(line)
        more = {"scores": row, "best": best, "tasks": self.stream.tests}
        self.emit({**line, "kind": "evaluation", **more})

    def score(self, stage: int) -> None:
        """Evaluates, and fills row `stage` of the scores, after so many stages."""
        if self.compiled.evaluate is None:
            return
        row = self.evaluate()
        self.scores[..., stage, :] = row
        name = self.stream.names[stage - 1] if stage else "before training"
        self.emit({"kind": "scores", "stage": stage, "name": name, "step": self.done,
                   "scores": row, "tasks": self.stream.tests})  # fmt: skip

    def unscored(self, stage: int) -> bool:
        """Whether a stage is to begin whose row of the scores, before it, is empty as yet."""
        if self.compiled.evaluate is None or _count(self.state.stage_step) > 0:
            return False
        return bool(np.isnan(self.scores[..., stage, :]).all())

    def advance(self, stage: int, start: int, count: int) -> None:
        """Takes `count` steps of a stage in one call, and logs them.

        Raises:
          Diverged: if no member's losses among them are all finite.
        """
        tick = time.perf_counter()
        chunk = self.feed.chunk(stage, start, start + count)
        self.state, aux = self.compiled.advance(
            self.state, self.feed.source, chunk, np.int32(count)
        )
        reports = {k: np.asarray(v)[..., :count] for k, v in aux.items()}
        self.training += time.perf_counter() - tick
        name = self.stream.names[stage]
        self.note_diverged(reports["loss"].reshape(-1, count), stage)
        self.done += count
        well = [m not in self.diverged for m in range(reports["loss"].size // count)]
        kept = {k: v.reshape(-1, count)[well] for k, v in reports.items()}
        entry: dict[str, Any] = {k: float(np.mean(v[:, -1])) for k, v in kept.items()}
        entry["loss"] = float(np.mean(kept["loss"]))  # the mean over the chunk is less noisy
        if len(well) > 1:
            losses = reports["loss"].reshape(-1, count).mean(axis=1)
            entry["losses"] = [float(x) if ok else None for x, ok in zip(losses, well, strict=True)]
        if self.diverged:
            entry["diverged"] = self.diverged
        self.log.write({"stage": stage, "name": name, "step": self.done, **entry})
        if not self.emit.listens:
            return
        elapsed = time.perf_counter() - self.began
        self.emit({
            "kind": "progress", "stage": stage, "name": name, "step": self.done,
            "steps": self.total, "loss": entry["loss"], "examples_per_second": self.speed,
            "seconds_left": elapsed / (self.done - self.resumed_at) * (self.total - self.done),
            "scalars": {k: entry[k] for k in kept if k != "loss"},
            "learning_rate": learning_rate(self.state.optimizer),
        })  # fmt: skip

    def note_diverged(self, losses: np.ndarray, stage: int) -> None:
        """Marks the members of whose losses [members, steps] one isn't finite; the others go on.

        Raises:
          Diverged: if none is left.
        """
        finite = np.isfinite(losses)
        for member in np.flatnonzero(~finite.all(axis=1)):
            at = self.done + int(np.argmin(finite[member])) + 1
            if int(member) not in self.diverged:
                self.diverged[int(member)] = at
                if len(losses) > 1:
                    self.emit({"kind": "diverged", "member": int(member), "step": at})
        if len(self.diverged) == len(losses):
            last = "there is none" if self.saved is None else f"step {self.saved}"
            raise Diverged(
                f"the loss is not finite in stage {stage} ({self.stream.names[stage]!r}) at step "
                f"{max(self.diverged.values())}; last good checkpoint: {last}"
            )

    def consolidate(self, stage: int) -> None:
        self.state = self.within.best(self.state)
        self.within.forget()
        tick = time.perf_counter()
        slices = self.feed.boundary(stage)
        self.state = self.compiled.consolidate(self.state, self.feed.source, slices)
        jax.block_until_ready(self.state)
        self.training += time.perf_counter() - tick

    @property
    def speed(self) -> float:
        return (self.done - self.resumed_at) * self.width / max(self.training, 1e-9)


def fit(
    program: Program,
    params: Params,
    key: jax.Array,
    stream: Stream | Any,
    *,
    evaluate: Evaluate | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    chunk: int = 100,
    checkpoint_every: int = 1000,
    on_event: Callable[[Event], Any] | Sequence[Callable[[Event], Any]] | None = None,
    evaluate_every: int | None = None,
    keep: Keep = "last",
    patience: int | None = None,
    higher_is_better: bool | None = None,
    carried: State | None = None,
    carry: Carry = "methods",
    collections: Any = (),
) -> Result:
    """Trains a program on a stream, stage by stage.

    Args:
      program: from `make`, or from `replicate` for many members in one compiled function; then
        `params`, `key` and the stream's chunks have a leading axis [members].
      params: where training starts.
      key: a typed PRNG key.
      stream: a `jcl.data.Stream`, or leaves [stages, steps, B, ...] as `run` takes them.
      evaluate: `(program, state) -> scores [tasks]`, called before training and after each stage.
      out: the run's folder, to which `metrics.jsonl` and `checkpoints/` are written, and by
        `jcl.fit` in the end also `summary.json`, `scores.csv` and `matrix.csv`, if it is evaluated.
      resume: whether to go on from the newest whole checkpoint in `out`, if there is one; the
        result is then bit for bit that of an uninterrupted run.
      chunk: how many steps a compiled call takes at most; 1 is for debugging.
      checkpoint_every: steps between checkpoints; the end of every stage makes one too.
      on_event: called with events such as `{"kind": "progress", ...}` (see `training.events`), as
        `jcl.progress()` is, or several such; where one returns "stop" the run saves, and gives back
        what it has. Its `close`, if it has one, is called when the run is over.
      evaluate_every: steps of a stage after which it is also evaluated, beside its last step.
      keep: `best` has each stage end in the state of its best evaluation, by the mean score over
        the tasks seen so far; it takes the room of a second state.
      patience: after how many evaluations in a row without a better one a stage ends early; with
        many members, once none has got better for so long.
      higher_is_better: which scores are good; None is what `evaluate` says of itself, else True.
      carried: the last state of another run with the same methods, from which this one goes on.
        `params` must be its own, to which anchors and memories belong; where they were changed on
        purpose, it is `state._replace(params=params)`.
      carry: what of it goes on: the `methods`' states and the counts of stages and steps, while
        optimizer, key and references start anew; or the `whole`, as if the run had known these
        stages from its beginning (`collections` and `key` are then its own, whatever is given).
      collections: what the model keeps beside its parameters, by name, where training starts; with
        a leading axis [members] as `params` has. () is for a model that keeps nothing.

    Raises:
      ValueError: if an argument is out of range, the stream doesn't fit the program, or `out`
        can't be used.
      OSError: when the log or a checkpoint can't be written; the checkpoint before is untouched.
      Diverged: when the loss is no longer finite, of all members where there are many; what isn't
        finite is never checkpointed, but as the part of a member that the others leave behind.
      KeyboardInterrupt: after a Ctrl-C, once the state is saved.
      Preempted: after SIGTERM, once the state is saved.
    """
    began = time.perf_counter()
    check(chunk >= 1, "chunk", chunk, "at least 1")
    check(checkpoint_every >= 1, "checkpoint_every", checkpoint_every, "at least 1")
    stream = inputs.as_stream(stream, program)
    inputs.check_rows(program, params, key, stream, collections)
    inputs.check_carried(params, carried)
    wanted = asked(evaluate, evaluate_every, keep, patience, higher_is_better)
    if processes.has_peers():
        spread = None if program.layout is None else program.layout.mesh.size
        check(spread == jax.device_count(), "the mesh's number of devices", spread,
              f"{jax.device_count()}, those of all {jax.process_count()} processes")  # fmt: skip
    folder = None if out is None else Path(out)
    processes.from_leader(lambda: prepare(folder, resume))
    emit = Listener(on_event)
    with signals.note(), contextlib.closing(emit), contextlib.ExitStack() as held:
        if folder is not None:
            processes.from_leader(lambda: held.enter_context(hold(folder)))
            processes.from_leader(lambda: checkpoint.tidy(folder / "checkpoints"))
        run = _Run(
            program, params, collections, key, carried, carry,
            stream, evaluate, folder, resume, chunk, wanted, emit,
        )  # fmt: skip
        warn_of_idle(program.method, run.first_stage + len(stream.steps))
        with contextlib.closing(run):
            _drive(run, checkpoint_every)
    return Result(
        run.within.best(run.state), None if evaluate is None else run.scores, run.log.lines,
        time.perf_counter() - began, run.compiled.seconds, run.speed,
        len(run.compiled.traces), peak_memory(), folder, run.diverged, run.evaluations.lines,
        run.stopped,
    )  # fmt: skip


def _drive(run: _Run, checkpoint_every: int) -> None:
    """Takes a run from where it stands through its last stage, or until its listener stops it.

    Raises:
      KeyboardInterrupt: after a Ctrl-C, and Preempted after SIGTERM: at the next point at which a
        checkpoint is all that it takes to go on, once there is one.
    """
    steps, within = run.stream.steps, run.within
    first = _count(run.state.stage) - run.first_stage
    if run.unscored(first):  # it begins, or was stopped between a boundary and the scores after it
        run.score(first)
        if first:
            run.save(replace=True)
        signals.stop(run.close)
    for stage in range(first, len(steps)):
        at = _count(run.state.stage_step)
        while at < steps[stage] and not within.enough:
            if run.emit.asks_to_stop():
                return run.stop()
            count = min(run.feed.size, steps[stage] - at, within.limit(at))
            run.advance(stage, at, count)
            at += count
            if within.due(at, steps[stage]):
                run.evaluate_within(stage)
            due = run.done // checkpoint_every > (run.done - count) // checkpoint_every
            if due and at < steps[stage]:
                run.save()
            signals.stop(run.save_at_once)
        if run.emit.asks_to_stop():
            return run.stop()
        run.consolidate(stage)
        signals.stop(partial(run.save_at_once, replace=True))
        run.score(stage + 1)
        run.save(replace=True)
        signals.stop(run.close)
