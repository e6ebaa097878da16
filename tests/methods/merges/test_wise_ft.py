"""WiSE-FT: points on the line, or the arc, between two models."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jcl
from jcl import losses, methods


def apply(params: Any, batch: Any) -> jax.Array:
    return batch["x"] @ params["w"]


PARAMS = {"w": jnp.array([[1.0], [-2.0]])}


def train(optimum: tuple[tuple[float, float], ...], **arguments: Any) -> list[np.ndarray]:
    """The weights after each stage; a rate of 2 on ½ (w - optimum)² / 2 gets there in one step."""
    program = jcl.make(methods.wise_ft(**arguments), apply, losses.squared_error, optax.sgd(2.0))
    example = {"x": jnp.eye(2), "y": jnp.zeros((2, 1))}
    state = program.init(PARAMS, example, jax.random.key(0))
    seen = []
    for y in optimum:
        batch = {"x": jnp.eye(2), "y": jnp.array(y)[:, None]}
        state, _ = jax.jit(program.step)(state, batch)
        state = jax.jit(program.consolidate)(state, jax.tree.map(lambda x: x[None], batch))
        seen.append(np.asarray(state.params["w"])[:, 0])
    return seen


A, B = (3.0, 4.0), (-1.0, 0.0)


@pytest.mark.quick
def test_the_anchor_is_the_stage_before_or_the_first() -> None:
    previous = train((A, B), alpha=0.25)
    np.testing.assert_allclose(previous[0], [1.5, -0.5], rtol=1e-6)  # ¾ (1, -2) + ¼ (3, 4)
    np.testing.assert_allclose(previous[1], [0.875, -0.375], rtol=1e-6)  # ¾ of that + ¼ (-1, 0)
    first = train((A, B), alpha=0.25, anchor="first")
    np.testing.assert_allclose(first[0], [1.5, -0.5], rtol=1e-6)
    np.testing.assert_allclose(first[1], [0.5, -1.5], rtol=1e-6)  # ¾ (1, -2) + ¼ (-1, 0)


@pytest.mark.parametrize("spherical", [False, True])
def test_the_ends_are_exact(spherical: bool) -> None:
    np.testing.assert_array_equal(train((A, B), alpha=0.0, spherical=spherical)[1], [1.0, -2.0])
    plain = jcl.make(methods.naive(), apply, losses.squared_error, optax.sgd(2.0))
    batch = {"x": jnp.eye(2), "y": jnp.array(A)[:, None]}
    state = plain.init(PARAMS, batch, jax.random.key(0))
    learned = np.asarray(jax.jit(plain.step)(state, batch)[0].params["w"])[:, 0]
    np.testing.assert_array_equal(train((A,), alpha=1.0, spherical=spherical)[0], learned)


@pytest.mark.quick
def test_the_arc_between_equal_lengths_keeps_the_length() -> None:
    (middle,) = train(((2.0, 1.0),), alpha=0.5, spherical=True)  # at a right angle to (1, -2)
    np.testing.assert_allclose(middle, np.array([3.0, -1.0]) / np.sqrt(2), rtol=1e-6)
