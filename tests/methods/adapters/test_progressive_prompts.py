"""Progressive prompts: the newest stands first, the older stay, finished tasks don't change."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_decoder as tiny

import jcl
from jcl import methods

STREAM = tiny.stream()
BATCH = jax.tree.map(lambda x: x[0, 0], STREAM)
PROGRAM = tiny.program(methods.progressive_prompts(stages=tiny.TASKS, length=3))
STEP, CLOSE, PREDICT = map(jax.jit, (PROGRAM.step, PROGRAM.consolidate, PROGRAM.predict))


def trained(stages: int) -> list[jcl.State]:
    """The state before training and after each stage."""
    states = [PROGRAM.init(tiny.base(), BATCH, jax.random.key(0))]
    for task in range(stages):
        state = states[-1]
        for i in range(tiny.STEPS):
            state, _ = STEP(state, jax.tree.map(lambda x, i=i, t=task: x[t, i], STREAM))
        states.append(CLOSE(state, jax.tree.map(lambda x, t=task: x[t], STREAM)))
    return states


STATES = trained(tiny.TASKS)


def of_task(task: int) -> dict[str, jax.Array]:
    return jax.tree.map(lambda x: x[task, 1], STREAM)


def test_before_training_it_is_the_base() -> None:
    plain = tiny.CALL(tiny.base(), BATCH)
    np.testing.assert_allclose(PREDICT(STATES[0], BATCH), plain, rtol=1e-5, atol=1e-5)


def test_the_newest_prompt_stands_first() -> None:
    """With prompts that are embeddings of tokens it reads these tokens, newest first."""
    table = tiny.base()["embed"]["table"]
    ids = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    kept = STATES[2].methods["progressive_prompts"]._replace(bank=table[ids])
    state = STATES[2]._replace(
        methods={"progressive_prompts": kept},
        params={**STATES[2].params, "prompt": {"table": table[ids[2]]}},
    )
    before = jnp.tile(jnp.array([[4, 5, 6, 1, 2, 3]]), (tiny.ROWS, 1))
    wanted = tiny.CALL(
        tiny.base(), {"tokens": jnp.concatenate([before, of_task(1)["tokens"]], axis=1)}
    )
    ours = PREDICT(state, of_task(1))
    np.testing.assert_allclose(ours, wanted[:, 6:], rtol=1e-4, atol=1e-4)
    # a task of the first stage reads its own prompt only, beside one of the second
    mixed = jax.tree.map(lambda a, b: jnp.concatenate([a[:2], b[:2]]), of_task(0), of_task(1))
    alone = jnp.concatenate([jnp.tile(jnp.array([[1, 2, 3]]), (2, 1)), mixed["tokens"][:2]], axis=1)
    both = PREDICT(state, mixed)
    wanted = tiny.CALL(tiny.base(), {"tokens": alone})
    np.testing.assert_allclose(both[:2], wanted[:, 3:], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(both[2:], ours[:2], rtol=1e-4, atol=1e-4)


@pytest.mark.quick
def test_a_finished_task_never_changes() -> None:
    first = PREDICT(STATES[1], of_task(0))
    for later in STATES[2:]:
        np.testing.assert_array_equal(PREDICT(later, of_task(0)), first)
    second = PREDICT(STATES[2], of_task(1))
    np.testing.assert_array_equal(PREDICT(STATES[3], of_task(1)), second)
    assert np.abs(first - tiny.CALL(tiny.base(), of_task(0))).max() > 0.1


@pytest.mark.quick
def test_without_a_task_all_prompts_are_read() -> None:
    every = tiny.program(methods.progressive_prompts(stages=tiny.TASKS, length=3, predict="all"))
    ours = jax.jit(every.predict)(STATES[3], of_task(0))
    asked = {**of_task(0), "task": of_task(2)["task"]}
    np.testing.assert_array_equal(ours, PREDICT(STATES[3], asked))


@pytest.mark.quick
def test_the_prompt_alone_learns() -> None:
    tiny.same_base(STATES[-1].params, tiny.base())
    bank = STATES[-1].methods["progressive_prompts"].bank
    np.testing.assert_array_equal(bank[-1], STATES[-1].params["prompt"]["table"])
    assert len({row.tobytes() for row in np.asarray(bank)}) == tiny.TASKS
