"""Growth keeps the function: outputs before and after, in every family's shape; then it learns."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jcl
from jcl import adapters, growth, losses, methods, models, trees
from jcl.models import decoder
from jcl.models.quantize import quantize
from jcl.models.rope import Rope

SMALL = decoder.Config(
    vocabulary=19, layers=3, width=16, heads=4, kv_heads=2, hidden=22, context=12
)
FAMILIES = {
    "llama": SMALL,
    "untied": dataclasses.replace(SMALL, tied=False),
    "gpt2": dataclasses.replace(
        SMALL, norm="layer", gated=False, activation="gelu_tanh", rope=None, kv_heads=4,
        qkv_bias=True, output_bias=True, mlp_bias=True,
    ),
    "gemma": dataclasses.replace(
        SMALL, norm_offset=1.0, post_norm=True, embed_scale=4.0, window=3,
        local=(True, False, True), attention_cap=50.0, logit_cap=30.0, local_rope=Rope(theta=500.0),
    ),
    "olmo": dataclasses.replace(SMALL, pre_norm=False, post_norm=True, qk_norm="full"),
    "qwen": dataclasses.replace(SMALL, qk_norm="head", qkv_bias=True),
    "neox": dataclasses.replace(SMALL, parallel=True, norm="layer"),
    "mixture": dataclasses.replace(SMALL, experts=4, hidden=10),
}  # fmt: skip
BATCH = {"tokens": jax.random.randint(jax.random.key(5), (2, 9), 0, SMALL.vocabulary)}


def random_params(config: decoder.Config) -> Any:
    """Every leaf random, norms and biases too, so that nothing is kept by being 0 or 1."""
    params = decoder.init(jax.random.key(0), config)
    leaves, shape = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(shape, moved)


def outputs(params: Any, config: decoder.Config) -> jax.Array:
    return decoder.apply_fn(config)(params, BATCH)


@pytest.mark.parametrize("family", FAMILIES)
def test_expanded_it_computes_the_same(family: str) -> None:
    config = FAMILIES[family]
    params = random_params(config)
    grown = growth.expand_blocks(params, config, every=2)
    assert grown.config.layers == 4 and grown.layers == (2,)
    before, after = outputs(params, config), outputs(grown.params, grown.config)
    np.testing.assert_array_equal(before, after)
    # and what isn't silenced is a copy of the block before
    gate = grown.params["blocks"]["query"]["kernel"]
    np.testing.assert_array_equal(gate[2], gate[1])


@pytest.mark.parametrize("family", ["llama", "untied"])
def test_of_a_larger_vocabulary_new_tokens_are_the_mean_of_the_old(family: str) -> None:
    config = FAMILIES[family]
    params = random_params(config)
    grown = growth.expand_vocabulary(params, config, 22)
    assert grown.config == dataclasses.replace(config, vocabulary=22) and grown.layers == ()
    before, after = outputs(params, config), outputs(grown.params, grown.config)
    assert after.shape == (2, 9, 22)
    np.testing.assert_allclose(after[..., :19], before, rtol=1e-6, atol=1e-6)
    mean = np.broadcast_to(np.mean(before, axis=-1, keepdims=True), (2, 9, 3))
    np.testing.assert_allclose(after[..., 19:], mean, rtol=1e-4, atol=1e-5)
    table = grown.params["embed"]["table"]
    np.testing.assert_allclose(table[19:], np.tile(table[:19].mean(axis=0), (3, 1)), atol=1e-6)
    with pytest.raises(ValueError, match="vocabulary is 18, but must be at least 19"):
        growth.expand_vocabulary(params, config, 18)


def test_copies_follow_each_group_as_in_the_authors_script() -> None:
    grown = growth.expand_blocks(random_params(SMALL), SMALL, every=1)
    assert (grown.config.layers, grown.layers) == (6, (1, 3, 5))
    assert growth.expand_blocks(random_params(SMALL), SMALL, every=3).layers == (3,)
    for name in ("output", "down"):
        kernel = grown.params["blocks"][name]["kernel"]
        assert not kernel[np.array([1, 3, 5])].any() and kernel[np.array([0, 2, 4])].all()


WIDER: dict[str, dict[str, Any]] = {
    "hidden": {"hidden": 31},
    "heads": {"kv_heads": 4},
    "width": {"width": 48},
    "all": {"width": 32, "hidden": 44, "kv_heads": 4},
}


def one_by_one() -> Iterator[Any]:
    """Every family grown in all sizes at once, and by default one of them in each size alone."""
    for family in FAMILIES:
        for what in WIDER:
            by_hand = () if what == "all" or family == "llama" else pytest.mark.whole
            yield pytest.param(family, what, marks=by_hand)


@pytest.mark.parametrize(("family", "what"), [*one_by_one()])
def test_widened_it_computes_the_same(family: str, what: str) -> None:
    config, sizes = FAMILIES[family], dict(WIDER[what])
    if family == "gpt2" and "kv_heads" in sizes:
        sizes["kv_heads"] = 6
    params = random_params(config)
    grown = growth.widen(jax.random.key(3), params, config, **sizes)
    for name, size in sizes.items():
        assert getattr(grown.config, name) == size
    fresh = jax.eval_shape(lambda: decoder.init(jax.random.key(0), grown.config))
    assert trees_of(grown.params) == trees_of(fresh)
    before, after = outputs(params, config), outputs(grown.params, grown.config)
    assert float(jnp.max(jnp.abs(before))) > 0.3
    np.testing.assert_allclose(before, after, rtol=1e-5, atol=1e-5)


def trees_of(tree: Any) -> Any:
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


def test_without_noise_a_split_is_even_and_with_it_copies_differ() -> None:
    params = random_params(SMALL)
    old = params["blocks"]["down"]["kernel"]
    even, noisy = (
        growth.widen(jax.random.key(3), params, SMALL, hidden=30, noise=noise)
        .params["blocks"]["down"]["kernel"]
        for noise in (0.0, 0.1)
    )  # fmt: skip
    np.testing.assert_allclose(even[:, 22:], old[:, :8] / 2, rtol=1e-6)
    np.testing.assert_allclose(even[:, :8], old[:, :8] / 2, rtol=1e-6)
    np.testing.assert_array_equal(even[:, 8:22], old[:, 8:])
    np.testing.assert_array_equal(noisy[:, 8:22], old[:, 8:])
    np.testing.assert_allclose(noisy[:, :8] + noisy[:, 22:], old[:, :8], rtol=1e-5, atol=1e-6)
    spread = float(jnp.std(noisy[:, 22:] - even[:, 22:]))
    # of two draws less their mean: the noise over √2
    np.testing.assert_allclose(spread, 0.1 * float(jnp.std(old)) / 2**0.5, rtol=0.15)


def trained(grown: growth.Grown, method: jcl.Method, tx: Any) -> Any:
    program = jcl.make(method, decoder.apply_fn(grown.config), losses.next_token, tx)
    state = program.init(grown.params, BATCH, jax.random.key(0))
    step = jax.jit(program.step)
    for _ in range(3):
        state, aux = step(state, BATCH)
    return state.params, aux


def test_copies_learn_apart() -> None:
    grown = growth.widen(jax.random.key(3), random_params(SMALL), SMALL, hidden=44)
    params, _ = trained(grown, methods.naive(), optax.adam(1e-2))
    up = params["blocks"]["up"]["kernel"]
    assert float(jnp.max(jnp.abs(up[..., :22] - up[..., 22:]))) > 1e-3


def test_only_the_new_blocks_learn_whatever_the_optimizer() -> None:
    grown = growth.expand_blocks(random_params(SMALL), SMALL, every=2)
    params, _ = trained(grown, methods.llama_pro(grown.layers), optax.adamw(1e-2, weight_decay=0.1))
    for path, x in jax.tree_util.tree_leaves_with_path(params):
        name, was = trees.path_name(path), adapters.subtree(grown.params, trees.path_name(path))
        if not name.startswith("blocks/"):
            np.testing.assert_array_equal(x, was, err_msg=name)
            continue
        moved = np.any(np.asarray(x != was), axis=tuple(range(1, x.ndim)))
        np.testing.assert_array_equal(moved, [False, False, True, False], err_msg=name)


@pytest.mark.parametrize("layers, said", [((), "layers is ()"), ((0, 4), "below 4"), ((-1,), "-1")])
def test_blocks_that_are_not_there_are_refused(layers: tuple[int, ...], said: str) -> None:
    grown = growth.expand_blocks(random_params(SMALL), SMALL, every=2)
    with pytest.raises(ValueError, match="layers") as refused:
        trained(grown, methods.llama_pro(layers), optax.sgd(0.1))
    assert said in str(refused.value)


@pytest.mark.quick
def test_what_cannot_grow_is_refused() -> None:
    params, key = random_params(SMALL), jax.random.key(0)
    for sizes in ({"width": 24}, {"hidden": 3}, {"kv_heads": 1}):
        with pytest.raises(ValueError, match=f"{next(iter(sizes))} is .*, but must be"):
            growth.widen(key, params, SMALL, **sizes)
    with pytest.raises(ValueError, match="kv_heads is 3, but must be a multiple of 2"):
        growth.widen(key, params, FAMILIES["olmo"], kv_heads=3)
    with pytest.raises(ValueError, match="every is 4, but must be from 1 to 3"):
        growth.expand_blocks(params, SMALL, every=4)
    pair = {"a": jnp.zeros((3, 16, 2)), "b": jnp.zeros((3, 2, 16))}
    adapted = adapters.with_subtree(params, "blocks/output", {"lora": pair})
    with pytest.raises(ValueError, match=r"adapters is \['blocks/output'\]"):
        growth.expand_blocks(adapted, SMALL, every=1)
    with pytest.raises(ValueError, match="for int8 doesn't grow"):
        growth.widen(key, quantize(params), SMALL, hidden=30)


@pytest.mark.slow
def test_transformers_says_of_the_larger_model_what_it_says_of_the_smaller(tmp_path: Any) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    params = random_params(SMALL)
    wide = growth.widen(jax.random.key(3), params, SMALL, width=32, hidden=30, kv_heads=4)
    deep = growth.expand_blocks(wide.params, wide.config, every=1)
    tokens = torch.as_tensor(np.array(BATCH["tokens"]))
    said = []
    for name, (weights, config) in {"small": (params, SMALL), "large": deep[:2]}.items():
        models.save(models.of(config, weights), weights, tmp_path / name)
        model = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        with torch.no_grad():
            said.append(model(tokens).logits.numpy())
    np.testing.assert_allclose(said[0], said[1], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(said[0], outputs(params, SMALL), rtol=1e-4, atol=1e-4)
