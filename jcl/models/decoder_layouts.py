"""Where the published decoders store the leaves of our tree: the names and views of tensors."""

from __future__ import annotations

import numpy as np

from jcl.models.decoder import Config
from jcl.models.layout import Layout, Source, View, linear, norm, vector


def _rows(start: int, stop: int) -> View:
    """A view of some outputs of a fused linear layer."""
    return lambda stored: stored[start:stop].T


def _columns(start: int, stop: int) -> View:
    """A view of some outputs of a fused layer that is stored [in, out], or of its bias."""
    return lambda stored: stored[..., start:stop]


def _body(c: Config) -> Layout:
    """The layout of norms, attention, embedding and head, by the names of Llama's heirs."""
    assert c.head_width is not None
    q, kv = c.heads * c.head_width, c.kv_heads * c.head_width
    at = "model.layers.{layer}"
    found = {"embed/table": Source("model.embed_tokens.weight", (c.vocabulary, c.width))}
    shapes = {
        "query": ("q_proj", c.width, q),
        "key": ("k_proj", c.width, kv),
        "value": ("v_proj", c.width, kv),
        "output": ("o_proj", q, c.width),
    }
    for ours, (theirs, fan_in, fan_out) in shapes.items():
        found[f"blocks/{ours}/kernel"] = linear(f"{at}.self_attn.{theirs}", fan_in, fan_out)
        if c.output_bias if ours == "output" else c.qkv_bias:
            found[f"blocks/{ours}/bias"] = vector(f"{at}.self_attn.{theirs}.bias", fan_out)
    if c.qk_norm:
        for ours, theirs, size in (("query", "q_norm", q), ("key", "k_norm", kv)):
            size = size if c.qk_norm == "full" else c.head_width
            found[f"blocks/{ours}_norm/scale"] = vector(f"{at}.self_attn.{theirs}.weight", size)
    both = c.pre_norm and c.post_norm
    norms = {"norm": "model.norm"}
    if c.pre_norm:
        norms["blocks/attention_norm"] = f"{at}.input_layernorm"
    if c.pre_norm and not c.shared_norm:
        second = "pre_feedforward_layernorm" if both else "post_attention_layernorm"
        norms["blocks/mlp_norm"] = f"{at}.{second}"
    if c.post_norm:
        norms["blocks/attention_post_norm"] = f"{at}.post_attention_layernorm"
        norms["blocks/mlp_post_norm"] = f"{at}.post_feedforward_layernorm"
    for ours, theirs in norms.items():
        found[f"{ours}/scale"] = vector(f"{theirs}.weight", c.width)
        if c.norm == "layer" and c.norm_bias:
            found[f"{ours}/bias"] = vector(f"{theirs}.bias", c.width)
    if not c.tied:
        found["head/kernel"] = linear("lm_head", c.width, c.vocabulary)
    return found


def _mlp(c: Config) -> Layout:
    found = {}
    for name in ("gate", "up", "down"):
        sizes = (c.hidden, c.width) if name == "down" else (c.width, c.hidden)
        at = f"model.layers.{{layer}}.mlp.{name}_proj"
        found[f"blocks/{name}/kernel"] = linear(at, *sizes)
        if c.mlp_bias:
            found[f"blocks/{name}/bias"] = vector(f"{at}.bias", sizes[1])
    return found


def llama_layout(c: Config) -> Layout:
    """Llama's layout, which most have."""
    return _body(c) | _mlp(c)


def cohere_layout(c: Config) -> Layout:
    """Cohere's layout, whose queries and keys turn neighbours where we turn halves."""
    assert c.head_width is not None
    found, half = llama_layout(c), c.head_width // 2
    for name, count in (("query", c.heads), ("key", c.kv_heads)):

        def kernel(stored: np.ndarray, count: int = count) -> np.ndarray:
            return stored.reshape(count, half, 2, -1).transpose(3, 0, 2, 1)

        def bias(stored: np.ndarray, count: int = count) -> np.ndarray:
            return stored.reshape(count, half, 2).transpose(0, 2, 1)

        for leaf, view in (("kernel", kernel), ("bias", bias)):
            path = f"blocks/{name}/{leaf}"
            if path in found:
                found[path] = found[path]._replace(view=view)
    return found


def _experts(c: Config, at: str, names: dict[str, str]) -> Layout:
    found = {"blocks/router/kernel": linear(f"{at}.gate", c.width, c.experts)}
    for ours, theirs in names.items():
        sizes = (c.hidden, c.width) if ours == "down" else (c.width, c.hidden)
        source = linear(f"{at}.experts.{{expert}}.{theirs}", *sizes)
        found[f"blocks/experts/{ours}/kernel"] = source
    return found


def mixtral_layout(c: Config) -> Layout:
    """Mixtral's layout of experts."""
    names = {"gate": "w1", "down": "w2", "up": "w3"}
    return _body(c) | _experts(c, "model.layers.{layer}.block_sparse_moe", names)


