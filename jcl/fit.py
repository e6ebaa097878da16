"""The host loop: streams data to a program, evaluates, logs, checkpoints and resumes.

It runs what `run` runs, a chunk of steps a call. Where it stands is `State.task` and
`State.task_step`, so a checkpoint needs nothing beside the state but the scores so far.
"""

from __future__ import annotations

import json
import math
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jcl import checkpoint
from jcl.data.stream import Stream
from jcl.method import Params
from jcl.program import Evaluate, Program, State, advance, complete

Event = dict[str, Any]


class Diverged(RuntimeError):
    """The loss is no longer finite; the message names task, step and the last good checkpoint."""


class Result(NamedTuple):
    """What a run leaves behind. Leading axis [members] where `replicate` made the program."""

    state: State
    scores: np.ndarray | None
    """float32 [stages + 1, tasks], row 0 before training; None without `evaluate`."""
    history: list[dict[str, Any]]
    """The lines of metrics.jsonl: `stage`, `step`, `loss` and what the methods report."""
    wall_seconds: float
    compile_seconds: float
    examples_per_second: float
    """Fresh rows trained on, all members together, per second of training; compiling and
    evaluation excluded, work at boundaries included."""
    step_traces: int
    peak_memory_bytes: int
    out: Path | None


def chunk_size(steps: tuple[int, ...], limit: int) -> int:
    """Steps a call, at most `limit`: one that divides every stage if there is one above half of it.

    >>> chunk_size((300, 200), 64)
    50
    """
    common = math.gcd(*steps)
    best = max(n for n in range(1, limit + 1) if common % n == 0)
    return best if 2 * best > limit or best == common else min(limit, max(steps))


@contextmanager
def _interruptible() -> Iterator[list[int]]:
    """Notes a first Ctrl-C, so that the loop can save before it stops; a second one stops at once."""
    noted: list[int] = []

    def note(number: int, frame: Any) -> None:
        if noted:
            raise KeyboardInterrupt
        noted.append(number)

    try:
        before = signal.signal(signal.SIGINT, note)
    except ValueError:  # not the main thread, which alone may handle signals
        yield noted
        return
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)


def _peak_memory() -> int:
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class _Compiled(NamedTuple):
    """The four functions that a run calls, compiled before the clock of training starts."""

    advance: Callable[..., Any]
    consolidate: Callable[..., Any]
    evaluate: Callable[..., Any] | None
    seconds: float
    traces: list[int]


def _compile(
    program: Program, state: State, stream: Stream, source: Any, size: int, evaluate: Evaluate | None
) -> _Compiled:
    traces: list[int] = []

    def move(state: State, source: Any, chunk: Any, count: jax.Array) -> Any:
        traces.append(1)
        return program.each(
            lambda p, s, c: advance(p, s, c, lambda rows: stream.fetch(source, rows), count),
            state, chunk,
        )  # fmt: skip

    def boundary(state: State, source: Any, batches: Any) -> State:
        def one(p: Program, s: State, b: Any) -> State:
            return p.consolidate(s, jax.vmap(lambda rows: stream.fetch(source, rows))(b))

        return program.each(one, state, batches)

    start = time.perf_counter()
    chunk = _padded(stream, 0, 0, min(size, stream.steps[0]), size)
    moved = jax.jit(move, donate_argnums=0).lower(state, source, chunk, jnp.int32(0)).compile()
    closed = jax.jit(boundary, donate_argnums=0).lower(state, source, stream.boundary(0)).compile()
    scored = None
    if evaluate is not None:
        score = evaluate
        scored = jax.jit(lambda s: program.each(lambda p, one: score(p, one), s))
        scored = scored.lower(state).compile()
    return _Compiled(moved, closed, scored, time.perf_counter() - start, traces)


