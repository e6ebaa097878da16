"""TIES: trimmed task vectors, of which those count that agree with the elected sign."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jcl import trees
from jcl.mechanisms import merging
from jcl.method import Batch, Ctx, Info, Method, Params, check


class TiesState(NamedTuple):
    """What ties carries: as much for a hundred stages as for one."""

    base: Params
    """θ₀, in the parameters' dtype."""
    start: Any
    """Where the next stage starts, in the parameters' dtype; () where that is the base."""
    votes: merging.Votes
    """Sums and counts of the trimmed task vectors, by sign."""
    length: jax.Array
    """float32 []: ‖m‖ at the last boundary."""


def ties(
    density: float = 0.2,
    scale: float = 1.0,
    start: Literal["initial", "previous"] = "initial",
    scope: merging.Scope = "model",
) -> Method:
    """TIES merging: θ = θ₀ + λ m at a boundary, m from all task vectors so far.

    Each τ_t = θ_t - θ₀ is trimmed to its largest `density` share; an entry's sign is that of the
    sum; m is the mean of the entries that have it. Sums and counts by sign are all that this needs,
    so the merge of every stage so far is exact without keeping the vectors.

    Within a stage the expert predicts; the merged model is what a boundary leaves, and the first
    step of the next stage goes back to where that one starts. Density 1 and λ = 1 keep the first
    stage's expert exactly, and λ = 0 keeps θ₀; no values are plain fine-tuning beyond that.

    Source: Yadav et al., arXiv 2306.01708, algorithm 1, and the authors' code ("dis-mean").

    Args:
      density: K in [0, 1], the share that is kept; may be traced.
      scale: λ; may be traced.
      start: each stage starts from θ₀ (`initial`, the paper's), or from the expert of the one
        before (`previous`).
      scope: trim over the whole `model` (the authors' code), or each `leaf` by itself.

    Raises:
      ValueError: if an argument is out of range.
    """
    check((density >= 0) & (density <= 1), "density", density, "in [0, 1]")
    check(scale >= 0, "scale", scale, "at least 0")
    check(start in ("initial", "previous"), "start", start, "'initial' or 'previous'")
    check(scope in ("model", "leaf"), "scope", scope, "'model' or 'leaf'")
    sequential = start == "previous"
    grads, updates = merging.begin_stages_at(lambda s: s.start if sequential else s.base)

    def init(ctx: Ctx, params: Params) -> tuple[Params, TiesState]:
        begin = trees.copy(params) if sequential else ()
        votes = merging.no_votes(params)
        return params, TiesState(trees.copy(params), begin, votes, jnp.float32(0))

    def consolidate(
        state: TiesState, ctx: Ctx, params: Params, batches: Batch
    ) -> tuple[Params, TiesState]:
        vector = merging.trim(merging.task_vector(params, state.base), density, scope)
        votes = merging.vote(state.votes, vector)
        elected = merging.elect(votes)
        merged = merging.step_along(state.base, params, elected, scale)
        begin = params if sequential else ()
        return merged, TiesState(state.base, begin, votes, trees.norm(elected))

    def report(state: TiesState, info: Info) -> dict[str, jax.Array]:
        return {"length": state.length}

    return Method(
        "ties",
        init=init,
        grads=grads,
        updates=updates,
        consolidate=consolidate,
        report=report,
        writes=True,
        reads=("parameters",),
    )
