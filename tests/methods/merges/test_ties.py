"""TIES against a numpy merge of experts that were trained apart."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_stages import after_boundaries

import jcl
from jcl import losses, methods

TASKS, STEPS, DIM = 4, 6, 30
PARAMS = {"w": jax.random.normal(jax.random.key(0), (DIM, 2)), "bias": jnp.zeros(2)}
DATA = {
    "x": jax.random.normal(jax.random.key(1), (TASKS, STEPS, 8, DIM)),
    "y": jax.random.normal(jax.random.key(2), (TASKS, STEPS, 8, 2)),
}
TX = optax.sgd(0.05)


def apply(params: Any, batch: Any) -> jax.Array:
    return batch["x"] @ params["w"] + params["bias"]


def merged(**arguments: Any) -> list[np.ndarray]:
    """The flat weights after each boundary."""
    program = jcl.make(methods.ties(**arguments), apply, losses.squared_error, TX)
    return [flat(params) for params in after_boundaries(program, PARAMS, DATA)]


def flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.ravel(tree["w"]), np.ravel(tree["bias"])]).astype(np.float64)


def experts() -> np.ndarray:
    """Task vectors [TASKS, d] by gradient descent in numpy."""
    found = []
    for t in range(TASKS):
        w, b = (np.asarray(PARAMS[k], np.float64) for k in ("w", "bias"))
        for i in range(STEPS):
            x, y = (np.asarray(DATA[k][t, i], np.float64) for k in ("x", "y"))
            error = (x @ w + b - y) / len(x)
            w, b = w - 0.05 * x.T @ error, b - 0.05 * error.sum(0)
        found.append(flat({"w": w, "bias": b}) - flat(PARAMS))
    return np.stack(found)


@pytest.mark.parametrize("density, scale", [(0.3, 1.0), (1.0, 0.7)])
def test_every_boundary_is_the_merge_of_all_experts_so_far(density: float, scale: float) -> None:
    vectors = experts()
    keep = int(density * vectors.shape[1])
    for row in vectors:
        row[np.argsort(-np.abs(row))[keep:]] = 0
    for t, got in enumerate(merged(density=density, scale=scale)):
        so_far = vectors[: t + 1]
        sign = np.sign(so_far.sum(0))
        agrees = (np.sign(so_far) == sign) & (so_far != 0)
        mean = (so_far * agrees).sum(0) / np.maximum(agrees.sum(0), 1)
        np.testing.assert_allclose(got, flat(PARAMS) + scale * mean, atol=2e-5)


def test_one_expert_in_full_is_kept_and_none_is_the_start() -> None:
    np.testing.assert_allclose(
        merged(density=1.0, scale=1.0)[0], flat(PARAMS) + experts()[0], atol=1e-5
    )
    np.testing.assert_array_equal(merged(scale=0.0)[-1], flat(PARAMS))
    np.testing.assert_allclose(merged(density=0.0)[-1], flat(PARAMS), atol=1e-6)


@pytest.mark.quick
def test_sequential_experts_and_trimming_by_leaf_differ_from_the_default() -> None:
    default = merged()
    sequential, by_leaf = merged(start="previous"), merged(scope="leaf")
    np.testing.assert_array_equal(sequential[0], default[0])
    assert np.abs(sequential[1] - default[1]).max() > 1e-3
    # of the two biases 20 % are none when they are ranked by themselves
    np.testing.assert_array_equal(by_leaf[-1][-2:], [0, 0])
