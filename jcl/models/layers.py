"""Layers as plain functions over parameter dicts."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jcl import taps
from jcl.method import Params, Tap


def dense(
    params: Params, x: jax.Array, site: str, tap: Tap = taps.identity, layer: Any = 0
) -> jax.Array:
    """x [..., in] @ kernel [in, out] + bias [out] if there is one, tapped on both sides.

    Args:
      params: `{"kernel", "bias"}`; kernel may stand alone.
      x: the input.
      site: the path of `params` in the model's parameter tree.
      tap: called with `{site}:in` and `{site}:out`.
      layer: index in a stack of scanned layers, else the Python int 0.
    """
    x = tap(f"{site}:in", layer, x)
    # tokens flattened around the product: [B, L, d] has slow transposed fusions backward
    y = (x.reshape(-1, x.shape[-1]) @ params["kernel"]).reshape(*x.shape[:-1], -1)
    if "bias" in params:
        y = y + params["bias"]
    return tap(f"{site}:out", layer, y)


def init_dense(
    key: jax.Array, fan_in: int, fan_out: int, bias: bool = True, dtype: Any = jnp.float32
) -> Params:
    """Kernel [fan_in, fan_out] uniform in ±1/√fan_in (as torch.nn.Linear), bias likewise."""
    limit = fan_in**-0.5
    k, b = jax.random.split(key)
    params = {"kernel": jax.random.uniform(k, (fan_in, fan_out), dtype, -limit, limit)}
    if bias:
        params["bias"] = jax.random.uniform(b, (fan_out,), dtype, -limit, limit)
    return params
