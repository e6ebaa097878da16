"""Heterogeneous averaging: the ends, the mean of the ratios, and which part is kept."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jcl
from jcl import merging, methods
from jcl.methods.merges.hma import by_depth, project

LAYERS = 6
PARAMS = {"blocks": {"w": jnp.arange(2.0 * LAYERS).reshape(LAYERS, 2)}, "head": jnp.ones(2)}
WANTED = jnp.array([3.0, 3.0, 0.0, 0.0, -2.0, -2.0])  # how far each layer's weights are pulled
STRUCTURE = jcl.Structure(stacks={"blocks": 1})
BATCH = {"pull": jnp.ones((4, 1))}


def objective(apply: Any, params: Any, batch: Any) -> jax.Array:
    """½ Σ_layers ‖w - (w₀ + wanted)‖², so the middle layers are best left where they are."""
    gap = params["blocks"]["w"] - PARAMS["blocks"]["w"] - WANTED[:, None]
    return 0.5 * jnp.sum(gap**2) + 0.5 * jnp.sum((params["head"] - 2) ** 2)


def learned(**arguments: Any) -> tuple[jcl.State, jcl.State]:
    """Before and after the boundary of a stage of one step, which overshoots in some layers."""
    method = methods.hma(**arguments)
    program = jcl.make(
        method, lambda params, batch: None, objective, optax.sgd(1.0), structure=STRUCTURE
    )
    state, _ = program.step(program.init(PARAMS, BATCH, jax.random.key(0)), BATCH)
    w = state.params["blocks"]["w"].at[2:4].add(5.0)  # the middle layers went astray
    state = state._replace(params={**state.params, "blocks": {"w": w}})
    batches = jax.tree.map(lambda x: x[None], BATCH)
    return state, jax.jit(program.consolidate)(state, batches)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_the_ends_are_exact(alpha: float) -> None:
    before, after = learned(alpha=alpha)
    expected = before.params if alpha else PARAMS
    jax.tree.map(np.testing.assert_array_equal, after.params, expected)


@pytest.mark.parametrize("arguments", [{"parts": 1}, {"steps": 0}])
def test_without_a_descent_it_is_wise_ft(arguments: Any) -> None:
    before, after = learned(alpha=0.3, **arguments)
    expected = jax.tree.map(lambda a, b: 0.7 * a + 0.3 * b, PARAMS, before.params)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), after.params, expected)


def test_the_ratios_go_where_the_loss_wants_them_and_keep_their_mean() -> None:
    before, after = learned(alpha=0.5, steps=200, rate=0.3)
    ratios = np.asarray(after.methods["hma"].ratios)
    # the loss is Σ_k w_k (α_k - a_k)² with a = (1, 0, 1): projected, (¾, 0, ¾) on a mean of ½
    np.testing.assert_allclose(ratios.mean(), 0.5, atol=1e-5)
    assert ratios[1] < 0.05 and ratios[0] > 0.7 and ratios[2] > 0.6
    blocks = PARAMS["blocks"]["w"], before.params["blocks"]["w"]
    share = np.repeat(ratios, 2)[:, None]
    np.testing.assert_allclose(
        after.params["blocks"]["w"], (1 - share) * blocks[0] + share * blocks[1], rtol=1e-5
    )
    np.testing.assert_allclose(after.params["head"], 0.5 + 0.5 * np.asarray(before.params["head"]))
    _, even = learned(alpha=0.5, steps=0)
    assert float(objective(None, after.params, None)) < float(objective(None, even.params, None))


def test_layers_are_divided_by_depth() -> None:
    other = jax.tree.map(lambda x: x + 1, PARAMS)
    ratio = by_depth(jnp.array([0.0, 0.25, 0.5, 1.0]), 0.4, STRUCTURE)
    moved = merging.interpolate(ratio, PARAMS, other)
    gone = np.asarray(moved["blocks"]["w"] - PARAMS["blocks"]["w"])[:, 0]
    np.testing.assert_allclose(gone, [0, 0, 0.25, 0.5, 0.5, 1.0], rtol=1e-6)  # 4 parts of 6 layers
    np.testing.assert_allclose(moved["head"] - PARAMS["head"], 0.4, rtol=1e-6)


@pytest.mark.parametrize("mean", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_the_projection_is_the_nearest_point(mean: float) -> None:
    draw = np.random.default_rng(0)
    for _ in range(5):
        given = draw.normal(0.5, 1.0, 4)
        found = np.asarray(project(jnp.asarray(given, jnp.float32), mean))
        assert found.min() >= 0 and found.max() <= 1
        np.testing.assert_allclose(found.mean(), mean, atol=1e-5)
        # no feasible point drawn at random is nearer
        for _ in range(200):
            other = np.clip(found + draw.normal(0, 0.2, 4), 0, 1)
            other = np.clip(other + mean - other.mean(), 0, 1)
            if abs(other.mean() - mean) < 1e-6:
                assert np.sum((given - found) ** 2) <= np.sum((given - other) ** 2) + 1e-4


@pytest.mark.quick
@pytest.mark.parametrize("anchor", ["previous", "first"])
def test_the_anchor(anchor: Any) -> None:
    _, after = learned(alpha=0.5, anchor=anchor)
    held = after.methods["hma"].anchor
    jax.tree.map(
        np.testing.assert_array_equal, held, after.params if anchor == "previous" else PARAMS
    )
