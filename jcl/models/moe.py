"""A mixture of gated MLPs: every token goes through its k likeliest experts.

Tokens are sorted by expert and go through one `jax.lax.ragged_dot` a projection, so nothing is
padded to a capacity and no token is dropped.

Source: Shazeer et al., arXiv 1701.06538, as Mixtral (arXiv 2401.04088), OLMoE (arXiv 2409.02060)
and Qwen3 have it: softmax over all experts, then the k largest.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from jcl.method import Params
from jcl.models.layers import product


def mix(
    params: Params,
    x: jax.Array,
    scores: jax.Array,
    chosen: int,
    renormalise: bool,
    activation: Callable[[jax.Array], jax.Array],
) -> jax.Array:
    """Σ over a token's k experts e of p_e · down_e(act(gate_e x) · up_e x), [n, d].

    Args:
      params: `gate` and `up` kernels [E, d, f], `down` [E, f, d].
      x: tokens [n, d].
      scores: the router's logits [n, E].
      chosen: k.
      renormalise: whether the k probabilities are made to sum to 1.
      activation: of the gate.
    """
    count, experts = scores.shape
    chances, picked = lax.top_k(jax.nn.softmax(scores.astype(jnp.float32), axis=-1), chosen)
    if renormalise:
        chances = chances / jnp.sum(chances, axis=-1, keepdims=True)
    owner = picked.reshape(-1)  # the expert of each (token, choice)
    order = jnp.argsort(owner)
    rows = x[order // chosen]
    sizes = jnp.sum(owner[:, None] == jnp.arange(experts), axis=0, dtype=jnp.int32)

    def project(name: str, rows: jax.Array) -> jax.Array:
        grouped = partial(lax.ragged_dot, group_sizes=sizes)
        return product(rows, params[name]["kernel"], grouped)

    out = project("down", activation(project("gate", rows)) * project("up", rows))
    back = jnp.zeros_like(out).at[order].set(out, unique_indices=True)
    back = back.reshape(count, chosen, -1)
    return jnp.sum(back * chances[..., None].astype(back.dtype), axis=1)
