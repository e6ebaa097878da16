"""Inferred tasks: rows of other words are told apart, and the right adapters answer them."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_decoder as tiny

import jcl
from jcl import methods, taps, trees

TASKS = 3


def stream() -> dict[str, jax.Array]:
    """Each task has five words of its own."""
    drawn = np.random.default_rng(0).integers(0, 5, (TASKS, tiny.STEPS, tiny.ROWS, tiny.LENGTH))
    tokens = drawn + 5 * np.arange(TASKS)[:, None, None, None]
    task = np.broadcast_to(np.arange(TASKS)[:, None, None], tokens.shape[:3])
    return {"tokens": jnp.asarray(tokens, jnp.int32), "task": jnp.asarray(task, jnp.int32)}


STREAM = stream()
APART = methods.inclora(stages=TASKS, rank=2, predict="task")


def trained(method: jcl.Method, **options: Any) -> tuple[jcl.Program, jcl.State]:
    program = tiny.program(method, **options)
    run = jax.jit(lambda p, k: jcl.run(program, p, k, STREAM)[0])
    return program, run(tiny.base(), jax.random.key(2))


def asked(program: jcl.Program, state: jcl.State, batch: Any) -> jax.Array:
    """The `task` that the model is given."""
    seen = {}

    def note(site: str, layer: Any, h: jax.Array) -> jax.Array:
        return h

    def apply(params: Any, batch: Any, tap: Any = taps.identity) -> jax.Array:
        seen["task"] = batch["task"]
        return tiny.APPLY(params, batch, tap)

    from jcl import adapters, losses

    told = jcl.make(program.method, apply, losses.next_token, tiny.optax.adam(3e-2),
                    trainable=adapters.is_adapter)  # fmt: skip
    told.predict(state, batch, note)
    return seen["task"]


@pytest.mark.quick
def test_rows_are_told_apart_and_answered_by_their_own_pair() -> None:
    """As by the same adapters where the right task is given."""
    program, state = trained(jcl.chain(APART, methods.infer_task(tasks=TASKS)))
    given = jax.jit(tiny.program(APART).predict)
    known = state._replace(methods={"inclora": state.methods["inclora"]})
    for task in range(TASKS):
        batch = jax.tree.map(lambda x, t=task: x[t, 0], STREAM)
        lied = {**batch, "task": (batch["task"] + 1) % TASKS}
        ours = jax.jit(program.predict)(state, lied)
        np.testing.assert_array_equal(ours, given(known, batch))
        assert np.abs(ours - given(known, lied)).max() > 1e-3


def test_what_is_learned_is_as_without_it() -> None:
    """Another program, which rounds otherwise."""
    ours = trained(jcl.chain(APART, methods.infer_task(tasks=TASKS)))[1].params
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    jax.tree.map(close, ours, trained(APART)[1].params)


def test_only_prompts_count() -> None:
    """Answers of another task's words don't mislead it, unless it is told to look at them."""
    state = trained(jcl.chain(APART, methods.infer_task(tasks=TASKS)))[1]
    first, second = (STREAM["tokens"][t, 0] for t in (0, 1))
    half = tiny.LENGTH // 6
    tokens = jnp.concatenate([first[:, :half], second[:, half:]], axis=1)
    mask = jnp.zeros((tiny.ROWS, tiny.LENGTH - 1)).at[:, half - 1 :].set(1)
    batch = {"tokens": tokens, "mask": mask, "task": jnp.full(tiny.ROWS, 2, jnp.int32)}
    batch["weight"] = jnp.ones(tiny.ROWS)
    for prompts, found in ((True, 0), (False, 1)):
        method = jcl.chain(APART, methods.infer_task(tasks=TASKS, prompts=prompts))
        assert (asked(tiny.program(method), state, batch) == found).all()


def test_a_task_without_rows_is_never_inferred() -> None:
    program = tiny.program(jcl.chain(APART, methods.infer_task(tasks=TASKS)))
    batch = jax.tree.map(lambda x: x[1, 0], STREAM)
    state = program.init(tiny.base(), batch, jax.random.key(0))
    state, _ = jax.jit(program.step)(state, jax.tree.map(lambda x: x[2, 0], STREAM))
    assert (asked(program, state, batch) == 2).all()


def test_who_goes_by_the_task_may_come_first_or_last() -> None:
    """A task that no row names is packnet's to read from either side."""
    found, batch = [], {"tokens": STREAM["tokens"][0, 0]}
    parts = [methods.packnet(stages=TASKS), methods.infer_task(tasks=TASKS)]
    for order in (parts, parts[::-1]):
        program, state = trained(jcl.chain(*order), trainable=trees.every_leaf)
        predict = jax.jit(program.predict)
        for task in (0, 2):
            found.append(predict(state, {**batch, "task": jnp.full(tiny.ROWS, task)}))
    program, state = trained(methods.packnet(stages=TASKS), trainable=trees.every_leaf)
    right = jax.jit(program.predict)(state, {**batch, "task": jnp.zeros(tiny.ROWS, jnp.int32)})
    wrong = jax.jit(program.predict)(state, {**batch, "task": jnp.full(tiny.ROWS, 2)})
    assert float(jnp.abs(right - wrong).max()) > 1e-3
    for outputs in found:  # whatever the rows say of themselves, they are of task 0
        np.testing.assert_allclose(outputs, right, rtol=1e-5, atol=1e-5)
