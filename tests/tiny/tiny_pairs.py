"""A tiny decoder and stages of preferences that the tests of alignment share."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tiny_decoder as tiny

import jcl
from jcl import preference

STAGES, STEPS, ROWS, LENGTH, PROMPT = 2, 3, 4, 10, 5


def pairs(seed: int = 0, shape: tuple[int, ...] = (STAGES, STEPS, ROWS)) -> dict[str, jax.Array]:
    """Leaves [stages, steps, B, ...]: one prompt and two answers of unequal length to each."""
    draw = np.random.default_rng(seed)
    batch: dict[str, Any] = {}
    prompt = draw.integers(0, tiny.CONFIG.vocabulary, (*shape, PROMPT))
    for side in ("", "rejected_"):
        tokens = draw.integers(0, tiny.CONFIG.vocabulary, (*shape, LENGTH), np.int32)
        tokens[..., :PROMPT] = prompt
        stop = draw.integers(PROMPT + 1, LENGTH + 1, shape)[..., None]
        place = np.arange(LENGTH)
        batch[f"{side}tokens"] = np.where(place < stop, tokens, 0)
        batch[f"{side}segments"] = (place < stop).astype(np.int32)
        answer = (place >= PROMPT) & (place < stop)
        batch[f"{side}answer"] = answer[..., 1:].astype(np.float32)
    task = np.broadcast_to(np.arange(shape[0], dtype=np.int32)[:, None, None], shape)
    return jax.tree.map(jnp.asarray, {**batch, "task": task, "weight": np.ones(shape, np.float32)})


BATCH = jax.tree.map(lambda x: x[0, 0], pairs())


def program(method: jcl.Method, rate: float = 0.1, **options: Any) -> jcl.Program:
    """Trains the whole tiny decoder by plain gradient descent."""
    return jcl.make(method, tiny.APPLY, preference.ranking(), optax.sgd(rate), **options)


def start(made: jcl.Program, batch: Any = BATCH) -> jcl.State:
    return jax.jit(made.init)(tiny.base(), batch, jax.random.key(0))


def log_probs(params: Any, batch: Any) -> np.ndarray:
    """log π of both answers [2, B], from all logits, in numpy."""
    found = []
    for side in ("", "rejected_"):
        rows = {k: batch[f"{side}{k}"] for k in ("tokens", "segments")}
        logits = np.asarray(tiny.CALL(params, rows), np.float64)[:, :-1]
        logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
        chosen = np.take_along_axis(logits, np.asarray(rows["tokens"])[:, 1:, None], -1)[..., 0]
        found.append(np.sum(chosen * np.asarray(batch[f"{side}answer"]), axis=-1))
    return np.stack(found)
