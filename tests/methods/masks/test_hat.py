"""HAT: its loss and gradients against numpy, and units that stay put under any optimizer."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import jcl
from jcl import losses, methods, models

TASKS, STEPS, ROWS, UNITS = 3, 8, 16, 20
PARAMS = models.mlp.init(jax.random.key(0), [6, UNITS, UNITS, 6])
CLASSES = np.repeat(np.eye(TASKS, dtype=bool), 2, axis=1)
OWN = losses.cross_entropy(CLASSES, mask="task")


def stream(split: bool) -> dict[str, jax.Array]:
    """Leaves [TASKS, STEPS, ROWS, ...]; `split` gives each task two classes of its own."""
    keys = jax.random.split(jax.random.key(1), 2)
    x = jax.random.normal(keys[0], (TASKS, STEPS, ROWS, 6))
    teacher = jax.random.normal(keys[1], (TASKS, 6))
    y = (jnp.einsum("tsbi,ti->tsb", x, teacher) > 0).astype(jnp.int32)
    task = jnp.broadcast_to(jnp.arange(TASKS)[:, None, None], y.shape)
    return {"x": x, "y": y + 2 * task * split, "task": task, "weight": jnp.ones(y.shape)}


def train(
    tx: Any, split: bool = True, **arguments: Any
) -> tuple[list[jcl.State], list[Any], list[float]]:
    data = stream(split)
    method = methods.hat(**{"tasks": TASKS, "steps": STEPS, "smax": 50.0, **arguments})
    program = jcl.make(method, models.mlp.apply, OWN if split else losses.cross_entropy(), tx)
    step, consolidate, predict = (
        jax.jit(f) for f in (program.step, program.consolidate, program.predict)
    )
    state = program.init(PARAMS, jax.tree.map(lambda x: x[0, 0], data), jax.random.key(2))
    states, outputs, values = [state], [], []
    for t in range(TASKS):
        for i in range(STEPS):
            state, aux = step(state, jax.tree.map(lambda x, t=t, i=i: x[t, i], data))
            values.append(float(aux["loss"]))
        state = consolidate(state, jax.tree.map(lambda x, t=t: x[t], data))
        states.append(state)
        tests = [jax.tree.map(lambda x, k=k: x[k, 0], data) for k in range(TASKS)]
        outputs.append([np.asarray(predict(state, test)) for test in tests])
    return states, outputs, values


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize(
    "tx",
    [optax.sgd(0.1, momentum=0.9), optax.adam(3e-2), optax.adamw(3e-2, weight_decay=0.3)],
    ids=["momentum", "adam", "adamw"],
)
def test_used_units_stay_and_finished_tasks_answer_as_they_did(tx: Any, split: bool) -> None:
    states, outputs, _ = train(tx, split, strength=0.05)
    for t in range(1, TASKS):
        before, after = states[t], states[t + 1]
        used = {k: np.asarray(v) for k, v in before.methods["hat"].used.items()}
        first, second = used["dense_0"], used["dense_1"]
        assert first.any() and second.any() and not second.all()
        old, new = (jax.tree.map(np.asarray, s.params) for s in (before, after))
        np.testing.assert_array_equal(
            old["dense_0"]["kernel"][:, first], new["dense_0"]["kernel"][:, first]
        )
        np.testing.assert_array_equal(old["dense_0"]["bias"][first], new["dense_0"]["bias"][first])
        both = np.ix_(first, second)
        np.testing.assert_array_equal(
            old["dense_1"]["kernel"][both], new["dense_1"]["kernel"][both]
        )
        assert (
            old["dense_1"]["kernel"][:, ~second] != new["dense_1"]["kernel"][:, ~second]
        ).mean() > 0.5
        np.testing.assert_array_equal(old["hat"]["dense_1"][:t], new["hat"]["dense_1"][:t])
        assert (old["hat"]["dense_1"][t] != new["hat"]["dense_1"][t]).mean() > 0.5
        for task in range(t):
            own = CLASSES[task] if split else slice(None)
            np.testing.assert_array_equal(outputs[t][task][:, own], outputs[task][task][:, own])


def numpy_loss(params: Any, state: Any, batch: Any, s: float, strength: float, t: int) -> float:
    def sigmoid(x: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-x))

    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    h, taken, room = np.asarray(batch["x"], np.float64), 0.0, 0.0
    for layer in ("dense_0", "dense_1"):
        a = sigmoid(s * params["hat"][layer][t])
        h = np.maximum(h @ params[layer]["kernel"] + params[layer]["bias"], 0) * a
        free = 1.0 - np.asarray(state.used[layer])
        taken, room = taken + (a * free).sum(), room + free.sum()
    logits = h @ params["dense_2"]["kernel"] + params["dense_2"]["bias"]
    logits = np.where(CLASSES[t], logits, -np.inf)
    logp = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return -logp[np.arange(ROWS), np.asarray(batch["y"])].mean() + strength * taken / room


def test_the_loss_is_the_published_one_at_every_step_of_the_annealing() -> None:
    states, _, values = train(optax.sgd(0.0), steps=5, strength=2.0)
    data = stream(True)
    for n, value in enumerate(values):
        t, i = divmod(n, STEPS)
        s = 1 / 50 + (50 - 1 / 50) * (i % 5) / 4
        batch = jax.tree.map(lambda x, t=t, i=i: x[t, i], data)
        want = numpy_loss(
            PARAMS | {"hat": states[0].params["hat"]}, states[t].methods["hat"], batch, s, 2.0, t
        )
        assert value == pytest.approx(want, rel=1e-4), n


def test_the_gradient_of_a_gate_is_the_published_compensation() -> None:
    """(smax/s) (cosh(s e) + 1) / (cosh(e) + 1) times the gradient of σ(s e), as SGD sees it."""
    states, _, _ = train(optax.sgd(0.0), steps=5)
    batch = jax.tree.map(lambda x: x[0, 2], stream(True))
    s, smax, strength = 1 / 50 + (50 - 1 / 50) * 2 / 4, 50.0, 0.75
    e = np.asarray(states[0].params["hat"]["dense_1"][0], np.float64)
    change, rate = 1e-6, 1e-3
    raw = np.zeros(UNITS)
    for j in range(UNITS):  # the true gradient, by central differences of the numpy loss
        for sign in (1, -1):
            moved = jax.tree.map(lambda x: np.asarray(x, np.float64), states[0].params)
            moved["hat"]["dense_1"][0, j] += sign * change
            raw[j] += sign * numpy_loss(moved, states[0].methods["hat"], batch, s, strength, 0)
    published = raw / (2 * change) * smax / s * (np.cosh(s * e) + 1) / (np.cosh(e) + 1)

    method = methods.hat(tasks=TASKS, steps=5, smax=smax, strength=strength)
    program = jcl.make(method, models.mlp.apply, OWN, optax.sgd(rate))
    state = states[0]._replace(stage_step=jnp.int32(2))
    after, _ = jax.jit(program.step)(state, batch)
    got = (e - np.asarray(after.params["hat"]["dense_1"][0])) / rate
    sure = np.abs(s * e) < 12  # elsewhere the differences are rounding
    assert sure.sum() > UNITS // 4
    np.testing.assert_allclose(got[sure], published[sure], rtol=2e-2, atol=2e-3)


def test_embeddings_stay_within_six() -> None:
    states, _, _ = train(optax.sgd(1.0), strength=1e4)  # which pushes them all far below
    for e in states[-1].params["hat"].values():
        np.testing.assert_allclose(e, -6.0, rtol=1e-6)


@pytest.mark.quick
def test_every_row_has_the_gates_of_its_own_task() -> None:
    data = stream(True)
    method = methods.hat(tasks=TASKS, steps=STEPS)
    program = jcl.make(method, models.mlp.apply, OWN, optax.adam(1e-2))
    batch = jax.tree.map(lambda x: x[0, 0], data)
    state = program.init(PARAMS, batch, jax.random.key(2))
    mixed = {**batch, "task": jnp.arange(ROWS) % TASKS}
    got = np.asarray(jax.jit(program.predict)(state, mixed))
    for t in range(TASKS):
        alone = jax.jit(program.predict)(state, {**batch, "task": jnp.full(ROWS, t)})
        np.testing.assert_allclose(got[t::TASKS], alone[t::TASKS], rtol=1e-5, atol=1e-6)
        if t:
            assert np.abs(got[::TASKS][:5] - np.asarray(alone)[::TASKS][:5]).max() > 1e-3


@pytest.mark.parametrize("extra", [{"norm": {"scale": jnp.ones(3)}}, None])
def test_models_that_are_no_plain_stack_are_refused(extra: Any) -> None:
    params = {**PARAMS, **extra} if extra else models.mlp.init(jax.random.key(0), [6, 6])
    program = jcl.make(methods.hat(tasks=2, steps=2), models.mlp.apply, OWN, optax.adam(1e-2))
    with pytest.raises(ValueError, match="plain stack"):
        program.init(params, jax.tree.map(lambda x: x[0, 0], stream(True)), jax.random.key(0))


class Seeing(nn.Module):
    """Two convolutions, flattened for two dense layers."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Conv(6, (3, 3), 2)(x))
        x = nn.relu(nn.Conv(4, (2, 2), use_bias=False)(x))
        x = nn.relu(nn.Dense(7)(x.reshape(len(x), -1)))
        return nn.Dense(4)(x)


