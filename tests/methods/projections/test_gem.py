"""GEM: its dual against scipy, its step against the primal problem, its promise for every stage."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.optimize import lsq_linear, minimize

import jcl
from jcl import losses, methods
from jcl.methods.projections.gem import solve_dual

KEY = jax.random.key(0)
FEATURES = 8


def scipy_dual(gram: np.ndarray, slope: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """argmin ½ vᵀPv + qᵀv, v >= lower, as bounded least squares in float64."""
    root = np.linalg.cholesky(gram)
    target = -np.linalg.solve(root, slope)
    found = lsq_linear(root.T, target, bounds=(lower, np.inf), method="bvls", tol=1e-14)
    return found.x


@pytest.mark.parametrize("size", [1, 2, 5, 10, 20, 50])
@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_dual_equals_scipy_on_random_problems(size: int, margin: float) -> None:
    rng = np.random.default_rng(size)
    solve, bound = jax.jit(jax.vmap(solve_dual, (0, 0, None, None))), np.full(size, margin)
    problems = []
    for _ in range(40):
        common = rng.normal(size=3 * size + 5)
        refs = rng.normal(size=(size, 3 * size + 5)) + rng.uniform(0, 1) * common
        refs /= np.linalg.norm(refs, axis=1, keepdims=True)
        g = rng.normal(size=3 * size + 5) - rng.uniform(0, 2) * common
        problems.append((refs @ refs.T, refs @ g))
    grams, slopes = (np.array(a) for a in zip(*problems, strict=True))
    lower, free = jnp.asarray(bound, jnp.float32), jnp.ones(size, bool)
    found = solve(jnp.asarray(grams, jnp.float32), jnp.asarray(slopes, jnp.float32), lower, free)
    assert np.all(found >= bound)
    active = 0
    for v, gram, slope in zip(np.asarray(found, float), grams, slopes, strict=True):
        best = scipy_dual(gram, slope, bound - 1e-12)
        active += np.sum(best > margin + 1e-6)
        assert np.linalg.norm(v - best) <= 1e-4 * max(np.linalg.norm(best), 1e-3)
    assert active > 0


@pytest.mark.quick
def test_dual_leaves_what_is_not_free_at_its_bound() -> None:
    gram, slope = jnp.eye(3), jnp.array([-1.0, -1.0, 1.0])
    v = solve_dual(gram, slope, jnp.zeros(3), jnp.array([True, False, True]))
    np.testing.assert_allclose(v, [1, 0, 0], atol=1e-6)


def apply(params: Any, batch: Any) -> jax.Array:
    return batch["x"] @ params["w"]


def slope_at(w: np.ndarray, batch: Any) -> np.ndarray:
    x, y = np.asarray(batch["x"], float), np.asarray(batch["y"], float)
    return (x.T @ (x @ w - y) / len(x)).ravel()


def stages(method: jcl.Method, tx: Any, count: int = 3) -> tuple[Any, jcl.State, list[Any], Any]:
    """The state after `count` stages, their data, and batches of one more."""
    rng = np.random.default_rng(1)

    def draw() -> dict[str, jax.Array]:
        x = jnp.asarray(rng.normal(size=(4, FEATURES)), jnp.float32)
        return {"x": x, "y": jnp.asarray(rng.normal(size=(4, 1)) * 3, jnp.float32)}

    data = [draw() for _ in range(count)]
    program = jcl.make(method, apply, losses.squared_error, tx)
    step, finish = jax.jit(program.step), jax.jit(program.consolidate)
    state = jax.jit(program.init)({"w": jnp.zeros((FEATURES, 1))}, data[0], KEY)
    for batch in data:
        for _ in range(3):
            state, _ = step(state, batch)
        state = finish(state, jax.tree.map(lambda v: v[None], batch))
    return step, state, data, draw


@pytest.mark.parametrize("at", ["grads", "updates"])
def test_a_step_is_the_nearest_that_hurts_no_past_stage(at: Any) -> None:
    method = methods.gem(stages=5, capacity_per_task=4, at=at)
    step, state, data, draw = stages(method, optax.sgd(0.05))
    corrected = 0
    for _ in range(6):
        batch = draw()
        w = np.asarray(state.params["w"], float)
        refs, g = np.array([slope_at(w, d) for d in data]), slope_at(w, batch)
        state, _ = step(state, batch)
        taken = (w - np.asarray(state.params["w"], float)).ravel() / 0.05
        best = minimize(
            lambda t, g=g: 0.5 * np.sum((t - g) ** 2),
            g,
            jac=lambda t, g=g: t - g,
            constraints={
                "type": "ineq",
                "fun": lambda t, r=refs: r @ t,
                "jac": lambda t, r=refs: r,
            },
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        ).x
        np.testing.assert_allclose(taken, best, rtol=1e-3, atol=1e-4 * np.linalg.norm(g))
        size = np.linalg.norm(refs, axis=1) * np.linalg.norm(taken)
        assert np.all(refs @ taken >= -1e-4 * size)
        corrected += np.any(refs @ g < 0)
    assert corrected > 2


def test_projected_updates_hurt_no_past_stage_behind_adam() -> None:
    worst = {}
    for at in ("grads", "updates"):
        method = methods.gem(stages=3, capacity_per_task=4, at=at)
        step, state, data, draw = stages(method, optax.adam(0.3))
        lows = []
        for _ in range(30):
            w = np.asarray(state.params["w"], float)
            refs = np.array([slope_at(w, d) for d in data])
            state, _ = step(state, draw())
            taken = (w - np.asarray(state.params["w"], float)).ravel()
            size = np.linalg.norm(refs, axis=1) * np.linalg.norm(taken)
            lows.append(np.min(refs @ taken / size))
        worst[at] = min(lows)
    assert worst["updates"] >= -1e-3
    assert worst["grads"] < -0.1


def test_a_margin_adds_that_much_of_every_past_gradient_at_least() -> None:
    step, state, data, draw = stages(
        methods.gem(stages=3, capacity_per_task=4, margin=0.5), optax.sgd(0.05)
    )
    for _ in range(6):
        batch = draw()
        w = np.asarray(state.params["w"], float)
        refs, g = np.array([slope_at(w, d) for d in data]), slope_at(w, batch)
        state, _ = step(state, batch)
        taken = (w - np.asarray(state.params["w"], float)).ravel() / 0.05
        expected = g
        if np.any(refs @ g < 0):
            v = scipy_dual(refs @ refs.T + 1e-9 * np.eye(3), refs @ g, np.full(3, 0.5))
            expected = g + refs.T @ v
        np.testing.assert_allclose(taken, expected, rtol=1e-3, atol=1e-3 * np.linalg.norm(g))


@pytest.mark.quick
def test_the_memory_of_a_stage_is_its_last_rows_and_the_oldest_stage_makes_room() -> None:
    _, state, data, _ = stages(methods.gem(stages=2, capacity_per_task=3), optax.sgd(0.05))
    stored = np.asarray(state.methods["gem"].buffer.rows["x"]).reshape(2, 3, FEATURES)
    for region, stage in ((0, 2), (1, 1)):
        kept = {tuple(r) for r in stored[region]}
        assert kept == {tuple(r) for r in np.asarray(data[stage]["x"][1:])}
