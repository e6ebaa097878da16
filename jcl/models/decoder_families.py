"""The published decoders: the meaning of their `config.json`, and the names of their tensors.

Encoders and T5 are in `encoder_families`, vision towers in `vision_families`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jcl.models.decoder import Config
from jcl.models.layout import Family, Layout, Source, View, activation_name, linear, norm, vector
from jcl.models.rope import Rope


def _rows(start: int, stop: int) -> View:
    """A view of some outputs of a fused linear layer."""
    return lambda stored: stored[start:stop].T


def _columns(start: int, stop: int) -> View:
    """A view of some outputs of a fused layer that is stored [in, out], or of its bias."""
    return lambda stored: stored[..., start:stop]


def _rope(given: Any, parameters: dict[str, Any], head: int) -> Rope:
    """Rotary positions from transformers' `rope_parameters`."""
    kind = parameters.get("rope_type", "default")
    context = given.max_position_embeddings
    original = parameters.get("original_max_position_embeddings") or context
    options = {
        k: tuple(v) if isinstance(v, list) else v
        for k, v in parameters.items()
        if k not in ("rope_type", "rope_theta", "factor", "original_max_position_embeddings")
    }
    return Rope(
        theta=float(parameters["rope_theta"]),
        width=int(head * (parameters.get("partial_rotary_factor") or 1.0)),
        kind=kind,
        factor=float(parameters.get("factor") or context / original),
        original=context if kind == "dynamic" else original,
        options=tuple(sorted(options.items())),
    )


def _windows(given: Any) -> dict[str, Any]:
    """The arguments `window` and `local`, without those that aren't needed."""
    window = getattr(given, "sliding_window", None)
    kinds = getattr(given, "layer_types", None)
    local = None if kinds is None else tuple(k == "sliding_attention" for k in kinds)
    if window is None or (local is not None and not any(local)):
        return {}
    return {"window": window, "local": None if local is None or all(local) else local}


def _common(given: Any, **more: Any) -> Config:
    """Our configuration from the names that most configurations share."""
    head = getattr(given, "head_dim", None) or given.hidden_size // given.num_attention_heads
    if "rope" not in more:
        more["rope"] = _rope(given, given.rope_parameters, head)
    activation = getattr(given, "hidden_act", None) or given.hidden_activation
    values = {
        "vocabulary": given.vocab_size,
        "layers": given.num_hidden_layers,
        "width": given.hidden_size,
        "heads": given.num_attention_heads,
        "kv_heads": getattr(given, "num_key_value_heads", None) or given.num_attention_heads,
        "head_width": head,
        "hidden": given.intermediate_size,
        "activation": activation_name(activation),
        "context": given.max_position_embeddings,
        "tied": given.tie_word_embeddings,
        "eps": getattr(given, "rms_norm_eps", None) or getattr(given, "layer_norm_eps", 1e-5),
    }
    return Config(**values | more)


def _llama(given: Any, **more: Any) -> Config:
    bias = bool(getattr(given, "attention_bias", False))
    mlp_bias = bool(getattr(given, "mlp_bias", False))
    values = {"qkv_bias": bias, "output_bias": bias, "mlp_bias": mlp_bias}
    return _common(given, **values | _windows(given) | more)


def _qwen2(given: Any) -> Config:
    return _llama(given, qkv_bias=True)


def _qwen3(given: Any) -> Config:
    return _llama(given, qk_norm="head")


def _olmo2(given: Any) -> Config:
    return _llama(given, qk_norm="full", pre_norm=False, post_norm=True)


def _gemma(given: Any, **more: Any) -> Config:
    return _llama(
        given,
        norm_offset=1.0,
        post_norm=True,
        query_scale=given.query_pre_attn_scalar**-0.5,
        attention_cap=given.attn_logit_softcapping,
        logit_cap=given.final_logit_softcapping,
        embed_scale=given.hidden_size**0.5,
        **more,
    )


def _gemma3(given: Any) -> Config:
    ropes = given.rope_parameters
    return _gemma(
        given,
        qk_norm="head",
        rope=_rope(given, ropes["full_attention"], given.head_dim),
        local_rope=_rope(given, ropes["sliding_attention"], given.head_dim),
    )


def _mixture(given: Any, **more: Any) -> Config:
    experts = getattr(given, "num_local_experts", None) or given.num_experts
    hidden = getattr(given, "moe_intermediate_size", None) or given.intermediate_size
    values = {
        "experts": experts,
        "chosen_experts": given.num_experts_per_tok,
        "renormalise": getattr(given, "norm_topk_prob", True),
        "hidden": hidden,
        "clip_qkv": getattr(given, "clip_qkv", None),
    }
    return _llama(given, **values | more)


