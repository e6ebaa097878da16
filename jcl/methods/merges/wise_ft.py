"""WiSE-FT: at a boundary, weights between those before and those after the stage."""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from jcl import trees
from jcl.mechanisms import merging
from jcl.method import Batch, Ctx, Info, Method, Params, check


class WiseFtState(NamedTuple):
    """What wise_ft carries."""

    anchor: Params
    """The end of the line that is not θ, in the parameters' dtype."""
    moved: jax.Array
    """float32 []: ‖θ - anchor‖ at the last boundary, before the interpolation."""


def wise_ft(
    alpha: float = 0.5,
    anchor: Literal["previous", "first"] = "previous",
    spherical: bool = False,
) -> Method:
    """Weights in between: θ ← (1 - α) θ_anchor + α θ at a boundary, where the next stage goes on.

    α = 1 is plain fine-tuning and α = 0 stays at the anchor, both exactly.

    Source: Wortsman et al., arXiv 2109.01903, equation 1, with `anchor="first"` for one stage.

    Args:
      alpha: α in [0, 1]; may be traced.
      anchor: weights with which the stage began (`previous`), or all training (`first`).
      spherical: interpolate each leaf along the arc between the two (`merging.slerp`).

    Raises:
      ValueError: if an argument is out of range.
    """
    check((alpha >= 0) & (alpha <= 1), "alpha", alpha, "in [0, 1]")
    check(anchor in ("previous", "first"), "anchor", anchor, "'previous' or 'first'")
    between = merging.slerp if spherical else merging.lerp

    def init(ctx: Ctx, params: Params) -> tuple[Params, WiseFtState]:
        return params, WiseFtState(trees.copy(params), jnp.float32(0))

    def consolidate(
        state: WiseFtState, ctx: Ctx, params: Params, batches: Batch
    ) -> tuple[Params, WiseFtState]:
        moved = trees.norm(merging.task_vector(params, state.anchor))
        mixed = between(alpha, state.anchor, params)
        return mixed, WiseFtState(mixed if anchor == "previous" else state.anchor, moved)

    def report(state: WiseFtState, info: Info) -> dict[str, jax.Array]:
        return {"moved": state.moved}

    return Method(
        "wise_ft",
        init=init,
        consolidate=consolidate,
        report=report,
        writes=True,
        reads=("parameters",),
    )
