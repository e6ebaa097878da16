"""DPO: where the reference comes from, what is held of it, and what else means its loss."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import optax
import pytest
import tiny_decoder as tiny
import tiny_pairs
from scipy.special import log_expit

import jcl
from jcl import adapters, methods, preference, trees

STREAM = tiny_pairs.pairs()


def at(stage: int, step: int) -> Any:
    return jax.tree.map(lambda x: x[stage, step], STREAM)


def loss(params: Any, reference: Any, batch: Any, beta: float) -> float:
    new, old = (tiny_pairs.log_probs(p, batch) for p in (params, reference))
    reward = beta * (new - old)
    return float(-log_expit(reward[0] - reward[1]).mean())


@pytest.mark.parametrize("reference", ["initial", "previous"])
def test_the_reference_is_staged(reference: Any) -> None:
    program = tiny_pairs.program(methods.dpo(beta=0.5, reference=reference))
    step, consolidate = jax.jit(program.step), jax.jit(program.consolidate)
    first = state = tiny_pairs.start(program)
    for stage in range(2):
        held = state.params if reference == "previous" else first.params
        for i in range(tiny_pairs.STEPS):
            before = state.params
            state, aux = step(state, at(stage, i))
            expected = loss(before, held, at(stage, i), 0.5)
            np.testing.assert_allclose(aux["loss"], expected, rtol=2e-5)
            own = reference == "previous" or stage == 0
            assert (abs(expected - np.log(2)) < 1e-6) == (own and i == 0)  # log 2 at π = π_ref
        state = consolidate(state, jax.tree.map(lambda x, s=stage: x[s], STREAM))


def test_with_adapters_the_base_is_held_once_and_the_reference_goes_through_them() -> None:
    method = jcl.chain(methods.lora(rank=2), methods.dpo(beta=0.5, reference="previous"))
    program = tiny_pairs.program(method, rate=3.0, trainable=adapters.is_adapter)
    step = jax.jit(program.step)
    state = tiny_pairs.start(program)
    pairs = trees.partition(state.params, adapters.is_adapter)[0]
    held = state.references["previous"].params
    assert trees.size(held) == trees.size(pairs) < 0.1 * trees.size(state.params)
    for i in range(tiny_pairs.STEPS):
        state, _ = step(state, at(0, i))
    state = jax.jit(program.consolidate)(state, jax.tree.map(lambda x: x[0], STREAM))

    def folded(params: Any) -> Any:
        return adapters.merge(params, adapters.scale(2, 16.0))

    before = folded(state.params)
    assert float(trees.norm(trees.subtract(before, tiny.base()))) > 0.01
    _, aux = step(state, at(1, 0))
    np.testing.assert_allclose(aux["loss"], np.log(2), rtol=1e-6)
    later, _ = step(state, at(1, 0))
    _, aux = step(later, at(1, 1))
    expected = loss(folded(later.params), before, at(1, 1), 0.5)
    np.testing.assert_allclose(aux["loss"], expected, rtol=1e-4)
    assert abs(expected - np.log(2)) > 1e-3


def test_a_fisher_information_is_that_of_the_loss_of_dpo() -> None:
    """With ewc in the chain: squared gradients of each pair's own loss of DPO."""
    method = jcl.chain(methods.dpo(beta=0.5), methods.ewc(strength=1.0))
    program = tiny_pairs.program(method, rate=1.0)
    state, _ = jax.jit(program.step)(tiny_pairs.start(program), at(0, 0))
    batches = jax.tree.map(lambda x: x[0, 1:2], STREAM)
    after = jax.jit(program.consolidate)(state, batches)

    def alone(params: Any, row: Any) -> Any:
        pair = jax.tree.map(lambda x: x[None], row)
        margins = []
        for p in (params, tiny.base()):
            asked = preference.pair_rows(pair)
            margins.append(preference.pair_log_probs(tiny.APPLY(p, asked), pair).margin)
        return -jax.nn.log_sigmoid(0.5 * (margins[0] - margins[1]))[0]

    rows = jax.tree.map(lambda x: x[0], batches)
    grads = jax.jit(jax.vmap(jax.grad(alone), (None, 0)))(state.params, rows)
    expected = jax.tree.map(lambda g: np.mean(np.square(g), axis=0), grads)
    fisher = after.methods["ewc"].fisher
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-8), fisher, expected
    )


@pytest.mark.quick
def test_a_step_costs_one_forward_pass_more() -> None:
    """Four thirds of a step without a reference, counted in the compiled program."""

    def flops(method: jcl.Method) -> float:
        program = jcl.make(method, tiny.APPLY, preference.ranking(), optax.sgd(0.1))
        state = jax.eval_shape(program.init, tiny.base(), tiny_pairs.BATCH, jax.random.key(0))
        lowered = jax.jit(program.step).lower(state, tiny_pairs.BATCH)
        return lowered.compile().cost_analysis()["flops"]

    assert 1.2 < flops(methods.dpo()) / flops(methods.naive()) < 1.45


def test_at_a_boundary_the_loss_is_that_of_the_finished_stage() -> None:
    noted = []

    def consolidate(state: Any, ctx: jcl.Ctx, params: Any, batches: Any) -> Any:
        noted.append(float(ctx.loss(params, at(0, 0))[0]))
        return params, state

    reader = jcl.Method("reader", consolidate=consolidate)
    program = tiny_pairs.program(methods.dpo(beta=0.5, reference="previous") + reader)
    first = state = tiny_pairs.start(program)
    for i in range(tiny_pairs.STEPS):
        state, _ = jax.jit(program.step)(state, at(0, i))
    program.consolidate(state, jax.tree.map(lambda x: x[0], STREAM))
    expected = loss(state.params, first.params, at(0, 0), 0.5)
    assert abs(expected - np.log(2)) > 1e-3  # as it would be against the reference of the next
    np.testing.assert_allclose(noted, [expected], rtol=2e-5)
