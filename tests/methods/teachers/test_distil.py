"""Distillation from a given model, against the closed form on a linear model."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jcl
from jcl import losses, methods

pytestmark = pytest.mark.quick

X = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
BATCH = {"x": jnp.asarray(X), "y": jnp.asarray([0, 1, 2, 0, 1, 2])}
PARAMS = {"w": jnp.asarray(np.random.default_rng(1).normal(size=(4, 3)), jnp.float32)}
TEACHER = {"w": jnp.asarray(np.random.default_rng(2).normal(size=(4, 3)), jnp.float32)}


def apply(params: Any, batch: Any) -> jax.Array:
    return batch["x"] @ params["w"]


def program(method: jcl.Method) -> jcl.Program:
    return jcl.make(method, apply, losses.cross_entropy(), optax.sgd(1.0))


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def test_the_gradient_is_that_of_the_closed_form() -> None:
    """∂/∂z of T² KL is T (softmax(z / T) - softmax(z_teacher / T))."""
    strength, temperature = 0.3, 3.0
    made = program(methods.distil(TEACHER, strength, temperature))
    state = made.init(PARAMS, BATCH, jax.random.key(0))
    after, aux = jax.jit(made.step)(state, BATCH)
    z, wanted = X @ np.asarray(PARAMS["w"]), X @ np.asarray(TEACHER["w"])
    task = softmax(z) - np.eye(3)[np.asarray(BATCH["y"])]
    soft, goal = softmax(z / temperature), softmax(wanted / temperature)
    slope = (1 - strength) * task + strength * temperature * (soft - goal)
    np.testing.assert_allclose(PARAMS["w"] - after.params["w"], X.T @ slope / 6, atol=1e-5)
    nll = -np.log(softmax(z)[np.arange(6), BATCH["y"]]).mean()
    apart = temperature**2 * (goal * (np.log(goal) - np.log(soft))).sum(axis=1).mean()
    assert float(aux["loss"]) == pytest.approx((1 - strength) * nll + strength * apart, rel=1e-5)


def test_the_teacher_stays_and_alone_is_reached() -> None:
    made = program(methods.distil(TEACHER, strength=1.0, temperature=1.0))
    state = made.init(PARAMS, BATCH, jax.random.key(0))
    step = jax.jit(made.step)
    for _ in range(400):
        state, _ = step(state, BATCH)
    state = made.consolidate(state, jax.tree.map(lambda x: x[None], BATCH))
    np.testing.assert_array_equal(state.methods["distil"].teacher.params["w"], TEACHER["w"])
    ours, theirs = softmax(X @ np.asarray(state.params["w"])), softmax(X @ np.asarray(TEACHER["w"]))
    np.testing.assert_allclose(ours, theirs, atol=0.02)


def test_a_teacher_of_another_shape_is_refused() -> None:
    made = program(methods.distil({"w": jnp.zeros((3, 3))}))
    with pytest.raises(ValueError, match=r"teacher's w is \(3, 3\), but must be an array \(4, 3\)"):
        made.init(PARAMS, BATCH, jax.random.key(0))
