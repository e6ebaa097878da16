"""MagMax: of the stages' task vectors each entry keeps the one that moved farthest."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jcl import trees
from jcl.mechanisms import merging
from jcl.mechanisms.lasting import check_lasting
from jcl.method import Batch, Ctx, Info, Method, Params, check


class MagMaxState(NamedTuple):
    """The state of `magmax`, as large for a hundred stages as for one."""

    base: Params
    """θ₀, in the parameters' dtype."""
    start: Any
    """The parameters with which the next stage starts, in their dtype; () if these are the base."""
    farthest: Params
    """At each entry the τ of the largest magnitude so far, float32."""
    length: jax.Array
    """float32 []: its norm at the last boundary."""


def magmax(scale: float = 0.5, start: Literal["initial", "previous"] = "previous") -> Method:
    """MagMax: after a stage θ = θ₀ + λ m, with m_i the τ_t,i of the largest |τ_t,i| of all stages.

    τ_t = θ_t - θ₀ is stage t's task vector, and of equal entries the later stage's is taken. The
    stages are fine-tuned one after the other, so that their vectors agree more, and the merged
    model stands beside that: it is evaluated at the end of a stage, and the next stage goes on from
    the expert of the one before. λ = 1 keeps the first stage's expert exactly, and λ = 0 keeps θ₀;
    no argument makes later stages plain fine-tuning.

    Source: Marczak et al., arXiv 2407.06322, and the authors' code, whose `merge_max_abs`
    is scaled by 0.5.

    Args:
      scale: λ; may be traced.
      start: each stage starts from the expert of the one before (`previous`, the paper's), or from
        θ₀ (`initial`, which the paper compares it with).

    Raises:
      ValueError: if an argument is out of range, or, at `init`, there are low-rank pairs, whose
        factors can't be merged one by one, or another method renews all that learns.
    """
    check(scale >= 0, "scale", scale, "at least 0")
    check(start in ("initial", "previous"), "start", start, "'initial' or 'previous'")
    sequential = start == "previous"

    def init(ctx: Ctx, params: Params) -> tuple[Params, MagMaxState]:
        check_lasting("magmax", ctx, params)
        merging.refuse_pairs("magmax", ctx, params)
        begun = trees.copy(params) if sequential else ()
        return params, MagMaxState(trees.copy(params), begun, trees.zeros(params), jnp.float32(0))

    def consolidate(
        state: MagMaxState, ctx: Ctx, params: Params, batches: Batch
    ) -> tuple[Params, MagMaxState]:
        farthest = merging.larger(state.farthest, merging.task_vector(params, state.base))
        merged = merging.step_along(state.base, params, farthest, scale)
        merged = trees.choose(ctx.renewed, params, merged)
        begun = params if sequential else ()
        return merged, MagMaxState(state.base, begun, farthest, trees.norm(farthest))

    def report(state: MagMaxState, info: Info) -> dict[str, jax.Array]:
        return {"length": state.length}

    return Method(
        "magmax",
        init=init,
        begin=merging.begin_stages_at(lambda s: s.start if sequential else s.base),
        consolidate=consolidate,
        report=report,
        writes=True,
        jumps=True,
        reads=("parameters",),
    )
