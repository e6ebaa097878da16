"""PackNet: a finished task's outputs never change, and pruning is by rank."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jcl
from jcl import losses, methods, models

TASKS, STEPS, ROWS = 4, 6, 16
PARAMS = models.mlp.init(jax.random.key(0), [10, 24, 24, 6])


def stream(named: bool = True) -> dict[str, jax.Array]:
    keys = jax.random.split(jax.random.key(1), 2)
    x = jax.random.normal(keys[0], (TASKS, STEPS, ROWS, 10))
    teacher = jax.random.normal(keys[1], (TASKS, 10, 6))
    y = jnp.argmax(jnp.einsum("tsbi,tio->tsbo", x, teacher), axis=-1)
    task = jnp.broadcast_to(jnp.arange(TASKS)[:, None, None], y.shape)
    return {"x": x, "y": y, **({"task": task} if named else {})}


def train(
    method: jcl.Method, tx: Any, tasks: int = TASKS, named: bool = True, **options: Any
) -> Any:
    """States after each stage, the predictions for each task then, and the program."""
    data = stream(named)
    program = jcl.make(method, models.mlp.apply, losses.cross_entropy(), tx, **options)
    step, consolidate, predict = (
        jax.jit(f) for f in (program.step, program.consolidate, program.predict)
    )
    state = program.init(PARAMS, jax.tree.map(lambda x: x[0, 0], data), jax.random.key(2))
    states, outputs = [state], []
    for t in range(tasks):
        for i in range(STEPS):
            state, _ = step(state, jax.tree.map(lambda x, t=t, i=i: x[t, i], data))
        state = consolidate(state, jax.tree.map(lambda x, t=t: x[t], data))
        states.append(state)
        outputs.append(
            [
                np.asarray(predict(state, jax.tree.map(lambda x, k=k: x[k, 0], data)))
                for k in range(TASKS)
            ]
        )
    return states, outputs, program


OPTIMIZERS = {
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adam": optax.adam(1e-2),
    "adamw": optax.adamw(1e-2, weight_decay=0.5),
    "clipped": optax.chain(optax.clip_by_global_norm(0.1), optax.adamw(1e-2, weight_decay=0.5)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_outputs_of_finished_tasks_are_bit_stable(name: str) -> None:
    method = methods.packnet(prune=0.6, stages=TASKS, retrain_steps=4)
    states, outputs, _ = train(method, OPTIMIZERS[name])
    for later in range(1, TASKS):
        for task in range(later):
            np.testing.assert_array_equal(outputs[later][task], outputs[task][task])
        ahead = jax.tree.map(lambda x: x[-1, 0], stream())
        if later < TASKS - 1:  # a task that has not been trained on gets all weights
            whole = jax.jit(models.mlp.apply)(states[later + 1].params, ahead)
            np.testing.assert_array_equal(outputs[later][-1], whole)
        # that is the masks' work: the whole model answers otherwise than it did
        batch = jax.tree.map(lambda x: x[0, 0], stream())
        whole = [models.mlp.apply(states[i].params, batch) for i in (later, later + 1)]
        assert np.abs(whole[0] - whole[1]).max() > 1e-4


def test_the_smallest_free_weights_are_pruned_and_counted_exactly() -> None:
    prune = 0.6
    states, _, _ = train(methods.packnet(prune=prune), OPTIMIZERS["adam"])
    unpruned, _, _ = train(methods.packnet(prune=0.0), OPTIMIZERS["adam"], tasks=1)
    free = {k: v["kernel"].size for k, v in PARAMS.items()}
    for t, state in enumerate(states[1:]):
        for layer, owner in state.methods["packnet"].owner.items():
            mine = np.asarray(owner["kernel"]) == t
            dropped = round(prune * free[layer])
            assert mine.sum() == free[layer] - dropped
            free[layer] = dropped
            weights = np.asarray(state.params[layer]["kernel"])
            assert (weights[np.asarray(owner["kernel"]) < 0] == 0).all()
            np.testing.assert_array_equal(owner["bias"], 0)
            if t == 0:  # pruning nothing shows what there was to choose from
                trained = np.abs(np.asarray(unpruned[1].params[layer]["kernel"]))
                assert trained[mine].min() >= trained[~mine].max()
                np.testing.assert_array_equal(
                    weights[mine], unpruned[1].params[layer]["kernel"][mine]
                )
    total = sum(x.size for x in jax.tree.leaves(PARAMS))
    assert float(states[-1].methods["packnet"].free) == pytest.approx(sum(free.values()) / total)


def test_the_last_stage_keeps_what_is_left_and_nothing_moves_after_it() -> None:
    states, _, _ = train(methods.packnet(prune=0.5, stages=2, retrain_steps=2), OPTIMIZERS["adamw"])
    assert float(states[2].methods["packnet"].free) == 0
    assert float(states[1].methods["packnet"].free) > 0.4
    for later in states[3:]:
        jax.tree.map(np.testing.assert_array_equal, later.params, states[2].params)


def test_retraining_lowers_the_loss_of_the_pruned_model() -> None:
    data = jax.tree.map(lambda x: x[0].reshape(-1, *x.shape[3:]), stream())

    def after(steps: int) -> float:
        method = methods.packnet(prune=0.8, retrain_steps=steps, learning_rate=0.05)
        states, _, program = train(method, OPTIMIZERS["adam"], tasks=1)
        logits = jax.jit(program.predict)(states[1], data)
        return float(
            losses.cross_entropy()(lambda p, b: logits, None, {**data, "weight": jnp.ones(96)})[0]
        )

    assert after(60) < 0.8 * after(0)


def test_without_task_names_all_weights_predict() -> None:
    states, outputs, _ = train(methods.packnet(), OPTIMIZERS["adam"], named=False)
    data = stream()
    for t, state in enumerate(states[1:]):
        for task in range(TASKS):
            batch = jax.tree.map(lambda x, task=task: x[task, 0], data)
            np.testing.assert_array_equal(
                outputs[t][task], jax.jit(models.mlp.apply)(state.params, batch)
            )


@pytest.mark.quick
def test_a_stage_in_progress_is_predicted_with_its_own_free_weights() -> None:
    data = stream()
    states, _, program = train(methods.packnet(), OPTIMIZERS["adam"], tasks=1)
    state, _ = jax.jit(program.step)(states[1], jax.tree.map(lambda x: x[1, 0], data))
    batch = jax.tree.map(lambda x: x[1, 0], data)
    np.testing.assert_array_equal(
        jax.jit(program.predict)(state, batch), jax.jit(models.mlp.apply)(state.params, batch)
    )
    first = jax.jit(program.predict)(state, jax.tree.map(lambda x: x[0, 0], data))
    np.testing.assert_array_equal(
        first, jax.jit(program.predict)(states[1], jax.tree.map(lambda x: x[0, 0], data))
    )
