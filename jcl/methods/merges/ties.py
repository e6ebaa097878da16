"""TIES: trimmed task vectors are merged, each entry over those that agree with its elected sign."""

from __future__ import annotations

from jcl import trees
from jcl.mechanisms import experts, merging
from jcl.method import Ctx, Method, Params, check


def ties(
    density: float = 0.2,
    scale: float = 1.0,
    start: experts.Start = "initial",
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
    check(scope in ("model", "leaf"), "scope", scope, "'model' or 'leaf'")

    def merge(votes: merging.Votes, ctx: Ctx, vector: Params) -> experts.Merged:
        # of a leaf that was renewed no entry is one of the task vector's, nor ranked with these
        vector, void = trees.partition(vector, lambda path: not ctx.renewed(path))
        if scope == "model":
            vector = merging.trim(vector, density)
        else:
            vector = merging.trim_layers(vector, density, ctx.structure)
        vector = trees.merge(vector, trees.zeros(void))
        votes = merging.vote(votes, vector)
        elected = merging.elect(votes)
        return experts.Merged(votes, elected, trees.norm(elected))

    return experts.method("ties", merging.no_votes, merge, scale, start)
