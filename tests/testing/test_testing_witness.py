"""The witness sees every moment, and `watch` tells what each was, against a run without it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jcl
from jcl import losses, methods
from jcl.testing import perceptron
from jcl.testing.bench import exact, program_of, stream
from jcl.testing.witness import Found, watch, witness

PROBLEM, STREAM, KEY = perceptron(), stream(), jax.random.key(3)
ROWS = jax.tree.map(lambda x: x[:, 0, 0], STREAM)


def program(*parts: jcl.Method) -> jcl.Program:
    return program_of(jcl.chain(*parts), PROBLEM, exact())


def watched(*parts: jcl.Method) -> Found:
    made = program(*parts, witness(ROWS))
    return jax.jit(lambda p: watch(made, PROBLEM.loss, p, KEY, STREAM, ROWS))(PROBLEM.params)


def test_it_is_the_run_and_its_moments() -> None:
    """Of a method whose every stage starts from the first model."""
    found = watched(methods.from_scratch())
    made = program(methods.from_scratch())

    def score(made: jcl.Program, state: jcl.State) -> jax.Array:
        return made.predict(state, ROWS)

    state, scores = jax.jit(lambda p: jcl.run(made, p, KEY, STREAM, evaluate=score))(PROBLEM.params)
    jax.tree.map(np.testing.assert_array_equal, found.params, state.params)
    outputs = scores["scores"]
    np.testing.assert_allclose(found.first.outputs, outputs[0], atol=1e-5)
    np.testing.assert_allclose(found.ended.outputs, outputs[1:], atol=1e-5)
    for true, shown in (
        (found.first, found.shown_first),
        (found.begun, found.shown_begun),
        (found.ended, found.shown_ended),
    ):
        np.testing.assert_allclose(shown.outputs, true.outputs, atol=1e-5)
        np.testing.assert_allclose(shown.loss, true.loss, atol=1e-5)
    for stage in (1, 2):
        np.testing.assert_allclose(found.begun.outputs[stage], outputs[0], atol=1e-5)
        want, _ = losses.cross_entropy()(lambda p, b, s=stage: outputs[s + 1], None, ROWS)
        np.testing.assert_allclose(found.ended.loss[stage], want, atol=1e-5)
        initial, previous, own = found.recalled[stage]
        np.testing.assert_allclose(initial, outputs[0], atol=1e-5)
        np.testing.assert_allclose(own, outputs[0], atol=1e-5)
        np.testing.assert_allclose(previous, outputs[stage], atol=1e-5)
    assert float(jnp.abs(outputs[1] - outputs[0]).max()) > 1e-2


@pytest.mark.quick
def test_a_hook_that_is_shown_another_model_is_seen() -> None:
    def forward(state: Any, ctx: jcl.Ctx, apply: Any) -> Any:
        return lambda params, batch, call: (1 + state) * apply(params, batch, call)

    def consolidate(state: Any, ctx: jcl.Ctx, params: Any, batches: Any) -> Any:
        return params, state + 1

    def init(ctx: jcl.Ctx, params: Any) -> Any:
        return params, jnp.float32(0)

    louder = jcl.Method("louder", init=init, forward=forward, consolidate=consolidate)
    lawful = watched(louder)
    np.testing.assert_allclose(lawful.shown_ended.outputs, lawful.ended.outputs, rtol=1e-5)
    late = louder._replace(forward=lambda state, ctx, apply: lambda params, batch, call: (
        jnp.where("late" in ctx.finished, 1.0, 2.0) * apply(params, batch, call)
    ), name="late")  # fmt: skip
    unlawful = watched(late)
    np.testing.assert_allclose(2 * unlawful.shown_ended.outputs, unlawful.ended.outputs, rtol=1e-5)
