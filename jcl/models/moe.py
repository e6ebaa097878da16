"""A mixture of gated MLPs: every token goes through its k likeliest experts.

Tokens are sorted by expert and go through one `jax.lax.ragged_dot` a projection, so nothing is
padded to a capacity and no token is dropped.

Source: Shazeer et al., arXiv 1701.06538, in the form of Mixtral (arXiv 2401.04088), OLMoE (arXiv
2409.02060) and Qwen3: softmax over all experts, then the k largest.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from jcl.method import Params
from jcl.models.layers import product
from jcl.parallel import mesh as meshes


def mix(
    params: Params,
    x: jax.Array,
    scores: jax.Array,
    chosen: int,
    renormalise: bool,
    activation: Callable[[jax.Array], jax.Array],
) -> jax.Array:
    """Σ over a token's k experts e of p_e · down_e(act(gate_e x) · up_e x), [B, L, d].

    On a mesh with an `expert` axis each device has some of the experts. It gathers the tokens of
    the axis and processes those that chose its experts; the results for a token are summed on the
    token's device.

    Args:
      params: `gate` and `up` kernels [E, d, f], `down` [E, f, d].
      x: tokens [B, L, d].
      scores: the router's logits [B, L, E].
      chosen: k, how many experts a token takes.
      renormalise: whether the k probabilities are made to sum to 1.
      activation: the gate's activation.
    """
    experts = scores.shape[-1]
    kernels = {name: params[name]["kernel"] for name in ("gate", "up", "down")}

    def work(kernels: Params, x: jax.Array, scores: jax.Array, first: Any = 0) -> jax.Array:
        """What the experts from `first` on, which have `kernels`, add to tokens [n, d]."""
        held = jax.tree.leaves(kernels)[0].shape[0]
        chances, picked = lax.top_k(jax.nn.softmax(scores.astype(jnp.float32), axis=-1), chosen)
        if renormalise:
            chances = chances / jnp.sum(chances, axis=-1, keepdims=True)
        owner = picked.reshape(-1) - first  # the expert of each (token, choice)
        mine = (owner >= 0) & (owner < held)
        order = jnp.argsort(jnp.where(mine, owner, held))
        rows = x[order // chosen]
        sizes = jnp.sum(owner[:, None] == jnp.arange(held), axis=0, dtype=jnp.int32)

        def project(name: str, rows: jax.Array) -> jax.Array:
            return product(rows, kernels[name], partial(lax.ragged_dot, group_sizes=sizes))

        out = project("down", activation(project("gate", rows)) * project("up", rows))
        back = jnp.zeros_like(out).at[order].set(out, unique_indices=True)
        if held < experts:
            back = jnp.where(mine[:, None], back, 0)
        back = back.reshape(len(x), chosen, -1)
        return jnp.sum(back * chances[..., None].astype(back.dtype), axis=1)

    mesh = jax.sharding.get_abstract_mesh()
    where = meshes.row_spec(mesh, x.shape)
    cut = any("expert" in (axes or ()) for axes in where)  # a lone axis is no tuple, but its name
    if not cut or experts % mesh.shape["expert"]:
        flat = work(kernels, x.reshape(-1, x.shape[-1]), scores.reshape(-1, experts))
        return flat.reshape(x.shape)

    def shared(kernels: Params, x: jax.Array, scores: jax.Array) -> jax.Array:
        """The mixture on each device, for its tokens and experts."""
        shape = x.shape
        x, scores = (
            lax.all_gather(a.reshape(-1, a.shape[-1]), "expert", tiled=True) for a in (x, scores)
        )
        first = lax.axis_index("expert") * jax.tree.leaves(kernels)[0].shape[0]
        out = work(kernels, x, scores, first)
        return lax.psum_scatter(out, "expert", tiled=True).reshape(shape)

    return meshes.by_parts(shared, (PartitionSpec("expert"), where, where), where)(
        kernels, x, scores
    )
