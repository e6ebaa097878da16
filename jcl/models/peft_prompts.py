"""Prompts and prefixes in PEFT's form: embeddings before the tokens, keys and values of each layer.

PEFT stores what the model is handed. So a prompt is scaled as the model scales its embeddings. A
prefix comes out of a cache, behind which tokens have later positions, where ours have the same as
without it: its keys are turned by as many positions, which leaves every score as it is.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from jcl.mechanisms import adapters
from jcl.method import Params, check
from jcl.models import decoder, rope
from jcl.models.pretrained import Model

Leaves = dict[str, np.ndarray]
"""Leaves by path; a writer takes out those that it writes."""
Written = tuple[dict[str, Any], dict[str, np.ndarray]]
"""The contents of `adapter_config.json`, and the tensors."""
Read = tuple[Params, str, dict[str, Any]]
"""The parameters with what was read, the method that trains it, and the method's arguments."""


def load_prompt(given: dict[str, Any], tensors: Leaves, model: Model) -> Read:
    """Takes a soft prompt out of `tensors`."""
    wanted = (given["num_virtual_tokens"], model.config.width)
    table = jnp.asarray(_taken(tensors, wanted)) / _prompt_scale(model)
    params = adapters.with_subtree(model.params, "prompt", {"table": table})
    return params, "prompt_tuning", {"length": len(table)}


def write_prompt(model: Model, leaves: Leaves) -> Written:
    """Takes a soft prompt out of `leaves`."""
    table = leaves.pop("prompt/table") * _prompt_scale(model)
    given = {
        "peft_type": "PROMPT_TUNING",
        "num_virtual_tokens": len(table),
        "token_dim": model.config.width,
        "num_transformer_submodules": 1,
        "num_attention_heads": model.config.heads,
        "num_layers": model.config.layers,
        "prompt_tuning_init": "RANDOM",
    }
    return given, {"prompt_embeddings": table}


def load_prefix(given: dict[str, Any], tensors: Leaves, model: Model) -> Read:
    """Takes a prefix out of `tensors`."""
    projected = bool(given.get("prefix_projection"))
    check(not projected, "prefix_projection", projected, "False, for its network isn't read")
    length, (layers, heads, width) = given["num_virtual_tokens"], _cache(model)
    both = _taken(tensors, (length, layers * 2 * heads * width))
    both = both.reshape(length, layers, 2, heads, width).transpose(2, 1, 0, 3, 4)
    found = {
        "key": jnp.asarray(_turned(model, both[0], -length).reshape(layers, length, -1)),
        "value": jnp.asarray(both[1].reshape(layers, length, -1)),
    }
    params = adapters.with_subtree(model.params, "blocks/prefix", found)
    return params, "prefix_tuning", {"length": length}


def write_prefix(model: Model, leaves: Leaves) -> Written:
    """Takes a prefix out of `leaves`."""
    layers, heads, width = _cache(model)
    keys, values = (
        leaves.pop(f"blocks/prefix/{name}").reshape(layers, -1, heads, width)
        for name in ("key", "value")
    )
    length = keys.shape[1]
    both = np.stack([_turned(model, keys, length), values]).transpose(2, 1, 0, 3, 4)
    given = {
        "peft_type": "PREFIX_TUNING",
        "num_virtual_tokens": length,
        "token_dim": heads * width,
        "num_transformer_submodules": 1,
        "num_attention_heads": heads,
        "num_layers": layers,
        "encoder_hidden_size": heads * width,
        "prefix_projection": False,
    }
    return given, {"prompt_embeddings": both.reshape(length, -1)}


def _taken(tensors: Leaves, wanted: tuple[int, ...]) -> np.ndarray:
    stored = tensors.pop("prompt_embeddings", None)
    shape = None if stored is None else stored.shape
    check(shape == wanted, "shape of prompt_embeddings", shape, f"{wanted} for this model")
    assert stored is not None
    return stored.astype(np.float32)


def _prompt_scale(model: Model) -> float:
    """What a prompt of ours is multiplied by in the model; one of peft's is so already."""
    return float(getattr(model.config, "embed_scale", 1.0))


def _cache(model: Model) -> tuple[int, int, int]:
    """Layers, heads and their width in a cache of the model.

    Raises:
      ValueError: if tokens behind a cache are read otherwise than by us: by learned positions,
        which differ there, or by a window, out of which the prefix falls.
    """
    c = model.config
    kind = model.given["model_type"]
    check(isinstance(c, decoder.Config), "model_type", kind, "a decoder's, for a prefix of PEFT's")
    turns = c.rope is not None and c.rope.kind in ("default", "linear", "llama3", "yarn")
    said = c.rope.kind if c.rope else "learned"
    check(turns, "positions", said, "rotary and the same at any length, for a prefix of PEFT's")
    check(c.window is None, "window", c.window, "None, for a prefix of PEFT's falls out of it")
    return c.layers, c.kv_heads, c.head_width


def _turned(model: Model, keys: np.ndarray, positions: int) -> np.ndarray:
    """Keys [layers, P, heads, width], turned by some positions in the layers that have any."""
    c = model.config
    rates, _ = rope.frequencies(c.rope, c.head_width, c.context)
    angles = jnp.full((*keys.shape[:2], 1), positions, jnp.float32) * rates
    new = np.asarray(rope.rotate(jnp.asarray(keys), jnp.cos(angles), jnp.sin(angles)))
    turned = np.ones(c.layers, bool) if c.turned is None else np.asarray(c.turned)
    return np.where(turned[:, None, None, None], new, keys)
