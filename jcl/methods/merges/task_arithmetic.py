"""Task arithmetic: each stage trains an expert, and the experts' task vectors are added up."""

from __future__ import annotations

from jcl import trees
from jcl.mechanisms import experts, merging
from jcl.method import Ctx, Method, Params, check


def task_arithmetic(
    scale: float = 0.4, start: experts.Start = "initial", drop: float = 0.0
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
    check((drop >= 0) & (drop < 1), "drop", drop, "in [0, 1)")

    def merge(total: Params, ctx: Ctx, vector: Params) -> experts.Merged:
        total = trees.add(total, merging.dare(ctx.key, vector, drop))
        return experts.Merged(total, total, trees.norm(vector))

    return experts.method("task_arithmetic", trees.zeros, merge, scale, start)