def moe_layout(c: Config) -> Layout:
    """The layout of OLMoE's and Qwen's experts."""
    names = {"gate": "gate_proj", "down": "down_proj", "up": "up_proj"}
    return _body(c) | _experts(c, "model.layers.{layer}.mlp", names)


def phi3_layout(c: Config) -> Layout:
    """Phi-3's layout, in which query, key and value are one stored tensor, gate and up another."""
    assert c.head_width is not None
    found = llama_layout(c)
    q, kv = c.heads * c.head_width, c.kv_heads * c.head_width
    edges = {"query": (0, q), "key": (q, q + kv), "value": (q + kv, q + 2 * kv)}
    for ours, edge in edges.items():
        found[f"blocks/{ours}/kernel"] = Source(
            "model.layers.{layer}.self_attn.qkv_proj.weight", (q + 2 * kv, c.width), _rows(*edge)
        )
    for ours, edge in {"gate": (0, c.hidden), "up": (c.hidden, 2 * c.hidden)}.items():
        found[f"blocks/{ours}/kernel"] = Source(
            "model.layers.{layer}.mlp.gate_up_proj.weight", (2 * c.hidden, c.width), _rows(*edge)
        )
    return found


def gpt2_layout(c: Config) -> Layout:
    """GPT-2's layout: linear layers are stored [in, out], query, key and value side by side."""
    at = "transformer.h.{layer}"
    found = {
        "embed/table": Source("transformer.wte.weight", (c.vocabulary, c.width)),
        "positions/table": Source("transformer.wpe.weight", (c.context, c.width)),
    }
    for ours, theirs in (("attention_norm", "ln_1"), ("mlp_norm", "ln_2")):
        found |= norm(f"blocks/{ours}", f"{at}.{theirs}", c.width)
    found |= norm("norm", "transformer.ln_f", c.width)
    for i, ours in enumerate(("query", "key", "value")):
        fused, part = f"{at}.attn.c_attn", _columns(i * c.width, (i + 1) * c.width)
        shape = (c.width, 3 * c.width)
        found[f"blocks/{ours}/kernel"] = Source(f"{fused}.weight", shape, part)
        found[f"blocks/{ours}/bias"] = Source(f"{fused}.bias", shape[1:], part)
    for ours, theirs, fan_in, fan_out in (
        ("output", "attn.c_proj", c.width, c.width),
        ("up", "mlp.c_fc", c.width, c.hidden),
        ("down", "mlp.c_proj", c.hidden, c.width),
    ):
        found[f"blocks/{ours}/kernel"] = Source(f"{at}.{theirs}.weight", (fan_in, fan_out))
        found[f"blocks/{ours}/bias"] = vector(f"{at}.{theirs}.bias", fan_out)
    if not c.tied:
        found["head/kernel"] = linear("lm_head", c.width, c.vocabulary)
    return found


def neox_layout(c: Config) -> Layout:
    """NeoX's layout, in which query, key and value are stored head by head."""
    assert c.head_width is not None
    at, width = "gpt_neox.layers.{layer}", c.head_width
    found = {
        "embed/table": Source("gpt_neox.embed_in.weight", (c.vocabulary, c.width)),
    }
    found |= norm("norm", "gpt_neox.final_layer_norm", c.width)
    if not c.tied:
        found["head/kernel"] = linear("embed_out", c.width, c.vocabulary)
    for ours, theirs in (
        ("attention_norm", "input_layernorm"),
        ("mlp_norm", "post_attention_layernorm"),
    ):
        found |= norm(f"blocks/{ours}", f"{at}.{theirs}", c.width)
    for i, ours in enumerate(("query", "key", "value")):

        def kernel(a: np.ndarray, i: int = i) -> np.ndarray:
            return a.reshape(c.heads, 3, width, -1)[:, i].transpose(2, 0, 1)

        def bias(a: np.ndarray, i: int = i) -> np.ndarray:
            return a.reshape(c.heads, 3, width)[:, i]

        fused = f"{at}.attention.query_key_value"
        size = 3 * c.width
        found[f"blocks/{ours}/kernel"] = Source(f"{fused}.weight", (size, c.width), kernel)
        if c.qkv_bias:
            found[f"blocks/{ours}/bias"] = Source(f"{fused}.bias", (size,), bias)
    for ours, theirs, fan_in, fan_out in (
        ("output", "attention.dense", c.width, c.width),
        ("up", "mlp.dense_h_to_4h", c.width, c.hidden),
        ("down", "mlp.dense_4h_to_h", c.hidden, c.width),
    ):
        found[f"blocks/{ours}/kernel"] = linear(f"{at}.{theirs}", fan_in, fan_out)
        if ours != "output" or c.output_bias:
            found[f"blocks/{ours}/bias"] = vector(f"{at}.{theirs}.bias", fan_out)
    return found