def _qwen3_moe(given: Any) -> Config:
    if given.decoder_sparse_step != 1 or given.mlp_only_layers:
        raise ValueError(
            f"mlp_only_layers is {given.mlp_only_layers} and decoder_sparse_step "
            f"{given.decoder_sparse_step}, but must be [] and 1: every layer a mixture"
        )
    return _mixture(given, qk_norm="head")


def _olmoe(given: Any) -> Config:
    return _mixture(given, qk_norm="full")


def _gpt2(given: Any) -> Config:
    return Config(
        vocabulary=given.vocab_size,
        layers=given.n_layer,
        width=given.n_embd,
        heads=given.n_head,
        kv_heads=given.n_head,
        hidden=given.n_inner or 4 * given.n_embd,
        norm="layer",
        eps=given.layer_norm_epsilon,
        activation=activation_name(given.activation_function),
        gated=False,
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
        rope=None,
        context=given.n_positions,
        tied=given.tie_word_embeddings,
    )


def _neox(given: Any) -> Config:
    bias = given.attention_bias
    return _common(
        given,
        norm="layer",
        gated=False,
        kv_heads=given.num_attention_heads,
        parallel=given.use_parallel_residual,
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=True,
    )


def _body(c: Config) -> Layout:
    """The layout of norms, attention, embedding and head, by the names of Llama's heirs."""
    assert c.head_width is not None
    q, kv = c.heads * c.head_width, c.kv_heads * c.head_width
    at = "model.layers.{layer}"
    found = {
        "embed/table": Source("model.embed_tokens.weight", (c.vocabulary, c.width)),
        "norm/scale": vector("model.norm.weight", c.width),
    }
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
    norms = {}
    if c.pre_norm:
        norms["attention_norm"] = "input_layernorm"
        norms["mlp_norm"] = "pre_feedforward_layernorm" if both else "post_attention_layernorm"
    if c.post_norm:
        norms["attention_post_norm"] = "post_attention_layernorm"
        norms["mlp_post_norm"] = "post_feedforward_layernorm"
    for ours, theirs in norms.items():
        found[f"blocks/{ours}/scale"] = vector(f"{at}.{theirs}.weight", c.width)
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


def _llama_layout(c: Config) -> Layout:
    return _body(c) | _mlp(c)


def _experts(c: Config, at: str, names: dict[str, str]) -> Layout:
    found = {"blocks/router/kernel": linear(f"{at}.gate", c.width, c.experts)}
    for ours, theirs in names.items():
        sizes = (c.hidden, c.width) if ours == "down" else (c.width, c.hidden)
        source = linear(f"{at}.experts.{{expert}}.{theirs}", *sizes)
        found[f"blocks/experts/{ours}/kernel"] = source
    return found


def _mixtral_layout(c: Config) -> Layout:
    names = {"gate": "w1", "down": "w2", "up": "w3"}
    return _body(c) | _experts(c, "model.layers.{layer}.block_sparse_moe", names)


def _moe_layout(c: Config) -> Layout:
    names = {"gate": "gate_proj", "down": "down_proj", "up": "up_proj"}
    return _body(c) | _experts(c, "model.layers.{layer}.mlp", names)


def _phi3_layout(c: Config) -> Layout:
    """Phi-3's layout, in which query, key and value are one stored tensor, gate and up another."""
    assert c.head_width is not None
    found = _llama_layout(c)
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


def _gpt2_layout(c: Config) -> Layout:
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


def _neox_layout(c: Config) -> Layout:
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


DECODERS = {
    "llama": Family(_llama, _llama_layout, "model."),
    "mistral": Family(_llama, _llama_layout, "model."),
    "qwen2": Family(_qwen2, _llama_layout, "model."),
    "qwen3": Family(_qwen3, _llama_layout, "model."),
    "gemma2": Family(_gemma, _llama_layout, "model."),
    "gemma3_text": Family(_gemma3, _llama_layout, "model."),
    "olmo2": Family(_olmo2, _llama_layout, "model."),
    "phi3": Family(_llama, _phi3_layout, "model."),
    "gpt2": Family(_gpt2, _gpt2_layout, "transformer."),
    "gpt_neox": Family(_neox, _neox_layout, "gpt_neox."),
    "mixtral": Family(_mixture, _mixtral_layout, "model."),
    "olmoe": Family(_olmoe, _moe_layout, "model."),
    "qwen3_moe": Family(_qwen3_moe, _moe_layout, "model."),
}
"""Families of decoders by `model_type`; SmolLM2 is a `llama`, Pythia a `gpt_neox`."""
