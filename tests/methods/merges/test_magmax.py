"""MagMax against experts that were trained apart and merged by hand."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import optax
import pytest
from tiny_stages import after_boundaries

import jcl
from jcl import losses, methods, models

STAGES, STEPS = 3, 5
PARAMS = models.mlp.init(jax.random.key(0), [4, 6, 3])
DATA = {
    "x": jax.random.normal(jax.random.key(1), (STAGES, STEPS, 8, 4)),
    "y": jax.random.normal(jax.random.key(2), (STAGES, STEPS, 8, 3)),
}
EXAMPLE = jax.tree.map(lambda x: x[0, 0], DATA)
TX = optax.adam(1e-2, eps=1e-3)


def merged(**arguments: Any) -> list[np.ndarray]:
    """The flat weights after each boundary."""
    method = methods.magmax(**arguments)
    program = jcl.make(method, models.mlp.apply, losses.squared_error, TX, boundary="reset")
    return [flat(params) for params in after_boundaries(program, PARAMS, DATA)]


def expert(params: Any, stage: int) -> Any:
    plain = jcl.make(methods.naive(), models.mlp.apply, losses.squared_error, TX)
    state, step = plain.init(params, EXAMPLE, jax.random.key(3)), jax.jit(plain.step)
    for i in range(STEPS):
        state, _ = step(state, jax.tree.map(lambda x, i=i: x[stage, i], DATA))
    return state.params


def flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]).astype(np.float64)


def merge_max_abs(vectors: list[np.ndarray]) -> np.ndarray:
    """The authors' function of this name, of flat vectors."""
    largest = vectors[0]
    for vector in vectors[1:]:
        largest = np.where(np.abs(vector) >= np.abs(largest), vector, largest)
    return largest


@pytest.mark.parametrize("start", ["previous", "initial"])
def test_each_entry_is_the_largest_of_all_experts_so_far(start: Any) -> None:
    base, last, vectors = flat(PARAMS), PARAMS, []
    for stage, got in enumerate(merged(scale=0.7, start=start)):
        last = expert(last if start == "previous" else PARAMS, stage)
        vectors.append(flat(last) - base)
        np.testing.assert_allclose(got, base + 0.7 * merge_max_abs(vectors), atol=1e-5)
    # no stage wins everywhere
    winners = np.argmax(np.abs(np.stack(vectors)), axis=0)
    assert len(np.unique(winners)) == STAGES


def test_by_default_stages_go_on_from_the_expert_and_half_is_taken() -> None:
    for got, said in zip(merged(), merged(scale=0.5, start="previous"), strict=True):
        np.testing.assert_array_equal(got, said)


@pytest.mark.quick
def test_the_ends_are_exact() -> None:
    np.testing.assert_array_equal(merged(scale=0.0)[-1], flat(PARAMS))
    # the merge is exact; a masked update is rounded apart from the sum that it is fused with
    np.testing.assert_allclose(merged(scale=1.0)[0], flat(expert(PARAMS, 0)), atol=1e-7)


@pytest.mark.quick
def test_of_equal_entries_the_later_is_taken() -> None:
    first, later = {"w": np.array([1.0, -2.0, 3.0])}, {"w": np.array([-1.0, 1.0, -3.0])}
    np.testing.assert_array_equal(jcl.merging.larger(first, later)["w"], [-1.0, -2.0, -3.0])
