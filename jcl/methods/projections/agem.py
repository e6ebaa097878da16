"""A-GEM: a step that would raise the loss on the memory is projected until it no longer does."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jcl import memory, trees
from jcl.method import Batch, Ctx, Info, Method, Params, check


class AgemState(NamedTuple):
    """The state of `agem`."""

    buffer: Any
    """A `memory.Buffer`, or () if another method's is shared."""


def agem(
    capacity: int = 500,
    rows: int = 256,
    at: Literal["grads", "updates"] = "grads",
    policy: str = "reservoir",
    groups: int | None = None,
    share: str | None = None,
) -> Method:
    """A-GEM: where g·r < 0, g ← g - (g·r / r·r) r, r the gradient of the loss on rows from memory.

    The memory holds rows of finished stages only; it is filled when a stage ends.

    Source: Chaudhry et al., arXiv 1812.00420, equation 11 and algorithm 2.

    Args:
      capacity: how many slots the memory has.
      rows: how many rows are drawn for r; a step costs (B + rows) / B of a plain one.
      at: whether to project the gradient (`grads`, as published) or the optimizer's update
        (`updates`). With momentum, Adam or weight decay only the latter keeps the promise: of the
        steps whose gradient was projected 83 to 91 % still went uphill on the memory (measured).
      policy: which rows are kept, see `memory.policy`.
      groups: how many groups that policy tells apart, see `memory.policy`.
      share: name of another method in the chain, whose `buffer` is read; it may hold rows of the
        present stage, as in mammoth's agem_r. Nothing is stored here.

    Raises:
      ValueError: if an argument is out of range.
    """
    check(rows >= 1, "rows", rows, "at least 1")
    check(at in ("grads", "updates"), "at", at, "'grads' or 'updates'")
    downhill = 1.0 if at == "grads" else -1.0
    keep = memory.policy(policy, capacity, groups)

    def init(ctx: Ctx, params: Params) -> tuple[Params, AgemState]:
        return params, AgemState(() if share else keep.empty(ctx.batch))

    def project(state: AgemState, ctx: Ctx, tree: Params) -> Params:
        """`tree` less its part along r, where `downhill` · tree · r < 0."""
        buffer = memory.buffer_of(ctx, share) if share else state.buffer
        old = memory.sample(buffer, ctx.key, rows)
        ref = trees.float32(jax.grad(ctx.loss, has_aux=True)(ctx.params, old)[0])
        along, length = trees.dot(tree, ref), trees.dot(ref, ref)
        hurts = (downhill * along < 0) & (length > 0)
        return trees.axpy(
            jnp.where(hurts, -along / jnp.where(length > 0, length, 1.0), 0.0), ref, tree
        )

    def projected(state: AgemState, ctx: Ctx, tree: Params) -> Params:
        return lax.cond(ctx.stage < 1, lambda t: t, lambda t: project(state, ctx, t), tree)

    def consolidate(
        state: AgemState, ctx: Ctx, params: Params, batches: Batch
    ) -> tuple[Params, AgemState]:
        return params, AgemState(memory.insert_batches(keep, state.buffer, ctx, params, batches))

    def report(state: AgemState, info: Info) -> dict[str, jax.Array]:
        return {"stored": memory.count_filled(state.buffer)}

    method = Method("agem", init=init, reads=("samples",), starts=1, wants=keep.wants)
    if share:
        method = method._replace(needs=(share,))
    else:
        method = method._replace(consolidate=consolidate, report=report, limits=keep.limits)
    if at == "grads":
        return method._replace(grads=projected)
    return method._replace(updates=projected)
