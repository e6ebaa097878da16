"""IR-DRO: its weights against the softmax of the authors' code, and that they solve its problem."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import softmax

import jcl
from jcl import losses, methods

pytestmark = pytest.mark.quick

RNG = np.random.default_rng(0)
START = {"w": jnp.asarray(RNG.normal(size=(3, 4)), jnp.float32)}
X = RNG.normal(size=(6, 3))
Y = RNG.integers(0, 4, 6)
WEIGHT = np.array([1.0, 1, 1, 0, 1, 1])
BATCH = {
    "x": jnp.asarray(X, jnp.float32),
    "y": jnp.asarray(Y),
    "weight": jnp.asarray(WEIGHT, jnp.float32),
}


def row_losses() -> np.ndarray:
    z = X @ np.asarray(START["w"], float)
    return np.log(np.exp(z).sum(1)) - z[np.arange(6), Y]


@pytest.mark.parametrize("microbatches", [1, 3])
@pytest.mark.parametrize("temperature", [0.2, 1.0, 10.0])
def test_weights_are_a_softmax_of_the_losses(temperature: float, microbatches: int) -> None:
    def apply(params: Any, batch: Any) -> jax.Array:
        return batch["x"] @ params["w"]

    program = jcl.make(
        methods.ir_dro(temperature=temperature), apply, losses.cross_entropy(), optax.sgd(1.0),
        microbatches=microbatches,
    )  # fmt: skip
    state = program.init(START, BATCH, jax.random.key(0))
    state, aux = jax.jit(program.step)(state, BATCH)
    cost, real = row_losses(), WEIGHT > 0
    w = np.zeros(6)
    w[real] = softmax(cost[real] / temperature)
    np.testing.assert_allclose(aux["loss"], w @ cost, rtol=1e-5)
    p = softmax(X @ np.asarray(START["w"], float), axis=1)
    slope = X.T @ (w[:, None] * (p - np.eye(4)[Y]))  # the weights are constants
    np.testing.assert_allclose(state.params["w"], START["w"] - slope, rtol=1e-4, atol=1e-6)

    def worth(weights: np.ndarray) -> float:
        spread = np.sum(weights * np.log(weights * real.sum()))
        return float(weights @ cost[real] - temperature * spread)

    others = RNG.dirichlet(np.ones(real.sum()), 200)
    assert all(worth(w[real]) >= worth(other) for other in others)
