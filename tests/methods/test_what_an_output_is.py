"""Outputs have a kind: methods work with what a loss gives, or refuse it at init."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import optax
import pytest
import tiny_decoder as tiny
import tiny_pairs

import jcl
from jcl import losses, methods, preference

KEY = jax.random.key(0)
BATCHES = [jax.tree.map(lambda x, i=i: x[0, i], tiny.stream()) for i in range(3)]


def taken(method: jcl.Method, loss: Any, batch: Any) -> tuple[jcl.Program, jcl.State] | None:
    """The program and its first state, or None where `init` refuses the loss by a sentence."""
    try:
        program = jcl.make(method, tiny.APPLY, loss, optax.sgd(0.05))
        return program, jax.jit(program.init)(tiny.base(), batch, KEY)
    except ValueError as refusal:
        assert method.name in str(refusal), refusal
        return None


def second_stage(program: jcl.Program, state: jcl.State, batches: Any) -> jax.Array:
    """The loss of the last batch, which is of a second stage."""
    step = jax.jit(program.step)
    state, _ = step(state, batches[0])
    stage = jax.tree.map(lambda x: x[None], batches[0])
    state = jax.jit(program.consolidate)(state, stage)
    for batch in batches[1:]:
        state, aux = step(state, batch)
    return aux["loss"]


def unlike() -> Any:
    """A teacher that answers otherwise than the base."""
    return jax.tree.map(lambda x: 1.1 * x, tiny.base())


def same_on_fused(method: jcl.Method) -> None:
    """On the fused loss a method does what it does on the logits', or is refused at `init`."""
    fused = taken(method, losses.fused_next_token(), BATCHES[0])
    if fused is None:
        return
    whole = taken(method, losses.next_token, BATCHES[0])
    assert whole is not None
    wanted = second_stage(*whole, BATCHES)
    np.testing.assert_allclose(second_stage(*fused, BATCHES), wanted, rtol=1e-4)


@pytest.mark.parametrize(
    "method",
    [methods.derpp(capacity=8, rows=2), methods.distil(unlike(), 0.5)],
    ids=lambda m: m.name,
)
def test_the_fused_loss_serves_or_is_refused(method: jcl.Method) -> None:
    same_on_fused(method)


@pytest.mark.quick
def test_the_fused_loss_serves_lwf_or_is_refused_at_once() -> None:
    same_on_fused(methods.lwf())


ITSELF: list[tuple[jcl.Method, float]] = [
    (methods.kl_to_reference(strength=1.0), 1.0),
    (methods.distil(tiny.base(), 0.5), 0.5),
    (methods.lwf(), 1.0),
]


def loss_beside_itself(method: jcl.Method, share: float, pairs: int) -> None:
    """A model is no way from itself, so only the `share` of the imitation's loss is left."""
    batch = jax.tree.map(lambda x: x[:pairs], tiny_pairs.BATCH)
    program = jcl.make(method, tiny.APPLY, preference.imitation, optax.sgd(0.0))
    try:
        state = jax.jit(program.init)(tiny.base(), batch, KEY)
    except ValueError as refusal:
        assert method.name in str(refusal), refusal
        return
    plain = preference.imitation(tiny.APPLY, tiny.base(), batch)[0]
    loss = second_stage(program, state, [batch, batch])
    np.testing.assert_allclose(loss, share * plain, rtol=1e-4)


@pytest.mark.parametrize(("method", "share"), ITSELF, ids=["kl", "distil", "lwf"])
def test_of_one_pair_a_model_is_no_way_from_itself(method: jcl.Method, share: float) -> None:
    loss_beside_itself(method, share, pairs=1)


@pytest.mark.parametrize(("method", "share"), ITSELF, ids=["kl", "distil", "lwf"])
def test_of_more_pairs_a_model_is_no_way_from_itself(method: jcl.Method, share: float) -> None:
    loss_beside_itself(method, share, pairs=4)
