"""Converts GlassLM's weights and tokenizer to the layout of Hugging Face's Llama.

Source: the `glassllm` package, version 0.1.0 (MIT), whose NumPy code says what the arrays mean.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from jcl.data.packages import needed

_SPECIALS = ["<pad>", "<unk>", "<bos>", "<eos>"]
_SPACE = "▁"


def convert(folder: Path) -> None:
    """Replaces `en.npz` and `en.tokenizer.json` by a folder that `models.load` reads.

    Raises:
      ImportError: if safetensors isn't installed; the message says how to install it.
    """
    with needed("glassllm", "safetensors", "text"):
        from safetensors.numpy import save_file
    with np.load(folder / "en.npz") as arrays:  # never a pickle: that is np.load's default
        config = json.loads(str(arrays["__config__"]))
        weights = {k: v.astype(np.float32) for k, v in arrays.items() if k != "__config__"}
    words = json.loads((folder / "en.tokenizer.json").read_text(encoding="utf-8"))
    save_file(_weights(weights, config), folder / "model.safetensors", {"format": "pt"})
    for name, value in (
        ("config.json", _config(config)),
        ("tokenizer.json", _tokenizer(words)),
        ("tokenizer_config.json", _tokenizer_config(config)),
    ):
        text = json.dumps(value, indent=1, ensure_ascii=False)
        (folder / name).write_text(text + "\n", encoding="utf-8")
    (folder / "en.npz").unlink()
    (folder / "en.tokenizer.json").unlink()


def _config(config: dict[str, Any]) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config["vocab_size"],
        "hidden_size": config["d_model"],
        "intermediate_size": int(8 * config["d_model"] / 3),
        "num_hidden_layers": config["n_layers"],
        "num_attention_heads": config["n_heads"],
        "num_key_value_heads": config["n_kv_heads"],
        "max_position_embeddings": config["max_len"],
        "rope_theta": config["rope_base"],
        "rms_norm_eps": config["eps"],
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": "float32",
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 3,
    }


def _halves(kernel: np.ndarray, heads: int) -> np.ndarray:
    """Reorders each head's columns [d, heads · k] from rotary pairs to all firsts, all seconds."""
    pairs = kernel.reshape(len(kernel), heads, -1, 2)
    return pairs.transpose(0, 1, 3, 2).reshape(kernel.shape)


def _weights(old: dict[str, np.ndarray], config: dict[str, Any]) -> dict[str, np.ndarray]:
    new = {"model.embed_tokens.weight": old["E"], "model.norm.weight": old["norm_f.gamma"]}
    for i in range(config["n_layers"]):
        block, layer = f"blocks.{i}", f"model.layers.{i}"
        kernels = {
            "self_attn.q_proj": _halves(old[f"{block}.attn.W_Q"], config["n_heads"]),
            "self_attn.k_proj": _halves(old[f"{block}.attn.W_K"], config["n_kv_heads"]),
            "self_attn.v_proj": old[f"{block}.attn.W_V"],
            "self_attn.o_proj": old[f"{block}.attn.W_O"],
            "mlp.gate_proj": old[f"{block}.ffn.W1"],
            "mlp.up_proj": old[f"{block}.ffn.W3"],
            "mlp.down_proj": old[f"{block}.ffn.W2"],
        }
        for name, kernel in kernels.items():
            new[f"{layer}.{name}.weight"] = np.ascontiguousarray(kernel.T)
        new[f"{layer}.input_layernorm.weight"] = old[f"{block}.norm1.gamma"]
        new[f"{layer}.post_attention_layernorm.weight"] = old[f"{block}.norm2.gamma"]
    return new


def _tokenizer(words: dict[str, Any]) -> dict[str, Any]:
    """`tokenizer.json`: pairs merged within chunks, which are lines and words led by a space."""
    merged = [a + b for a, b in words["merges"]]
    tokens = [*_SPECIALS, *words["alphabet"], *merged]
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": token, **special, "special": True}
            for i, token in enumerate(_SPECIALS)
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "NFC"},
                {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE},
            ],
        },
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"Regex": rf"\n|{_SPACE}*[^{_SPACE}\n]+|{_SPACE}+"},
            "behavior": "Isolated",
            "invert": False,
        },
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": words["merges"],
        },
    }


def _tokenizer_config(config: dict[str, Any]) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config["max_len"],
        "clean_up_tokenization_spaces": False,
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
    }
