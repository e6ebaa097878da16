"""The functions that the loop of `fit` calls, compiled before it, and the state it starts from."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jcl.method import Params
from jcl.parallel import mesh, signals
from jcl.program import Evaluate, Program, State, advance, fill_batch
from jcl.training.feed import Feed, everywhere, place


class Compiled(NamedTuple):
    """The functions that the loop calls, compiled before the clock of training starts."""

    advance: Callable[..., Any]
    """`(state, source, chunk, count) -> (state, reports)`: `program.advance` of every member."""
    consolidate: Callable[..., Any]
    """`(state, source, slices) -> state`: the boundary after a stage."""
    evaluate: Callable[..., Any] | None
    """`(state) -> scores`, None if nothing is evaluated."""
    seconds: float
    """Seconds that tracing and compiling took."""
    traces: list[int]
    """An entry for each time that a step was traced."""
    programs: list[Any]
    """The jaxprs of the first two."""


def compile_loop(program: Program, state: State, feed: Feed, evaluate: Evaluate | None) -> Compiled:
    """Compiles a run's chunk of steps, its boundary and its evaluation, for the state given.

    Raises:
      KeyboardInterrupt: after a Ctrl-C, and `signals.Preempted` after SIGTERM.
    """
    traces: list[int] = []
    fetch = feed.stream.fetch
    where, whole = shardings(program, state)
    if where is None:  # committed arrays keep their place, which the compiler might change
        where = jax.tree.map(lambda x: x.sharding if x.committed else None, state)

    def move(state: State, source: Any, chunk: Any, count: jax.Array) -> Any:
        traces.append(1)
        read = partial(fetch, source)
        return program.over_members(lambda p, s, c: advance(p, s, c, read, count), state, chunk)

    def close(state: State, source: Any, slices: Any) -> State:
        read = jax.vmap(partial(fetch, source))
        return program.over_members(lambda p, s, b: p.consolidate(s, read(b)), state, slices)

    began = time.perf_counter()
    count, last = np.int32(0), min(feed.size, feed.stream.steps[0])
    mover = jax.jit(move, donate_argnums=0, out_shardings=(where, whole))
    moving = mover.trace(state, feed.source, feed.chunk(0, 0, last), count)
    moved = moving.lower().compile()
    signals.stop()
    closer = jax.jit(close, donate_argnums=0, out_shardings=where)
    closing = closer.trace(state, feed.source, feed.boundary(0))
    closed = closing.lower().compile()
    signals.stop()
    scored = None
    if evaluate is not None:
        scorer = jax.jit(partial(program.over_members, evaluate), out_shardings=whole)
        scored = scorer.lower(state).compile()
        signals.stop()
    programs = [moving.jaxpr, closing.jaxpr]
    return Compiled(moved, closed, scored, time.perf_counter() - began, traces, programs)


def shardings(program: Program, state: State) -> tuple[Any, Any]:
    """The shardings of a state, and of what the host reads; None and None without a mesh."""
    layout = program.layout
    if layout is None:
        return None, None
    return mesh.of_state(state, layout), NamedSharding(layout.mesh, PartitionSpec())


class Start(NamedTuple):
    """The start of a run, before anything is computed."""

    make: Callable[[], State]
    """Makes the first state."""
    like: State
    """Shapes and shardings of the state that a checkpoint is restored into; its key is an array."""
    scores: np.ndarray
    """float32 [..., stages + 1, tasks], all NaN as yet."""
    width: int
    """How many rows a step has, all members together."""


def start(
    program: Program,
    params: Params,
    key: jax.Array,
    feed: Feed,
    evaluate: Evaluate | None,
    collections: Any = (),
) -> Start:
    """Compiles what makes a run's first state, and says what a checkpoint would have to hold.

    Raises:
      KeyboardInterrupt: after a Ctrl-C, and `signals.Preempted` after SIGTERM.
    """

    def first(params: Params, kept: Any, key: jax.Array, source: Any, slices: Any) -> Any:
        def member(p: Program, params: Params, kept: Any, key: jax.Array, slices: Any) -> Any:
            rows = jax.tree.map(lambda x: x[0], slices)
            batch = fill_batch(feed.stream.fetch(source, rows))
            return p.init(params, batch, key, kept), batch["weight"]

        return program.over_members(member, params, kept, key, slices)

    if program.layout is not None:
        params = place(params, mesh.of_params(params, program.layout))
        key = place(key, everywhere(key, program.layout))
        collections = place(collections, everywhere(collections, program.layout))
    given = (params, collections, key, feed.source, feed.chunk(0, 0, 1))
    like, weight = jax.eval_shape(first, *given)
    where, _ = shardings(program, like)
    init = jax.jit(lambda *a: first(*a)[0], out_shardings=where).lower(*given).compile()
    signals.stop()
    like = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), like, init.output_shardings
    )
    columns = (1,)  # not 0: Orbax saves no empty array
    if evaluate is not None:
        columns = jax.eval_shape(partial(program.over_members, evaluate), like).shape
    shape = (*columns[:-1], len(feed.stream.steps) + 1, columns[-1])
    empty = np.full(shape, np.nan, np.float32)
    like = like._replace(key=jax.device_put(key, like.key.sharding))
    return Start(lambda: init(*given), like, empty, weight.size)
