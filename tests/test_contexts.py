"""What hooks see of a moment, and what frozen models answer."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jcl
from jcl import losses, methods

KEY = jax.random.key(0)
BATCH = {"x": jnp.eye(3), "y": jnp.zeros((3, 1))}
BATCHES = jax.tree.map(lambda x: x[None], BATCH)
PARAMS = {"w": jnp.array([[1.0], [2.0], [3.0]])}


def apply(params: Any, batch: Any) -> jax.Array:
    return batch["x"] @ params["w"]


def program(*parts: jcl.Method) -> jcl.Program:
    return jcl.make(jcl.chain(*parts), apply, losses.squared_error, optax.sgd(0.1))


class Gain(NamedTuple):
    """By how much a model is louder."""

    factor: jax.Array


def louder(name: str = "louder") -> jcl.Method:
    """Multiplies the outputs by a factor that each boundary doubles."""

    def forward(state: Gain, ctx: jcl.Ctx, inner: Any) -> Any:
        return lambda params, batch, *tap: state.factor * inner(params, batch, *tap)

    def consolidate(state: Gain, ctx: jcl.Ctx, params: Any, batches: Any) -> Any:
        return params, Gain(2 * state.factor)

    def init(ctx: jcl.Ctx, params: Any) -> Any:
        return params, Gain(jnp.float32(2))

    return jcl.Method(name, init=init, forward=forward, consolidate=consolidate)


def asking(*names: str) -> jcl.Method:
    """Reports the first output of the frozen models `names`."""

    def observe(state: Any, ctx: jcl.Ctx, info: jcl.Info) -> Any:
        return {n: ctx.recall(ctx.references[n], ctx.batch)[0, 0] for n in names}

    return jcl.Method(
        "asking", init=lambda ctx, params: (params, {n: jnp.float32(0) for n in names}),
        observe=observe, report=lambda state, info: state, recalls=names,
    )  # fmt: skip


@pytest.mark.quick
def test_a_reference_answers_the_same_for_ever() -> None:
    made = program(louder(), asking("initial", "previous"))
    state = made.init(PARAMS, BATCH, KEY)
    step = jax.jit(made.step)
    left = [float(made.predict(state, BATCH)[0, 0])]
    for _ in range(3):
        for _ in range(2):
            state, aux = step(state, BATCH)
            assert float(aux["asking/initial"]) == left[0]
            assert float(aux["asking/previous"]) == left[-1]
        state = made.consolidate(state, BATCHES)
        left.append(float(made.predict(state, BATCH)[0, 0]))
    assert len(set(left)) == len(left)


@pytest.mark.quick
def test_two_that_want_the_same_model_share_it() -> None:
    one = asking("previous")
    state = program(one, one._replace(name="other"), methods.naive()).init(PARAMS, BATCH, KEY)
    assert list(state.references) == ["previous"]
    held = [x.shape for x in jax.tree.leaves(state.references)]
    assert held.count(PARAMS["w"].shape) == 1


@pytest.mark.quick
def test_no_gradient_reaches_a_frozen_model() -> None:
    def loss(state: Any, ctx: jcl.Ctx, loss_fn: Any) -> Any:
        def recalled(params: Any, batch: Any) -> Any:
            value, aux = loss_fn(params, batch)
            frozen = ctx.freeze(params)  # of what is differentiated
            return value + jnp.sum(ctx.recall(frozen, batch)), aux

        return recalled

    plain, asked = program(), program(jcl.Method("asking", loss=loss))
    after = [
        jax.jit(p.step)(p.init(PARAMS, BATCH, KEY), BATCH)[0].params["w"] for p in (plain, asked)
    ]
    np.testing.assert_array_equal(*after)


def seen(*parts: jcl.Method) -> dict[str, float]:
    """The first output of `ctx.apply` in each hook of a last method, by phase."""
    found: dict[str, float] = {}

    def note(phase: str, ctx: jcl.Ctx, params: Any) -> None:
        found[phase] = float(ctx.apply(params, BATCH)[0, 0])

    def init(ctx: jcl.Ctx, params: Any) -> Any:
        note("init", ctx, params)
        return params, ()

    def consolidate(state: Any, ctx: jcl.Ctx, params: Any, batches: Any) -> Any:
        note("consolidate", ctx, params)
        return params, state

    made = program(*parts, jcl.Method("last", init=init, consolidate=consolidate))
    state = made.init(PARAMS, BATCH, KEY)
    found["predicted before"] = float(made.predict(state, BATCH)[0, 0])
    state = made.consolidate(state, BATCHES)
    found["predicted after"] = float(made.predict(state, BATCH)[0, 0])
    return found


@pytest.mark.quick
def test_a_later_method_sees_the_model_that_is_left() -> None:
    found = seen(louder())
    assert found["init"] == found["predicted before"] == 2.0
    assert found["consolidate"] == found["predicted after"] == 4.0


@pytest.mark.quick
def test_at_a_boundary_a_method_itself_sees_the_stage_that_ends() -> None:
    noted = []

    def consolidate(state: Gain, ctx: jcl.Ctx, params: Any, batches: Any) -> Any:
        noted.append(float(ctx.apply(params, BATCH)[0, 0]))
        return params, Gain(2 * state.factor)

    made = program(louder()._replace(consolidate=consolidate))
    state = made.init(PARAMS, BATCH, KEY)
    for _ in range(2):
        before = float(made.predict(state, BATCH)[0, 0])
        state = made.consolidate(state, BATCHES)
        assert noted.pop() == before


@pytest.mark.quick
def test_what_wraps_the_model_keeps_no_reference_of_its_own() -> None:
    def init(ctx: jcl.Ctx, params: Any) -> Any:
        return params, ctx.freeze(params)

    nested = louder("nested")._replace(init=init, consolidate=jcl.Method("plain").consolidate)
    nested = nested._replace(forward=lambda state, ctx, inner: inner)
    with pytest.raises(ValueError, match="nested wraps the model and keeps a Reference"):
        program(nested, asking("initial")).init(PARAMS, BATCH, KEY)
