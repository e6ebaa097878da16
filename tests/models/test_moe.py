"""A mixture of experts against a loop over tokens and their choices."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from jcl import mesh
from jcl.models import moe

EXPERTS, WIDTH, HIDDEN = 4, 5, 7
DRAW = np.random.default_rng(0)
SHAPES = {"gate": (WIDTH, HIDDEN), "up": (WIDTH, HIDDEN), "down": (HIDDEN, WIDTH)}
PARAMS: Any = {
    name: {"kernel": DRAW.normal(size=(EXPERTS, *shape)).astype(np.float32)}
    for name, shape in SHAPES.items()
}
X = DRAW.normal(size=(4, 3, WIDTH)).astype(np.float32)
SCORES = DRAW.normal(size=(4, 3, EXPERTS)).astype(np.float32)
SCORES[..., 2] -= 9  # which nobody chooses, unless all are chosen


def by_hand(chosen: int, renormalise: bool) -> np.ndarray:
    out = np.zeros_like(X)
    for row, place in np.ndindex(X.shape[:2]):
        token, chances = X[row, place], softmax(SCORES[row, place].astype(np.float64))
        best = np.argsort(-chances)[:chosen]
        total = chances[best].sum() if renormalise else 1
        for e in best:
            gate, up, down = (PARAMS[name]["kernel"][e] for name in SHAPES)
            inner = np.tanh(token @ gate) * (token @ up)
            out[row, place] += chances[e] / total * (inner @ down)
    return out


def mix(params: Any, x: Any, chosen: int = 2, renormalise: bool = True) -> jax.Array:
    return moe.mix(params, x, jnp.asarray(SCORES), chosen, renormalise, jnp.tanh)


@pytest.mark.quick
@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize("chosen", [1, 2, EXPERTS])
def test_a_token_goes_through_its_likeliest_experts(chosen: int, renormalise: bool) -> None:
    found = mix(jax.tree.map(jnp.asarray, PARAMS), jnp.asarray(X), chosen, renormalise)
    np.testing.assert_allclose(found, by_hand(chosen, renormalise), rtol=1e-4, atol=1e-5)


def test_an_expert_that_nobody_chose_has_no_slope() -> None:
    slopes = jax.grad(lambda p: jnp.sum(mix(p, jnp.asarray(X)) ** 2))(
        jax.tree.map(jnp.asarray, PARAMS)
    )
    for name in SHAPES:
        moved = np.abs(slopes[name]["kernel"]).max((1, 2)) > 0
        np.testing.assert_array_equal(moved, [True, True, False, True])


@pytest.mark.parametrize("axes", [{"expert": 4}, {"data": 2, "expert": 2}, {"fsdp": 2}])
def test_on_a_mesh_it_is_that_of_one_device(axes: dict[str, int]) -> None:
    there = mesh.make(**axes)

    def spread(params: Any, x: jax.Array) -> jax.Array:
        with jax.sharding.use_abstract_mesh(there.abstract_mesh):
            return mix(params, x)

    everywhere = jax.NamedSharding(there, jax.P())
    given = jax.tree.map(jnp.asarray, (PARAMS, X))
    assert ("shard_map" in str(jax.make_jaxpr(spread)(*given))) == ("expert" in axes)
    found = jax.jit(spread, in_shardings=everywhere)(*given)
    np.testing.assert_allclose(found, by_hand(2, True), rtol=1e-4, atol=1e-5)
