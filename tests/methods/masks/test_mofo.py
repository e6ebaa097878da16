"""MoFO against a numpy copy of its published algorithm."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jcl
from jcl import losses, methods


def apply(params: Any, batch: Any) -> jax.Array:
    return jnp.tanh(batch["x"] @ params["w"] + params["bias"])


PARAMS = {"w": jax.random.normal(jax.random.key(0), (6, 7)), "bias": jnp.zeros(7)}


def batches(steps: int) -> list[dict[str, jax.Array]]:
    x, y = jax.random.split(jax.random.key(1))
    inputs = jax.random.normal(x, (steps, 12, 6))
    targets = jax.random.normal(y, (steps, 12, 7))
    return [{"x": inputs[i], "y": targets[i], "weight": jnp.ones(12)} for i in range(steps)]


def train(method: jcl.Method, tx: Any, steps: int) -> list[Any]:
    program = jcl.make(method, apply, losses.squared_error, tx)
    state = program.init(PARAMS, batches(1)[0], jax.random.key(2))
    seen, step = [state.params], jax.jit(program.step)
    for batch in batches(steps):
        state, _ = step(state, batch)
        seen.append(state.params)
    return seen


def published(fraction: float, steps: int, rate: float) -> Any:
    """AdamW_MoFO.step of the authors' code, without weight decay, every tensor filtered."""
    theta = {k: np.asarray(v, np.float64) for k, v in PARAMS.items()}
    m = {k: np.zeros_like(v) for k, v in theta.items()}
    v = {k: np.zeros_like(x) for k, x in theta.items()}
    gradient = jax.jit(jax.grad(lambda p, b: losses.squared_error(apply, p, b)[0]))
    for t, batch in enumerate(batches(steps), 1):
        params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), theta)
        slope = gradient(params, batch)
        for key, x in theta.items():
            g = np.asarray(slope[key], np.float64)
            m[key] = 0.9 * m[key] + 0.1 * g
            v[key] = 0.999 * v[key] + 0.001 * g**2
            count = max(round(fraction * x.size), 1)
            threshold = np.sort(np.abs(m[key]).ravel())[-count]
            chosen = np.where(np.abs(m[key]) >= threshold, m[key], 0)
            spread = np.sqrt(v[key]) / np.sqrt(1 - 0.999**t) + 1e-8
            theta[key] = x - rate / (1 - 0.9**t) * chosen / spread
    return theta


def test_with_adam_it_is_the_published_optimizer() -> None:
    got = train(methods.mofo(fraction=0.2), optax.adam(1e-2), 12)[-1]
    want = published(0.2, 12, 1e-2)
    for key in want:
        np.testing.assert_allclose(got[key], want[key], atol=2e-6)


@pytest.mark.parametrize("fraction", [0.01, 0.2, 0.4])
@pytest.mark.parametrize("tx", [optax.adamw(1e-2, weight_decay=0.1), optax.sgd(0.1, momentum=0.9)])
def test_exactly_so_many_entries_move(fraction: float, tx: Any) -> None:
    seen = train(methods.mofo(fraction=fraction), tx, 4)
    for before, after in pairwise(seen):
        for key in before:
            moved = int((np.asarray(before[key]) != np.asarray(after[key])).sum())
            assert moved == max(round(fraction * before[key].size), 1)


@pytest.mark.quick
def test_unfiltered_leaves_move_whole() -> None:
    before, after = train(
        methods.mofo(fraction=0.1, filtered=lambda path: path != "bias"), optax.adam(1e-2), 1
    )
    assert (np.asarray(before["bias"]) != np.asarray(after["bias"])).all()
    assert (np.asarray(before["w"]) != np.asarray(after["w"])).sum() == 4


def test_traced_fractions_sweep() -> None:
    def final(fraction: Any) -> Any:
        program = jcl.make(
            methods.mofo(fraction=fraction), apply, losses.squared_error, optax.adam(1e-2)
        )
        state = program.init(PARAMS, batches(1)[0], jax.random.key(2))
        return program.step(state, batches(1)[0])[0].params

    swept = jax.vmap(final)(jnp.array([0.1, 0.5, 1.0]))
    moved = (np.asarray(swept["w"]) != np.asarray(PARAMS["w"])).reshape(3, -1).sum(1)
    np.testing.assert_array_equal(moved, [4, 21, 42])
