"""The published decoders: the meaning of their `config.json`, and the names of their tensors.

Encoders and T5 are in `encoder_families`, vision towers in `vision_families`.
"""

from __future__ import annotations

from typing import Any

from jcl.method import check
from jcl.models.decoder import Config
from jcl.models.decoder_layouts import (
    cohere_layout,
    gpt2_layout,
    llama_layout,
    mixtral_layout,
    moe_layout,
    neox_layout,
    phi3_layout,
)
from jcl.models.layout import Family, activation_name
from jcl.models.rope import Rope


def _rope(given: Any, parameters: dict[str, Any], head: int, partial: bool = False) -> Rope:
    """Rotary positions from transformers' `rope_parameters`, of a part of the head if `partial`."""
    kind = parameters.get("rope_type", "default")
    context = given.max_position_embeddings
    original = parameters.get("original_max_position_embeddings") or context
    share = parameters.get("partial_rotary_factor") or 1.0
    name = "partial_rotary_factor in rope_parameters"
    check(partial or share == 1, name, share, f"1 for {given.model_type}")
    options = {
        k: tuple(v) if isinstance(v, list) else v
        for k, v in parameters.items()
        if k not in ("rope_type", "rope_theta", "factor", "original_max_position_embeddings")
    }
    return Rope(
        theta=float(parameters["rope_theta"]),
        width=int(head * share),
        kind=kind,
        factor=float(parameters.get("factor") or context / original),
        original=context if kind == "dynamic" else original,
        options=tuple(sorted(options.items())),
    )


def _ropes(given: Any) -> dict[str, Any]:
    """The arguments `rope` and `local_rope` where layers with a window turn otherwise."""
    both, head = given.rope_parameters, _head(given)
    kinds = {"rope": "full_attention", "local_rope": "sliding_attention"}
    return {ours: _rope(given, both[theirs], head) for ours, theirs in kinds.items()}


def _local(given: Any) -> tuple[bool, ...] | None:
    """Which layers have a window; None where the configuration doesn't tell layers apart."""
    kinds = getattr(given, "layer_types", None)
    known = ("full_attention", "sliding_attention")
    check(set(kinds or ()) <= set(known), "layer_types", kinds, f"of {list(known)}")
    return None if kinds is None else tuple(k == "sliding_attention" for k in kinds)


def _windows(given: Any) -> dict[str, Any]:
    """The arguments `window` and `local`, without those that aren't needed."""
    window, local = getattr(given, "sliding_window", None), _local(given)
    if window is None or (local is not None and not any(local)):
        return {}
    return {"window": window, "local": None if local is None or all(local) else local}


def _head(given: Any) -> int:
    """The width of a head, which may be given."""
    return getattr(given, "head_dim", None) or _share(given)


def _share(given: Any) -> int:
    """A head's share of the width."""
    heads = given.num_attention_heads
    check(heads >= 1, "num_attention_heads", heads, "at least 1")
    return given.hidden_size // heads


def _common(given: Any, **more: Any) -> Config:
    """Our configuration from the names that most configurations share."""
    head = more.get("head_width") or _head(given)
    if "rope" not in more:
        more["rope"] = _rope(given, given.rope_parameters, head)
    activation = getattr(given, "hidden_act", None) or given.hidden_activation
    eps = getattr(given, "rms_norm_eps", None)
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
        "eps": given.layer_norm_eps if eps is None else eps,
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


def _phi3(given: Any) -> Config:
    return _llama(given, rope=_rope(given, given.rope_parameters, _head(given), partial=True))


def _smollm3(given: Any) -> Config:
    turned = tuple(bool(turns) for turns in given.no_rope_layers[: given.num_hidden_layers])
    return _llama(given, turned=None if all(turned) else turned)


def _granite(given: Any) -> Config:
    return _llama(
        given,
        embed_scale=given.embedding_multiplier,
        query_scale=given.attention_multiplier,
        residual_scale=given.residual_multiplier,
        logit_scale=1 / given.logits_scaling,
    )


