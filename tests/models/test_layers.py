"""Layers against torch's and numpy's, whatever their dict holds beside the kernel."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp, softmax

from jcl.models import layers

pytestmark = pytest.mark.quick

DRAW = np.random.default_rng(0)
IN, OUT, RANK = 7, 5, 6
X = DRAW.normal(size=(2, 3, IN)).astype(np.float32)


def draw(*shape: int) -> np.ndarray:
    return DRAW.normal(size=shape).astype(np.float32)


def as_jax(tree: Any) -> Any:
    return jax.tree.map(jnp.asarray, tree)


KERNEL, BIAS = draw(IN, OUT), draw(OUT)
LORA = {"a": draw(IN, RANK), "b": draw(RANK, OUT)}


@pytest.mark.parametrize("extra", ["", "bias", "gain", "input_gain", "lora", "dora", "router"])
def test_dense_is_the_product_with_what_stands_beside_the_kernel(extra: str) -> None:
    params: dict[str, Any] = {"kernel": KERNEL}
    wanted = X @ KERNEL
    if extra == "bias":
        params["bias"], wanted = BIAS, wanted + BIAS
    elif extra == "gain":  # of the output, bias included
        params |= {"bias": BIAS, "gain": draw(OUT)}
        wanted = (wanted + BIAS) * params["gain"]
    elif extra == "input_gain":
        params["input_gain"] = draw(IN)
        wanted = (X * params["input_gain"]) @ KERNEL
    elif extra == "lora":
        params["lora"] = LORA
        wanted = X @ (KERNEL + LORA["a"] @ LORA["b"])
    elif extra == "dora":  # columns as long as the magnitude says
        params["lora"] = {**LORA, "magnitude": draw(OUT)}
        whole = KERNEL + LORA["a"] @ LORA["b"]
        wanted = X @ (whole / np.linalg.norm(whole, axis=0) * params["lora"]["magnitude"])
    elif extra == "router":  # three experts of rank 2, each with its share
        params["lora"] = {**LORA, "router": draw(IN, 3)}
        shares = softmax(X @ params["lora"]["router"], -1)
        for e in range(3):
            part = slice(2 * e, 2 * e + 2)
            wanted = wanted + shares[..., e : e + 1] * (X @ LORA["a"][:, part] @ LORA["b"][part])
    found = layers.dense(as_jax(params), jnp.asarray(X), "here")
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_dense_is_tapped_on_both_sides() -> None:
    seen: list[Any] = []

    def tap(site: str, layer: Any, h: jax.Array) -> jax.Array:
        seen.append((site, layer, h.shape))
        return 2 * h

    found = layers.dense({"kernel": jnp.asarray(KERNEL)}, jnp.asarray(X), "up", tap, 4)
    assert seen == [("up:in", 4, (2, 3, IN)), ("up:out", 4, (2, 3, OUT))]
    np.testing.assert_allclose(found, 4 * X @ KERNEL, rtol=1e-5, atol=1e-5)


def test_a_magnitude_learns_while_the_norm_is_a_constant() -> None:
    """∂y/∂A as if the columns' lengths were numbers: arXiv 2402.09353, section 4.3."""
    lora = as_jax({**LORA, "magnitude": np.linalg.norm(KERNEL + LORA["a"] @ LORA["b"], axis=0)})

    def total(a: jax.Array, lora: Any) -> jax.Array:
        params = {"kernel": jnp.asarray(KERNEL), "lora": {**lora, "a": a}}
        return jnp.sum(layers.dense(params, jnp.asarray(X), ""))

    plain = {name: lora[name] for name in ("a", "b")}
    grads = [jax.grad(total)(each["a"], each) for each in (lora, plain)]
    np.testing.assert_allclose(*grads, rtol=1e-4, atol=1e-4)


def test_a_product_is_in_the_dtype_of_the_input() -> None:
    half = layers.product(jnp.asarray(X[0], jnp.bfloat16), jnp.asarray(KERNEL))
    assert half.dtype == jnp.bfloat16
    stored = {"int8": jnp.asarray(np.round(40 * KERNEL), jnp.int8), "scale": jnp.full(OUT, 0.025)}
    np.testing.assert_allclose(
        layers.product(jnp.asarray(X[0]), stored), X[0] @ (np.round(40 * KERNEL) / 40), atol=1e-5
    )


def test_initial_weights_are_uniform_as_torch_s() -> None:
    params = layers.init_dense(jax.random.key(0), 37, 4001)
    limit = 1 / np.sqrt(37)
    for leaf, shape in (("kernel", (37, 4001)), ("bias", (4001,))):
        x = np.asarray(params[leaf])
        assert x.shape == shape and np.abs(x).max() <= limit
        # of a uniform distribution the variance is a third of the limit's square
        np.testing.assert_allclose(x.var(), limit**2 / 3, rtol=0.05)
        assert abs(x.mean()) < 0.05 * limit
    assert set(layers.init_dense(jax.random.key(0), 3, 2, bias=False)) == {"kernel"}


