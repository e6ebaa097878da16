"""ER: what is replayed, how much of it, and from where."""

from __future__ import annotations

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jcl
from jcl import data, drift, losses, memory, methods, models

KEY = jax.random.key(0)
RATE = 0.1


def apply(params: Any, batch: Any) -> jax.Array:
    return batch["x"] @ params["w"]


def program_of(method: jcl.Method, **options: Any) -> jcl.Program:
    return jcl.make(method, apply, losses.squared_error, optax.sgd(RATE), **options)


def rows(x: Any, y: Any, **more: Any) -> dict[str, jax.Array]:
    x = jnp.asarray(x, jnp.float32).reshape(-1, 2)
    return {"x": x, "y": jnp.full((len(x), 1), y, jnp.float32), **more}


def begin(method: jcl.Method, first: Any, **options: Any) -> tuple[jcl.Program, jcl.State]:
    """A program after a first stage of the one batch `first`."""
    program = program_of(method, **options)
    state = jax.jit(program.init)({"w": jnp.zeros((2, 1))}, first, KEY)
    state, _ = jax.jit(program.step)(state, first)
    return program, jax.jit(program.consolidate)(state, jax.tree.map(lambda v: v[None], first))


OLD = rows([[1.0, 2.0]], 3.0)
NEW = rows([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], -1.0)


@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_a_step_descends_the_weighted_mean_over_fresh_and_old_rows(weight: float) -> None:
    program, state = begin(methods.er(capacity=1, rows=5, weight=weight), OLD)
    after, _ = jax.jit(program.step)(state, NEW)
    w = np.asarray(state.params["w"], np.float64)
    x = np.concatenate([NEW["x"], np.repeat(OLD["x"], 5, axis=0)])
    y = np.concatenate([NEW["y"], np.repeat(OLD["y"], 5, axis=0)])
    mass = np.array([1.0] * 3 + [weight] * 5)[:, None]
    slope = x.T @ (mass * (x @ w - y)) / mass.sum()
    np.testing.assert_allclose(after.params["w"], w - RATE * slope, rtol=1e-6)


def test_a_schedule_of_the_share_is_a_function_of_the_context() -> None:
    late = methods.er(capacity=1, rows=5, weight=lambda ctx: 1.0 * (ctx.stage_step >= 1))
    program, state = begin(late, OLD)
    plain, same = begin(methods.naive(), OLD)
    step, plain_step = jax.jit(program.step), jax.jit(plain.step)
    for i in range(2):
        state, _ = step(state, NEW)
        same, _ = plain_step(same, NEW)
        apart = np.abs(state.params["w"] - same.params["w"]).max()
        assert (apart > 1e-2) == (i == 1)


@pytest.mark.quick
def test_a_memory_may_be_filled_when_a_stage_has_ended() -> None:
    program, state = begin(methods.er(capacity=3, rows=2, fill="stage"), OLD)
    held = memory.count_filled(state.methods["er"].buffer)
    after, _ = jax.jit(program.step)(state, NEW)
    assert held == 1 and memory.count_filled(after.methods["er"].buffer) == 1
    ended = jax.jit(program.consolidate)(after, jax.tree.map(lambda v: v[None], NEW))
    assert memory.count_filled(ended.methods["er"].buffer) == 3
    with pytest.raises(ValueError, match="fill is 'epoch', but must be 'step' or 'stage'"):
        methods.er(fill="epoch")  # type: ignore[arg-type]


@pytest.mark.parametrize("fraction, drawn", [(0.25, 1), (0.5, 3), (0.8, 12), (0.9, 27)])
def test_a_fraction_is_of_the_whole_batch(fraction: float, drawn: int) -> None:
    sizes = []

    def counted(params: Any, batch: Any) -> jax.Array:
        sizes.append(len(batch["x"]))
        return apply(params, batch)

    method = methods.er(capacity=4, fraction=fraction)
    program = jcl.make(method, counted, losses.squared_error, optax.sgd(RATE))
    state = program.init({"w": jnp.zeros((2, 1))}, NEW, KEY)
    jax.eval_shape(program.step, state, NEW)
    assert max(sizes) == 3 + drawn and min(sizes) == 3


@pytest.mark.quick
def test_a_fraction_too_small_for_the_batch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"fraction is 0\.1"):
        program = program_of(methods.er(fraction=0.1))
        program.step(program.init({"w": jnp.zeros((2, 1))}, NEW, KEY), NEW)


def test_select_loss_replays_the_hardest_rows() -> None:
    first = rows([[1.0, 0.0]] * 4, 0.0)
    first["y"] = jnp.array([[0.0], [1.0], [2.0], [9.0]])
    program, state = begin(methods.er(capacity=4, rows=1, select="loss", pool=64), first)
    after, _ = jax.jit(program.step)(state, NEW)
    w = np.asarray(state.params["w"], np.float64)
    x, y = np.concatenate([NEW["x"], first["x"][3:]]), np.concatenate([NEW["y"], first["y"][3:]])
    np.testing.assert_allclose(after.params["w"], w - RATE * x.T @ (x @ w - y) / len(x), rtol=1e-6)


@pytest.mark.parametrize("order", [("er", "agem"), ("agem", "er")])
def test_er_and_agem_share_one_buffer(order: tuple[str, str]) -> None:
    made = {"agem": methods.agem(capacity=1, rows=2), "er": methods.er(rows=5, share="agem")}
    program, state = begin(jcl.chain(*(made[name] for name in order)), OLD)
    assert not jax.tree.leaves(state.methods["er"])
    np.testing.assert_array_equal(state.methods["agem"].buffer.rows["x"], OLD["x"])
    # er's replay is in the gradient, and then it does not hurt the memory: nothing to project
    after, _ = jax.jit(program.step)(state, NEW)
    alone, same = begin(methods.er(capacity=1, rows=5), OLD)
    expected, _ = jax.jit(alone.step)(same, NEW)
    np.testing.assert_allclose(after.params["w"], expected.params["w"], rtol=1e-6)


