"""MAS needs no labels; on a linear model its importance and its optimum are known."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jcl
from jcl import losses, methods, models


def data(task: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(task)
    x = rng.normal(size=(12, 4)).astype(np.float32)
    return {"x": x, "y": rng.normal(size=(12, 2)).astype(np.float32)}


def linear(params: Any, batch: Any) -> jax.Array:
    return batch["x"] @ params["w"]


def omega_of(w: Any, x: np.ndarray) -> np.ndarray:
    """∂‖xW‖² / ∂W = 2 x (xW)ᵀ, a row at a time."""
    w = np.asarray(w, float)
    return np.mean([np.abs(2 * np.outer(row, row @ w)) for row in x.astype(float)], axis=0)


def stages(count: int, **arguments: Any) -> tuple[Any, Any, list[np.ndarray], list[np.ndarray]]:
    """Program, last state, and each finished stage's Ω and θ*."""
    program = jcl.make(methods.mas(**arguments), linear, losses.squared_error, optax.sgd(0.05))
    params = {"w": 0.5 * jax.random.normal(jax.random.key(0), (4, 2))}
    state = program.init(params, data(0), jax.random.key(1))
    step, consolidate = jax.jit(program.step), jax.jit(program.consolidate)
    omegas, anchors = [], []
    for task in range(count):
        for _ in range(3):
            state, _ = step(state, data(task))
        omegas.append(omega_of(state.params["w"], data(task)["x"]))
        anchors.append(np.asarray(state.params["w"], float))
        batches = jax.tree.map(lambda x: x.reshape(3, 4, -1), data(task))
        state = consolidate(state, batches)
    return program, state, omegas, anchors


@pytest.mark.parametrize("anchor", ["latest", "each"])
def test_importance_and_anchor_of_a_linear_model(anchor: str) -> None:
    strength = 1.7
    program, state, omegas, anchors = stages(3, strength=strength, anchor=anchor)
    omega = sum(omegas)
    np.testing.assert_allclose(state.methods["mas"].omega["w"], omega, rtol=2e-5)

    # the next step descends the task's loss and ½ λ Σ Ω (θ - θ*)²
    state = state._replace(params=jax.tree.map(lambda p: p + 0.3, state.params))
    w, rows = np.asarray(state.params["w"], float), data(5)
    task = rows["x"].T @ (rows["x"] @ w - rows["y"]) / len(rows["x"])
    held = zip(omegas, 3 * anchors[-1:] if anchor == "latest" else anchors, strict=True)
    pull = sum(o * (w - a) for o, a in held)
    stepped, _ = jax.jit(program.step)(state, rows)
    np.testing.assert_allclose(stepped.params["w"], w - 0.05 * (task + strength * pull), rtol=1e-5)


def test_labels_play_no_part_in_the_importance() -> None:
    program = jcl.make(methods.mas(), models.mlp.apply, losses.cross_entropy(), optax.sgd(0.1))
    params = models.mlp.init(jax.random.key(0), [4, 6, 3])
    x = jax.random.normal(jax.random.key(1), (2, 5, 4))
    labels = [jnp.zeros((2, 5), jnp.int32), jnp.full((2, 5), 2, jnp.int32)]
    state = program.init(params, {"x": x[0], "y": labels[0][0]}, jax.random.key(2))
    a, b = (jax.jit(program.consolidate)(state, {"x": x, "y": y}).methods for y in labels)
    jax.tree.map(np.testing.assert_array_equal, a, b)
    other = jax.jit(program.consolidate)(state, {"x": 2 * x, "y": labels[0]}).methods
    assert not np.allclose(a["mas"].omega["dense_1"]["bias"], other["mas"].omega["dense_1"]["bias"])


@pytest.mark.quick
def test_signs_do_not_cancel_within_a_batch() -> None:
    """The authors' code takes |Σ| over a batch, which two opposite rows would make 0."""
    program = jcl.make(methods.mas(), linear, losses.squared_error, optax.sgd(0.1))
    x = np.array([[1.0, 1.0], [1.0, -1.0]], np.float32)
    params = {"w": jnp.asarray([[0.0], [1.0]])}
    state = program.init(params, {"x": x, "y": np.zeros((2, 1), np.float32)}, jax.random.key(0))
    state = program.consolidate(state, {"x": x[None], "y": np.zeros((1, 2, 1), np.float32)})
    # rows' gradients of (w·x)² are 2 (w·x) x = (2, 2) and (-2, 2)
    np.testing.assert_allclose(state.methods["mas"].omega["w"], [[2.0], [2.0]])