def test_a_convolutions_channels_are_gated_and_stay_with_all_their_places() -> None:
    keys = jax.random.split(jax.random.key(5), 2)
    x = jax.random.normal(keys[0], (2, 6, 8, 4, 4, 2))
    task = jnp.broadcast_to(jnp.arange(2)[:, None, None], (2, 6, 8))
    y = (x[..., 0].mean((3, 4)) > 0) + 2 * task
    data = {"x": x, "y": y, "task": task, "weight": jnp.ones(y.shape)}
    first, *_ = rows = [jax.tree.map(lambda v, t=t: v[t, 0], data) for t in range(2)]
    model = models.flax.linen(Seeing(), first, keys[1])
    objective = losses.cross_entropy(np.repeat(np.eye(2, dtype=bool), 2, axis=1), mask="task")
    method = methods.hat(tasks=2, steps=6, smax=50.0)
    program = jcl.make(method, model.apply, objective, optax.adam(3e-2))
    state = program.init(model.params, first, jax.random.key(2))
    train = jax.jit(lambda s, chunk: jcl.advance(program, s, chunk)[0])
    states = []
    for t in range(2):
        stage = jax.tree.map(lambda v, t=t: v[t], data)
        state = jax.jit(program.consolidate)(train(state, stage), stage)
        states.append(state)
    one, two = (s.params for s in states)
    answers = [np.asarray(program.predict(s, rows[0]))[:, :2] for s in states]
    np.testing.assert_array_equal(*answers)
    used = {path: np.asarray(u) for path, u in states[0].methods["hat"].used.items()}
    held = {  # by numpy's repetition of channels over the 2 · 2 places, channels fastest
        "Conv_0": np.broadcast_to(used["Conv_0"], (3, 3, 2, 6)),
        "Conv_1": np.broadcast_to(used["Conv_0"][:, None] & used["Conv_1"], (2, 2, 6, 4)),
        "Dense_0": np.concatenate([used["Conv_1"]] * 4)[:, None] & used["Dense_0"],
    }
    for path, stays in held.items():
        moved = np.asarray(one[path]["kernel"] != two[path]["kernel"])
        assert stays.any() and not moved[stays].any()
        assert moved[~stays].mean() > 0.3
    gates = {path: (e > 0)[0] for path, e in one["hat"].items()}  # the first task's
    h = jax.nn.relu(nn.Conv(6, (3, 3), 2).apply({"params": one["Conv_0"]}, rows[0]["x"]))
    layer = nn.Conv(4, (2, 2), use_bias=False)
    h = jax.nn.relu(layer.apply({"params": one["Conv_1"]}, h * gates["Conv_0"]))
    h = (h * gates["Conv_1"]).reshape(len(h), -1)
    h = jax.nn.relu(h @ one["Dense_0"]["kernel"] + one["Dense_0"]["bias"]) * gates["Dense_0"]
    wanted = h @ one["Dense_1"]["kernel"] + one["Dense_1"]["bias"]
    np.testing.assert_allclose(program.predict(states[0], rows[0]), wanted, atol=1e-5)
