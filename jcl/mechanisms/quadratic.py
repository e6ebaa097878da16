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
    would be a small difference of large numbers; from μ it is exact but for μ's own rounding, which
    is that of a float32 parameter.
    """

    curvature: Params
    """F, float32."""
    anchor: Params
    """μ: float32 where it is a mean, or a single anchor in the parameters' dtype."""

    def pull(self, grads: Params, strength: float | jax.Array, params: Params) -> Params:
        """grads + λ F (θ - μ), in the dtypes of `grads`: ½ λ Σ F (θ - μ)² is added to the loss."""

        def pulled(g: jax.Array, f: jax.Array, a: jax.Array, p: jax.Array) -> jax.Array:
            away = p.astype(jnp.float32) - a.astype(jnp.float32)
            return (g + strength * f * away).astype(g.dtype)

        return jax.tree.map(pulled, grads, self.curvature, self.anchor, params)

    def add(self, curvature: Params, params: Params) -> Quadratic:
        """With another anchor, at `params` and of its own `curvature`, float32.

        μ ← θ + F / (F + F_k) (μ - θ) for an anchor at θ with F_k, which stays where μ is θ.
        """
        total = trees.add(self.curvature, curvature)

        def mean(f: jax.Array, t: jax.Array, a: jax.Array, p: jax.Array) -> jax.Array:
            here = p.astype(jnp.float32)
            return here + f / jnp.where(t == 0, 1.0, t) * (a.astype(jnp.float32) - here)

        return Quadratic(total, jax.tree.map(mean, self.curvature, total, self.anchor, params))

    def without(self, leaves: Callable[[str], Any]) -> Quadratic:
        """With no curvature for the leaves whose path `leaves` accepts, such as `Ctx.renewed`."""
        none = trees.zeros(self.curvature)
        return self._replace(curvature=trees.choose(leaves, none, self.curvature))


def no_anchor(params: Params) -> Quadratic:
    """A quadratic of no curvature, to which anchors can be added."""
    return Quadratic(trees.zeros(params), trees.copy(trees.float32(params)))
