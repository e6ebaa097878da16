"""Quadratic anchors: many of them as one, with the pull that they have on the parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jcl import trees
from jcl.method import Params
from jcl.records import record


@record
class Quadratic(NamedTuple):
    """Many quadratic anchors as one: Σ_k F_k (θ - θ_k)² is F (θ - μ)² and a constant.

    F = Σ_k F_k, and μ is the mean of the anchors θ_k, weighted by F_k. From ΣF and ΣFθ_k the pull
    would be a small difference of large numbers, of which float32 leaves little; and μ itself, in
    float32, is as far from where it should be as θ is from its neighbours. So μ is kept as its way
    from the latest anchor, near which θ - θ_k has no rounding at all.
    """

    curvature: Params
    """F, float32."""
    anchor: Params
    """The latest anchor, in the parameters' dtype."""
    offset: Params
    """μ minus the latest anchor, float32; None where all of F is anchored there."""

    def pull(self, grads: Params, strength: float | jax.Array, params: Params) -> Params:
        """grads + λ F (θ - μ), in the dtypes of `grads`: ½ λ Σ F (θ - μ)² is added to the loss."""

        def pulled(g: jax.Array, f: jax.Array, a: jax.Array, p: jax.Array, o: Any) -> jax.Array:
            away = p.astype(jnp.float32) - a.astype(jnp.float32) - o
            return (g + strength * f * away).astype(g.dtype)

        offset = jax.tree.map(lambda _: 0.0, params) if self.offset is None else self.offset
        return jax.tree.map(pulled, grads, self.curvature, self.anchor, params, offset)

    def add(self, curvature: Params, params: Params) -> Quadratic:
        """With another anchor, at `params` and of its own `curvature`, float32; needs an `offset`.

        μ' - θ = F / (F + F_k) (μ - θ) for an anchor at θ with F_k.
        """
        total = trees.add(self.curvature, curvature)

        def shrunk(f: jax.Array, t: jax.Array, a: jax.Array, p: jax.Array, o: Any) -> jax.Array:
            away = o + (a.astype(jnp.float32) - p.astype(jnp.float32))
            return f / jnp.where(t == 0, 1.0, t) * away

        offset = jax.tree.map(shrunk, self.curvature, total, self.anchor, params, self.offset)
        return Quadratic(total, trees.copy(params), offset)

    def without(self, leaves: Callable[[str], Any]) -> Quadratic:
        """With no curvature for the leaves whose path `leaves` accepts, such as `Ctx.renewed`."""
        none = trees.zeros(self.curvature)
        return self._replace(curvature=trees.choose(leaves, none, self.curvature))


def no_anchor(params: Params, average: bool) -> Quadratic:
    """A quadratic of no curvature, for anchors near `params`.

    Args:
      params: a tree of its shapes.
      average: whether `add` will be called; else there is no `offset`, for a single anchor.
    """
    empty = trees.zeros(params)
    return Quadratic(empty, trees.copy(params), trees.zeros(params) if average else None)
