"""MoFO: in each parameter tensor only the entries with the largest momentum move."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jcl import trees
from jcl.mechanisms import merging
from jcl.method import Ctx, Info, Method, Params, check


class MofoState(NamedTuple):
    """The state of `mofo`."""

    momentum: Params
    """m, float32, by m ← β m + (1 - β) g in every step."""


def mofo(
    fraction: float = 0.15, decay: float = 0.9, filtered: trees.Trainable = trees.every_leaf
) -> Method:
    """Momentum-filtered optimizer: u ← u · 1[|m| among the α n largest of its n-entry tensor].

    Source: Chen et al., arXiv 2407.20999, algorithm 1. There the filter sits inside Adam; here it
    is a mask on any optimizer's update, with a momentum of its own that equals Adam's when `decay`
    is β₁ (bias correction is one factor for all and moves no rank). Moments stay dense, as there.
    A stack of layers in one leaf is as many tensors.
    Two differences from the authors' code: weight decay is filtered too, so that nothing else
    moves, and ties are split, so that exactly n - round((1 - α) n) entries of n are let through.

    Args:
      fraction: α in (0, 1]; may be traced. 1 lets every update through.
      decay: β in [0, 1); may be traced.
      filtered: static predicate over leaf paths; the authors' code leaves biases and norms out.

    Raises:
      ValueError: if an argument is out of range, or, at `init`, no leaf is filtered.
    """
    check((fraction > 0) & (fraction <= 1), "fraction", fraction, "in (0, 1]")
    check((decay >= 0) & (decay < 1), "decay", decay, "in [0, 1)")

    def init(ctx: Ctx, params: Params) -> tuple[Params, MofoState]:
        trees.chosen(params, filtered, "filtered")  # for its error
        return params, MofoState(trees.zeros(params))

    def renewed(state: MofoState, grads: Params) -> Params:
        return jax.tree.map(
            lambda m, g: decay * m + (1 - decay) * g.astype(jnp.float32), state.momentum, grads
        )

    def count(size: jax.Array | int) -> jax.Array:
        return jnp.maximum(merging.count_of(fraction, size), 1)

    def updates(state: MofoState, ctx: Ctx, tree: Params) -> Params:
        def filter_() -> Params:
            ranked, _ = trees.partition(renewed(state, ctx.grads), filtered)
            kept = merging.mark_largest(ranked, count, ctx.structure)
            cut, whole = trees.partition(tree, filtered)
            return trees.merge(jax.tree.map(lambda k, u: jnp.where(k, u, 0), kept, cut), whole)

        # at 1 there is no mask, for even one that keeps all changes the rounding
        return lax.cond(fraction < 1, filter_, lambda: tree)

    def observe(state: MofoState, ctx: Ctx, info: Info) -> MofoState:
        return MofoState(renewed(state, info.grads))

    def report(state: MofoState, info: Info) -> dict[str, jax.Array]:
        return {"momentum": trees.norm(state.momentum)}

    return Method("mofo", init=init, updates=updates, observe=observe, report=report)
