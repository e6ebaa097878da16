"""The kernels that a model multiplies, once all methods have had their say."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tiny_decoder as tiny

import jcl
from jcl import losses
from jcl.method import Call

BATCH = jax.tree.map(lambda x: x[0, 0], tiny.stream())


def kernels(method: jcl.Method, state: jcl.State, path: str = "query") -> np.ndarray:
    """W + A B of a dense layer of the blocks, float64 [layers, in, out]."""
    seen: dict[str, Any] = {}

    def shown(params: Any, batch: Any, call: Any = Call()) -> jax.Array:
        seen.update(params["blocks"][path])
        return tiny.APPLY(params, batch, call)

    jcl.make(method, shown, losses.next_token, optax.sgd(0.1)).predict(state, BATCH)
    pair = jax.tree.map(lambda x: np.asarray(x, np.float64), seen["lora"])
    return np.asarray(seen["kernel"], np.float64) + pair["a"] @ pair["b"]


def perturbed(state: jcl.State, seed: int = 3) -> jcl.State:
    """The state with noise on all leaves of its pairs."""
    draw = np.random.default_rng(seed)

    def moved(path: Any, x: jax.Array) -> jax.Array:
        noise = draw.normal(size=x.shape).astype(np.float32)
        return x + jnp.asarray(noise) if "lora" in jax.tree_util.keystr(path) else x

    return state._replace(params=jax.tree_util.tree_map_with_path(moved, state.params))
