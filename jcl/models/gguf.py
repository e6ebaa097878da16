"""Reads GGUF files, in which llama.cpp stores quantised models; `gguf_write` writes them.

Tensors are dequantised to float32 and get their Hugging Face names, so that a family's layout reads
them like safetensors. The file stores queries and keys for interleaved rotary positions; they are
reordered into halves.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jcl.data.packages import needed
from jcl.method import check
from jcl.models.gguf_vocabulary import PRE
from jcl.models.tensors import Tensors

_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_FACTORS = "rope_freqs.weight"
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_HARMLESS = ("GGUF.", "general.", "tokenizer.", "quantize.", "split.")
"""Prefixes of metadata that doesn't change what the model computes."""


def find(path: Path) -> Path | None:
    """The GGUF file at `path`, or the only model in the folder `path`; None if there is none.

    Raises:
      ValueError: if the folder has several GGUF files.
    """
    if path.is_file():
        return path if path.suffix == ".gguf" else None
    files = sorted(path.glob("*.gguf"))
    if not files or any(path.glob("*.safetensors")):
        return None
    if len(files) > 1:
        raise ValueError(f"{path} has {len(files)} .gguf files, but must have one; name the file")
    return files[0]


def open_file(path: Path) -> tuple[dict[str, Any], Tensors]:
    """The configuration in the form of a `config.json`, and the tensors.

    Raises:
      ValueError: if the file is damaged or of an unknown architecture.
      ImportError: if gguf isn't installed.
    """
    reader = _reader(path)
    seen: set[str] = set()

    def value(key: str, default: Any = None) -> Any:
        seen.add(key)
        field = reader.get_field(key)
        return default if field is None else field.contents()

    kind = value("general.architecture")
    if kind not in _ARCHITECTURES:
        raise ValueError(
            f"architecture is {kind!r} in {path}, but must be one of {sorted(_ARCHITECTURES)}"
        )
    stored = {_renamed(t.name): t for t in reader.tensors}
    heads = value(f"{kind}.attention.head_count")
    kv_heads = value(f"{kind}.attention.head_count_kv", heads)
    width = value(f"{kind}.embedding_length")
    for key, found in (("attention.head_count", heads), ("embedding_length", width)):
        check(isinstance(found, int) and found >= 1, f"{kind}.{key} in {path}", found, "at least 1")
    head = value(f"{kind}.attention.key_length", width // heads)
    if "model.embed_tokens.weight" not in stored:
        raise ValueError(f"{path} has no token_embd.weight, which every model must have")
    vocabulary = int(stored["model.embed_tokens.weight"].shape[1])
    for key, wanted in (
        ("attention.value_length", head),
        ("rope.dimension_count", head),
        ("vocab_size", vocabulary),
        ("attention.causal", True),
        ("expert_count", 0),
        ("expert_used_count", 0),
    ):
        found = value(f"{kind}.{key}", wanted)
        check(found == wanted, f"{kind}.{key} in {path}", found, f"{wanted}, as the others say")
    given = {
        "model_type": kind,
        "architectures": [_ARCHITECTURES[kind]],
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": value(f"{kind}.feed_forward_length"),
        "num_hidden_layers": value(f"{kind}.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head,
        "hidden_act": "silu",
        "max_position_embeddings": value(f"{kind}.context_length"),
        "rms_norm_eps": value(f"{kind}.attention.layer_norm_rms_epsilon"),
        "rope_parameters": _rope(kind, value, stored),
        "tie_word_embeddings": "lm_head.weight" not in stored,
        "bos_token_id": value("tokenizer.ggml.bos_token_id"),
        "eos_token_id": value("tokenizer.ggml.eos_token_id"),
    }
    if kind == "llama":
        given["attention_bias"] = "model.layers.0.self_attn.q_proj.bias" in stored
        given["mlp_bias"] = "model.layers.0.mlp.up_proj.bias" in stored
    for key in reader.fields:
        known = key in seen or key.startswith(_HARMLESS)
        check(known, f"{key} in {path}", value(key), "left out, for it isn't read")

    def read(name: str) -> np.ndarray:
        from gguf.quants import dequantize

        tensor = stored[name]
        found = np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float32)
        found = found.reshape(tuple(int(n) for n in reversed(tensor.shape)))
        if kind == "llama" and (".q_proj." in name or ".k_proj." in name):
            count = heads if ".q_proj." in name else kv_heads
            halves = found.reshape(count, -1, 2, *found.shape[1:])
            return halves.swapaxes(1, 2).reshape(found.shape)
        return found

    names = frozenset(stored) - {_FACTORS}  # which `rope_parameters` hold
    return given, Tensors(names, read, lambda name: path)


def _rope(kind: str, value: Callable[..., Any], stored: dict[str, Any]) -> dict[str, Any]:
    """The configuration's `rope_parameters`.

    What llama.cpp stores of Llama 3.1's positions are factors by which it divides frequencies,
    and that transformers does too by the name of longrope.
    """
    found: dict[str, Any] = {
        "rope_type": value(f"{kind}.rope.scaling.type", "none"),
        "rope_theta": value(f"{kind}.rope.freq_base", 10_000.0),
    }
    factor = value(f"{kind}.rope.scaling.factor", value(f"{kind}.rope.scale_linear"))
    original = value(f"{kind}.rope.scaling.original_context_length")
    scaling = found["rope_type"]
    known = ("none", "linear", "yarn")
    check(scaling in known, f"{kind}.rope.scaling.type", scaling, f"one of {list(known)}")
    value(f"{kind}.rope.scaling.finetuned")  # says what was done in training, to the reader
    if scaling == "none" and factor not in (None, 1.0):
        scaling = "linear"  # older files say the factor alone
    found["rope_type"] = "default" if scaling == "none" else scaling
    if scaling != "none":
        found["factor"] = factor
    if scaling == "yarn":
        found["original_max_position_embeddings"] = original
        fast, slow = (value(f"{kind}.rope.scaling.yarn_beta_{x}") for x in ("fast", "slow"))
        found |= {"beta_fast": fast or 32.0, "beta_slow": slow or 1.0}
    if _FACTORS in stored:
        check(scaling == "none", "rope_freqs.weight", "stored", f"left out beside {scaling!r}")
        factors = np.asarray(stored[_FACTORS].data, np.float32).ravel().tolist()
        both = {"short_factor": factors, "long_factor": factors}
        context = original or value(f"{kind}.context_length")
        return {
            **found, "rope_type": "longrope", **both, "factor": 1.0, "attention_factor": 1.0,
            "original_max_position_embeddings": context,
        }  # fmt: skip
    return found


def tokenizer(path: Path) -> Any:
    """The file's own tokenizer, as one of transformers; None if it has none."""
    reader = _reader(path)
    if reader.get_field("tokenizer.ggml.tokens") is None:
        return None
    from transformers import AutoTokenizer

    found = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    splits = reader.get_field("tokenizer.ggml.pre")
    if splits is not None:  # which transformers forgets
        found.init_kwargs[PRE] = splits.contents()
    return found


def _reader(path: Path) -> Any:
    with needed(path.name, "gguf", "text"):
        from gguf import GGUFReader
    try:
        return GGUFReader(path)
    except (ValueError, IndexError) as error:
        raise ValueError(f"{path} is damaged ({error}), but must be a whole GGUF file") from error


def _renamed(name: str) -> str:
    if name in _NAMES:
        return _NAMES[name]
    if not name.startswith("blk."):
        return name
    _, layer, kind, end = name.split(".")
    return f"model.layers.{layer}.{_LAYER_NAMES.get(kind, kind)}.{end}"
