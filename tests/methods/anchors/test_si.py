"""SI: its path integral is the fall of the loss, and its anchor is what the paper says."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jcl
from jcl import losses, methods

CURVATURE = np.array([4.0, 1.0, 0.25])
CENTRES = np.array([[1.0, -2.0, 3.0], [-1.0, 1.0, -4.0]])
START = np.array([0.5, 1.0, -1.0])


def linear(params: Any, batch: Any) -> jax.Array:
    return batch["x"] @ params["w"][:, None]


def rows(task: int) -> dict[str, jax.Array]:
    """One row a coordinate: the mean loss is Σ_j ½ c_j (w_j - m_j)², one term a coordinate."""
    x = np.diag(np.sqrt(len(CURVATURE) * CURVATURE))
    y = (x @ CENTRES[task])[:, None]
    return {"x": jnp.asarray(x, jnp.float32), "y": jnp.asarray(y, jnp.float32)}


def losses_at(w: np.ndarray, task: int) -> np.ndarray:
    """The loss, coordinate by coordinate."""
    return 0.5 * CURVATURE * (np.asarray(w, float) - CENTRES[task]) ** 2


def begin(tx: Any, **arguments: Any) -> tuple[Any, Any]:
    program = jcl.make(methods.si(**arguments), linear, losses.squared_error, tx)
    params = {"w": jnp.asarray(START, jnp.float32)}
    return program, jax.jit(program.init)(params, rows(0), jax.random.key(0))


def train(program: Any, state: Any, task: int, steps: int) -> Any:
    chunk = jax.tree.map(lambda x: jnp.broadcast_to(x, (steps, *x.shape)), rows(task))
    return jax.jit(lambda s, c: jcl.advance(program, s, c)[0])(state, chunk)


def finish(program: Any, state: Any, task: int) -> Any:
    return jax.jit(program.consolidate)(state, jax.tree.map(lambda x: x[None], rows(task)))


@pytest.mark.parametrize("optimizer", [optax.sgd, optax.adam])
def test_path_integral_is_the_loss_drop_of_each_parameter(optimizer: Any) -> None:
    errors = []
    for rate, steps in ((4e-3, 200), (2e-3, 400)):
        program, state = begin(optimizer(rate))
        state = train(program, state, 0, steps)
        path = np.asarray(state.methods["si"].path["w"])
        drop = losses_at(START, 0) - losses_at(state.params["w"], 0)
        assert np.all(drop > 0.05)
        np.testing.assert_allclose(path, drop, rtol=0.02)
        errors.append(path.sum() / drop.sum() - 1)
    # what is left over is of first order in the step: half as much with half the rate
    np.testing.assert_allclose(errors[1] / errors[0], 0.5, atol=0.05)


def test_path_integral_is_of_the_task_loss_not_the_penalised_one() -> None:
    program, state = begin(optax.sgd(1e-3), strength=2.0)
    state = finish(program, train(program, state, 0, 500), 0)
    begun = np.asarray(state.params["w"])
    state = train(program, state, 1, 500)
    omega = np.asarray(state.methods["si"].omega["w"])
    moved = np.asarray(state.params["w"]) - begun
    drop = losses_at(begun, 1) - losses_at(state.params["w"], 1)
    assert (omega * moved**2).sum() > 0.1 * drop.sum()  # the penalty was no small part
    np.testing.assert_allclose(state.methods["si"].path["w"], drop, rtol=0.01)


@pytest.mark.quick
def test_boundary_adds_the_share_of_each_stage() -> None:
    damping = 0.05
    program, state = begin(optax.sgd(1e-2), strength=0.0, damping=damping)
    omega, begun = np.zeros(3), START
    for task in range(2):
        state = train(program, state, task, 50)
        path = np.asarray(state.methods["si"].path["w"], float)
        ended = np.asarray(state.params["w"], float)
        omega = omega + np.maximum(path, 0) / ((ended - begun) ** 2 + damping)
        state = finish(program, state, task)
        kept = state.methods["si"]
        np.testing.assert_allclose(kept.omega["w"], omega, rtol=1e-5)
        np.testing.assert_array_equal(kept.start["w"], state.params["w"])
        assert not np.any(kept.path["w"])
        begun = ended


def test_a_loss_that_rose_takes_no_importance_away() -> None:
    program, state = begin(optax.sgd(0.1), strength=0.0)
    state = finish(program, train(program, state, 0, 5), 0)
    before = np.asarray(state.methods["si"].omega["w"])
    state = state._replace(params={"w": jnp.asarray([-1.0, 5.0, 5.0])})
    climbing = dict(path=jax.tree.map(lambda x: x - 1.0, state.methods["si"].path))
    state = state._replace(methods={"si": state.methods["si"]._replace(**climbing)})
    after = np.asarray(finish(program, state, 1).methods["si"].omega["w"])
    np.testing.assert_array_equal(after, before)
    assert np.all(before > 0)


def test_the_pull_is_half_the_strength_times_omega_squared_distance() -> None:
    strength, rate = 3.0, 1e-2
    program, state = begin(optax.sgd(rate), strength=strength)
    state = finish(program, train(program, state, 0, 20), 0)
    omega, anchor = (np.asarray(state.methods["si"]._asdict()[k]["w"]) for k in ("omega", "start"))
    away = np.array([0.3, -0.2, 0.5])
    state = state._replace(params={"w": jnp.asarray(anchor + away, jnp.float32)})
    stepped, _ = jax.jit(program.step)(state, rows(1))

    def total(w: jax.Array) -> jax.Array:
        task = jnp.sum(0.5 * CURVATURE * (w - CENTRES[1]) ** 2)
        return task + 0.5 * strength * jnp.sum(omega * (w - anchor) ** 2)

    wanted = state.params["w"] - rate * jax.grad(total)(state.params["w"])
    np.testing.assert_allclose(stepped.params["w"], wanted, rtol=1e-5)
