"""The average of the weights, against its closed form."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jcl
from jcl import losses, methods


def apply(params: Any, batch: Any) -> jax.Array:
    return batch["x"] @ params["w"]


PARAMS = {"w": jnp.array([[1.0], [-2.0]])}
BATCH = {"x": jnp.eye(2), "y": jnp.array([[3.0], [4.0]])}
STEPS = 6


def train(decay: float) -> tuple[Any, list[Any], Any]:
    program = jcl.make(methods.ema(decay=decay), apply, losses.squared_error, optax.sgd(0.5))
    state = program.init(PARAMS, BATCH, jax.random.key(0))
    seen = [np.asarray(state.params["w"], np.float64)]
    for _ in range(STEPS):
        state, _ = jax.jit(program.step)(state, BATCH)
        seen.append(np.asarray(state.params["w"], np.float64))
    batches = jax.tree.map(lambda x: x[None], BATCH)
    return program, seen, (state, jax.jit(program.consolidate)(state, batches))


@pytest.mark.parametrize("decay", [0.3, 0.9])
def test_a_boundary_installs_the_weighted_sum_of_all_steps(decay: float) -> None:
    program, seen, (before, after) = train(decay)
    want = decay**STEPS * seen[0] + sum(
        (1 - decay) * decay ** (STEPS - i) * theta for i, theta in enumerate(seen) if i
    )
    np.testing.assert_allclose(after.params["w"], want, rtol=1e-6)
    np.testing.assert_allclose(program.predict(after, BATCH), want, rtol=1e-6)
    np.testing.assert_allclose(program.predict(before, BATCH), seen[-1], rtol=1e-6)
    assert float(after.methods["ema"].gap) == pytest.approx(
        np.linalg.norm(seen[-1] - want), rel=1e-5
    )


@pytest.mark.quick
def test_the_ends_are_exact() -> None:
    _, _, (before, after) = train(0.0)
    np.testing.assert_array_equal(after.params["w"], before.params["w"])
    _, _, (_, after) = train(1.0)
    np.testing.assert_array_equal(after.params["w"], PARAMS["w"])
