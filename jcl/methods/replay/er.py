"""Experience replay: rows from a memory of past examples are appended to every batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jcl import memory
from jcl.method import Batch, Ctx, Info, Method, Params, check


class ErState(NamedTuple):
    """What er carries."""

    buffer: Any
    """A `memory.Buffer`; empty where another method's is shared."""


def er(
    capacity: int = 500,
    rows: int | None = None,
    weight: float | Callable[[Ctx], jax.Array] = 1.0,
    start: int = 1,
    fraction: float | None = None,
    policy: str = "reservoir",
    groups: int | None = None,
    select: str = "random",
    pool: int = 4,
    share: str | None = None,
) -> Method:
    """Experience replay: L = Σ w·l / Σ w over B fresh rows and some from memory, in one pass.

    Rows are stored after the step that saw them. Source: Chaudhry et al., arXiv 1902.10486,
    algorithm 1 (there with as many old rows as new); mammoth's models/er.py.

    Args:
      capacity: slots in the memory.
      rows: how many rows are drawn for each step, 32 where `fraction` isn't given either.
      weight: of a replayed row against a fresh one; may be traced. A function of `Ctx` is a
        schedule of the share, such as `lambda ctx: jnp.minimum(1.0, ctx.stage_step / 100)`.
      start: first stage in which rows are replayed; 0 rehearses within the first stage too,
        which a stream without boundaries needs.
      fraction: f in (0, 1), of the whole batch: round(f / (1 - f) · B) rows are drawn.
      policy: what is kept, see `memory.policy`.
      groups: of that policy.
      select: what is replayed: `random`, or of `pool` times as many rows those of highest `loss`,
        which costs a forward pass over them.
      pool: candidates for each row that `select="loss"` replays.
      share: name of another method in the chain, whose `buffer` is read; nothing is stored here,
        and `capacity` and `policy` are that method's.

    Raises:
      ValueError: if an argument is out of range, or both `rows` and `fraction` are given.
    """
    check(rows is None or fraction is None, "rows", rows, "left out where fraction is given")
    check(rows is None or rows >= 1, "rows", rows, "at least 1")
    check(fraction is None or 0 < fraction < 1, "fraction", fraction, "in (0, 1)")
    check(callable(weight) or weight >= 0, "weight", weight, "at least 0, or a function of Ctx")
    check(start >= 0, "start", start, "at least 0")
    check(select in ("random", "loss"), "select", select, "'random' or 'loss'")
    check(pool >= 1, "pool", pool, "at least 1")
    keep = memory.policy(policy, capacity, groups)

    def init(ctx: Ctx, params: Params) -> tuple[Params, ErState]:
        return params, ErState(() if share else keep.empty(ctx.batch))

    def held(state: ErState, ctx: Ctx) -> memory.Buffer:
        return memory.buffer_of(ctx, share) if share else state.buffer

    def count(ctx: Ctx) -> int:
        if fraction is None:
            return rows or 32
        fresh = ctx.batch["weight"].shape[0]
        drawn = round(fraction / (1 - fraction) * fresh)
        check(drawn >= 1, "fraction", fraction, f"large enough to add a row to {fresh}")
        return drawn

    def batch(state: ErState, ctx: Ctx, fresh: Batch) -> Batch:
        if select == "random":
            old = memory.sample(held(state, ctx), ctx.key, count(ctx))
        else:
            old = memory.sample(held(state, ctx), ctx.key, pool * count(ctx))
            old = memory.hardest(ctx.loss, ctx.params, old, count(ctx))
        factor = weight(ctx) if callable(weight) else weight
        old["weight"] = old["weight"] * jnp.where(ctx.stage < start, 0.0, factor)
        return memory.append(fresh, old)

    def observe(state: ErState, ctx: Ctx, info: Info) -> ErState:
        return ErState(keep.insert(state.buffer, ctx, memory.finite_rows(info)))

    def consolidate(
        state: ErState, ctx: Ctx, params: Params, batches: Batch
    ) -> tuple[Params, ErState]:
        return params, ErState(keep.finish(state.buffer, ctx, params, batches))

    def report(state: ErState, info: Info) -> dict[str, jax.Array]:
        return {"stored": memory.count_filled(state.buffer)}

    def idle(state: ErState, ctx: Ctx) -> jax.Array:
        neutral = False if callable(weight) else weight == 0
        return (ctx.stage < start) | neutral

    method = Method("er", init=init, batch=batch, idle=idle, reads=("samples",))
    if share:
        return method._replace(needs=(share,))
    if policy == "herding":
        return method._replace(consolidate=consolidate, report=report)
    return method._replace(observe=observe, report=report)
