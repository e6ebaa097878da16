"""Quadratic anchors against float64, and against the gradient of the penalties one by one."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcl.mechanisms.quadratic import no_anchor


@pytest.mark.parametrize("apart", [1e-3, 1.0])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_the_pull_is_that_of_every_anchor(apart: float, dtype: Any) -> None:
    """Against float64, at parameters a thousandth from anchors that are of order 1."""
    rng = np.random.default_rng(0)
    near = rng.normal(size=(40, 50))

    def draw(spread: float) -> dict[str, jax.Array]:
        return {"w": jnp.asarray(near + spread * rng.normal(size=near.shape), dtype)}

    def exact(tree: dict[str, jax.Array]) -> np.ndarray:
        return np.asarray(tree["w"].astype(jnp.float32), np.float64)

    anchors = [draw(apart) for _ in range(5)]
    fishers = [{"w": jnp.asarray(rng.uniform(size=near.shape), jnp.float32)} for _ in anchors]
    theta, start = draw(1e-3), {"w": jnp.zeros(near.shape)}
    quadratic = no_anchor(theta)
    for fisher, anchor in zip(fishers, anchors, strict=True):
        quadratic = quadratic.add(fisher, anchor)
    pulls = [exact(f) * (exact(theta) - exact(a)) for f, a in zip(fishers, anchors, strict=True)]
    found = np.asarray(quadratic.pull(start, 7.0, theta)["w"])
    # no more than if μ, which is a float32, were next to where it should be
    total = sum(map(exact, fishers))
    grain = np.spacing(np.abs(np.float32(exact(theta))) + np.float32(4 * apart))
    excess = np.abs(found - 7.0 * sum(pulls)) - 7.0 * total * 2 * grain
    assert excess.max() < 1e-6 * np.abs(7.0 * sum(pulls)).max()


@pytest.mark.quick
def test_anchors_that_are_one_pull_nowhere() -> None:
    rng = np.random.default_rng(0)
    theta = {"w": jnp.asarray(rng.normal(size=200), jnp.float32)}
    past = no_anchor(theta)
    for _ in range(5):
        past = past.add({"w": jnp.asarray(rng.uniform(size=200), jnp.float32)}, theta)
    np.testing.assert_array_equal(past.anchor["w"], theta["w"])


def test_anchors_without_curvature_pull_nowhere() -> None:
    one = {"w": jnp.ones(3)}
    quadratic = no_anchor(one)
    quadratic = quadratic.add({"w": jnp.array([0.0, 0.0, 2.0])}, {"w": jnp.full(3, 5.0)})
    quadratic = quadratic.add({"w": jnp.array([0.0, 1.0, 2.0])}, {"w": jnp.full(3, 7.0)})
    found = quadratic.pull({"w": jnp.zeros(3)}, 1.0, one)["w"]
    np.testing.assert_allclose(found, [0.0, 1.0 * (1 - 7), 2.0 * (1 - 5) + 2.0 * (1 - 7)])


def test_the_pull_is_the_gradient_of_the_summed_penalties() -> None:
    rng = np.random.default_rng(0)

    def draw() -> dict[str, jax.Array]:
        return {"w": jnp.asarray(rng.uniform(0.5, 2, (4, 3)), jnp.float32)}

    omegas, anchors, theta, start = [draw(), draw()], [draw(), draw()], draw(), draw()

    def penalty(p: Any) -> jax.Array:
        pairs = zip(omegas, anchors, strict=True)
        return 0.5 * 7.0 * sum(jnp.sum(o["w"] * (p["w"] - a["w"]) ** 2) for o, a in pairs)

    past = no_anchor(theta)
    for omega, anchor in zip(omegas, anchors, strict=True):
        past = past.add(omega, anchor)
    found = past.pull(start, 7.0, theta)["w"]
    wanted = start["w"] + jax.grad(penalty)(theta)["w"]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.quick
def test_leaves_without_meaning_lose_their_curvature() -> None:
    past = no_anchor({"a": jnp.ones(2), "b": jnp.ones(2)})
    past = past._replace(curvature={"a": jnp.ones(2), "b": jnp.full(2, 3.0)})
    left = past.without(lambda path: path == "a").curvature
    np.testing.assert_array_equal(left["a"], jnp.zeros(2))
    np.testing.assert_array_equal(left["b"], jnp.full(2, 3.0))
