"""L2-SP on a quadratic, whose optimum lies between the start and the task's own."""

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

CURVATURE = np.array([2.0, 1.0, 0.5])
CENTRES = np.array([[1.0, -2.0, 3.0], [-1.0, 1.0, -4.0], [2.0, 2.0, 2.0]])
START = np.array([0.5, 1.0, -1.0])


def linear(params: Any, batch: Any) -> jax.Array:
    return batch["x"] @ params["w"][:, None]


def learn(method: jcl.Method) -> np.ndarray:
    """Where each stage of training to convergence ends."""
    x = np.diag(np.sqrt(3 * CURVATURE)).astype(np.float32)
    y = (CENTRES @ x.T)[..., None].astype(np.float32)
    stream = {
        "x": jnp.broadcast_to(x, (3, 200, *x.shape)),
        "y": jnp.broadcast_to(y[:, None], (3, 200, *y.shape[1:])),
    }
    program = jcl.make(method, linear, losses.squared_error, optax.sgd(0.3))
    params = {"w": jnp.asarray(START, jnp.float32)}

    def evaluate(program: Any, state: Any) -> jax.Array:
        return state.params["w"]

    run = jax.jit(lambda s: jcl.run(program, params, jax.random.key(0), s, evaluate=evaluate))
    return np.asarray(run(stream)[1]["scores"][1:])


@pytest.mark.parametrize("strength", [0.4, 2.0])
@pytest.mark.parametrize("start", [0, 1, 2])
def test_optimum_is_between_the_task_and_the_start(strength: float, start: int) -> None:
    """argmin ½ c (θ - m)² + ½ λ (θ - θ⁰)² = (c m + λ θ⁰) / (c + λ), and m before stage `start`."""
    anchor, wanted = START, []
    for stage, centre in enumerate(CENTRES):
        pull = strength if stage >= start else 0.0
        wanted.append((CURVATURE * centre + pull * anchor) / (CURVATURE + pull))
        if stage < start:
            anchor = wanted[-1]
    np.testing.assert_allclose(learn(methods.l2sp(strength, start)), wanted, atol=2e-5)
