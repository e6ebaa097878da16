"""OPCM: experts are merged one by one, each outside of the directions of those before."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jcl import trees
from jcl.mechanisms import experts
from jcl.mechanisms.subspaces import matmul
from jcl.method import Ctx, Method, Params, check

RANK = 1e-5
"""Singular values below this share of the largest are the rounding of a lower rank."""


class OpcmState(NamedTuple):
    """What `opcm` keeps of the task vectors so far, beside the base."""

    total: Params
    """Σ P(τ_t), float32, of which the merged vector has the direction."""
    lengths: jax.Array
    """Σ ‖τ_t‖, float32 []."""
    stages: jax.Array
    """int32 []: how many have ended."""


def opcm(share: float = 0.5, start: experts.Start = "initial") -> Method:
    """OPCM: after a stage θ = θ₀ + m_t with m_t = M_t / λ_t and M_t = M_{t-1} + P(τ_t), M_1 = τ_1.

    Of a dense kernel's M_{t-1} = U S Vᵀ the k first singular values hold a share α of Σ S. P takes
    out of Uᵀ τ V its leading block [k, k] and its diagonal, of directions that M_{t-1} has at all
    (beyond its rank U and V are arbitrary); other leaves' τ stay. λ_t makes ‖m_t‖, over the whole
    model, the mean of ‖τ_1‖ to ‖τ_t‖. So one vector is kept, however many experts come. Within a
    stage the expert predicts, from the base or from the expert before.

    Source: Tang et al., arXiv 2501.09522, and the authors' `fusion_bench/method/opcm/opcm.py`: k is
    the first index at which the share is exceeded, so that at α = 0 only the diagonal is taken out.

    Args:
      share: α in [0, 1); may be traced.
      start: each stage starts from θ₀ (`initial`, the paper's), or from the expert of the one
        before (`previous`).

    Raises:
      ValueError: if an argument is out of range, or, at `init`, there are low-rank pairs, whose
        factors can't be merged one by one, or another method renews all that learns.
    """
    check((share >= 0) & (share < 1), "share", share, "in [0, 1)")

    def outside(total: jax.Array, vector: jax.Array) -> jax.Array:
        """P(τ), of kernels [..., in, out]."""
        u, s, v = jnp.linalg.svd(total, full_matrices=False)
        held = jnp.cumsum(s, axis=-1) / jnp.maximum(jnp.sum(s, axis=-1, keepdims=True), 1e-30)
        k = jnp.argmax(held > share, axis=-1)[..., None]
        leading = jnp.arange(s.shape[-1]) < k
        diagonal = jnp.eye(s.shape[-1], dtype=bool) & (s > RANK * s[..., :1])[..., None]
        taken = leading[..., :, None] & leading[..., None, :] | diagonal
        inner = matmul(matmul(jnp.swapaxes(u, -1, -2), vector), jnp.swapaxes(v, -1, -2))
        return vector - matmul(matmul(u, jnp.where(taken, inner, 0)), v)

    def kept(params: Params) -> OpcmState:
        return OpcmState(trees.zeros(params), jnp.float32(0), jnp.int32(0))

    def merge(state: OpcmState, ctx: Ctx, vector: Params) -> experts.Merged:
        first = state.stages == 0

        def add(path: tuple[Any, ...], old: jax.Array, new: jax.Array) -> jax.Array:
            name = trees.path_name(path)
            if name.endswith("/kernel") and new.ndim - trees.stack_axes(name, ctx.structure) == 2:
                new = jnp.where(first, new, outside(old, new))
            return old + new

        total = jax.tree_util.tree_map_with_path(add, state.total, vector)
        lengths, stages = state.lengths + trees.norm(vector), state.stages + 1
        mean, length = lengths / stages, trees.norm(total)
        shrink = mean / jnp.where(length == 0, 1.0, length)
        merged = jax.tree.map(lambda x: shrink * x, total)
        return experts.Merged(OpcmState(total, lengths, stages), merged, mean)

    return experts.method("opcm", kept, merge, 1.0, start)
