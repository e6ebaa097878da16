"""Task arithmetic: each stage trains an expert, and the experts' task vectors are added up."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jcl import trees
from jcl.mechanisms import merging
from jcl.mechanisms.lasting import check_lasting
from jcl.method import Batch, Ctx, Info, Method, Params, check


class TaskArithmeticState(NamedTuple):
    """The state of `task_arithmetic`."""

    base: Params
    """θ₀, in the parameters' dtype."""
    start: Any
    """The parameters with which the next stage starts, in their dtype; () if these are the base."""
    total: Params
    """Στ, float32."""
    length: jax.Array
    """float32 []: ‖τ‖ of the last stage."""


def task_arithmetic(
    scale: float = 0.4, start: Literal["initial", "previous"] = "initial", drop: float = 0.0
) -> Method:
    """Task arithmetic: after a stage θ = θ₀ + λ Σ_t τ_t, with τ_t = θ_t - θ₀ and experts θ_t.

    Within a stage the expert predicts. The merged model is evaluated at the end of a stage, and the
    next stage goes back to where it starts. λ = 1 keeps the first stage's
    expert exactly, and λ = 0 keeps θ₀; no λ is plain fine-tuning in later stages, which start
    elsewhere.

    Source: Ilharco et al., arXiv 2212.04089, section 2; λ = 0.4 is common for eight tasks, and λ of
    one over their number averages the experts. Yu et al., arXiv 2311.03099, for `drop` (DARE).

    Args:
      scale: λ; may be traced.
      start: each stage starts from θ₀ (`initial`, the paper's), or from the expert of the one
        before (`previous`: sequential fine-tuning; `magmax` merges that by its largest entries).
      drop: the share of each task vector that DARE drops, in [0, 1); may be traced.

    Raises:
      ValueError: if an argument is out of range, or, at `init`, there are low-rank pairs, whose
        factors can't be averaged one by one, or another method renews all that learns.
    """
    check(scale >= 0, "scale", scale, "at least 0")
    check(start in ("initial", "previous"), "start", start, "'initial' or 'previous'")
    check((drop >= 0) & (drop < 1), "drop", drop, "in [0, 1)")
    sequential = start == "previous"

    def init(ctx: Ctx, params: Params) -> tuple[Params, TaskArithmeticState]:
        begun = trees.copy(params) if sequential else ()
        check_lasting("task_arithmetic", ctx, params)
        merging.refuse_pairs("task_arithmetic", ctx, params)
        return params, TaskArithmeticState(
            trees.copy(params), begun, trees.zeros(params), jnp.float32(0)
        )

    def consolidate(
        state: TaskArithmeticState, ctx: Ctx, params: Params, batches: Batch
    ) -> tuple[Params, TaskArithmeticState]:
        vector = merging.task_vector(params, state.base)
        total = trees.add(state.total, merging.dare(ctx.key, vector, drop))
        merged = merging.step_along(state.base, params, total, scale)
        begun = params if sequential else ()
        merged = trees.choose(ctx.renewed, params, merged)
        return merged, TaskArithmeticState(state.base, begun, total, trees.norm(vector))

    def report(state: TaskArithmeticState, info: Info) -> dict[str, jax.Array]:
        return {"length": state.length}

    return Method(
        "task_arithmetic",
        init=init,
        begin=merging.begin_stages_at(lambda s: s.start if sequential else s.base),
        consolidate=consolidate,
        report=report,
        writes=True,
        jumps=True,
        reads=("parameters",),
    )
