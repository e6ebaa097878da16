"""`make` and `run`: what the table of methods takes for granted."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jcl
from jcl import losses, methods, models, trees

SIZES = (6, 8, 4)
PARAMS = models.mlp.init(jax.random.key(0), SIZES)
TASKS, STEPS, ROWS = 2, 4, 8


def leaves() -> dict[str, jax.Array]:
    x = jax.random.normal(jax.random.key(1), (TASKS, STEPS, ROWS, SIZES[0]))
    return {"x": x, "y": jax.random.randint(jax.random.key(2), x.shape[:3], 0, SIZES[-1])}


STREAM = leaves()
BATCH = jax.tree.map(lambda x: x[0, 0], STREAM)


def make(method: jcl.Method, tx: Any = None, **options: Any) -> jcl.Program:
    tx = tx or optax.adam(1e-2)
    return jcl.make(method, models.mlp.apply, losses.cross_entropy(), tx, **options)


def equal(a: Any, b: Any) -> bool:
    return all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def test_run_scores_before_training_and_after_each_stage() -> None:
    _, aux = jcl.run(
        make(methods.naive()), PARAMS, jax.random.key(0), STREAM,
        evaluate=lambda program, state: jnp.stack([state.stage, state.step]),
    )  # fmt: skip
    np.testing.assert_array_equal(aux["scores"], [[0, 0], [1, STEPS], [2, 2 * STEPS]])


def test_frozen_leaves_have_no_moments_and_no_method_state() -> None:
    program = make(methods.ewc(), trainable=lambda path: path.startswith("dense_1"))
    state = program.init(PARAMS, BATCH, jax.random.key(0))
    after, _ = jax.jit(program.step)(state, BATCH)
    after = program.consolidate(after, jax.tree.map(lambda x: x[0], STREAM))
    assert equal(after.params["dense_0"], PARAMS["dense_0"])
    assert not equal(after.params["dense_1"], PARAMS["dense_1"])
    learning = trees.size(PARAMS["dense_1"])
    assert trees.size(after.optimizer) == 2 * learning + 1  # Adam's two moments, and its count
    assert trees.size(after.methods["ewc"]) == 2 * learning


@pytest.mark.parametrize("boundary", ["keep", "reset", "reset_moments"])
def test_the_optimizers_state_at_a_boundary(boundary: Any) -> None:
    program = make(methods.naive(), boundary=boundary)
    state = program.init(PARAMS, BATCH, jax.random.key(0))
    for _ in range(3):
        state, _ = jax.jit(program.step)(state, BATCH)
    after = program.consolidate(state, jax.tree.map(lambda x: x[0], STREAM))
    count, moments = after.optimizer[0].count, trees.norm(after.optimizer[0].mu)
    assert int(count) == (0 if boundary == "reset" else 3)
    assert (float(moments) > 0) == (boundary == "keep")
    assert int(after.stage) == 1 and int(after.stage_step) == 0 and int(after.step) == 3


def test_a_schedule_of_the_optimizer_goes_on_over_tasks() -> None:
    program = make(methods.naive(), optax.sgd(optax.linear_schedule(0.1, 0.0, TASKS * STEPS)))
    state, _ = jcl.run(program, PARAMS, jax.random.key(0), STREAM)
    assert int(state.optimizer[1].count) == TASKS * STEPS


@pytest.mark.quick
def test_a_state_made_eagerly_may_be_donated() -> None:
    program = make(methods.ewc())
    state = program.init(jax.tree.map(jnp.copy, PARAMS), BATCH, jax.random.key(0))
    state, _ = jax.jit(program.step, donate_argnums=0)(state, BATCH)
    assert int(state.step) == 1


def test_padding_rows_change_nothing() -> None:
    program = make(methods.naive(), optax.sgd(0.1))
    state = program.init(PARAMS, BATCH, jax.random.key(0))
    padded = jax.tree.map(lambda x: jnp.concatenate([x, 7 * jnp.ones_like(x[:3])]), BATCH)
    padded["y"] = padded["y"].at[-3:].set(0)
    padded["weight"] = jnp.ones(ROWS + 3).at[-3:].set(0)
    one, two = (jax.jit(program.step)(state, b)[0] for b in (BATCH, padded))
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(two.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_ewc_holds_two_trees_however_many_tasks() -> None:
    program = make(methods.ewc())
    state = jax.eval_shape(program.init, PARAMS, BATCH, jax.random.key(0))
    assert trees.nbytes(state.methods) == 2 * trees.nbytes(PARAMS)
    compiled = jax.jit(program.step, donate_argnums=0).lower(state, BATCH).compile()
    memory = compiled.memory_analysis()
    # donated: the new state lies where the old one was
    large = trees.nbytes((state.params, state.optimizer, state.methods))
    assert memory.alias_size_in_bytes >= large


@pytest.mark.quick
@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"boundary": "forget"}, "boundary is 'forget', but must be"),
        ({"microbatches": 0}, "microbatches is 0, but must be at least 1"),
        ({"method": "ewc"}, "method is 'ewc', but must be a jcl.Method"),
    ],
)
def test_make_refuses_in_a_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make(options.pop("method", methods.naive()), **options)


@pytest.mark.parametrize("name", ["ewc", "er", "agem"])
def test_under_pmap_it_is_the_program_of_one_device(name: str) -> None:
    build = {
        "ewc": lambda: methods.ewc(strength=1.0),
        "er": lambda: methods.er(capacity=12, rows=4),
        "agem": lambda: methods.agem(capacity=12, rows=4),
    }[name]
    params = models.mlp.init(jax.random.key(0), [6, 8, 3])
    keys = jax.random.split(jax.random.key(1), 2)
    batch = {"x": jax.random.normal(keys[0], (8, 6)), "y": jnp.arange(8) % 3}
    parts = jax.tree.map(lambda x: x.reshape(4, 2, *x.shape[1:]), batch)

    def trained(axis: str | None) -> Any:
        program = jcl.make(
            build(), models.mlp.apply, losses.cross_entropy(), optax.sgd(0.1), axis_name=axis
        )
        state = program.init(params, batch, keys[1])
        step, close, rows = jax.jit(program.step), jax.jit(program.consolidate), batch
        boundary = jax.tree.map(lambda x: x[None], batch)
        if axis is not None:
            step, close = (jax.pmap(f, axis_name=axis) for f in (program.step, program.consolidate))
            state = jax.tree.map(lambda x: jnp.stack([x] * 4), state)
            rows, boundary = parts, jax.tree.map(lambda x: x[:, None], parts)
        for _ in range(2):
            state = close(step(step(state, rows)[0], rows)[0], boundary)
        return state.params

    alone, replicas = trained(None), trained("replica")
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(replicas), strict=True):
        assert b.shape == (4, *a.shape)
        for replica in b:
            np.testing.assert_allclose(a, replica, rtol=1e-5, atol=1e-6)


@pytest.mark.quick
def test_a_program_in_which_no_leaf_learns_is_refused() -> None:
    made = make(methods.ewc(), trainable=lambda path: path.startswith("nowhere"))
    with pytest.raises(ValueError, match=r"trainable is .*, but must be true of a leaf among"):
        made.init(PARAMS, BATCH, jax.random.key(0))
