"""Adapters as leaves: which they are, what merging leaves of them, norms that need no sum."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jcl
from jcl import adapters, losses, methods, trees
from jcl.models import decoder, dense

CONFIG = decoder.Config(
    vocabulary=16, layers=2, width=24, heads=3, kv_heads=1, hidden=40, qkv_bias=True
)
BATCH = {"tokens": jnp.arange(12).reshape(2, 6)}
SEEDS = itertools.count()


def normal(*shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(next(SEEDS)), shape)


def pair(fan_in: int, fan_out: int, rank: int = 3, layers: int = 2) -> Any:
    return {"a": normal(layers, fan_in, rank), "b": normal(layers, rank, fan_out)}


def base(dtype: Any = jnp.float32) -> Any:
    params = decoder.init(jax.random.key(1), CONFIG, dtype)
    return jax.tree.map(lambda x: x + 0.1 * normal(*x.shape).astype(dtype), params)


def grown(params: Any) -> Any:
    """With pairs, one of them DoRA's, and gains on both sides of layers with a bias."""
    params = adapters.with_subtree(params, "blocks/query", {"lora": pair(24, 24)})
    magnitude = {"magnitude": jnp.abs(normal(2, 40)) + 0.5}
    params = adapters.with_subtree(params, "blocks/up", {"lora": pair(24, 40) | magnitude})
    params = adapters.with_subtree(
        params, "blocks/value", {"gain": normal(2, 8), "lora": pair(24, 8)}
    )
    return adapters.with_subtree(params, "blocks/down", {"input_gain": normal(2, 40)})


def test_adapters_are_known_by_their_paths() -> None:
    params = grown(base())
    params = adapters.with_subtree(params, "prompt", {"table": normal(3, 24)})
    params = adapters.with_subtree(
        params, "blocks/mlp_adapter", {"up": {"kernel": normal(2, 4, 24)}}
    )
    learning, frozen = trees.partition(params, adapters.is_adapter)
    assert len(jax.tree.leaves(frozen)) == len(jax.tree.leaves(base()))
    names = [trees.path_name(p) for p, _ in jax.tree_util.tree_leaves_with_path(learning)]
    assert names == [
        "blocks/down/input_gain", "blocks/mlp_adapter/up/kernel", "blocks/query/lora/a",
        "blocks/query/lora/b", "blocks/up/lora/a", "blocks/up/lora/b", "blocks/up/lora/magnitude",
        "blocks/value/gain", "blocks/value/lora/a", "blocks/value/lora/b", "prompt/table",
    ]  # fmt: skip
    assert jax.tree.structure(adapters.without_adapters(params)) == jax.tree.structure(base())


