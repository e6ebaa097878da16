"""Factors of the staged schedules, read off a model whose gradient is 1 everywhere."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jcl
from jcl import losses, methods
from jcl.methods.schedules import schedule

BATCH = {"x": jnp.ones((1, 1)), "y": jnp.zeros((1, 1))}


def slope_of_one(apply: Any, params: Any, batch: Any) -> jax.Array:
    return jnp.sum(params["w"])


def build(method: jcl.Method) -> tuple[Any, Any]:
    program = jcl.make(method, lambda p, b: p["w"], slope_of_one, optax.sgd(1.0))
    return program, jax.jit(program.init)({"w": jnp.zeros(1)}, BATCH, jax.random.key(0))


def factors(program: Any, state: Any, steps: int) -> tuple[Any, np.ndarray]:
    """The next `steps` factors: with gradient and rate 1, what each step takes off w."""

    def one(state: Any, _: None) -> Any:
        after, _ = program.step(state._replace(params={"w": jnp.zeros(1)}), BATCH)
        return after, -after.params["w"][0]

    state, found = jax.jit(lambda s: jax.lax.scan(one, s, length=steps))(state)
    return state, np.asarray(found)


def boundary(program: Any, state: Any) -> Any:
    return jax.jit(program.consolidate)(state, jax.tree.map(lambda x: x[None], BATCH))


@pytest.mark.parametrize("warmup, steps", [(3, 12), (0, 12), (12, 12), (1, 20)])
def test_every_stage_rewarms_and_redecays_as_optax_does(warmup: int, steps: int) -> None:
    arguments = {"initial": 0.05, "peak": 0.8, "final": 0.1}
    program, state = build(methods.rewarm(warmup, steps, **arguments))
    if warmup < steps:
        there = optax.warmup_cosine_decay_schedule(0.05, 0.8, warmup, steps, 0.1)
    else:  # which optax refuses: a warm-up and nothing else
        there = optax.join_schedules(
            [optax.linear_schedule(0.05, 0.8, warmup), optax.constant_schedule(0.1)], [steps]
        )
    wanted = [float(there(t)) for t in range(25)]
    for _ in range(3):
        state, found = factors(program, state, 25)
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
        state = boundary(program, state)


def test_scaling_updates_is_scheduling_the_rate_of_adam() -> None:
    x = jax.random.normal(jax.random.key(0), (8, 3))
    batch = {"x": x, "y": x @ jnp.asarray([[1.0], [-2.0], [0.5]])}
    rates = optax.warmup_cosine_decay_schedule(0.0, 3e-2, 4, 20, 3e-3)

    def learn(method: jcl.Method, rate: Any) -> np.ndarray:
        program = jcl.make(
            method, lambda p, b: b["x"] @ p["w"], losses.squared_error, optax.adamw(rate)
        )
        state = program.init({"w": jnp.ones((3, 1))}, batch, jax.random.key(1))
        chunk = jax.tree.map(lambda v: jnp.broadcast_to(v, (20, *v.shape)), batch)
        return np.asarray(jax.jit(lambda s: jcl.advance(program, s, chunk)[0])(state).params["w"])

    scaled = learn(methods.rewarm(4, 20, peak=1.0, final=0.1), 3e-2)
    np.testing.assert_allclose(scaled, learn(methods.naive(), rates), rtol=1e-5)
    assert np.abs(scaled - learn(methods.naive(), 3e-2)).max() > 1e-2


@pytest.mark.quick
def test_constant_holds_from_its_stage_on() -> None:
    program, state = build(methods.constant(value=0.25, start=1))
    for stage in range(3):
        state, found = factors(program, state, 4)
        np.testing.assert_array_equal(found, 1.0 if stage < 1 else 0.25)
        state = boundary(program, state)


def trunk(t: np.ndarray, curve: str) -> np.ndarray:
    """Ibrahim et al.: 5 steps up, 10 down to .4, then level."""
    u = np.clip((t - 5) / 10, 0, 1)
    if curve == "cosine":
        cooled = 0.4 + 0.5 * (1 - 0.4) * (1 + np.cos(np.pi * u))
    else:
        h = (1 / np.sqrt(1 + 10 * u) - 1) / (1 / np.sqrt(11) - 1)
        cooled = 1 + (0.4 - 1) * h
    return np.where(t < 5, t / 5, cooled)


@pytest.mark.parametrize("curve", ["cosine", "inverse_sqrt"])
def test_infinite_goes_on_over_stages_and_anneals_on_a_branch(curve: str) -> None:
    program, state = build(
        methods.infinite(warmup=5, cooldown=10, anneal=8, level=0.4, final=0.05, curve=curve)
    )
    found, branches = [], []
    for _ in range(3):
        state, part = factors(program, state, 9)
        found.append(part)
        branches.append(factors(program, schedule.branch(state), 12)[1])
        state = boundary(program, state)
    wanted = trunk(np.arange(27), curve)
    np.testing.assert_allclose(np.concatenate(found), wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(wanted[15:], 0.4)
    # the last two branches leave from the constant phase, and end at `final`
    v = np.minimum(np.arange(12) / 8, 1)
    for left in branches[1:]:
        np.testing.assert_allclose(left, 0.4 * (0.05 / 0.4) ** v, rtol=1e-5)
    # the first leaves from the cool-down, which goes on under the annealing
    np.testing.assert_allclose(
        branches[0], trunk(np.arange(9, 21), curve) * (1 / 8) ** v, rtol=1e-5
    )


def test_a_branch_takes_the_same_compiled_step_and_may_be_donated() -> None:
    program, state = build(methods.infinite(warmup=0, cooldown=0, anneal=4))
    traces = []

    def step(state: Any) -> Any:
        traces.append(1)
        return program.step(state, BATCH)[0]

    compiled = jax.jit(step, donate_argnums=0)
    branched = schedule.branch(compiled(state))
    assert int(compiled(compiled(branched)).step) == 3 and len(traces) == 1


@pytest.mark.quick
def test_branching_without_infinite_is_refused() -> None:
    _, state = build(methods.rewarm(1, 4))
    with pytest.raises(ValueError, match=r"state.methods is \['rewarm'\].*infinite"):
        schedule.branch(state)


def test_schedules_of_one_chain_multiply() -> None:
    program, state = build(jcl.chain(methods.rewarm(2, 6), methods.constant(0.5, start=0)))
    alone, start = build(methods.rewarm(2, 6))
    np.testing.assert_allclose(
        factors(program, state, 6)[1], 0.5 * factors(alone, start, 6)[1], rtol=1e-6
    )


def test_factor_is_not_rounded_to_the_dtype_of_the_updates() -> None:
    # bfloat16(0.3) · 3 is 0.902, where 0.3 · 3 is 0.898, the bfloat16 nearest to 0.9
    program = jcl.make(
        methods.constant(0.3, start=0), lambda p, b: p["w"], slope_of_one, optax.sgd(3.0)
    )
    state = program.init({"w": jnp.zeros(1, jnp.bfloat16)}, BATCH, jax.random.key(0))
    after, _ = jax.jit(program.step)(state, BATCH)
    assert float(after.params["w"][0]) == float(jnp.bfloat16(-0.9))
