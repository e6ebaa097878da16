"""Methods that train an expert a stage, whose task vectors are merged at its end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jcl import trees
from jcl.mechanisms import merging
from jcl.mechanisms.lasting import check_lasting
from jcl.method import Batch, Ctx, Info, Method, Params, check

Start = Literal["initial", "previous"]
"""Whether a stage starts from θ₀, or from the expert of the stage before."""


class Merged(NamedTuple):
    """What is made of the task vectors so far."""

    kept: Any
    """All that the next merge needs to know of them."""
    vector: Params
    """The merged vector, float32."""
    length: jax.Array
    """float32 []: the norm to log."""


Merge = Callable[[Any, Ctx, Params], Merged]
"""`(kept, ctx, τ) -> Merged`: takes in the task vector of the stage that ends, float32."""


class Experts(NamedTuple):
    """The state of a method of experts; its size doesn't depend on the number of stages."""

    base: Params
    """θ₀, in the parameters' dtype."""
    start: Any
    """The parameters with which the next stage starts, in their dtype; () if these are the base."""
    kept: Any
    """What the merge keeps of the task vectors so far."""
    length: jax.Array
    """float32 []: the norm that the last merge gave."""


def method(
    name: str,
    kept: Callable[[Params], Any],
    merge: Merge,
    scale: float | jax.Array,
    start: Start,
) -> Method:
    """A method whose model after a stage is θ₀ + λ m, with m merged from the task vectors so far.

    τ_t = θ_t - θ₀ is the task vector of stage t, and θ_t its expert. Within a stage the expert
    predicts. The merged model is evaluated at the end of a stage, and the next stage goes back to
    where it starts. Leaves that another method renews are left to it.

    Args:
      name: the method's name.
      kept: makes what `merge` keeps before any stage, for the parameters.
      merge: takes in a task vector; see `Merge`.
      scale: λ; may be traced.
      start: where each stage starts.

    Raises:
      ValueError: if an argument is out of range, or, at `init`, there are low-rank pairs, whose
        factors can't be merged one by one, or another method renews all that learns.
    """
    check(scale >= 0, "scale", scale, "at least 0")
    check(start in ("initial", "previous"), "start", start, "'initial' or 'previous'")
    sequential = start == "previous"

    def init(ctx: Ctx, params: Params) -> tuple[Params, Experts]:
        check_lasting(name, ctx, params)
        merging.refuse_pairs(name, ctx, params)
        begun = trees.copy(params) if sequential else ()
        return params, Experts(trees.copy(params), begun, kept(params), jnp.float32(0))

    def consolidate(
        state: Experts, ctx: Ctx, params: Params, batches: Batch
    ) -> tuple[Params, Experts]:
        found = merge(state.kept, ctx, merging.task_vector(params, state.base))
        merged = merging.step_along(state.base, params, found.vector, scale)
        begun = params if sequential else ()
        merged = trees.choose(ctx.renewed, params, merged)
        return merged, Experts(state.base, begun, found.kept, found.length)

    def report(state: Experts, info: Info) -> dict[str, jax.Array]:
        return {"length": state.length}

    return Method(
        name,
        init=init,
        begin=begin_stages_at(lambda s: s.start if sequential else s.base),
        consolidate=consolidate,
        report=report,
        writes=True,
        jumps=True,
        reads=("parameters",),
    )


def begin_stages_at(start: Callable[[Any], Params]) -> Callable[..., tuple[Params, Any]]:
    """The `begin` hook of a method whose later stages start at `start(state)`.

    Leaves that another method has renewed start where that one left them.
    """

    def begin(state: Any, ctx: Ctx, params: Params) -> tuple[Params, Any]:
        return trees.choose(ctx.renewed, params, trees.copy(start(state))), state

    return begin