def _padded(stream: Stream, stage: int, start: int, stop: int, size: int) -> Any:
    """Steps start to stop, filled up to `size` by repeating the last, which is never run."""
    chunk = stream.chunk(stage, start, stop)
    axis = 0 if stream.members is None else 1
    short = size - (stop - start)
    if short == 0:
        return chunk

    def fill(x: np.ndarray) -> np.ndarray:
        last = np.take(x, [-1], axis=axis)
        return np.concatenate([x, np.repeat(last, short, axis=axis)], axis=axis)

    return jax.tree.map(fill, chunk)


def _one(x: jax.Array) -> int:
    """A counter, which all members share."""
    return int(np.asarray(x).reshape(-1)[0])


class _Log:
    """metrics.jsonl, a line a logged step, and the same lines in memory."""

    def __init__(self, out: Path | None, done: int) -> None:
        self.lines: list[dict[str, Any]] = []
        self.path = None if out is None else out / "metrics.jsonl"
        if self.path is None:
            return
        if self.path.exists():  # what a killed run logged after its last checkpoint comes again
            for line in self.path.read_text().splitlines():
                try:
                    entry = json.loads(line)
                except ValueError:
                    break  # cut off in mid-line
                if entry["step"] <= done:
                    self.lines.append(entry)
        self.path.write_text("".join(json.dumps(e) + "\n" for e in self.lines))

    def write(self, entry: dict[str, Any]) -> None:
        self.lines.append(entry)
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps(entry) + "\n")