@pytest.mark.parametrize("name", layers.ACTIVATIONS)
def test_activations_are_torch_s_and_transformers(name: str) -> None:
    torch = pytest.importorskip("torch")
    from transformers.activations import ACT2FN

    names = {"gelu_tanh": "gelu_pytorch_tanh"}
    x = np.linspace(-6, 6, 41).astype(np.float32)
    wanted = ACT2FN[names.get(name, name)](torch.tensor(x))
    np.testing.assert_allclose(layers.ACTIVATIONS[name](x), wanted, atol=2e-6)


def test_norms_are_torch_s_and_keep_the_dtype() -> None:
    torch = pytest.importorskip("torch")
    scale, bias = draw(IN), draw(IN)
    x = 3 + 5 * X
    given = [torch.tensor(a) for a in (x, scale, bias)]
    wanted = torch.nn.functional.layer_norm(given[0], (IN,), given[1], given[2], eps=0.01)
    found = layers.layer_norm(as_jax({"scale": scale, "bias": bias}), jnp.asarray(x), 0.01)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    wanted = torch.nn.functional.rms_norm(given[0], (IN,), given[1], eps=0.01)
    for offset in (0.0, 1.0):  # Gemma stores its scales less 1
        params = as_jax({"scale": scale - np.float32(offset)})
        found = layers.rms_norm(params, jnp.asarray(x), 0.01, offset)
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    half = layers.rms_norm(as_jax({"scale": scale}), jnp.asarray(x, jnp.bfloat16), 0.01)
    assert half.dtype == jnp.bfloat16


def test_a_bottleneck_adds_to_what_goes_past_it() -> None:
    down, up = {"kernel": draw(IN, 3), "bias": draw(3)}, {"kernel": draw(3, IN), "bias": draw(IN)}
    wanted = X + np.maximum(X @ down["kernel"] + down["bias"], 0) @ up["kernel"] + up["bias"]
    block = as_jax({"mlp_adapter": {"down": down, "up": up}})
    found = layers.after_sublayer(block, "mlp", jnp.asarray(X))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(layers.after_sublayer(block, "attention", jnp.asarray(X)), X)


def test_a_lookup_takes_rows() -> None:
    table, tokens = draw(9, 4), np.array([[0, 8, 3], [3, 3, 1]])
    found = layers.lookup(jnp.asarray(table), jnp.asarray(tokens), jnp.bfloat16)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found.astype(jnp.float32), jnp.asarray(
        table[tokens], jnp.bfloat16).astype(jnp.float32))  # fmt: skip


@pytest.mark.parametrize("limit", [2 * 11, 2 * 11 * 3, 10_000])  # 7, 3 and 1 pieces
def test_scores_of_tokens_are_scipy_s_in_however_many_pieces(limit: int) -> None:
    h, kernel = draw(2, 7, 4), draw(4, 11)
    targets = DRAW.integers(0, 11, (2, 7))
    logits = h @ kernel
    found = layers.token_scores(
        lambda head, h: h @ head["kernel"],
        {"kernel": jnp.asarray(kernel)}, jnp.asarray(h), {"targets": jnp.asarray(targets)}, limit,
    )  # fmt: skip
    chosen = np.take_along_axis(logits, targets[..., None], -1)[..., 0]
    np.testing.assert_allclose(found.chosen, chosen, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.logsumexp, logsumexp(logits, -1), rtol=1e-5)
    np.testing.assert_allclose(found.mean, logits.mean(-1), rtol=1e-4, atol=1e-5)


def test_what_is_computed_again_changes_no_gradient() -> None:
    def total(remat: Any) -> jax.Array:
        def body(h: jax.Array, kernel: jax.Array) -> Any:
            return jnp.tanh(h @ kernel), None

        def value(kernels: jax.Array) -> jax.Array:
            wrapped = layers.rematerialise(remat)(body)
            return jnp.sum(jax.lax.scan(wrapped, jnp.ones((2, 3)), kernels)[0])

        return jax.grad(value)(jnp.asarray(KERNEL[:6, :3].reshape(2, 3, 3)))

    plain = total("none")
    for remat in ("block", "dots"):
        np.testing.assert_allclose(total(remat), plain, rtol=1e-6)
    with pytest.raises(ValueError, match="remat is 'all', but must be 'none', 'block' or 'dots'"):
        layers.rematerialise("all")
