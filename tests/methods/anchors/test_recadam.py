"""RecAdam against the authors' optimizer, rewritten in numpy."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jcl
from jcl import losses, methods

X = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
Y = np.random.default_rng(1).normal(size=(6, 1)).astype(np.float32)
START = np.array([0.5, 1.0, -1.0, 2.0])
BATCH = {"x": X, "y": Y}


def linear(params: Any, batch: Any) -> jax.Array:
    return batch["x"] @ params["w"][:, None]


def ours(method: jcl.Method, stages: list[int], rate: float, state: Any = None) -> list[np.ndarray]:
    """Parameters after every step."""
    program = jcl.make(method, linear, losses.squared_error, optax.adam(rate, eps=1e-12))
    params = {"w": jnp.asarray(START, jnp.float32)}
    state = state or program.init(params, BATCH, jax.random.key(0))
    step, consolidate = jax.jit(program.step), jax.jit(program.consolidate)
    found = []
    for steps in stages:
        for _ in range(steps):
            state, _ = step(state, BATCH)
            found.append(np.asarray(state.params["w"]))
        state = consolidate(state, jax.tree.map(lambda x: x[None], BATCH))
    return found


def authors(
    stages: list[int], rate: float, cof: float, k: float, t0: float, start: int = 0
) -> list[np.ndarray]:
    """RecAdam.step of Sanyuan-Chen/RecAdam, with anneal_w 1; θ⁰ and t restart with a stage."""
    w, m, v, n = START.copy(), np.zeros(4), np.zeros(4), 0
    found = []
    for stage, steps in enumerate(stages):
        anchor = w.copy()
        for t in range(1, steps + 1):
            n += 1
            g = X.T.astype(float) @ (X @ w - Y[:, 0]) / len(X)
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            size = rate * np.sqrt(1 - 0.999**n) / (1 - 0.9**n)
            share = 1 / (1 + np.exp(-k * (t - t0))) if stage >= start else 1.0
            w = w - size * share * m / np.sqrt(v)
            w = w - rate * (1 - share) * cof * (w - anchor)
            found.append(w.copy())
    return found


def test_every_step_is_the_authors() -> None:
    rate, cof = 2e-2, 10.0
    for start in (0, 1):
        method = methods.recadam(strength=rate * cof, speed=0.4, midpoint=6.0, start=start)
        wanted = authors([12, 12], rate, cof, 0.4, 6.0, start)
        np.testing.assert_allclose(ours(method, [12, 12], rate), wanted, rtol=2e-5, atol=2e-5)
    gone = np.abs(
        np.asarray(authors([12, 12], rate, cof, 0.4, 6.0)) - authors([12, 12], rate, 0, 0.4, 6.0)
    )
    assert gone.max() > 0.01  # the pull was no small part


def test_as_speed_grows_it_becomes_a_switch() -> None:
    found = ours(methods.recadam(speed=1e6, midpoint=4.5), [10], 2e-2)
    np.testing.assert_array_equal(found[:4], np.tile(START, (4, 1)))  # nothing is learnt before t₀
    # after it, Adam undisturbed, but for the moments that it has meanwhile gathered standing still
    wanted = authors([10], 2e-2, 5.0, 100.0, 4.5)
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-5)
    assert np.abs(found[-1] - START).min() > 0.05


@pytest.mark.quick
def test_the_pull_takes_its_share_of_the_way_back_each_step() -> None:
    """With no learning (λ = 0) the distance shrinks by 1 - strength a step, moments or no."""
    program = jcl.make(
        methods.recadam(strength=0.25, midpoint=1e9), linear, losses.squared_error, optax.adam(0.1)
    )
    params = {"w": jnp.asarray(START, jnp.float32)}
    state = program.init(params, BATCH, jax.random.key(0))
    away = np.array([1.0, -2.0, 0.5, 4.0])
    state = state._replace(params={"w": jnp.asarray(START + away, jnp.float32)})
    for n in range(1, 6):
        state, _ = jax.jit(program.step)(state, BATCH)
        np.testing.assert_allclose(state.params["w"] - START, away * 0.75**n, rtol=1e-5)


def test_without_annealing_it_is_adam_bit_for_bit() -> None:
    plain = ours(methods.naive(), [5, 5], 2e-2)
    for arguments in ({"midpoint": -np.inf}, {"start": 2}):
        found = ours(methods.recadam(strength=0.5, **arguments), [5, 5], 2e-2)
        np.testing.assert_array_equal(found, plain)