def _prepare(out: Path | None, resume: bool) -> None:
    if out is None:
        if resume:
            raise ValueError("resume is True and out is None, but out must name the run's folder")
        return
    if out.exists() and not out.is_dir():
        raise ValueError(f"out is {str(out)!r}, which is a file, but must be a folder")
    if not resume and (out / "checkpoints").exists():
        raise ValueError(
            f"out is {str(out)!r}, which holds a run already; resume it or choose another folder"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".writable"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise ValueError(
            f"out is {str(out)!r}, which can't be written ({error.strerror}), but must be a folder "
            "that can"
        ) from error


def fit(
    program: Program,
    params: Params,
    key: jax.Array,
    stream: Stream,
    *,
    evaluate: Evaluate | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    chunk: int = 100,
    checkpoint_every: int = 1000,
    on_event: Callable[[Event], None] | None = None,
) -> Result:
    """Trains through a stream, stage by stage.

    Args:
      program: from `make`, or from `replicate` for many members in one compiled function; then
        `params`, `key` and the stream's chunks have a leading axis [members].
      params: where training starts.
      key: a typed PRNG key.
      stream: what to train on.
      evaluate: `(program, state) -> scores [tasks]`, called before training and after each stage.
      out: the run's folder: `metrics.jsonl` and `checkpoints/` are written there.
      resume: whether to go on from the newest whole checkpoint in `out`, if there is one; the
        result is then bit for bit that of an uninterrupted run.
      chunk: at most so many steps a compiled call; 1 is for debugging.
      checkpoint_every: steps between checkpoints; there is one at every boundary besides.
      on_event: called with `{"kind": "progress", ...}` after a chunk and `{"kind": "scores", ...}`
        after an evaluation.

    Raises:
      ValueError: for what was given wrongly.
      Diverged: when the loss is no longer finite; nothing non-finite is ever checkpointed.
      KeyboardInterrupt: after a Ctrl-C, once the state is saved.
    """
    began = time.perf_counter()
    if chunk < 1 or checkpoint_every < 1:
        name, value = ("chunk", chunk) if chunk < 1 else ("checkpoint_every", checkpoint_every)
        raise ValueError(f"{name} is {value!r}, but must be at least 1")
    if program.members != stream.members:
        raise ValueError(
            f"the stream has {stream.members} members, but must have the program's "
            f"{program.members}; see jcl.data.members"
        )
    folder = None if out is None else Path(out)
    _prepare(folder, resume)
    emit = on_event or (lambda event: None)
    size = chunk_size(stream.steps, chunk)
    source = jax.tree.map(jnp.asarray, stream.source)
    first = _padded(stream, 0, 0, 1, 1)
    members = () if program.members is None else (program.members,)

    def start(p: Program, params: Params, key: jax.Array, rows: Any) -> tuple[State, jax.Array]:
        batch = complete(stream.fetch(source, jax.tree.map(lambda x: x[0], rows)))
        return p.init(params, batch, key), batch["weight"]

    state, weight = jax.jit(partial(program.each, start))(params, key, first)
    width = weight.size  # rows a step, all members together
    stages = len(stream.steps)
    scores = np.full((*members, stages + 1, len(stream.tests)), np.nan, np.float32)
    if resume and folder is not None:
        found = checkpoint.restore(folder / "checkpoints", {"state": state, "scores": jnp.asarray(scores)})
        if found is not None:
            state, scores = found[0]["state"], np.array(found[0]["scores"])
    log = _Log(folder, _one(state.step))
    compiled = _compile(program, state, stream, source, size, evaluate)
    saved = _one(state.step) if log.lines else None
    trained = evaluating = 0.0
    rows = 0
    total, done = sum(stream.steps), _one(state.step)
    resumed_at = done

    def save() -> None:
        nonlocal saved
        if folder is not None:
            tree = {"state": state, "scores": jnp.asarray(scores)}
            checkpoint.save(folder / "checkpoints", done, tree)
            saved = done

    def score(stage: int) -> None:
        nonlocal evaluating
        if compiled.evaluate is None:
            return
        tick = time.perf_counter()
        scores[..., stage, :] = np.asarray(compiled.evaluate(state))
        evaluating += time.perf_counter() - tick
        name = stream.names[stage - 1] if stage else "start"
        emit({"kind": "scores", "stage": stage, "name": name, "scores": scores[..., stage, :]})

    with _interruptible() as interrupted:
        if done == 0:
            score(0)
        for stage in range(_one(state.task), stages):
            steps = stream.steps[stage]
            at = _one(state.task_step)
            while at < steps:
                count = min(size, steps - at)
                tick = time.perf_counter()
                batches = _padded(stream, stage, at, at + count, size)
                state, aux = compiled.advance(state, source, batches, jnp.int32(count))
                aux = jax.tree.map(lambda x, n=count: np.asarray(x)[..., :n], aux)
                trained += time.perf_counter() - tick
                if not np.isfinite(aux["loss"]).all():
                    bad = int(np.argmin(np.isfinite(aux["loss"]).reshape(-1, count).all(axis=0)))
                    last = "there is none" if saved is None else f"step {saved}"
                    raise Diverged(
                        f"the loss is not finite in stage {stage} ({stream.names[stage]!r}) at step "
                        f"{done + bad + 1}; last good checkpoint: {last}"
                    )
                at, done = at + count, done + count
                rows += count * width
                last_reports = {k: np.mean(v[..., -1]).item() for k, v in aux.items()}
                last_reports["loss"] = float(np.mean(aux["loss"]))
                log.write({"stage": stage, "name": stream.names[stage], "step": done, **last_reports})
                speed = rows / max(trained, 1e-9)
                elapsed = time.perf_counter() - began - compiled.seconds
                emit({
                    "kind": "progress", "stage": stage, "name": stream.names[stage],
                    "step": done, "steps": total, "loss": last_reports["loss"],
                    "examples_per_second": speed,
                    "seconds_left": elapsed / (done - resumed_at) * (total - done),
                })  # fmt: skip
                if at < steps and done // checkpoint_every > (done - count) // checkpoint_every:
                    save()
                if interrupted:
                    save()
                    raise KeyboardInterrupt
            tick = time.perf_counter()
            state = compiled.consolidate(state, source, stream.boundary(stage))
            jax.block_until_ready(state)
            trained += time.perf_counter() - tick
            score(stage + 1)
            save()
    return Result(
        state, None if evaluate is None else scores, log.lines,
        time.perf_counter() - began, compiled.seconds, rows / max(trained, 1e-9),
        len(compiled.traces), _peak_memory(), folder,
    )  # fmt: skip
