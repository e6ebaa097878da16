"""An exponential moving average of the weights, which becomes the model when a stage ends."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jcl import trees
from jcl.mechanisms import merging
from jcl.mechanisms.lasting import check_lasting
from jcl.method import Batch, Ctx, Info, Method, Params, check


class EmaState(NamedTuple):
    """The state of `ema`."""

    average: Params
    """e, the average, float32."""
    gap: jax.Array
    """float32 []: ‖θ - e‖ at the last boundary."""
    kept: Any
    """The average of what the model keeps beside its parameters."""


def ema(decay: float = 0.99) -> Method:
    """Weight averaging: e ← d e + (1 - d) θ after each step, and θ ← e at the end of a stage.

    e starts at the initial weights, so it needs no bias correction. Within a stage the model that
    learns is the one that predicts. When the stage ends the average takes its place, so that the
    average is evaluated, other methods anchor to it, and the next stage starts from it. d = 0 is
    plain fine-tuning, d = 1 keeps the initial weights, both exactly. Low-rank pairs are averaged
    factor by factor, as is usual; over so near models their product differs little.

    Source: Polyak & Juditsky 1992 with exponential weights; for continual learning Soutif et al.,
    arXiv 2306.16817, where the average serves prediction alone.

    Args:
      decay: d in [0, 1]; may be traced. The average looks back over 1 / (1 - d) steps, which
        should be fewer than a stage has.

    Raises:
      ValueError: if `decay` is out of range.
    """
    check((decay >= 0) & (decay <= 1), "decay", decay, "in [0, 1]")

    def init(ctx: Ctx, params: Params) -> tuple[Params, EmaState]:
        check_lasting("ema", ctx, params)
        average = trees.copy(trees.float32(params))
        return params, EmaState(average, jnp.float32(0), trees.copy(ctx.collections))

    def observe(state: EmaState, ctx: Ctx, info: Info) -> EmaState:
        theta = trees.float32(info.params)
        average = merging.lerp(decay, theta, state.average)
        kept = merging.blend(1 - decay, state.kept, info.collections)
        return state._replace(average=average, kept=kept)

    def moved(state: EmaState, ctx: Ctx, params: Params) -> Params:
        """The average, which goes along where other methods have moved the parameters."""

        def one(e: jax.Array, p: jax.Array, r: jax.Array) -> jax.Array:
            now = p.astype(jnp.float32)
            return jnp.where(p == r, e, now + (e - r.astype(jnp.float32)))

        return jax.tree.map(one, state.average, params, ctx.reached)

    def begin(state: EmaState, ctx: Ctx, params: Params) -> tuple[Params, EmaState]:
        return params, state._replace(average=moved(state, ctx, params))

    def consolidate(
        state: EmaState, ctx: Ctx, params: Params, batches: Batch
    ) -> tuple[Params, EmaState, Any]:
        average = moved(state, ctx, params)
        # a leaf that was renewed has nothing to do with the average of what it was
        average = trees.choose(ctx.renewed, trees.float32(params), average)
        gap = trees.norm(trees.subtract(trees.float32(params), average))
        return trees.like(average, params), EmaState(average, gap, state.kept), state.kept

    def report(state: EmaState, info: Info) -> dict[str, jax.Array]:
        return {"gap": state.gap}

    return Method(
        "ema",
        init=init,
        begin=begin,
        observe=observe,
        consolidate=consolidate,
        report=report,
        writes=True,
        reads=("parameters",),
    )
