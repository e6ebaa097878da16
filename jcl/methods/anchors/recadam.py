"""RecAdam: the update fades in while a pull to the starting point, outside Adam, fades out."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jcl import trees
from jcl.method import Batch, Ctx, Method, Params, check


class RecAdamState(NamedTuple):
    """The state of `recadam`."""

    anchor: Params
    """θ⁰, the parameters with which this stage began, in their dtype."""


def recadam(
    strength: float = 0.1, speed: float = 0.5, midpoint: float = 250.0, start: int = 0
) -> Method:
    """RecAdam: θ ← θ + λ(t) u, then θ ← θ - ηγ (1 - λ(t)) (θ - θ⁰); λ(t) = sigmoid(k (t - t₀)).

    u is the optimizer's update, Adam's in the paper; t counts the steps of a stage from 1, and θ⁰
    are the parameters with which the stage began, so that each stage recalls the one before. As k
    grows, λ becomes a switch at t₀: nothing is learned before it, and the optimizer is plain after.

    Source: Chen et al., arXiv 2004.12651, as in the authors' code (Sanyuan-Chen/RecAdam): the pull
    sees the parameters after the step and has no moments. Their weight decay comes last and isn't
    annealed; an optimizer's own is part of u. To scale the pull with the rate, chain a schedule
    after this.

    Args:
      strength: ηγ in [0, 1], the share of the way back in one step: the authors' γ = 5000 at a
        learning rate of 2e-5 is 0.1. May be traced.
      speed: k; may be traced.
      midpoint: t₀; may be traced. -inf is the plain optimizer.
      start: the first stage that is annealed; 1 if the first stage is the pre-training.

    Raises:
      ValueError: if an argument is out of range.
    """
    check((strength >= 0) & (strength <= 1), "strength", strength, "in [0, 1]")
    check(speed > 0, "speed", speed, "above 0")
    check(start >= 0, "start", start, "at least 0")

    def init(ctx: Ctx, params: Params) -> tuple[Params, RecAdamState]:
        return params, RecAdamState(trees.copy(params))

    def begin(state: RecAdamState, ctx: Ctx, params: Params) -> tuple[Params, RecAdamState]:
        return params, RecAdamState(trees.copy(params))

    def updates(state: RecAdamState, ctx: Ctx, tree: Params) -> Params:
        annealed = jax.nn.sigmoid(speed * (ctx.stage_step + 1 - midpoint))
        share = jnp.where(ctx.stage < start, 1.0, annealed)
        back = strength * (1 - share)

        def move(u: jax.Array, a: jax.Array, p: jax.Array) -> jax.Array:
            step = share * u.astype(jnp.float32)
            away = p.astype(jnp.float32) + step - a.astype(jnp.float32)
            # at λ = 1 exactly the plain update, for the compiler may round the formula otherwise
            return jnp.where(share < 1, (step - back * away).astype(u.dtype), u)

        return jax.tree.map(move, tree, state.anchor, ctx.params)

    def consolidate(
        state: RecAdamState, ctx: Ctx, params: Params, batches: Batch
    ) -> tuple[Params, RecAdamState]:
        return params, RecAdamState(trees.copy(params))

    return Method(
        "recadam",
        init=init,
        begin=begin,
        updates=updates,
        consolidate=consolidate,
        reads=("parameters",),
        starts=start,
    )
