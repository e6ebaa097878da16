"""Kernels in int8: the error is bounded, and no more than a layer is held converted."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jcl
from jcl import adapters, losses, methods, models, trees
from jcl.models import decoder

CONFIG = decoder.Config(vocabulary=32, layers=8, width=128, heads=4, kv_heads=2, hidden=384)
BATCH = {"tokens": jnp.arange(16).reshape(1, 16)}


@pytest.mark.quick
def test_no_entry_is_off_by_more_than_half_a_step() -> None:
    kernel = np.random.default_rng(0).normal(size=(3, 40, 24)).astype(np.float32)
    kernel[:, :, 5] = 0
    kernel[:, :, 6] *= 1e-3
    params = {"up": {"kernel": jnp.asarray(kernel)}, "norm": {"scale": jnp.ones(3)}}
    stored = models.quantize(params, "up")["up"]["kernel"]
    assert stored["int8"].dtype == jnp.int8 and stored["scale"].shape == (3, 24)
    step = np.abs(kernel).max(axis=1, keepdims=True) / 127
    back = np.asarray(adapters.kernel_array(stored, jnp.float32))
    assert (np.abs(back - kernel) <= 0.5001 * step).all()
    np.testing.assert_allclose(np.abs(back).max(axis=1), np.abs(kernel).max(axis=1), rtol=1e-6)


@pytest.mark.parametrize("compute", [None, jnp.bfloat16])
@pytest.mark.parametrize("dora", [False, True])
def test_a_step_holds_no_layer_converted_but_the_present(compute: Any, dora: bool) -> None:
    whole = decoder.init(jax.random.key(0), CONFIG)
    small = models.quantize(whole)
    kernels, stored = trees.nbytes(whole["blocks"]), trees.nbytes(small["blocks"])
    assert stored < 0.27 * kernels
    apply = decoder.apply_fn(CONFIG, compute=compute)
    method = methods.lora(rank=2, dora=dora)
    program = jcl.make(
        method, apply, losses.next_token, optax.adam(1e-3), trainable=adapters.is_adapter
    )
    state = program.init(small, BATCH, jax.random.key(0))
    step = jax.jit(program.step, donate_argnums=0).lower(state, BATCH).compile()
    held = step.memory_analysis()
    assert held.argument_size_in_bytes < 0.35 * kernels
    assert held.temp_size_in_bytes < 0.45 * kernels


def test_outputs_gradients_and_merging() -> None:
    params = decoder.init(jax.random.key(0), CONFIG)
    small = models.quantize(params)
    equal = jax.tree.map(lambda x: x, params)
    for path in adapters.paths_with(small, {"kernel"}):
        kernel = adapters.kernel_array(adapters.subtree(small, path)["kernel"], jnp.float32)
        equal = adapters.with_subtree(equal, path, {"kernel": kernel})
    program = jcl.make(
        methods.lora(rank=2), decoder.apply_fn(CONFIG), losses.next_token, optax.sgd(1.0),
        trainable=adapters.is_adapter,
    )  # fmt: skip
    stepped = []
    for base in (small, equal):
        state = program.init(base, BATCH, jax.random.key(0))
        stepped.append(jax.jit(program.step)(state, BATCH)[0])
    learnt = [jax.tree.leaves(trees.partition(s.params, adapters.is_adapter)[0]) for s in stepped]
    for ours, wanted in zip(*learnt, strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=1e-4, atol=1e-5)
    merged = adapters.merge(stepped[0].params, 8.0)
    predict = jax.jit(program.predict)
    logits = predict(stepped[0], BATCH)
    np.testing.assert_allclose(
        decoder.apply_fn(CONFIG)(merged, BATCH), logits, rtol=1e-4, atol=1e-4
    )
    plain = jax.jit(decoder.apply_fn(CONFIG))(params, BATCH)
    near = jax.jit(decoder.apply_fn(CONFIG))(small, BATCH)
    assert 0 < float(jnp.abs(near - plain).max()) < 0.05 * float(jnp.abs(plain).max())


def test_a_mixture_too() -> None:
    config = decoder.Config(
        vocabulary=32, layers=2, width=32, heads=2, kv_heads=2, hidden=24, experts=4
    )
    params = decoder.init(jax.random.key(0), config)
    small = models.quantize(params)
    assert small["blocks"]["experts"]["up"]["kernel"]["scale"].shape == (2, 4, 24)
    assert not isinstance(small["blocks"]["router"]["kernel"], dict)
    logits = [decoder.apply_fn(config)(p, BATCH) for p in (params, small)]
    assert float(jnp.abs(logits[0] - logits[1]).max()) < 0.05 * float(jnp.abs(logits[0]).max())


@pytest.mark.quick
def test_targets_that_match_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match=r"targets is 'block', but must be .*blocks/query"):
        models.quantize(decoder.init(jax.random.key(0), CONFIG), "block")
