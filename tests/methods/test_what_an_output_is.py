"""Outputs have a kind: methods work with what a loss gives, or refuse it at init."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_decoder as tiny
import tiny_pairs

import jcl
from jcl import losses, mesh, methods, preference
from jcl.models import decoder

KEY = jax.random.key(0)
PIECES = decoder.apply_fn(tiny.CONFIG, logits_limit=2 * tiny.CONFIG.vocabulary * tiny.ROWS)
BATCHES = [jax.tree.map(lambda x, i=i: x[0, i], tiny.stream()) for i in range(3)]


def taken(
    method: jcl.Method, loss: Any, batch: Any, apply: Any = tiny.APPLY
) -> tuple[jcl.Program, jcl.State] | None:
    """The program and its first state, or None where `init` refuses the loss by a sentence."""
    try:
        program = jcl.make(method, apply, loss, optax.sgd(0.05))
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


SERVED = [
    methods.lwf(),
    methods.distil(unlike(), 0.5),
    methods.kl_to_reference(1.0),
    methods.kl_to_reference(1.0, direction="forward"),
    methods.mas(),
    methods.derpp(capacity=8, rows=2, top_k=3),
]


@pytest.mark.parametrize(
    ("method", "mask"),
    [(methods.lwf(), False), *((method, True) for method in SERVED)],
    ids=lambda value: getattr(value, "name", "masked" if value else "whole"),
)
def test_on_the_fused_loss_a_method_does_what_it_does_on_logits(
    method: jcl.Method, mask: bool
) -> None:
    """In pieces of two positions each, over a boundary, for the value and by way of its slope."""
    batches = BATCHES
    if mask:
        kept = jax.random.bernoulli(KEY, 0.6, (tiny.ROWS, tiny.LENGTH - 1)).astype(jnp.float32)
        batches = [{**batch, "mask": kept} for batch in BATCHES]
    fused = taken(method, losses.fused_next_token(), batches[0], PIECES)
    whole = taken(method, losses.next_token, batches[0])
    assert fused is not None and whole is not None
    wanted = second_stage(*whole, batches)
    np.testing.assert_allclose(second_stage(*fused, batches), wanted, rtol=1e-4)


@pytest.mark.quick
def test_all_outputs_of_token_scores_are_not_stored() -> None:
    with pytest.raises(ValueError, match="top_k is None, but must be a number for derpp on Token"):
        method = methods.derpp(capacity=8, rows=2)
        program = jcl.make(method, tiny.APPLY, losses.fused_next_token(), optax.sgd(0.05))
        program.init(tiny.base(), BATCHES[0], KEY)


WIDE = decoder.Config(vocabulary=2**15, layers=1, width=16, heads=1, kv_heads=1, hidden=16)
WIDE_BASE = decoder.init(jax.random.key(1), WIDE)
LENGTH = 512
HELD = [
    methods.lwf(),
    methods.distil(WIDE_BASE, 0.5),
    methods.kl_to_reference(1.0),
    methods.mas(),
    methods.der(capacity=2, rows=1, top_k=3),
]


@pytest.mark.parametrize(
    ("method", "microbatches"),
    [(methods.lwf(), 2), *((method, 1) for method in HELD)],
    ids=lambda value: getattr(value, "name", value),
)
def test_nothing_of_the_compiled_step_is_as_large_as_all_logits(
    method: jcl.Method, microbatches: int
) -> None:
    """Forward and backward, and at a boundary: read off the compiled modules."""
    apply = decoder.apply_fn(WIDE, logits_limit=2**19)
    program = jcl.make(
        method, apply, losses.fused_next_token(), optax.sgd(0.1), microbatches=microbatches
    )
    batch = {"tokens": jax.ShapeDtypeStruct((2, LENGTH), jnp.int32)}
    state = jax.eval_shape(program.init, WIDE_BASE, batch, KEY)
    parts = [jax.jit(program.step).lower(state, batch).compile()]
    if jcl.method.defines(method, "consolidate"):
        batches = {"tokens": jax.ShapeDtypeStruct((1, 2, LENGTH), jnp.int32)}
        parts.append(jax.jit(program.consolidate).lower(state, batches).compile())
    of_a_row = LENGTH * WIDE.vocabulary
    for part in parts:
        assert part.memory_analysis().temp_size_in_bytes < 4 * of_a_row
        shapes = re.findall(r"\b[a-z]+\d*\[([\d,]+)\]", part.as_text())
        largest = max(math.prod(map(int, shape.split(","))) for shape in shapes)
        assert largest < of_a_row / 8


@pytest.mark.parametrize(
    ("method", "axes"),
    [
        (methods.lwf(), {"data": 2, "fsdp": 2, "tensor": 2}),
        (methods.derpp(capacity=8, rows=4, top_k=3), {"data": 2, "fsdp": 4}),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_on_a_mesh_pieces_are_those_of_one_device(method: jcl.Method, axes: dict[str, int]) -> None:
    config = replace(tiny.CONFIG, tied=False)
    apply = decoder.apply_fn(config, logits_limit=tiny.CONFIG.vocabulary)
    params = decoder.init(jax.random.key(1), config)
    batches = [jax.tree.map(lambda x: jnp.concatenate([x, x]), b) for b in BATCHES]
    found = []
    for on in (None, mesh.make(**axes)):
        program = jcl.make(method, apply, losses.fused_next_token(), optax.sgd(0.5), mesh=on)
        start: Any = jax.jit(program.init)(params, batches[0], KEY)
        if on is not None:
            start = jax.device_put(start, mesh.of_state(start, program.layout))
        found.append(second_stage(program, start, batches))
    np.testing.assert_allclose(*found, rtol=1e-5)


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
