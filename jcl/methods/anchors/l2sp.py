"""L2-SP: a quadratic anchor at the starting point, with the same weight for every parameter."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from jcl import trees
from jcl.method import Batch, Ctx, Method, Params, check


class L2spState(NamedTuple):
    """The state of `l2sp`."""

    anchor: Params
    """θ⁰, in the parameters' dtype."""


def l2sp(strength: float = 0.1, start: int = 0) -> Method:
    """L2-SP: ½ λ ‖θ - θ⁰‖², its gradient added before the optimizer.

    Source: Li et al., arXiv 1802.01483, the L2-SP penalty with λ for α; the plain weight decay (β)
    that the paper has for a new head is left to the optimizer. With λ twice theirs it is also L2
    Init, λ ‖θ - θ⁰‖², which keeps a model plastic: Kumar et al., arXiv 2308.11958, section 3.

    Args:
      strength: λ; may be traced.
      start: θ⁰ are the parameters with which stage `start` begins, before which nothing pulls.
        0 takes those before all training; 1 is for streams whose first stage is the pre-training.

    Raises:
      ValueError: if an argument is out of range.
    """
    check(strength >= 0, "strength", strength, "at least 0")
    check(start >= 0, "start", start, "at least 0")

    def init(ctx: Ctx, params: Params) -> tuple[Params, L2spState]:
        return params, L2spState(trees.copy(params))

    def grads(state: L2spState, ctx: Ctx, tree: Params) -> Params:
        away = trees.subtract(trees.float32(ctx.params), trees.float32(state.anchor))
        return trees.axpy(jnp.where(ctx.stage < start, 0.0, strength), away, tree)

    def consolidate(
        state: L2spState, ctx: Ctx, params: Params, batches: Batch
    ) -> tuple[Params, L2spState]:
        anchor = trees.select(ctx.stage < start, params, state.anchor)
        return params, L2spState(trees.choose(ctx.renewed, trees.copy(params), anchor))

    return Method(
        "l2sp",
        init=init,
        grads=grads,
        consolidate=consolidate,
        reads=("parameters",),
        starts=start,
    )
