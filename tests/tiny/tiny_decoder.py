"""A tiny decoder and text-like streams that the tests of adapters share."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jcl
from jcl import adapters, losses
from jcl.models import decoder

TASKS, STEPS, ROWS, LENGTH = 3, 8, 4, 12
CONFIG = decoder.Config(
    vocabulary=16, layers=2, width=24, heads=3, kv_heads=1, hidden=40, context=32
)
APPLY = decoder.apply_fn(CONFIG)
CALL = jax.jit(APPLY)


def base(dtype: Any = jnp.float32) -> Any:
    """Its parameters, so large that the context counts and adapters can reach any logits."""
    params = decoder.init(jax.random.key(1), CONFIG, dtype)
    blocks = jax.tree.map(lambda x: 3 * x if x.ndim > 2 else x, params["blocks"])
    return {**params, "embed": {"table": 20 * params["embed"]["table"]}, "blocks": blocks}


def stream(tasks: int = TASKS, steps: int = STEPS, rows: int = ROWS) -> dict[str, jax.Array]:
    """Walks over the vocabulary, each task along its own permutation, one step in ten at random."""
    draw = np.random.default_rng(0)
    tokens = np.empty((tasks, steps, rows, LENGTH), np.int32)
    for task in range(tasks):
        after = draw.permutation(CONFIG.vocabulary)
        tokens[task, ..., 0] = draw.integers(0, CONFIG.vocabulary, (steps, rows))
        for i in range(1, LENGTH):
            stray = draw.integers(0, CONFIG.vocabulary, (steps, rows))
            keep = draw.random((steps, rows)) < 0.9
            tokens[task, ..., i] = np.where(keep, after[tokens[task, ..., i - 1]], stray)
    task = np.broadcast_to(np.arange(tasks, dtype=np.int32)[:, None, None], tokens.shape[:3])
    return {"tokens": jnp.asarray(tokens), "task": jnp.asarray(task)}


def program(method: jcl.Method, tx: Any = None, **options: Any) -> jcl.Program:
    options = {"trainable": adapters.is_adapter} | options
    return jcl.make(method, APPLY, losses.next_token, tx or optax.adam(3e-2), **options)


def run(method: jcl.Method, params: Any = None, **options: Any) -> tuple[jcl.State, Any]:
    """The last state after all tasks, and what was reported."""
    made = program(method, **options)
    start = base() if params is None else params
    return jax.jit(lambda p, k: jcl.run(made, p, k, stream()))(start, jax.random.key(2))


def same_base(params: Any, wanted: Any) -> None:
    """The tree without its adapters is bit for bit the base."""
    stripped = adapters.without_adapters(params)
    assert jax.tree.structure(stripped) == jax.tree.structure(wanted)
    jax.tree.map(np.testing.assert_array_equal, stripped, wanted)
