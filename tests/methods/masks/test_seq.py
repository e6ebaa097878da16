"""SEQ*: what is frozen when, under an optimizer that would move it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jcl
from jcl import losses, methods, models

PARAMS = models.mlp.init(jax.random.key(0), [5, 8, 6])
WARMUP, STEPS = 3, 5


def batch(task: int, i: int) -> dict[str, jax.Array]:
    """Classes 2t and 2t + 1 in task t; a row of padding has a label that must not count."""
    x = jax.random.normal(jax.random.key(10 * task + i), (8, 5))
    y = (2 * task + jnp.arange(8) % 2).at[-1].set(5)
    return {"x": x, "y": y, "weight": jnp.ones(8).at[-1].set(0.0)}


def train(head: str | None) -> list[list[Any]]:
    """Parameters before each step and after the last, for each of two tasks."""
    program = jcl.make(
        methods.seq(warmup=WARMUP, head=head),
        models.mlp.apply,
        losses.cross_entropy(),
        optax.adamw(1e-2, weight_decay=0.5),
    )
    state = program.init(PARAMS, batch(0, 0), jax.random.key(1))
    step, seen = jax.jit(program.step), []
    for task in range(2):
        seen.append([jax.tree.map(np.asarray, state.params)])
        for i in range(STEPS):
            state, _ = step(state, batch(task, i))
            seen[-1].append(jax.tree.map(np.asarray, state.params))
        whole = jax.tree.map(lambda *x: jnp.stack(x), *[batch(task, i) for i in range(STEPS)])
        state = jax.jit(program.consolidate)(state, whole)
    np.testing.assert_array_equal(state.methods["seq"].old, [1, 1, 1, 1, 0, 0])
    return seen


@pytest.mark.parametrize("head", [None, "dense_1"])
def test_backbone_and_old_classes_are_frozen_and_the_rest_learns(head: str | None) -> None:
    first, second = train(head)
    for i in range(STEPS):
        moved = {k: (first[i][k]["kernel"] != first[i + 1][k]["kernel"]).any(0) for k in PARAMS}
        assert moved["dense_0"].any() == (i < WARMUP)
        assert moved["dense_1"].all()
    for a, b in pairwise(second):
        np.testing.assert_array_equal(a["dense_0"]["kernel"], b["dense_0"]["kernel"])
        np.testing.assert_array_equal(a["dense_0"]["bias"], b["dense_0"]["bias"])
        for leaf in ("kernel", "bias"):
            columns = (a["dense_1"][leaf] != b["dense_1"][leaf]).reshape(-1, 6).all(0)
            np.testing.assert_array_equal(columns, [0, 0, 1, 1, 1, 1])


@pytest.mark.quick
@pytest.mark.parametrize("head, y", [("dense_7", jnp.zeros(8, int)), (None, jnp.zeros((8, 6)))])
def test_no_head_or_no_labels_are_refused(head: str | None, y: jax.Array) -> None:
    program = jcl.make(
        methods.seq(head=head), models.mlp.apply, losses.squared_error, optax.sgd(0.1)
    )
    with pytest.raises(ValueError, match=r"head is 'dense_7'|batch's y"):
        program.init(PARAMS, {**batch(0, 0), "y": y}, jax.random.key(0))
