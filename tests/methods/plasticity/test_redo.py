"""ReDo: which units are renewed, when, and that a silent one leaves the model as it was."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jcl
from jcl import losses, methods
from jcl.models import mlp

KEY = jax.random.key(0)
X = jax.random.uniform(jax.random.key(1), (8, 3))
BATCH = {"x": X, "y": jnp.arange(8) % 2}


def dead(unit: int) -> Any:
    """A perceptron of which this hidden unit alone answers nothing."""
    params = mlp.init(jax.random.key(2), (3, 6, 2))
    first = params["dense_0"]
    bias = jnp.ones(6).at[unit].set(-100.0)
    return {**params, "dense_0": {**first, "bias": bias}}


@pytest.mark.quick
def test_a_silent_unit_is_renewed_when_it_is_time_and_the_model_stays_as_it_was() -> None:
    method = methods.redo(threshold=0.0, every=2)
    program = jcl.make(method, mlp.apply, losses.cross_entropy(), optax.sgd(0.0))
    start, step = dead(4), jax.jit(program.step)
    state = jax.jit(program.init)(start, BATCH, KEY)
    for turn in range(4):
        state, aux = step(state, BATCH)
        same = jax.tree.map(lambda a, b: bool((a == b).all()), state.params, start)
        # a step is counted before it is taken, so that the third is step 2
        assert jax.tree.all(same) == (turn < 2)
    assert aux["redo/renewed"] == 1  # at step 2 alone, for then it answers again
    np.testing.assert_array_equal(state.params["dense_1"]["kernel"][4], 0)
    assert state.params["dense_0"]["bias"][4] == 0
    others = [0, 1, 2, 3, 5]
    np.testing.assert_array_equal(
        state.params["dense_0"]["kernel"][:, others], start["dense_0"]["kernel"][:, others]
    )
    np.testing.assert_allclose(mlp.apply(state.params, BATCH), mlp.apply(start, BATCH), rtol=1e-5)
    assert (mlp.apply(state.params, BATCH) != 0).all()


@pytest.mark.quick
@pytest.mark.parametrize("threshold", [0.5, 1.0])
def test_units_are_compared_with_their_layer_s_mean(threshold: float) -> None:
    params = mlp.init(jax.random.key(5), (3, 6, 2))
    program = jcl.make(
        methods.redo(threshold, every=1), mlp.apply, losses.cross_entropy(), optax.sgd(0.0)
    )
    state, step = jax.jit(program.init)(params, BATCH, KEY), jax.jit(program.step)
    h = np.maximum(X @ params["dense_0"]["kernel"] + params["dense_0"]["bias"], 0).mean(0)
    state, _ = step(state, BATCH)  # step 0 is never one
    state, aux = step(state, BATCH)
    worn = h <= threshold * h.mean()
    assert 0 < worn.sum() < 6 and aux["redo/renewed"] == worn.sum()
    silent = (np.asarray(state.params["dense_1"]["kernel"]) == 0).all(1)
    np.testing.assert_array_equal(silent, worn)


@pytest.mark.quick
def test_answers_count_over_the_last_steps_before_a_look() -> None:
    params = mlp.init(jax.random.key(5), (3, 6, 2))
    method = methods.redo(0.8, every=4, over=2)
    program = jcl.make(method, mlp.apply, losses.cross_entropy(), optax.sgd(0.0))
    rows = [{"x": X[i : i + 1], "y": jnp.array([0])} for i in range(8)]
    state, step = jax.jit(program.init)(params, rows[0], KEY), jax.jit(program.step)
    for batch in rows[:4]:
        state, aux = step(state, batch)
        assert aux["redo/renewed"] == 0
    h = np.maximum(X[2:4] @ params["dense_0"]["kernel"] + params["dense_0"]["bias"], 0).mean(0)
    state, aux = step(state, rows[4])
    assert aux["redo/renewed"] == (h <= 0.8 * h.mean()).sum() > 0
