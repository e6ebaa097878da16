"""Online merging: the two merges entry by entry, and the ends."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_context import context

import jcl
from jcl import losses, methods

RNG = np.random.default_rng(0)
PARAMS = {"a": jnp.asarray(RNG.normal(size=(4, 5)), jnp.float32), "b": jnp.ones(3)}
KEY = jax.random.key(0)


def apply(params: Any, batch: Any) -> jax.Array:
    return jnp.sum(batch["x"] @ params["a"], axis=-1, keepdims=True) + jnp.sum(params["b"])


BATCH = {"x": jnp.asarray(RNG.normal(size=(6, 4)), jnp.float32), "y": jnp.ones((6, 1))}


def taught(method: jcl.Method) -> tuple[Any, jcl.State]:
    """The jitted step, and the state after one stage of two steps."""
    program = jcl.make(method, apply, losses.squared_error, optax.sgd(0.05))
    state, step = program.init(PARAMS, BATCH, KEY), jax.jit(program.step)
    for _ in range(2):
        state, _ = step(state, BATCH)
    batches = jax.tree.map(lambda x: x[None], BATCH)
    return step, jax.jit(program.consolidate)(state, batches)


def merged(method: jcl.Method, vector: Any, update: Any) -> Any:
    """What `updates` makes of an update where τ_ref is `vector`."""
    ctx = context(params=PARAMS, stage=jnp.int32(1), key=KEY)
    _, state = method.init(ctx, PARAMS)
    return jax.tree.map(np.asarray, method.updates(state._replace(vector=vector), ctx, update))


def draw() -> Any:
    return jax.tree.map(lambda x: jnp.asarray(RNG.normal(size=x.shape), jnp.float32), PARAMS)


@pytest.mark.quick
@pytest.mark.parametrize("form", ["dare", "ties"])
def test_the_ends_are_exact(form: Any) -> None:
    vector, update = draw(), draw()
    same = merged(
        methods.online_merging(0.0, 1.0, form), jax.tree.map(jnp.zeros_like, vector), update
    )
    jax.tree.map(np.testing.assert_array_equal, same, update)
    if form == "dare":
        jax.tree.map(
            np.testing.assert_array_equal, merged(methods.online_merging(0.0, 1.0), vector, update),
            update,
        )  # fmt: skip
        only = merged(methods.online_merging(1.0, 0.5), vector, update)
        jax.tree.map(np.testing.assert_array_equal, only, vector)


def test_dare_drops_at_random_and_keeps_the_mean() -> None:
    """α τ + (1 - α) m Δ / p with m of {0, 1}, as the authors' dropout makes it."""
    vector, update = draw(), draw()
    alpha, density = 0.1, 0.25
    found = merged(methods.online_merging(alpha, density), vector, update)
    for key in PARAMS:
        rest = (found[key] - alpha * vector[key]) / ((1 - alpha) * np.asarray(update[key]))
        dropped = np.isclose(rest, 0, atol=1e-5)
        np.testing.assert_allclose(rest[~dropped], 1 / density, rtol=1e-4)
        assert dropped.any()
    many = {"a": jnp.ones((100, 200))}
    state = methods.online_merging(0.0, density)
    ctx = context(params=many, stage=jnp.int32(1), key=KEY)
    kept = state.updates(state.init(ctx, many)[1], ctx, many)["a"]
    assert abs(float(jnp.mean(kept > 0)) - density) < 0.02


def ties_by_hand(vector: Any, update: Any, alpha: float, density: float) -> Any:
    """The authors' loop: the top entries, the sign of the sum, a sum of those that agree."""
    flat = np.abs(update).ravel()
    kept = np.zeros(flat.size, bool)
    count = int(density * flat.size) or flat.size  # `if k < 1: return` leaves the tensor whole
    kept[np.argsort(-flat, kind="stable")[:count]] = True
    update = np.where(kept.reshape(update.shape), update, 0)
    majority = np.where(vector + update >= 0, 1, -1)
    agree = [np.where(np.sign(x) == majority, x, 0) for x in (vector, update)]
    return alpha * agree[0] + (1 - alpha) * agree[1]


@pytest.mark.parametrize("density", [1.0, 0.4, 0.3])  # of 20 and 3 entries, 6 and 0 at 0.3
def test_ties_keeps_what_agrees_with_the_sign_of_the_sum(density: float) -> None:
    vector, update = draw(), draw()
    found = merged(methods.online_merging(0.3, density, "ties"), vector, update)
    for key in PARAMS:
        by_hand = ties_by_hand(np.asarray(vector[key]), np.asarray(update[key]), 0.3, density)
        np.testing.assert_allclose(found[key], by_hand, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("form", ["dare", "ties"])
def test_the_reference_is_what_earlier_stages_taught(form: Any) -> None:
    alpha = 0.2
    step, state = taught(methods.online_merging(alpha, 1.0, form))
    held = state.methods["online_merging"]
    vector = jax.tree.map(lambda p, b: np.asarray(p - b), state.params, PARAMS)
    jax.tree.map(np.testing.assert_array_equal, held.vector, vector)
    np.testing.assert_allclose(
        held.length, np.sqrt(sum((v**2).sum() for v in vector.values())), rtol=1e-6
    )
    plain = jcl.make(methods.naive(), apply, losses.squared_error, optax.sgd(0.05))
    usual, _ = plain.step(plain.init(state.params, BATCH, KEY), BATCH)
    after, _ = step(state, BATCH)
    for key in PARAMS:
        update = np.asarray(usual.params[key] - state.params[key])
        expected = alpha * vector[key] + (1 - alpha) * update
        if form == "ties":
            expected = ties_by_hand(vector[key], update, alpha, 1.0)
        moved = np.asarray(after.params[key] - state.params[key])
        np.testing.assert_allclose(moved, expected, rtol=1e-4, atol=1e-6)
