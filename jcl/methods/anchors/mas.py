"""Memory-aware synapses: a quadratic anchor, weighted by how much a parameter moves the outputs."""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax

from jcl import losses, trees
from jcl.mechanisms import importance
from jcl.mechanisms.lasting import check_lasting
from jcl.mechanisms.quadratic import Quadratic, no_anchor
from jcl.method import Batch, Ctx, Info, Method, Params, check


class MasState(NamedTuple):
    """The state of `mas`."""

    past: Quadratic
    """All past anchors as one quadratic."""

    @property
    def omega(self) -> Params:
        """ΣΩ, float32."""
        return self.past.curvature


def mas(strength: float = 2.0, anchor: Literal["latest", "each"] = "latest") -> Method:
    """MAS: ½ λ Σ_i Ω_i (θ_i - θ*_i)², Ω ← Ω + the mean over examples of |∂‖f(x)‖²/∂θ|.

    Labels play no part; f(x) are the model's outputs, such as logits, of the classes that the loss
    allows and the tokens that it counts. So classes that were never trained and padding give no
    importance. Of token scores ‖f(x)‖² is computed over a piece of the logits at a time.

    Source: Aljundi et al., arXiv 1711.09601, equations 2 to 4, whose λ is half of ours. The
    authors' code takes the absolute value of a batch's sum instead, where signs cancel.

    Args:
      strength: λ; may be traced. 2 is the paper's 1.
      anchor: which θ* the summed Ω has: where the `latest` stage ended (the paper), or for the Ω
        of `each` stage where that stage ended, as in `ewc`.

    Raises:
      ValueError: if an argument is out of range; at `init`, if the loss gives no logits, token
        scores or values.
    """
    check(strength >= 0, "strength", strength, "at least 0")
    check(anchor in ("latest", "each"), "anchor", anchor, "'latest' or 'each'")

    def init(ctx: Ctx, params: Params) -> tuple[Params, MasState]:
        check_lasting("mas", ctx, params)
        single = Quadratic(trees.zeros(params), trees.copy(params))
        return params, MasState(no_anchor(params) if anchor == "each" else single)

    def grads(state: MasState, ctx: Ctx, tree: Params) -> Params:
        return state.past.pull(tree, strength, ctx.params)

    def consolidate(
        state: MasState, ctx: Ctx, params: Params, batches: Batch
    ) -> tuple[Params, MasState]:
        new = importance.sensitivity(ctx, params, batches)
        if anchor == "each":
            past = state.past.add(new, params)
        else:
            past = Quadratic(trees.add(state.omega, new), trees.copy(params))
        return params, MasState(past.without(ctx.renewed))

    def report(state: MasState, info: Info) -> dict[str, jax.Array]:
        return {"omega": trees.norm(state.omega)}

    return Method(
        "mas",
        init=init,
        grads=grads,
        consolidate=consolidate,
        report=report,
        reads=("parameters", "gradients"),
        wants=(losses.Logits, losses.TokenScores, losses.Values),
        starts=1,
    )