@pytest.mark.quick
def test_the_norm_of_a_sum_that_is_never_formed() -> None:
    w, lora = normal(2, 24, 40), pair(24, 40)
    wanted = np.linalg.norm(w + lora["a"] @ lora["b"], axis=-2)
    np.testing.assert_allclose(adapters.column_norm(w, lora), wanted, rtol=1e-5)
    np.testing.assert_allclose(adapters.column_norm(w), np.linalg.norm(w, axis=-2), rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_merged_outputs_are_equal_to_rounding(dtype: Any) -> None:
    params = base(dtype)
    apply = jax.jit(decoder.apply_fn(CONFIG, compute=jnp.float32))
    unscaled = grown(params)
    wanted = apply(adapters.scale_pairs(unscaled, 0.3), BATCH)
    merged = adapters.merge(unscaled, 0.3)
    shapes = [jax.tree.map(lambda x: (x.shape, x.dtype), t) for t in (merged, params)]
    assert shapes[0] == shapes[1]
    tolerance = 1e-5 if dtype == jnp.float32 else 0.02
    largest = float(jnp.abs(wanted).max())
    assert float(jnp.abs(apply(merged, BATCH) - wanted).max()) < tolerance * largest
    assert float(jnp.abs(apply(params, BATCH) - wanted).max()) > 0.2 * largest


@pytest.mark.quick
def test_what_no_kernel_can_hold_is_not_merged() -> None:
    params = adapters.with_subtree(base(), "blocks/prefix", {"key": normal(2, 3, 8)})
    with pytest.raises(ValueError, match=r"blocks/prefix/key.*must be"):
        adapters.merge(params)


@pytest.mark.quick
def test_pairs_are_not_merged_without_their_factor() -> None:
    with pytest.raises(ValueError, match=r"factor is None, but must be that of the low-rank pairs"):
        adapters.merge(grown(base()))
    plain = base()
    jax.tree.map(np.testing.assert_array_equal, adapters.merge(plain), plain)


def test_a_magnitude_equal_to_the_norm_changes_nothing_and_the_norm_has_no_gradient() -> None:
    kernel, x = normal(24, 40), normal(5, 24)
    lora = {"a": normal(24, 3), "b": normal(3, 40)}
    plain = dense({"kernel": kernel, "lora": lora}, x, "")
    held = lora | {"magnitude": adapters.column_norm(kernel, lora)}
    np.testing.assert_allclose(
        dense({"kernel": kernel, "lora": held}, x, ""), plain, rtol=1e-4, atol=1e-4
    )

    def total(b: jax.Array, more: Any) -> jax.Array:
        return jnp.sum(dense({"kernel": kernel, "lora": lora | more | {"b": b}}, x, "") ** 2)

    # d/db of m (W + ab) / n with n constant is m / n times that without: here once
    slopes = [jax.grad(total)(lora["b"], more) for more in ({}, {"magnitude": held["magnitude"]})]
    np.testing.assert_allclose(slopes[1], slopes[0], rtol=1e-3, atol=1e-3)


def deaf(params: Any, batch: Any, call: Any) -> jax.Array:
    """A model of a user's own: it has layers, a scan and sites, and reads no adapter."""

    def layer(h: jax.Array, xs: Any) -> tuple[jax.Array, None]:
        block, index = xs
        for name in ("query", "key", "value", "output"):
            h = call(f"blocks/{name}:in", index, h)
            h = call(f"blocks/{name}:out", index, jnp.tanh(h @ block[name]["kernel"]))
        return h, None

    stack = params["blocks"]
    table = params["embed"]["table"]
    return jax.lax.scan(layer, table[batch["tokens"]], (stack, jnp.arange(2)))[0] @ table.T


deaf.structure = jcl.Structure(stacks={"blocks": 1})  # type: ignore[attr-defined]


@pytest.mark.quick
@pytest.mark.parametrize(
    ("method", "leaf"),
    [
        (methods.lora(rank=2), "blocks/query/lora/a"),
        (methods.moelora(experts=2), "blocks/query/lora/a"),
        (methods.inclora(stages=2), "blocks/query/lora/a"),
        (methods.ia3(inputs=None), "blocks/key/gain"),
        (methods.bottleneck(width=2), "blocks/attention_adapter/down/bias"),
        (methods.prefix_tuning(length=2), "blocks/prefix/key"),
        (methods.prompt_tuning(length=2), "prompt/table"),
        (methods.progressive_prompts(stages=2, length=2), "prompt/table"),
    ],
    ids=lambda x: getattr(x, "name", ""),
)
def test_an_adapter_that_the_model_does_not_read_is_refused(method: jcl.Method, leaf: str) -> None:
    kernel = jnp.ones((2, 6, 6))
    params = {
        "embed": {"table": jnp.ones((9, 6))},
        "blocks": {name: {"kernel": kernel} for name in ("query", "key", "value", "output")},
    }
    program = jcl.make(method, deaf, losses.next_token, optax.sgd(0.1))
    with pytest.raises(ValueError, match=f"doesn't read {leaf}, which {method.name} adds"):
        program.init(params, {"tokens": jnp.ones((2, 4), jnp.int32)}, jax.random.key(0))
