"""Heterogeneous model averaging: each part of the layers is merged by its own ratio."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jcl import trees
from jcl.mechanisms import merging
from jcl.mechanisms.lasting import check_lasting
from jcl.method import Batch, Ctx, Info, Method, Params, Structure, check


class HmaState(NamedTuple):
    """The state of `hma`."""

    anchor: Params
    """The weights with which the stage began, or all training, in the parameters' dtype."""
    ratios: jax.Array
    """float32 [parts]: the α_k of the last merge."""
    kept: Any
    """What the model kept beside θ_anchor."""


def project(ratios: jax.Array, mean: jax.Array | float) -> jax.Array:
    """The point nearest to `ratios` [parts] with all entries in [0, 1] and the given mean.

    It is found by bisection, and exact where the mean is 0 or 1.
    """

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = (low + high) / 2
        above = jnp.mean(jnp.clip(ratios - middle, 0, 1)) > mean
        return jnp.where(above, middle, low), jnp.where(above, high, middle)

    low, high = lax.fori_loop(0, 40, halve, (jnp.min(ratios) - 1, jnp.max(ratios)))
    found = jnp.clip(ratios - (low + high) / 2, 0, 1)
    return jnp.where((mean <= 0) | (mean >= 1), jnp.clip(mean, 0, 1), found)


def by_depth(
    ratios: jax.Array, mean: jax.Array | float, structure: Structure
) -> Callable[[str, jax.Array], Any]:
    """The ratio of each leaf: α_k in the k-th part of the layers, and `mean` for other leaves.

    Each stack of layers is divided into equal parts by depth.
    """

    def ratio(path: str, leaf: jax.Array) -> Any:
        if not trees.stack_axes(path, structure):
            return mean
        part = jnp.arange(len(leaf)) * len(ratios) // len(leaf)
        return ratios[part].reshape(-1, *[1] * (leaf.ndim - 1))

    return ratio


def hma(
    alpha: float = 0.5,
    parts: int = 3,
    steps: int = 20,
    rate: float = 0.1,
    anchor: Literal["previous", "first"] = "previous",
) -> Method:
    """HMA: θ ← (1 - α_k) θ_anchor + α_k θ for part k of the layers, the α_k averaging to α.

    When a stage ends the α_k, which all start at α, descend the stage's loss on its own data. Thus
    the merge keeps as much of what the stage taught as a mean ratio of α, which bounds forgetting,
    allows. A step of the descent is `rate` long at first and shrinks linearly, and is followed by
    the projection on {mean α, each in [0, 1]}. Embeddings, the last norm and an untied head are
    merged at α, and of low-rank pairs the products. α = 1 is plain fine-tuning and α = 0 stays at
    the anchor, both exactly; `parts=1` or `steps=0` is `wise_ft`.

    Source: Lin et al., arXiv 2309.06256 (AMA in its first versions), and the authors'
    `mask_trainer.py`. That code holds the mean by dividing sigmoids by their mean, leaves
    embeddings and norms at the anchor, and descends the next-token loss on samples of the aligned
    model, where we take the stage's own loss and data.

    Args:
      alpha: α in [0, 1]; may be traced.
      parts: into how many equal parts, by depth, the layers are divided.
      steps: how many steps the descent takes, each on one of the batches of `consolidate`.
      rate: the length of the first step, in the units of the ratios.
      anchor: whether θ_anchor are the weights with which the stage began (`previous`), or all
        training (`first`).

    Raises:
      ValueError: if an argument is out of range, or, at `init`, there are parts but no layers that
        the model says are stacked.
    """
    check((alpha >= 0) & (alpha <= 1), "alpha", alpha, "in [0, 1]")
    check(parts >= 1, "parts", parts, "at least 1")
    check(steps >= 0, "steps", steps, "at least 0")
    check(rate > 0, "rate", rate, "above 0")
    check(anchor in ("previous", "first"), "anchor", anchor, "'previous' or 'first'")

    def init(ctx: Ctx, params: Params) -> tuple[Params, HmaState]:
        check_lasting("hma", ctx, params)
        stacked = [p for p in trees.by_path(params) if trees.stack_axes(p, ctx.structure)]
        there = parts == 1 or bool(stacked)
        check(there, "parts", parts, "1, for the model says of no learning leaf that it is a stack")
        ratios = jnp.full(parts, alpha, jnp.float32)
        return params, HmaState(trees.copy(params), ratios, trees.copy(ctx.collections))

    def begin(state: HmaState, ctx: Ctx, params: Params) -> tuple[Params, HmaState]:
        if anchor == "first":
            return params, state
        start, kept = trees.copy((params, ctx.collections))
        return params, state._replace(anchor=start, kept=kept)

    def consolidate(
        state: HmaState, ctx: Ctx, params: Params, batches: Batch
    ) -> tuple[Params, HmaState, Any]:
        count = batches["weight"].shape[0]

        def cost(ratios: jax.Array, batch: Batch) -> jax.Array:
            ratio = by_depth(ratios, alpha, ctx.structure)
            return ctx.loss(merging.interpolate(ratio, state.anchor, params, wide=True), batch)[0]

        def descend(step: jax.Array, ratios: jax.Array) -> jax.Array:
            slope = jax.grad(cost)(ratios, jax.tree.map(lambda x: x[step % count], batches))
            slope = slope - jnp.mean(slope)  # the part that keeps the mean
            length = rate * (1 - step / steps) / jnp.maximum(jnp.linalg.norm(slope), 1e-12)
            return project(ratios - length * slope, alpha)

        start = jnp.full(parts, alpha, jnp.float32)
        ratios = lax.fori_loop(0, steps, descend, start) if steps and parts > 1 else start
        ratio = by_depth(ratios, alpha, ctx.structure)
        merged = merging.interpolate(ratio, state.anchor, params)
        merged = trees.choose(ctx.renewed, params, merged)
        kept = merging.blend(alpha, state.kept, ctx.collections)
        if anchor == "first":
            return merged, state._replace(ratios=ratios), kept
        return merged, HmaState(merged, ratios, kept), kept

    def report(state: HmaState, info: Info) -> dict[str, jax.Array]:
        return {"first": state.ratios[0], "last": state.ratios[-1]}

    return Method(
        "hma",
        init=init,
        begin=begin,
        consolidate=consolidate,
        report=report,
        writes=True,
        reads=("parameters",),
    )
