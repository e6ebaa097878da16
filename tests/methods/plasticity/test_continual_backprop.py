"""Continual backpropagation beside its algorithm written out in numpy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jcl
from jcl import losses, methods
from jcl.models import mlp

RATE, RHO, ETA, MATURE = 0.05, 0.11, 0.8, 2


@pytest.mark.quick
def test_the_least_useful_mature_unit_is_renewed_when_one_is_owed() -> None:
    params = mlp.init(jax.random.key(2), (3, 6, 1))
    method = methods.continual_backprop(RHO, decay=ETA, maturity=MATURE)
    program = jcl.make(method, mlp.apply, losses.squared_error, optax.sgd(RATE))
    x = jax.random.normal(jax.random.key(1), (20, 4, 3))
    rows = [{"x": one, "y": jnp.sum(one, axis=1, keepdims=True)} for one in x]
    state, step = jax.jit(program.init)(params, rows[0], jax.random.key(0)), jax.jit(program.step)
    plain = jcl.make(methods.naive(), mlp.apply, losses.squared_error, optax.sgd(RATE))
    plain_step = jax.jit(plain.step)
    utility, age, owed, renewed = np.zeros(6), np.zeros(6, int), 0.0, []
    for batch in rows:
        before = jax.tree.map(np.asarray, state.params)
        first, second = before["dense_0"], before["dense_1"]
        h = np.maximum(np.asarray(batch["x"]) @ first["kernel"] + first["bias"], 0).mean(0)
        mature = age > MATURE
        owed += RHO * mature.sum()
        chosen = None
        if owed >= 1:
            chosen = int(np.argmin(np.where(mature, utility, np.inf)))
            owed -= 1
            renewed.append(chosen)
        utility = ETA * utility + (1 - ETA) * h * np.abs(second["kernel"]).sum(1)
        age = age + 1
        state, aux = step(state, batch)
        begun = jax.jit(plain.init)(before, batch, jax.random.key(0))
        expected = jax.tree.map(np.array, plain_step(begun, batch)[0].params)
        if chosen is not None:
            utility[chosen], age[chosen] = 0, 0
            fresh = np.asarray(state.params["dense_0"]["kernel"])[:, chosen]
            assert np.abs(fresh).max() <= 3**0.5 * np.std(params["dense_0"]["kernel"]) + 1e-6
            assert np.abs(fresh - expected["dense_0"]["kernel"][:, chosen]).max() > 1e-3
            expected["dense_0"]["kernel"][:, chosen] = fresh
            expected["dense_0"]["bias"][chosen] = 0
            expected["dense_1"]["kernel"][chosen] = 0
        for now, wanted in zip(
            jax.tree.leaves(state.params), jax.tree.leaves(expected), strict=True
        ):
            np.testing.assert_allclose(now, wanted, atol=1e-5)
        kept = state.methods["continual_backprop"]
        np.testing.assert_allclose(kept.utility["dense_0"], utility, rtol=1e-4, atol=1e-7)
        np.testing.assert_array_equal(kept.age["dense_0"], age)
        assert aux["continual_backprop/renewed"] == len(renewed)
    assert len(renewed) > 5 and len(set(renewed)) > 1
