"""Task arithmetic against experts that were trained apart."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import optax
import pytest
from tiny_stages import after_boundaries

import jcl
from jcl import losses, methods, models

TASKS, STEPS = 3, 5
PARAMS = models.mlp.init(jax.random.key(0), [4, 6, 3])
DATA = {
    "x": jax.random.normal(jax.random.key(1), (TASKS, STEPS, 8, 4)),
    "y": jax.random.normal(jax.random.key(2), (TASKS, STEPS, 8, 3)),
}
EXAMPLE = jax.tree.map(lambda x: x[0, 0], DATA)
TX = optax.adam(1e-2, eps=1e-3)


def merged(**arguments: Any) -> list[Any]:
    """The weights after each boundary."""
    method = methods.task_arithmetic(**arguments)
    program = jcl.make(method, models.mlp.apply, losses.squared_error, TX, boundary="reset")
    return after_boundaries(program, PARAMS, DATA)


def expert(params: Any, task: int) -> Any:
    plain = jcl.make(methods.naive(), models.mlp.apply, losses.squared_error, TX)
    state = plain.init(params, EXAMPLE, jax.random.key(3))
    for i in range(STEPS):
        state, _ = jax.jit(plain.step)(state, jax.tree.map(lambda x, i=i: x[task, i], DATA))
    return state.params


def leaves(tree: Any) -> np.ndarray:
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]).astype(np.float64)


def test_task_vectors_of_separate_experts_add_up() -> None:
    base = leaves(PARAMS)
    vectors = [leaves(expert(PARAMS, t)) - base for t in range(TASKS)]
    for t, params in enumerate(merged(scale=0.4)):
        np.testing.assert_allclose(leaves(params), base + 0.4 * sum(vectors[: t + 1]), atol=1e-5)
    assert np.abs(vectors[1] - vectors[0]).max() > 1e-2


def test_sequential_experts_start_from_the_one_before() -> None:
    base, last, total = leaves(PARAMS), PARAMS, 0.0
    for t, params in enumerate(merged(scale=0.3, start="previous")):
        last = expert(last, t)
        total = total + leaves(last) - base
        np.testing.assert_allclose(leaves(params), base + 0.3 * total, atol=1e-5)


@pytest.mark.quick
def test_the_ends_are_exact() -> None:
    np.testing.assert_array_equal(leaves(merged(scale=0.0)[-1]), leaves(PARAMS))
    only, plain = merged(scale=1.0)[0], expert(PARAMS, 0)
    # the merge is exact; a masked update is rounded apart from the sum that it is fused with
    np.testing.assert_allclose(leaves(only), leaves(plain), atol=1e-7)


def test_dare_drops_entries_of_each_vector() -> None:
    whole, sparse = merged(scale=1.0)[0], merged(scale=1.0, drop=0.5)[0]
    full, kept = leaves(whole) - leaves(PARAMS), leaves(sparse) - leaves(PARAMS)
    dropped = np.abs(kept) < 1e-6
    assert 0.25 < dropped.mean() < 0.75
    np.testing.assert_allclose(kept[~dropped], 2 * full[~dropped], atol=1e-6)


@pytest.mark.parametrize("batch", [0, STEPS - 1])
def test_the_expert_predicts_within_its_stage(batch: int) -> None:
    program = jcl.make(methods.task_arithmetic(), models.mlp.apply, losses.squared_error, TX)
    state = program.init(PARAMS, EXAMPLE, jax.random.key(3))
    for i in range(batch + 1):
        state, _ = jax.jit(program.step)(state, jax.tree.map(lambda x, i=i: x[0, i], DATA))
    got = jax.jit(program.predict)(state, EXAMPLE)
    np.testing.assert_array_equal(got, jax.jit(models.mlp.apply)(state.params, EXAMPLE))
