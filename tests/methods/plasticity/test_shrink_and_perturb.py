"""Shrink and perturb: by how much, with what noise, and where."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jcl
from jcl import losses, methods

KEY = jax.random.key(0)
START = {"w": jnp.linspace(-1, 1, 4000).reshape(40, 100)}
BATCH = {"x": jnp.ones((2, 40)), "y": jnp.zeros((2, 100))}


def program(method: jcl.Method) -> jcl.Program:
    return jcl.make(method, lambda p, b: b["x"] @ p["w"], losses.squared_error, optax.sgd(0.0))


@pytest.mark.quick
@pytest.mark.parametrize("at", ["stage", "step"])
def test_weights_shrink_and_get_normal_noise(at: str) -> None:
    made = program(methods.shrink_and_perturb(0.5, 0.1, at))  # type: ignore[arg-type]
    step = jax.jit(made.step)
    state, _ = step(jax.jit(made.init)(START, BATCH, KEY), BATCH)
    if at == "stage":  # not in the first, nor in the model that is evaluated at its end
        np.testing.assert_array_equal(state.params["w"], START["w"])
        stacked = jax.tree.map(lambda x: x[None], BATCH)
        state = jax.jit(made.consolidate)(state, stacked)
        np.testing.assert_array_equal(state.params["w"], START["w"])
        state, _ = step(state, BATCH)
    noise = np.asarray(state.params["w"] - 0.5 * START["w"]).ravel()
    assert abs(noise.mean()) < 4 * 0.1 / 4000**0.5 and abs(noise.std() / 0.1 - 1) < 0.05
    assert abs(np.corrcoef(noise, np.asarray(START["w"]).ravel())[0, 1]) < 0.07
    again, _ = step(state, BATCH)
    moved = np.abs(again.params["w"] - state.params["w"]).max()
    assert (moved > 0.05) == (at == "step")  # once a stage, or in every step
