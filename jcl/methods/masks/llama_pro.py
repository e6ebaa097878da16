"""LLaMA Pro: only the copied blocks of a grown model learn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jcl import trees
from jcl.method import Ctx, Method, Params, check


def llama_pro(layers: Sequence[int], stack: str = "blocks") -> Method:
    """LLaMA Pro: only the given blocks of a stack learn; embeddings, head and other blocks stay.

    Grow the model first: `growth.expand_blocks` adds blocks that compute nothing yet and says
    which they are. What the model knew then stands in blocks that never move. The mask is on the
    update, for layers are slices of stacked leaves, which `trainable` can't tell apart; so the
    gradients and moments of the frozen blocks are computed and held too.

    Source: Wu et al., arXiv 2401.02415, section 3.2.

    Args:
      layers: which blocks learn, numbered from 0.
      stack: the path under which leaves have a leading axis [layers].

    Raises:
      ValueError: if `layers` is empty or negative, or, at `init`, names a block that isn't there.
    """
    layers = tuple(layers)
    check(bool(layers), "layers", layers, "at least one block")
    check(all(i >= 0 for i in layers), "layers", layers, "numbers from 0")

    def init(ctx: Ctx, params: Params) -> tuple[Params, tuple[()]]:
        stacked = {
            x.shape[0]
            for path, x in jax.tree_util.tree_leaves_with_path(params)
            if trees.path_name(path).startswith(f"{stack}/")
        }
        there = min(stacked, default=0)
        check(max(layers) < there, "layers", layers, f"below {there}, the blocks of {stack!r}")
        return params, ()

    def updates(state: tuple[()], ctx: Ctx, tree: Params) -> Params:
        def one(path: tuple[Any, ...], u: jax.Array) -> jax.Array:
            if not trees.path_name(path).startswith(f"{stack}/"):
                return u * 0
            learns = jnp.isin(jnp.arange(u.shape[0]), jnp.asarray(layers))
            return u * learns.reshape(-1, *[1] * (u.ndim - 1)).astype(u.dtype)

        return jax.tree_util.tree_map_with_path(one, tree)

    return Method("llama_pro", init=init, updates=updates)
