"""TIES: trimmed task vectors are merged, each entry over those that agree with its elected sign."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jcl import trees
from jcl.mechanisms import merging
from jcl.mechanisms.lasting import check_lasting
from jcl.method import Batch, Ctx, Info, Method, Params, check


class TiesState(NamedTuple):
    """The state of `ties`, as large for a hundred stages as for one."""

    base: Params
    """θ₀, in the parameters' dtype."""
    start: Any
    """The parameters with which the next stage starts, in their dtype; () if these are the base."""
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
    """TIES merging: after a stage θ = θ₀ + λ m, with m merged from all task vectors so far.

    Each τ_t = θ_t - θ₀ is trimmed to its largest `density` share; an entry's sign is that of the
    sum; m is the mean of the entries that have it. Sums and counts by sign are all that this needs,
    so the merge of every stage so far is exact without keeping the vectors.

    Within a stage the expert predicts. The merged model is evaluated at the end of a stage, and the
    next stage goes back to where it starts. Density 1 with
    λ = 1 keeps the first stage's expert exactly, and λ = 0 keeps θ₀; no argument makes later stages
    plain fine-tuning.

    Source: Yadav et al., arXiv 2306.01708, algorithm 1, and the authors' code ("dis-mean"), which
    keeps int(K d) of d entries as here, and the next one too, for `kthvalue` finds it as the bound.

    Args:
      density: K in [0, 1], the share that is kept, cut off to a whole number of entries; may be
        traced.
      scale: λ; may be traced.
      start: each stage starts from θ₀ (`initial`, the paper's), or from the expert of the one
        before (`previous`).
      scope: whether entries are ranked over the whole `model` (the authors' code), or in each
        `leaf` by itself, of which stacked layers have one each.

    Raises:
      ValueError: if an argument is out of range, or, at `init`, there are low-rank pairs, whose
        factors can't be averaged one by one, or another method renews all that learns.
    """
    check((density >= 0) & (density <= 1), "density", density, "in [0, 1]")
    check(scale >= 0, "scale", scale, "at least 0")
    check(start in ("initial", "previous"), "start", start, "'initial' or 'previous'")
    check(scope in ("model", "leaf"), "scope", scope, "'model' or 'leaf'")
    sequential = start == "previous"

    def init(ctx: Ctx, params: Params) -> tuple[Params, TiesState]:
        begun = trees.copy(params) if sequential else ()
        votes = merging.no_votes(params)
        check_lasting("ties", ctx, params)
        merging.refuse_pairs("ties", ctx, params)
        return params, TiesState(trees.copy(params), begun, votes, jnp.float32(0))

    def consolidate(
        state: TiesState, ctx: Ctx, params: Params, batches: Batch
    ) -> tuple[Params, TiesState]:
        vector = merging.task_vector(params, state.base)
        # of a leaf that was renewed no entry is one of the task vector's, nor ranked with these
        vector, void = trees.partition(vector, lambda path: not ctx.renewed(path))
        if scope == "model":
            vector = merging.trim(vector, density)
        else:
            vector = merging.trim_layers(vector, density, ctx.structure)
        vector = trees.merge(vector, trees.zeros(void))
        votes = merging.vote(state.votes, vector)
        elected = merging.elect(votes)
        merged = merging.step_along(state.base, params, elected, scale)
        begun = params if sequential else ()
        merged = trees.choose(ctx.renewed, params, merged)
        return merged, TiesState(state.base, begun, votes, trees.norm(elected))

    def report(state: TiesState, info: Info) -> dict[str, jax.Array]:
        return {"length": state.length}

    return Method(
        "ties",
        init=init,
        begin=merging.begin_stages_at(lambda s: s.start if sequential else s.base),
        consolidate=consolidate,
        report=report,
        writes=True,
        jumps=True,
        reads=("parameters",),
    )
