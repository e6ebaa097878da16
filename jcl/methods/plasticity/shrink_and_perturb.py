"""Shrink and perturb: weights are made smaller and noisier, so that they learn as new ones do."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp

from jcl import trees
from jcl.method import Ctx, Method, Params, check


def shrink_and_perturb(
    shrink: float = 0.4, noise: float = 0.1, at: Literal["stage", "step"] = "stage"
) -> Method:
    """Shrink and perturb: θ ← λθ + σε with ε normal, where a later stage begins.

    The evaluation at the end of a stage sees the stage's own model. With `at="step"` it is done
    after every step, with λ just below 1, as where it stands beside continual backpropagation.

    Source: Ash & Adams, arXiv 1910.08475, section 4; at every step Dohare et al., Loss of
    plasticity in deep continual learning, Nature 632 (2024), where λ is 1 - lr · weight decay
    (shibhansh/loss-of-plasticity, lop/algos/bp.py).

    Args:
      shrink: λ in [0, 1]; may be traced.
      noise: σ; may be traced.
      at: where it is done.

    Raises:
      ValueError: if an argument is out of range.
    """
    check((shrink >= 0) & (shrink <= 1), "shrink", shrink, "in [0, 1]")
    check(noise >= 0, "noise", noise, "at least 0")
    check(at in ("stage", "step"), "at", at, "'stage' or 'step'")

    def drawn(key: jax.Array, params: Params) -> Params:
        """Normal draws, each leaf's by its own path, so that others' leaves change none."""

        def own(path: tuple, x: jax.Array) -> jax.Array:
            return jax.random.normal(trees.path_key(key, trees.path_name(path)), x.shape)

        return jax.tree_util.tree_map_with_path(own, params)

    def begin(state: tuple[()], ctx: Ctx, params: Params) -> tuple[Params, tuple[()]]:
        def moved(x: jax.Array, e: jax.Array) -> jax.Array:
            return (shrink * x.astype(jnp.float32) + noise * e).astype(x.dtype)

        return jax.tree.map(moved, params, drawn(ctx.key, params)), state

    def updates(state: Any, ctx: Ctx, tree: Params) -> Params:
        def moved(u: jax.Array, x: jax.Array, e: jax.Array) -> jax.Array:
            # λ (θ + u) + σε is θ + this
            wide = shrink * u.astype(jnp.float32) - (1 - shrink) * x.astype(jnp.float32) + noise * e
            return wide.astype(u.dtype)

        return jax.tree.map(moved, tree, ctx.params, drawn(ctx.key, tree))

    if at == "step":
        return Method("shrink_and_perturb", updates=updates)
    return Method("shrink_and_perturb", begin=begin, writes=True, jumps=True, starts=1)
