"""The published vision towers: the meaning of their `config.json`, the names of their tensors.

Whether SigLIP's pooling is there is told by the names of its tensors; see `layout`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from jcl.models import vision
from jcl.models.layout import (
    Family,
    Layout,
    Source,
    View,
    activation_name,
    block,
    dense,
    norm,
    vector,
)

_PREFIX = "vision_model."
_TEXT = r"text_model\..*|(text|visual)_projection\..*|logit_(scale|bias)"
"""The text tower beside, and what brings both to one space."""


def _tower(given: Any, **more: Any) -> vision.Config:
    return vision.Config(
        image=given.image_size,
        channels=given.num_channels,
        patch=given.patch_size,
        layers=given.num_hidden_layers,
        width=given.hidden_size,
        heads=given.num_attention_heads,
        hidden=given.intermediate_size,
        eps=given.layer_norm_eps,
        activation=activation_name(given.hidden_act),
        **more,
    )


def _clip(given: Any) -> vision.Config:
    return _tower(given, class_token=True, embed_norm=True, patch_bias=False, norm_features=False)


def _siglip(given: Any) -> vision.Config:
    return _tower(given)


def _probe(config: vision.Config, given: Any, names: frozenset[str]) -> vision.Config:
    there = not names.isdisjoint({f"{_PREFIX}head.probe", "head.probe"})
    return replace(config, probe=given.vision_use_head and there)


def _pixels(stored: np.ndarray) -> np.ndarray:
    """torch.nn.Conv2d's weight [out, channels, row, column] as [row, column, channels, out]."""
    return stored.transpose(2, 3, 1, 0)


def _third(which: int, width: int, transposed: bool) -> View:
    """A view of query, key or value, which torch.nn.MultiheadAttention stores as one tensor."""
    rows = slice(which * width, (which + 1) * width)
    return lambda stored: stored[rows].T if transposed else stored[rows]


def _layout(c: vision.Config) -> Layout:
    start, at = f"{_PREFIX}embeddings", f"{_PREFIX}encoder.layers.{{layer}}"
    shape = (c.width, c.channels, c.patch, c.patch)
    found = {
        "patches/kernel": Source(f"{start}.patch_embedding.weight", shape, _pixels),
        "positions/table": Source(
            f"{start}.position_embedding.weight", (c.patches + c.class_token, c.width)
        ),
    }
    if c.patch_bias:
        found["patches/bias"] = vector(f"{start}.patch_embedding.bias", c.width)
    if c.class_token:
        found["class_token/table"] = vector(f"{start}.class_embedding", c.width)
    if c.embed_norm:  # transformers' spelling
        found |= norm("embed_norm", f"{_PREFIX}pre_layrnorm", c.width)
    parts = {
        "query": "self_attn.q_proj",
        "key": "self_attn.k_proj",
        "value": "self_attn.v_proj",
        "output": "self_attn.out_proj",
        "up": "mlp.fc1",
        "down": "mlp.fc2",
        "attention_norm": "layer_norm1",
        "mlp_norm": "layer_norm2",
    }
    found |= block(at, c.width, c.hidden, parts)
    found |= norm("norm", f"{_PREFIX}post_layernorm", c.width)
    return found | (_pool(c) if c.probe else {})


def _pool(c: vision.Config) -> Layout:
    at = f"{_PREFIX}head"
    found = {"pool/probe/table": Source(f"{at}.probe", (1, 1, c.width))}
    for which, name in enumerate(("query", "key", "value")):
        inside = f"{at}.attention.in_proj"
        kernel, bias = (_third(which, c.width, t) for t in (True, False))
        found[f"pool/{name}/kernel"] = Source(f"{inside}_weight", (3 * c.width, c.width), kernel)
        found[f"pool/{name}/bias"] = Source(f"{inside}_bias", (3 * c.width,), bias)
    found |= dense("pool/output", f"{at}.attention.out_proj", c.width, c.width)
    found |= norm("pool/norm", f"{at}.layernorm", c.width)
    found |= dense("pool/up", f"{at}.mlp.fc1", c.width, c.hidden)
    return found | dense("pool/down", f"{at}.mlp.fc2", c.hidden, c.width)


TOWERS = {
    "clip_vision_model": Family(
        _clip, _layout, _PREFIX, init=vision.init, apply_fn=vision.apply_fn, unread=_TEXT
    ),
    "siglip_vision_model": Family(
        _siglip, _layout, _PREFIX, _probe, vision.init, vision.apply_fn, unread=_TEXT
    ),
}
"""Families of vision towers by `model_type`."""
INSIDE = {
    "clip": ("vision_config", "clip_vision_model"),
    "siglip": ("vision_config", "siglip_vision_model"),
    "gemma3": ("text_config", "gemma3_text"),
}
"""Models of a vision and a text part: the key and the `model_type` of the one that is read."""
