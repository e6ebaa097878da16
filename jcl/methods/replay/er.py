"""Experience replay: rows from a memory of past examples are appended to every batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jcl import memory
from jcl.method import Batch, Ctx, Info, Method, Params, check


class ErState(NamedTuple):
    """The state of `er`."""

    buffer: Any
    """A `memory.Buffer`, or () if another method's is shared."""


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
    fill: Literal["step", "stage"] = "step",
) -> Method:
    """Experience replay: L = Σ w·l / Σ w over B fresh rows and some from memory, in one pass.

    Rows are stored after the step that saw them, see `fill`.

    Source: Chaudhry et al., arXiv 1902.10486, algorithm 1 (there with as many old rows as new);
    mammoth's models/er.py.

    Args:
      capacity: how many slots the memory has.
      rows: how many rows are drawn for each step; without it and `fraction` they are 32.
      weight: the weight of a replayed row, a fresh one's being 1; may be traced. It may be a
        function of `Ctx`, such as `lambda ctx: jnp.minimum(1.0, ctx.stage_step / 100)`.
      start: the first stage in which rows are replayed; 0 replays within the first stage too, from
        its second step on, which a stream without boundaries needs: `fit` and `run` warn if it
        has one stage.
      fraction: f in (0, 1), the share of the whole batch that is replayed: round(f / (1 - f) · B)
        rows are drawn.
      policy: which rows are kept, see `memory.policy`.
      groups: how many groups that policy tells apart, see `memory.policy`.
      select: which rows are replayed: `random` ones, or the ones of highest `loss` among `pool`
        times as many, which costs a forward pass over these.
      pool: how many candidates `select="loss"` draws for each row that it replays.
      share: name of another method in the chain, whose `buffer` is read; then nothing is stored
        here, and `capacity` and `policy` are that method's.
      fill: whether rows are stored after each `step`, or once a `stage` has ended, so that the
        memory never holds rows of the present one, as in van de Ven's code and A-GEM's.

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
    check(fill in ("step", "stage"), "fill", fill, "'step' or 'stage'")
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
        if fill == "step":
            return params, ErState(keep.finish(state.buffer, ctx, params, batches))
        return params, ErState(memory.insert_batches(keep, state.buffer, ctx, params, batches))

    def report(state: ErState, info: Info) -> dict[str, jax.Array]:
        return {"stored": memory.count_filled(state.buffer)}

    def skips(state: ErState, ctx: Ctx) -> jax.Array:
        neutral = False if callable(weight) else weight == 0
        return (ctx.stage < start) | neutral

    method = Method(
        "er",
        init=init,
        batch=batch,
        skips=skips,
        reads=("samples",),
        starts=start,
        wants=keep.wants,
    )
    if share:
        return method._replace(needs=(share,))
    method = method._replace(limits=keep.limits)
    if policy == "herding" or fill == "stage":
        return method._replace(consolidate=consolidate, report=report)
    return method._replace(observe=observe, report=report)
