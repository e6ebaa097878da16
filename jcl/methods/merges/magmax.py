"""MagMax: of the stages' task vectors each entry keeps the one that moved farthest."""

from __future__ import annotations

from jcl import trees
from jcl.mechanisms import experts, merging
from jcl.method import Ctx, Method, Params


def magmax(scale: float = 0.5, start: experts.Start = "previous") -> Method:
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

    def merge(farthest: Params, ctx: Ctx, vector: Params) -> experts.Merged:
        farthest = merging.larger(farthest, vector)
        return experts.Merged(farthest, farthest, trees.norm(farthest))

    return experts.method("magmax", trees.zeros, merge, scale, start)
