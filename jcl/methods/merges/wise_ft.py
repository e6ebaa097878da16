"""WiSE-FT: after a stage the weights are interpolated between those before it and those after."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jcl import trees
from jcl.mechanisms import merging
from jcl.mechanisms.lasting import check_lasting
from jcl.method import Batch, Ctx, Info, Method, Params, check


class WiseFtState(NamedTuple):
    """The state of `wise_ft`."""

    anchor: Params
    """θ_anchor, in the parameters' dtype."""
    moved: jax.Array
    """float32 []: ‖θ - θ_anchor‖ at the end of the last stage, before the interpolation."""
    kept: Any
    """What the model kept beside θ_anchor."""


def wise_ft(
    alpha: float = 0.5,
    anchor: Literal["previous", "first"] = "previous",
    spherical: bool = False,
) -> Method:
    """Interpolated weights: θ ← (1 - α) θ_anchor + α θ after a stage; the next stage goes on there.

    α = 1 is plain fine-tuning and α = 0 stays at the anchor, both exactly. Of low-rank pairs the
    products are interpolated (see `merging.interpolate`).

    Source: Wortsman et al., arXiv 2109.01903, equation 1, with `anchor="first"` for one stage.

    Args:
      alpha: α in [0, 1]; may be traced.
      anchor: whether θ_anchor are the weights with which the stage began (`previous`), or all
        training (`first`).
      spherical: whether each layer's tensor is interpolated along the arc between its two ends
        (`merging.slerp`).

    Raises:
      ValueError: if an argument is out of range, or, at `init`, another method renews all that
        learns, or `spherical` meets low-rank pairs.
    """
    check((alpha >= 0) & (alpha <= 1), "alpha", alpha, "in [0, 1]")
    check(anchor in ("previous", "first"), "anchor", anchor, "'previous' or 'first'")

    def init(ctx: Ctx, params: Params) -> tuple[Params, WiseFtState]:
        check_lasting("wise_ft", ctx, params)
        if spherical:
            merging.refuse_pairs("wise_ft(spherical=True)", ctx, params, "wise_ft()")
        return params, WiseFtState(*trees.copy((params, jnp.float32(0), ctx.collections)))

    def begin(state: WiseFtState, ctx: Ctx, params: Params) -> tuple[Params, WiseFtState]:
        if anchor == "first":
            return params, state
        start, kept = trees.copy((params, ctx.collections))
        return params, state._replace(anchor=start, kept=kept)

    def consolidate(
        state: WiseFtState, ctx: Ctx, params: Params, batches: Batch
    ) -> tuple[Params, WiseFtState, Any]:
        moved = trees.norm(merging.task_vector(params, state.anchor))
        if spherical:
            mixed = merging.slerp(alpha, state.anchor, params, ctx.structure)
        else:
            mixed = merging.interpolate(alpha, state.anchor, params)
        mixed = trees.choose(ctx.renewed, params, mixed)
        kept = merging.blend(alpha, state.kept, ctx.collections)
        if anchor == "first":
            return mixed, state._replace(moved=moved), kept
        return mixed, WiseFtState(mixed, moved, kept), kept

    def report(state: WiseFtState, info: Info) -> dict[str, jax.Array]:
        return {"moved": state.moved}

    return Method(
        "wise_ft",
        init=init,
        begin=begin,
        consolidate=consolidate,
        report=report,
        writes=True,
        reads=("parameters",),
    )
