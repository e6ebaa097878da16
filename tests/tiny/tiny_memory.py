"""Numbered rows, and what a hook sees of a step, which the tests of memory share."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tiny_context

from jcl import losses, memory
from jcl.method import Aux, Ctx

KEY = jax.random.key(0)
reservoir, ring, ranked = map(jax.jit, (memory.reservoir, memory.ring, memory.ranked))


def rows_of(ids: Any, group: Any = None, weight: Any = None) -> dict[str, jax.Array]:
    ids = jnp.asarray(ids)
    return {
        "x": ids.astype(jnp.float32)[:, None],
        "id": ids.astype(jnp.int32),
        "y": jnp.zeros_like(ids) if group is None else jnp.asarray(group, jnp.int32),
        "task": jnp.zeros(ids.shape, jnp.int32),
        "weight": jnp.ones(ids.shape) if weight is None else jnp.asarray(weight, jnp.float32),
    }


def kept(buffer: memory.Buffer) -> np.ndarray:
    real = np.asarray(buffer.rows["weight"]) > 0
    return np.asarray(buffer.rows["id"])[real]


def context(key: jax.Array, **changes: Any) -> Ctx:
    def loss(params: Any, rows: Any) -> Any:
        value = jnp.sum(params * rows["x"]) % 7
        return value, Aux(losses.Values(rows["x"], rows["weight"]))

    known = {"params": jnp.float32(1), "apply": lambda p, rows: rows["x"], "loss": loss}
    return tiny_context.context(key=key, **known | changes)


def herding_by_hand(features: np.ndarray, count: int) -> list[int]:
    """Algorithm 4 of iCaRL, as written."""
    phi = features / np.linalg.norm(features, axis=1, keepdims=True)
    mean = phi.mean(axis=0)
    mean /= np.linalg.norm(mean)
    chosen: list[int] = []
    for k in range(1, count + 1):
        gaps = np.linalg.norm(mean - (phi + phi[chosen].sum(axis=0)) / k, axis=1)
        gaps[chosen] = np.inf
        chosen.append(int(np.argmin(gaps)))
    return chosen
