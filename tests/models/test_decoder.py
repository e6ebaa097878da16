"""What a decoder promises beside its numbers: memory, compile size, kernels, packing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcl import losses, mesh
from jcl.models import decoder

SMALL = decoder.Config(vocabulary=61, layers=2, width=32, heads=4, kv_heads=2, hidden=48)
TOKENS = jax.random.randint(jax.random.key(1), (3, 20), 0, 61)
BATCH = {"tokens": TOKENS, "weight": jnp.array([1.0, 0.5, 0.0])}


@pytest.fixture(scope="module")
def params() -> Any:
    return decoder.init(jax.random.key(0), SMALL)


def value_and_grad(loss: Any, apply: Any) -> Any:
    return jax.jit(jax.value_and_grad(lambda p, b: loss(apply, p, b)[0]))


def close(a: Any, b: Any, tolerance: float = 2e-6) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=tolerance, rtol=1e-4), a, b)


@pytest.mark.parametrize("limit", [61 * 7, 61 * 60, 2**25])
def test_the_fused_loss_is_the_plain_one(params: Any, limit: int) -> None:
    fused = decoder.apply_fn(SMALL, logits_limit=limit)
    mask = jax.random.bernoulli(jax.random.key(2), 0.6, (3, 19)).astype(jnp.float32)
    for batch in (BATCH, {**BATCH, "mask": mask}):
        plain = value_and_grad(losses.next_token, decoder.apply_fn(SMALL))(params, batch)
        close(value_and_grad(losses.fused_next_token(), fused)(params, batch), plain)


def test_the_fused_loss_never_holds_all_logits() -> None:
    # one head: XLA's own attention holds all scores, which are in both and aren't what is measured
    config = replace(SMALL, vocabulary=152_064, layers=1, heads=1, kv_heads=1, head_width=None)
    batch = {"tokens": jax.ShapeDtypeStruct((1, 4096), jnp.int32), "weight": jnp.ones(1)}
    shapes = jax.eval_shape(lambda k: decoder.init(k, config), jax.random.key(0))

    def temporaries(loss: Any) -> int:
        step = value_and_grad(loss, decoder.apply_fn(config, remat="block"))
        return step.lower(shapes, batch).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(losses.fused_next_token()) < temporaries(losses.next_token) / 8


def test_compile_size_does_not_grow_with_depth() -> None:
    def lines(layers: int) -> int:
        config = replace(SMALL, layers=layers)
        shapes = jax.eval_shape(lambda k: decoder.init(k, config), jax.random.key(0))
        step = value_and_grad(losses.next_token, decoder.apply_fn(config))
        return len(step.lower(shapes, BATCH).as_text().splitlines())

    assert lines(24) == lines(3)


@pytest.mark.parametrize("remat", ["block", "dots"])
def test_rematerialising_changes_memory_alone(remat: Any) -> None:
    config = replace(SMALL, layers=6)
    params = decoder.init(jax.random.key(0), config)
    batch = {"tokens": jnp.tile(TOKENS, (4, 6)), "weight": jnp.ones(12)}
    applies = [decoder.apply_fn(config, remat=r) for r in ("none", remat)]
    steps = [value_and_grad(losses.next_token, apply) for apply in applies]
    close(steps[0](params, batch), steps[1](params, batch))
    plain, less = (
        s.lower(params, batch).compile().memory_analysis().temp_size_in_bytes for s in steps
    )
    assert less < plain


def test_computing_in_bfloat16_keeps_float32_parameters(params: Any) -> None:
    half = decoder.apply_fn(SMALL, compute=jnp.bfloat16)
    value, grads = value_and_grad(losses.fused_next_token(), half)(params, BATCH)
    wanted, slopes = value_and_grad(losses.fused_next_token(), decoder.apply_fn(SMALL))(
        params, BATCH
    )
    assert {g.dtype for g in jax.tree.leaves(grads)} == {jnp.dtype("float32")}
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, wanted, rtol=1e-2)
    close(grads, slopes, 2e-2)
    text = jax.jit(half).lower(params, BATCH).as_text()
    assert "bf16" in text


@pytest.mark.parametrize("axes", [{"data": 2, "fsdp": 2, "tensor": 2}, {"fsdp": 4, "sequence": 2}])
def test_on_a_mesh_token_scores_are_those_of_one_device(axes: dict[str, int]) -> None:
    """In pieces too, for which the head is gathered once."""
    config = replace(SMALL, tied=False)
    params = decoder.init(jax.random.key(0), config)
    tokens = jax.random.randint(jax.random.key(1), (8, 16), 1, 32)
    batch = {"tokens": tokens, "weight": jnp.arange(8.0)}
    layout = mesh.Layout(mesh.make(**axes))
    alone = decoder.apply_fn(config, logits_limit=64)
    spread = mesh.constrain(alone, layout)
    value, grads = value_and_grad(losses.fused_next_token(), alone)(params, batch)
    there = jax.device_put(batch, mesh.of_batch(batch, layout))
    placed = jax.device_put(params, mesh.of_params(params, layout))
    found = value_and_grad(losses.fused_next_token(), spread)(placed, there)
    np.testing.assert_allclose(found[0], value, rtol=1e-5)
    close(found[1], grads, 2e-5)


def test_a_soft_prefix_reads_like_tokens(params: Any) -> None:
    apply = decoder.apply_fn(SMALL)
    whole = apply(params, {"tokens": TOKENS})
    soft = params["embed"]["table"][TOKENS[:, :4]]
    for extra in ({}, {"segments": jnp.ones((3, 16), jnp.int32)}):
        rest = apply(params, {"tokens": TOKENS[:, 4:], "embeddings": soft, **extra})
        np.testing.assert_allclose(rest, whole[:, 4:], atol=1e-6)


def test_a_classifier_reads_the_last_token(params: Any) -> None:
    kernel = jax.random.normal(jax.random.key(3), (32, 5))
    grown = {**params, "classifier": {"kernel": kernel, "bias": jnp.arange(5.0)}}
    apply = decoder.apply_fn(SMALL)
    segments = jnp.ones((3, 20), jnp.int32).at[0, 12:].set(0)
    scores = apply(grown, {"tokens": TOKENS, "segments": segments})
    assert scores.shape == (3, 5)
    alone = apply(grown, {"tokens": TOKENS[:1, :12]})
    np.testing.assert_allclose(scores[0], alone[0], atol=1e-5)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kv_heads": 3}, "kv_heads is 3"),
        ({"width": 36}, "width is 36"),
        ({"layers": 0}, "layers is 0"),
        ({"activation": "sine"}, "activation is 'sine'"),
        ({"local": (True,)}, "length of local is 1"),
    ],
)
def test_refusals(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(SMALL, head_width=None, **change)


@pytest.mark.quick
def test_unknown_options_are_refused() -> None:
    with pytest.raises(ValueError, match="remat is 'all'"):
        decoder.apply_fn(SMALL, remat="all")  # type: ignore[arg-type]
