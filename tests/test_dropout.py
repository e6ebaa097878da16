"""What is random in a model: drawn afresh in each call of training, and nowhere else."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jcl
from jcl import losses, methods

KEY = jax.random.key(0)
ROWS = 8
BATCH = {"x": jnp.ones((ROWS, 4)), "y": jnp.zeros(ROWS, jnp.int32)}
BATCHES = jax.tree.map(lambda x: x[None], BATCH)
PARAMS = {"w": jnp.ones((4, 3)) / 4}


def apply(params: Any, batch: Any, call: jcl.Call = jcl.Call()) -> jax.Array:
    """A linear layer whose inputs drop out, half of them, and count twice if they don't."""
    x = batch["x"]
    if call.training:
        assert call.key is not None
        x = 2 * x * jax.random.bernoulli(call.key, 0.5, x.shape)
    return x @ params["w"]


def noted(log: list[Any]) -> Any:
    """The same model, which notes the inputs that it reads in training."""

    def model(params: Any, batch: Any, call: jcl.Call = jcl.Call()) -> jax.Array:
        x = batch["x"]
        if call.training:
            assert call.key is not None
            kept = jax.random.bernoulli(call.key, 0.5, x.shape)
            jax.debug.callback(lambda k: log.append(np.asarray(k)), kept)
        return apply(params, batch, call)

    return model


def program(*parts: jcl.Method, model: Any = apply, **options: Any) -> jcl.Program:
    tx = optax.sgd(0.1)
    return jcl.make(jcl.chain(*parts), model, losses.cross_entropy(), tx, **options)


def test_each_step_and_each_microbatch_draws_anew() -> None:
    for parts in (1, 2):
        log: list[Any] = []
        made = program(model=noted(log), microbatches=parts)
        state = made.init(PARAMS, BATCH, KEY)
        step = jax.jit(made.step)
        for _ in range(3):
            state, _ = step(state, BATCH)
        jax.effects_barrier()
        assert len(log) == 3 * parts and {x.shape[0] for x in log} == {ROWS // parts}
        assert len({x.tobytes() for x in log}) == 3 * parts


def test_each_member_draws_its_own() -> None:
    made = jcl.replicate(lambda value: program(), {"seed": jnp.arange(2)})
    params, rows = (jax.tree.map(lambda x: jnp.stack([x, x]), tree) for tree in (PARAMS, BATCH))
    state = made.init(params, rows, jax.random.split(KEY, 2))
    after, _ = jax.jit(made.step)(state, rows)
    assert not np.array_equal(*after.params["w"])


def test_a_run_repeats_itself() -> None:
    made = program()
    first, second = (
        jax.jit(made.step)(made.init(PARAMS, BATCH, KEY), BATCH)[0].params["w"] for _ in range(2)
    )
    np.testing.assert_array_equal(first, second)


def test_nothing_drops_out_of_a_prediction() -> None:
    made = program()
    state = made.init(PARAMS, BATCH, KEY)
    np.testing.assert_array_equal(made.predict(state, BATCH), BATCH["x"] @ PARAMS["w"])


def plain(params: Any, batch: Any) -> jax.Array:
    return batch["x"] @ params["w"]


@pytest.mark.parametrize(
    ("method", "leaf"),
    [(methods.ewc(), "fisher"), (methods.mas(), "omega")],
    ids=["ewc", "mas"],
)
def test_nothing_drops_out_of_a_statistic(method: jcl.Method, leaf: str) -> None:
    found = []
    for model in (apply, plain):
        made = program(method, model=model)
        state = jax.jit(made.consolidate)(made.init(PARAMS, BATCH, KEY), BATCHES)
        found.append(getattr(state.methods[method.name], leaf)["w"])
    np.testing.assert_array_equal(*found)


def test_a_teacher_answers_as_in_prediction() -> None:
    def observe(state: Any, ctx: jcl.Ctx, info: jcl.Info) -> Any:
        return ctx.recall(ctx.references["initial"], ctx.batch)

    asking = jcl.Method(
        "asking", init=lambda ctx, params: (params, jnp.zeros((ROWS, 3))), observe=observe,
        recalls=("initial",),
    )  # fmt: skip
    made = program(methods.lwf(), asking)
    state, _ = jax.jit(made.step)(made.init(PARAMS, BATCH, KEY), BATCH)
    np.testing.assert_array_equal(state.methods["asking"], BATCH["x"] @ PARAMS["w"])


def test_the_gradient_goes_through_what_was_kept() -> None:
    log: list[Any] = []
    made = program(model=noted(log))
    state = made.init(PARAMS, BATCH, KEY)
    after, _ = jax.jit(made.step)(state, BATCH)
    jax.effects_barrier()
    kept = 2.0 * log[0]
    z = kept @ np.asarray(PARAMS["w"])
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    slope = kept.T @ (p - np.eye(3)[np.zeros(ROWS, int)]) / ROWS
    np.testing.assert_allclose(after.params["w"], PARAMS["w"] - 0.1 * slope, rtol=1e-5)


@pytest.mark.quick
def test_a_call_is_a_tap_for_models_that_know_no_more() -> None:
    seen = []

    def old(params: Any, batch: Any, tap: Any = jcl.taps.identity) -> jax.Array:
        return tap("dense:out", 0, plain(params, batch))

    def tap(site: str, layer: Any, h: jax.Array) -> jax.Array:
        seen.append(site)
        return h

    made = program(model=old)
    state = made.init(PARAMS, BATCH, KEY)
    made.predict(state, BATCH, tap)
    made.predict(state, BATCH, jcl.Call(tap))
    assert seen == ["dense:out"] * 2
