"""Methods of experts: where stages start, what is evaluated, what is kept, what is refused."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jcl
from jcl import losses, methods, trees
from jcl.mechanisms import experts
from jcl.method import Ctx, Params

DATA = {
    "x": jax.random.normal(jax.random.key(1), (3, 4, 8, 5)),
    "y": jax.random.normal(jax.random.key(2), (3, 4, 8, 2)),
}
PARAMS = {"w": jax.random.normal(jax.random.key(0), (5, 2))}


def last(kept: Params, ctx: Ctx, vector: Params) -> experts.Merged:
    """Merges nothing: the last stage's own vector, and how many there were."""
    return experts.Merged(kept + 1, vector, trees.norm(vector))


def walk(method: jcl.Method) -> list[tuple[jcl.State, jcl.State, jcl.State]]:
    """Of each stage the states after its first step, before its end, and after it."""
    program = jcl.make(
        method, lambda params, batch: batch["x"] @ params["w"], losses.squared_error, optax.sgd(0.1)
    )
    state = program.init(PARAMS, jax.tree.map(lambda x: x[0, 0], DATA), jax.random.key(3))
    step, consolidate = jax.jit(program.step), jax.jit(program.consolidate)
    found = []
    for stage in range(3):
        batches = jax.tree.map(lambda x, stage=stage: x[stage], DATA)
        states = []
        for i in range(4):
            state, _ = step(state, jax.tree.map(lambda x, i=i: x[i], batches))
            states.append(state)
        state = consolidate(state, batches)
        found.append((states[0], states[-1], state))
    return found


def step_by_hand(w: Any, stage: int) -> np.ndarray:
    x, y = DATA["x"][stage, 0], DATA["y"][stage, 0]
    return np.asarray(w) - 0.1 * np.asarray(x.T @ (x @ w - y)) / len(x)


@pytest.mark.quick
@pytest.mark.parametrize("start", ["initial", "previous"])
def test_stages_start_where_they_say_and_end_at_the_merge(start: experts.Start) -> None:
    method = experts.method("last", lambda params: jnp.int32(0), last, 0.25, start)
    begun = PARAMS["w"]
    for stage, (first, expert, ended) in enumerate(walk(method)):
        np.testing.assert_allclose(first.params["w"], step_by_hand(begun, stage), atol=1e-5)
        vector = expert.params["w"] - PARAMS["w"]
        np.testing.assert_allclose(ended.params["w"], PARAMS["w"] + 0.25 * vector, atol=1e-6)
        state = ended.methods["last"]
        assert int(state.kept) == stage + 1
        np.testing.assert_allclose(state.length, np.linalg.norm(vector), rtol=1e-6)
        begun = expert.params["w"] if start == "previous" else PARAMS["w"]
    assert (state.start == ()) == (start == "initial")  # which needs no second copy


@pytest.mark.quick
def test_what_is_refused_names_the_method_that_is_made() -> None:
    with pytest.raises(ValueError, match="scale is -1, but must be at least 0"):
        experts.method("last", trees.zeros, last, -1, "initial")
    with pytest.raises(ValueError, match="start is 'base', but must be 'initial' or 'previous'"):
        experts.method("last", trees.zeros, last, 1.0, "base")  # type: ignore[arg-type]
    made = experts.method("last", trees.zeros, last, 1.0, "initial")
    mlp = jcl.models.mlp
    pairs = methods.lora(2, targets="dense_0")
    program = jcl.make(pairs + made, mlp.apply, losses.squared_error, optax.sgd(0.1))
    batch = {"x": jnp.ones((2, 5)), "y": jnp.ones((2, 2))}
    with pytest.raises(ValueError, match="last can't merge the factors of low-rank pairs, such as"):
        program.init(mlp.init(jax.random.key(0), (5, 2)), batch, jax.random.key(1))
