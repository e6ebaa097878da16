"""Hidden units of dense layers in a chain: how much they answer, and new ones in their place.

Unit j of a layer is column j of its kernel and row j of the next layer's; it is worn out when it
answers nothing any more, and is renewed by another column and a row of zeros.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jcl import taps, trees
from jcl.method import Batch, Ctx, Params


class Hidden(NamedTuple):
    """A layer of hidden units."""

    path: str
    """The dense layer whose outputs they are."""
    reader: str
    """The dense layer that reads them."""
    units: int
    """How many there are."""


def hidden_layers(name: str, ctx: Ctx, params: Params) -> tuple[Hidden, ...]:
    """The hidden layers of a model that is a chain of dense layers, all of which learn.

    Args:
      name: the method's, for the sentence that refuses another model.
      ctx: that of its `init`.
      params: the leaves that learn.

    Raises:
      ValueError: if the model is no such chain, or has no hidden layer.
    """
    widths = taps.dense_sites(ctx.apply, params, ctx.batch)
    paths, shapes = list(widths), trees.shapes(params)
    held = {f"{path}/{leaf}" for path in paths for leaf in ("kernel", "bias")}
    follow = all(widths[a].outputs == widths[b].inputs for a, b in pairwise(paths))
    plain = all(shapes.get(f"{path}/kernel") == tuple(widths[path]) for path in paths)
    other = sorted(set(shapes) - held) + sorted(trees.by_path(ctx.frozen))
    if len(paths) < 2 or not follow or not plain or other:
        raise ValueError(
            f"the model has dense layers {paths} and beside them {other[:3]}, but must be two or "
            f"more dense layers that follow each other and all learn, for {name} renews their units"
        )
    return tuple(Hidden(a, b, widths[a].outputs) for a, b in pairwise(paths))


def bounds(layers: tuple[Hidden, ...], params: Params) -> dict[str, jax.Array]:
    """√3 times the spread of each layer's kernel, float32 [] by its path.

    A uniform draw within ± that bound has the kernel's own spread; of a kernel that was itself
    drawn uniformly, as perceptrons' are, it is the bound of that draw.
    """
    kernels = trees.by_path(params)
    return {
        hidden.path: math.sqrt(3) * jnp.std(kernels[f"{hidden.path}/kernel"].astype(jnp.float32))
        for hidden in layers
    }


def answers(layers: tuple[Hidden, ...], ctx: Ctx, batch: Batch) -> dict[str, jax.Array]:
    """The mean of |h| over a batch's rows of each hidden unit, float32 [units] by layer's path."""
    wanted = {f"{hidden.reader}:in": (None, taps.magnitude) for hidden in layers}
    sums = taps.moments(ctx.apply, ctx.params, batch, wanted)
    mass = jnp.sum(taps.row_weight(batch))
    scale = 1 / jnp.where(mass == 0, 1.0, mass)
    return {hidden.path: sums[f"{hidden.reader}:in"] * scale for hidden in layers}


def renew(
    layers: tuple[Hidden, ...],
    worn: Mapping[str, jax.Array],
    limits: Mapping[str, jax.Array],
    key: jax.Array,
    params: Params,
    updates: Params,
) -> Params:
    """The updates that give worn units new weights in, no bias and none out; all others stay.

    Args:
      layers: from `hidden_layers`.
      worn: which units, bool [units] by layer's path.
      limits: from `bounds`, of the draw of their kernels' columns.
      key: for that draw.
      params: the parameters before the step.
      updates: what the step would add to them.
    """
    kernels = trees.by_path(params)
    goal: dict[str, tuple[jax.Array, jax.Array | float]] = {}

    def aim(leaf: str, where: jax.Array, value: jax.Array | float) -> None:
        if leaf in goal:  # a column of a worn unit, and a row of another in the layer before
            before, was = goal[leaf]
            goal[leaf] = before | where, jnp.where(where, value, was)
        else:
            goal[leaf] = jnp.broadcast_to(where, kernels[leaf].shape), value

    for hidden, draw in zip(layers, jax.random.split(key, len(layers)), strict=True):
        units, limit = worn[hidden.path], limits[hidden.path]
        shape = kernels[f"{hidden.path}/kernel"].shape
        aim(f"{hidden.path}/kernel", units[None, :], limit * jax.random.uniform(
            draw, shape, jnp.float32, -1, 1))  # fmt: skip
        if f"{hidden.path}/bias" in kernels:
            aim(f"{hidden.path}/bias", units, 0.0)
        aim(f"{hidden.reader}/kernel", units[:, None], 0.0)

    def moved(path: tuple, update: jax.Array, value: jax.Array) -> jax.Array:
        name = trees.path_name(path)
        if name not in goal:
            return update
        where, new = goal[name]
        away = new - value.astype(jnp.float32)
        return jnp.where(where, away, update.astype(jnp.float32)).astype(update.dtype)

    return jax.tree_util.tree_map_with_path(moved, updates, params)
