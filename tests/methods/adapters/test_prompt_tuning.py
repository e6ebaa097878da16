"""Prompt tuning: it starts as reading some tokens first. See also tests/models/test_peft.py."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_decoder as tiny

import jcl
from jcl import adapters, losses, methods, models

BATCH = jax.tree.map(lambda x: x[0, 0], tiny.stream())
PROGRAM = tiny.program(methods.prompt_tuning(length=5))
STATE = PROGRAM.init(tiny.base(), BATCH, jax.random.key(0))


def spelt() -> jax.Array:
    """The tokens whose embeddings the prompt starts as."""
    table, prompt = tiny.base()["embed"]["table"], STATE.params["prompt"]["table"]
    found = jnp.argmax((prompt[:, None] == table[None]).all(axis=-1), axis=1)
    np.testing.assert_array_equal(table[found], prompt)
    return jnp.broadcast_to(found, (tiny.ROWS, 5))


@pytest.mark.quick
def test_it_starts_as_tokens_before_the_others() -> None:
    before = jnp.concatenate([spelt(), BATCH["tokens"]], axis=1)
    wanted = tiny.CALL(tiny.base(), {"tokens": before})[:, 5:]
    ours = jax.jit(PROGRAM.predict)(STATE, BATCH)
    np.testing.assert_allclose(ours, wanted, rtol=1e-5, atol=1e-5)
    plain = tiny.CALL(tiny.base(), BATCH)
    assert np.abs(plain - wanted).max() > 0.1


def test_with_a_cache_the_prompt_is_read_once() -> None:
    segments = jnp.ones(BATCH["tokens"].shape, jnp.int32).at[1, :3].set(0)
    tokens = jnp.where(segments > 0, BATCH["tokens"], 0)
    cache = models.decoder.empty_cache(tiny.CONFIG, tiny.ROWS, 5 + tiny.LENGTH + 2)
    predict = jax.jit(PROGRAM.predict)
    batch = {"tokens": tokens, "segments": segments, "prefill": cache}
    texts = [
        [*spelt()[0].tolist(), *row[seen > 0].tolist()]
        for row, seen in zip(tokens, segments, strict=True)
    ]
    for _ in range(3):
        logits, cache = predict(STATE, batch)
        for row in range(tiny.ROWS):
            padded = np.zeros((1, 32), np.int32)
            padded[0, : len(texts[row])] = texts[row]
            wanted = tiny.CALL(tiny.base(), {"tokens": padded})[0, len(texts[row]) - 1]
            np.testing.assert_allclose(logits[row], wanted, rtol=1e-4, atol=1e-4)
            texts[row].append(int(jnp.argmax(wanted)))
        new = jnp.array([[text[-1]] for text in texts], jnp.int32)
        batch = {"tokens": new, "cache": cache}


def test_the_prompt_alone_learns() -> None:
    after, _ = tiny.run(methods.prompt_tuning(length=5))
    tiny.same_base(after.params, tiny.base())
    assert after.optimizer[0].mu["prompt"]["table"].shape == (5, 24)
    first = tiny.program(methods.prompt_tuning(5)).init(tiny.base(), BATCH, jax.random.key(2))
    moved = jnp.abs(after.params["prompt"]["table"] - first.params["prompt"]["table"])
    assert float(moved.min(axis=1).max()) > 1e-3


@pytest.mark.quick
def test_a_model_without_embeddings_is_refused() -> None:
    params = {"dense_0": {"kernel": jnp.ones((2, 2))}}
    with pytest.raises(ValueError, match=r"parameters is \['dense_0'\], but must be"):
        PROGRAM.init(params, BATCH, jax.random.key(0))


def test_a_prompt_is_scaled_as_tokens_are() -> None:
    """Gemma multiplies what it looks up by √d."""
    apply = models.decoder.apply_fn(dataclasses.replace(tiny.CONFIG, embed_scale=8.0))
    program = jcl.make(
        methods.prompt_tuning(length=3),
        apply,
        losses.next_token,
        optax.sgd(0.0),
        trainable=adapters.is_adapter,
    )
    base, tokens = tiny.base(), jnp.arange(10, dtype=jnp.int32)[None]
    state = program.init(base, {"tokens": tokens}, jax.random.key(0))
    prompt = {"table": base["embed"]["table"][tokens[0, :3]]}
    state = state._replace(params={**state.params, "prompt": prompt})
    ours = jax.jit(program.predict)(state, {"tokens": tokens[:, 3:]})
    wanted = jax.jit(apply)(base, {"tokens": tokens})[:, 3:]
    np.testing.assert_allclose(ours, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "method",
    [methods.prompt_tuning(length=3), methods.progressive_prompts(stages=2, length=3)],
    ids=lambda m: m.name,
)
def test_a_scale_of_embeddings_is_that_of_all_of_them(method: jcl.Method) -> None:
    """Tokens and prompts eight times as large, or a model that makes them so, in every stage."""
    config = dataclasses.replace(tiny.CONFIG, tied=False)
    base = models.decoder.init(jax.random.key(1), config)
    large = {**base, "embed": {"table": 8 * base["embed"]["table"]}}
    found = []
    for params, scale in ((base, 8.0), (large, 1.0)):
        apply = models.decoder.apply_fn(dataclasses.replace(config, embed_scale=scale))
        program = jcl.make(
            method, apply, losses.next_token, optax.sgd(0.0), trainable=adapters.is_adapter
        )
        state = program.init(params, BATCH, jax.random.key(0))
        state, _ = jax.jit(program.step)(state, BATCH)
        found.append([jax.jit(program.predict)(state, BATCH)])
        state = jax.jit(program.consolidate)(state, jax.tree.map(lambda x: x[None], BATCH))
        found[-1].append(jax.jit(program.predict)(state, BATCH))
    for ours, wanted in zip(*found, strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=1e-5, atol=1e-5)