def _cohere2(given: Any) -> Config:
    """Cohere 2: layers that see all don't turn, and both sublayers read one normed stream."""
    local, turns = _local(given), "rope_gptj"
    said = getattr(given, "position_embedding_type", turns)  # in the files of 4.x
    check(said == turns, "position_embedding_type", said, repr(turns))
    return _llama(
        given,
        norm="layer",
        norm_bias=False,
        parallel=True,
        shared_norm=True,
        turned=None if local is None or all(local) else local,
        logit_scale=given.logit_scale,
    )


def _stablelm(given: Any) -> Config:
    parallel = given.use_parallel_residual
    return _llama(
        given,
        norm="layer",
        parallel=parallel,
        shared_norm=parallel,
        qkv_bias=given.use_qkv_bias,
        head_width=_share(given),
        rope=_rope(given, given.rope_parameters, _share(given), partial=True),
    )


def _olmo2(given: Any, **more: Any) -> Config:
    return _llama(given, qk_norm="full", pre_norm=False, post_norm=True, **more)


def _olmo3(given: Any) -> Config:
    return _olmo2(given, **_ropes(given))


def _gemma(given: Any, **more: Any) -> Config:
    return _llama(given, norm_offset=1.0, embed_scale=given.hidden_size**0.5, **more)


def _gemma2(given: Any) -> Config:
    return _gemma_with_caps(given, attention_cap=given.attn_logit_softcapping)


def _gemma_with_caps(given: Any, **more: Any) -> Config:
    return _gemma(
        given,
        post_norm=True,
        query_scale=given.query_pre_attn_scalar**-0.5,
        logit_cap=given.final_logit_softcapping,
        **more,
    )


def _gemma3(given: Any) -> Config:
    causal = not given.use_bidirectional_attention
    return _gemma_with_caps(given, qk_norm="head", causal=causal, **_ropes(given))


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
    """OLMoE; of transformers' kernels only flash attention would look through a window."""
    window = getattr(given, "sliding_window", None)
    check(window is None, "sliding_window", window, f"None for {given.model_type}")
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
        query_scale=None if given.scale_attn_weights else 1.0,
        depth_scaled=given.scale_attn_by_inverse_layer_idx,
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
        head_width=_share(given),
        rope=_rope(given, given.rope_parameters, _share(given), partial=True),
        norm="layer",
        gated=False,
        kv_heads=given.num_attention_heads,
        parallel=given.use_parallel_residual,
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=True,
    )


_VISION = r"(model\.)?(vision_tower|multi_modal_projector)\..*"
"""What stands beside Gemma 3's text part."""
DECODERS = {
    "llama": Family(_llama, llama_layout, "model."),
    "mistral": Family(_llama, llama_layout, "model."),
    "smollm3": Family(_smollm3, llama_layout, "model."),
    "granite": Family(_granite, llama_layout, "model."),
    "stablelm": Family(_stablelm, llama_layout, "model."),
    "qwen2": Family(_qwen2, llama_layout, "model."),
    "qwen3": Family(_qwen3, llama_layout, "model."),
    "gemma": Family(_gemma, llama_layout, "model."),
    "gemma2": Family(_gemma2, llama_layout, "model."),
    "gemma3_text": Family(_gemma3, llama_layout, "model.", unread=_VISION),
    "cohere2": Family(_cohere2, cohere_layout, "model."),
    "olmo2": Family(_olmo2, llama_layout, "model."),
    "olmo3": Family(_olmo3, llama_layout, "model."),
    "phi3": Family(_phi3, phi3_layout, "model."),
    "gpt2": Family(_gpt2, gpt2_layout, "transformer."),
    "gpt_neox": Family(_neox, neox_layout, "gpt_neox."),
    "mixtral": Family(_mixture, mixtral_layout, "model."),
    "olmoe": Family(_olmoe, moe_layout, "model.", also=frozenset({"sliding_window"})),
    "qwen3_moe": Family(_qwen3_moe, moe_layout, "model."),
}
"""Families of decoders by `model_type`; SmolLM2 is a `llama`, Pythia a `gpt_neox`."""
