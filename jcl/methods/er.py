"""Experience replay: rows from a memory of past examples are appended to every batch."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jcl import memory
from jcl.method import Batch, Ctx, Info, Method, Params, check


class ErState(NamedTuple):
    """What er carries."""

    buffer: memory.Buffer


def er(capacity: int = 500, rows: int = 32, weight: float = 1.0, start: int = 1) -> Method:
    """Experience replay with a reservoir: L = Σ w·l / Σ w over B fresh rows and `rows` old ones.

    Source: Chaudhry et al., arXiv 1902.10486, algorithm 1 with reservoir sampling.

    Args:
      capacity: slots in the memory.
      rows: how many rows are drawn for each step.
      weight: of a replayed row against a fresh one; may be traced.
      start: first stage in which rows are replayed; 0 rehearses within the first stage too,
        which a stream without boundaries needs.

    Raises:
      ValueError: if an argument is out of range.
    """
    check(capacity >= 1, "capacity", capacity, "at least 1")
    check(rows >= 1, "rows", rows, "at least 1")
    check(weight >= 0, "weight", weight, "at least 0")
    check(start >= 0, "start", start, "at least 0")

    def init(ctx: Ctx, params: Params) -> tuple[Params, ErState]:
        return params, ErState(memory.empty(ctx.batch, capacity))

    def batch(state: ErState, ctx: Ctx, fresh: Batch) -> Batch:
        old = memory.sample(state.buffer, ctx.key, rows)
        old["weight"] = old["weight"] * jnp.where(ctx.task < start, 0.0, weight)
        return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), fresh, old)

    def observe(state: ErState, ctx: Ctx, info: Info) -> ErState:
        return ErState(memory.reservoir(state.buffer, ctx.key, info.batch))

    def report(state: ErState, info: Info) -> dict[str, jax.Array]:
        return {"stored": memory.filled(state.buffer)}

    def idle(state: ErState, ctx: Ctx) -> jax.Array:
        return ctx.task < start

    return Method(
        "er", init=init, batch=batch, observe=observe, report=report, idle=idle
    )
