"""A-GEM: the projection in closed form, and what it promises of the applied update."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jcl
from jcl import losses, methods

KEY = jax.random.key(0)


def apply(params: Any, batch: Any) -> jax.Array:
    return batch["x"] @ params["w"]


def slope(w: np.ndarray, batch: Any) -> np.ndarray:
    x, y = np.asarray(batch["x"], float), np.asarray(batch["y"], float)
    return x.T @ (x @ w - y) / len(x)


def row(x: Any, y: float) -> dict[str, jax.Array]:
    return {"x": jnp.asarray([x], jnp.float32), "y": jnp.full((1, 1), y, jnp.float32)}


def begin(method: jcl.Method, first: Any, tx: Any) -> tuple[Any, jcl.State]:
    program = jcl.make(method, apply, losses.squared_error, tx)
    step, finish = jax.jit(program.step), jax.jit(program.consolidate)
    state = jax.jit(program.init)({"w": jnp.zeros((3, 1))}, first, KEY)
    for _ in range(3):
        state, _ = step(state, first)
    return step, finish(state, jax.tree.map(lambda v: v[None], first))


OLD = row([1.0, 1.0, 0.0], 4.0)


@pytest.mark.parametrize("at", ["grads", "updates"])
@pytest.mark.parametrize("y", [-2.0, 3.0])  # against the old row, and with it
def test_a_step_against_the_memory_is_projected_and_another_is_left_alone(
    y: float, at: Any
) -> None:
    step, state = begin(methods.agem(capacity=1, rows=3, at=at), OLD, optax.sgd(0.1))
    new = row([1.0, 0.0, 2.0], y)
    w = np.asarray(state.params["w"], float)
    after, _ = step(state, new)
    g, r = slope(w, new), slope(w, OLD)
    along = float(np.sum(g * r))
    assert (along < 0) == (y < 0)
    expected = g - min(along, 0) / np.sum(r * r) * r
    np.testing.assert_allclose(after.params["w"], w - 0.1 * expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tx", [optax.adam(0.5), optax.sgd(0.05, momentum=0.9)])
def test_only_projected_updates_keep_the_promise_behind_the_optimizer(tx: Any) -> None:
    """The share of steps that go uphill on the memory, to first order."""
    rng = np.random.default_rng(0)
    uphill = {}
    for at in ("grads", "updates"):
        step, state = begin(methods.agem(capacity=1, rows=1, at=at), OLD, tx)
        climbs = []
        for _ in range(30):
            w = np.asarray(state.params["w"], float)
            state, _ = step(state, row(rng.normal([1, 1, 0]), -3.0))
            r = slope(w, OLD)
            moved = np.asarray(state.params["w"], float) - w
            size = np.linalg.norm(moved) * np.linalg.norm(r)
            climbs.append(float(np.sum(moved * r)) > 1e-4 * size)
        uphill[at] = np.mean(climbs)
    assert uphill["updates"] == 0
    assert uphill["grads"] > 0.1


@pytest.mark.quick
def test_the_memory_holds_finished_stages_only() -> None:
    method = methods.agem(capacity=4, rows=2)
    program = jcl.make(method, apply, losses.squared_error, optax.sgd(0.1))
    state = jax.jit(program.init)({"w": jnp.zeros((3, 1))}, OLD, KEY)
    step, finish = jax.jit(program.step), jax.jit(program.consolidate)
    for stage in range(2):
        batches = row([float(stage), 1.0, 0.0], 4.0)
        state, aux = step(state, batches)
        assert int(aux["agem/stored"]) == stage
        state = finish(state, jax.tree.map(lambda v: v[None], batches))
    stored = state.methods["agem"].buffer.rows
    assert sorted(np.asarray(stored["x"])[np.asarray(stored["weight"]) > 0][:, 0]) == [0, 1]


def test_it_reads_the_buffer_that_er_fills() -> None:
    pair = jcl.chain(methods.er(capacity=1, rows=2, weight=0.0), methods.agem(rows=3, share="er"))
    step, state = begin(pair, OLD, optax.sgd(0.1))
    alone_step, alone = begin(methods.agem(capacity=1, rows=3), OLD, optax.sgd(0.1))
    new = row([1.0, 0.0, 2.0], -2.0)
    np.testing.assert_allclose(
        step(state, new)[0].params["w"], alone_step(alone, new)[0].params["w"], rtol=1e-5
    )