@pytest.mark.quick
def test_sharing_with_a_method_that_has_no_memory_is_refused() -> None:
    with pytest.raises(ValueError, match="share is 'ewc'"):
        program = program_of(jcl.chain(methods.ewc(), methods.er(share="ewc")))
        program.step(program.init({"w": jnp.zeros((2, 1))}, OLD, KEY), OLD)
    with pytest.raises(ValueError, match="agem"):
        jcl.chain(methods.er(share="agem"))


def test_rows_and_fraction_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="rows is 3"):
        methods.er(rows=3, fraction=0.5)


@pytest.mark.parametrize("name", memory.POLICIES)
def test_every_policy_fills_its_memory_and_rehearses(name: str) -> None:
    """Two conflicting tasks: with any memory the first is forgotten less than without."""
    keys = jax.random.split(KEY, 2)
    x = jax.random.normal(keys[0], (2, 20, 6, 4))
    direction = jnp.array([[1.0, 1, 0, 0], [-1.0, 1, 0, 0]])
    y = (jnp.einsum("tsbi,ti->tsb", x, direction) > 0).astype(jnp.int32) + jnp.arange(2)[
        :, None, None
    ] * 2
    task = jnp.broadcast_to(jnp.arange(2)[:, None, None], y.shape)
    stream = {"x": x, "y": y, "task": task}

    def final(method: jcl.Method) -> tuple[Any, jax.Array]:
        program = jcl.make(method, apply, losses.cross_entropy(), optax.sgd(0.5))
        state, out = jax.jit(lambda key: jcl.run(program, {"w": jnp.zeros((4, 4))}, key, stream))(
            KEY
        )
        first = jax.tree.map(lambda v: v[0].reshape(-1, *v.shape[3:]), stream)
        value, _ = losses.cross_entropy()(apply, state.params, {**first, "weight": jnp.ones(120)})
        return out, value

    groups = {"ring": 2, "class": 4, "task": 2, "herding": 4}.get(name)
    out, rehearsed = final(methods.er(capacity=12, rows=6, policy=name, groups=groups))
    _, forgotten = final(methods.naive())
    # rows of highest loss are soon the new task's own
    assert rehearsed < (1.0 if name == "loss" else 0.8) * forgotten
    assert out["steps"]["er/stored"][-1, -1] == 12


@pytest.mark.parametrize("scenario", [data.gradual, data.online], ids=["gradual", "online"])
@pytest.mark.parametrize(
    "method",
    [methods.er(capacity=16, rows=4), methods.derpp(capacity=16, rows=4)],
    ids=lambda m: m.name,
)
def test_without_boundaries_it_replays_or_warns(method: jcl.Method, scenario: Any) -> None:
    rng = np.random.default_rng(0)
    split = {"x": rng.normal(size=(32, 4)).astype(np.float32), "y": np.arange(32) % 4}
    stream = data.from_scenario(scenario(data.split(split, split, tasks=2)), 8, epochs=1)
    params = models.mlp.init(KEY, [4, 6, 4])

    def trained(method: jcl.Method) -> Any:
        program = jcl.make(method, models.mlp.apply, losses.cross_entropy(), optax.sgd(RATE))
        return jcl.fit(program, params, KEY, stream).state.params

    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        found = trained(method)
    plain = trained(methods.naive())
    apart = [
        not np.allclose(a, b) for a, b in zip(*map(jax.tree.leaves, (found, plain)), strict=True)
    ]
    assert any(apart) or any(method.name in str(w.message) for w in heard)


@pytest.mark.parametrize(
    ("method", "stages", "heard"),
    [
        (methods.er(capacity=4, rows=2), 1, 1),
        (methods.er(capacity=4, rows=2), 2, 0),
        (methods.er(capacity=4, rows=2, start=0), 1, 0),
        (methods.er(capacity=4, rows=2, start=2), 2, 1),
        (methods.derpp(capacity=4, rows=2, start=0), 1, 0),
        (jcl.chain(methods.agem(capacity=4, rows=2), methods.ewc()), 1, 2),
        (methods.constant(), 1, 1),
        (methods.naive(), 1, 0),
    ],
    ids=lambda x: getattr(x, "name", str(x)),
)
@pytest.mark.parametrize("driver", [jcl.run, jcl.fit])
def test_who_waits_for_a_stage_that_never_comes_is_named(
    method: jcl.Method, stages: int, heard: int, driver: Any
) -> None:
    program = program_of(method)
    leaves = jax.tree.map(lambda x: jnp.broadcast_to(x, (stages, 1, *x.shape)), NEW)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        driver(program, {"w": jnp.zeros((2, 1))}, KEY, leaves)
    said = [str(w.message) for w in found if "changes nothing before stage" in str(w.message)]
    assert len(said) == heard
    names = [m.name for m in (method.parts or (method,))]
    assert all(any(text.startswith(name) for name in names) for text in said)


def test_where_drifts_end_stages_nobody_is_warned() -> None:
    watched = drift.watch_drift(program_of(methods.er(capacity=4, rows=2)), drift.page_hinkley())
    leaves = jax.tree.map(lambda x: jnp.broadcast_to(x, (1, 1, *x.shape)), NEW)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jcl.run(watched, {"w": jnp.zeros((2, 1))}, KEY, leaves)
