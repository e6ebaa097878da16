"""Writes GGUF files, which llama.cpp loads, of the architectures that `gguf` reads.

Names, numbers and the order of queries and keys are those of llama.cpp's `convert_hf_to_gguf.py`:
tensors of one axis are float32, and matrices without whole blocks of 32 are float16.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from jcl import trees
from jcl.data.packages import needed
from jcl.method import Params, check
from jcl.models import decoder, gguf_vocabulary, rope
from jcl.models.layout import Layout
from jcl.models.pretrained import FAMILIES, Model
from jcl.models.rope import Rope
from jcl.models.weights import stored_tensors

QUANTISATIONS = ("f16", "q8_0", "f32")
"""The numbers in which matrices are stored; 8 bits are in blocks of 32 with a scale."""
_ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""llama.cpp's architecture for a `model_type`."""
_SAID = (
    "vocabulary", "layers", "width", "heads", "kv_heads", "head_width", "hidden", "eps", "qkv_bias",
    "output_bias", "mlp_bias", "qk_norm", "rope", "context", "tied",
)  # fmt: skip
"""Fields of a configuration that the file says, or that its tensors show."""


def save_gguf(model: Model, params: Params, path: str | Path, quantisation: str = "f16") -> Path:
    """Writes a model as a GGUF file with its tokenizer, which llama.cpp loads.

    >>> models.save_gguf(model, params, "model.gguf", "q8_0")              # doctest: +SKIP

    Args:
      model: as loaded, or made with `of`.
      params: the parameters to write, shaped like `model.params`; adapters must be merged first.
      path: a new file whose name ends with .gguf.
      quantisation: one of `QUANTISATIONS`, of the matrices.

    Raises:
      ValueError: if the file is there, llama.cpp has no such architecture, tokenizer or setting,
        the tree isn't the model's, or a number is beyond the range of float16.
      ImportError: if gguf isn't installed.
    """
    out, kind = Path(path), str(model.given.get("model_type"))
    check(out.suffix == ".gguf" and not out.exists(), "path", str(out), "a new file named ….gguf")
    check(quantisation in QUANTISATIONS, "quantisation", quantisation, f"one of {QUANTISATIONS}")
    check(kind in _ARCHITECTURES, "model_type", kind, f"one of {list(_ARCHITECTURES)} in a .gguf")
    _check_config(model.config, kind)
    layout = FAMILIES[kind].layout(model.config)
    leaves = trees.by_path(params)
    other = sorted(leaves.keys() ^ layout.keys())
    check(not other, "params", other, "those of the model, with adapters merged")
    with needed(out.name, "gguf", "text"):
        import gguf

    arch = _ARCHITECTURES[kind]
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as made:
        writer = gguf.GGUFWriter(Path(made) / out.name, arch)
        _describe(writer, model, arch, quantisation)
        gguf_vocabulary.add(writer, model.tokenizer, model.config.vocabulary)
        named = gguf.get_tensor_name_map(_architecture(arch), model.config.layers)
        factors = _factors(model.config.rope, model.config.head_width)
        if factors is not None:
            writer.add_tensor_info(
                "rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes
            )
        types = {}
        for name, shape in _places(layout, model.config.layers):
            types[name] = kept = _type(shape, quantisation)
            held = np.dtype({"Q8_0": np.uint8, "F16": np.float16}.get(kept.name, np.float32))
            size = gguf.quant_shape_to_byte_shape(shape, kept) if kept.name == "Q8_0" else shape
            nbytes = math.prod(size) * held.itemsize
            stored = named.get_name(name, (".weight", ".bias"))
            assert stored is not None, name  # of families whose tensors llama.cpp names
            writer.add_tensor_info(stored, size, held, nbytes, kept)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if factors is not None:
            writer.write_tensor_data(factors)
        for name, tensor in stored_tensors(layout, leaves, np.float32):
            top = float(np.abs(tensor).max())
            limit = 65504.0 if types[name].name == "F16" else math.inf
            check(top <= limit, f"largest number in {name}", top, f"at most {limit}; try f32")
            turned = _interleaved(tensor, name, model.config) if arch == "llama" else tensor
            writer.write_tensor_data(gguf.quants.quantize(turned, types[name]))
        writer.close()
        (Path(made) / out.name).rename(out)
    return out


def _architecture(arch: str) -> Any:
    """gguf's own name for an architecture."""
    import gguf

    return next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == arch)


def _check_config(config: Any, kind: str) -> None:
    """Refuses what llama.cpp computes otherwise, or has no word for.

    Raises:
      ValueError: with the setting's name.
    """
    plain = decoder.Config(**{name: getattr(config, name) for name in _SAID})
    for name in (f.name for f in fields(config)):
        found, wanted = getattr(config, name), getattr(plain, name)
        check(found == wanted, name, found, f"{wanted} for a {kind} in a .gguf")
    check(config.rope is not None, "rope", None, "rotary positions")
    _factors(config.rope, config.head_width)  # for its error
    turned = config.rope.width in (None, config.head_width)
    check(turned, "rope width", config.rope.width, f"{config.head_width}, the whole head")


def _factors(turns: Rope, head: int) -> np.ndarray | None:
    """By what llama.cpp divides each frequency, float32 [head / 2]; None if it needs no such.

    Raises:
      ValueError: if it can't say how positions are stretched.
    """
    options = dict(turns.options)
    if turns.kind in ("default", "linear"):
        return None
    if turns.kind == "yarn":  # whose scale llama.cpp computes from the factor
        left = {k: v for k, v in options.items() if not k.startswith("beta_") and v is not None}
        plain = left.pop("truncate", True)
        check(plain and not left, "yarn's options", options, "beta_fast and beta_slow in a .gguf")
        return None
    one = options.get("short_factor") == options.get("long_factor")
    ok = turns.kind == "llama3" or (turns.kind == "longrope" and one)
    wanted = "default, linear, yarn, llama3, or longrope of one factor in a .gguf"
    check(ok, "rope kind", turns.kind, wanted)
    rates, scale = rope.frequencies(turns, head, turns.original)
    check(scale == 1, "scale of longrope", scale, "1 in a .gguf")
    plain_rates, _ = rope.frequencies(Rope(turns.theta, turns.width), head, 0)
    return (plain_rates / rates).astype(np.float32)


def _describe(writer: Any, model: Model, arch: str, quantisation: str) -> None:
    """Adds the metadata of all but the tokenizer."""
    import gguf

    c, given = model.config, model.given
    writer.add_type("model")
    writer.add_name(str(given.get("_name_or_path") or f"{arch} by jcl"))
    kinds = {"f16": "MOSTLY_F16", "q8_0": "MOSTLY_Q8_0", "f32": "ALL_F32"}
    writer.add_file_type(gguf.LlamaFileType[kinds[quantisation]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(int(given.get("max_position_embeddings") or c.context))
    writer.add_vocab_size(c.vocabulary)
    writer.add_embedding_length(c.width)
    writer.add_block_count(c.layers)
    writer.add_feed_forward_length(c.hidden)
    writer.add_head_count(c.heads)
    writer.add_head_count_kv(c.kv_heads)
    writer.add_key_length(c.head_width)
    writer.add_value_length(c.head_width)
    writer.add_layer_norm_rms_eps(c.eps)
    writer.add_rope_dimension_count(c.head_width)
    writer.add_rope_freq_base(c.rope.theta)
    if c.rope.kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(c.rope.kind))
        writer.add_rope_scaling_factor(c.rope.factor)
    if c.rope.kind == "yarn":
        options = dict(c.rope.options)
        writer.add_rope_scaling_orig_ctx_len(c.rope.original)
        writer.add_rope_scaling_yarn_beta_fast(float(options.get("beta_fast") or 32))
        writer.add_rope_scaling_yarn_beta_slow(float(options.get("beta_slow") or 1))


def _places(layout: Layout, layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The names and shapes of the tensors, in the order in which `stored_tensors` gives them."""
    for source in layout.values():
        for layer in range(layers if "{layer}" in source.name else 1):
            yield source.name.format(layer=layer), source.shape


def _type(shape: tuple[int, ...], quantisation: str) -> Any:
    from gguf import GGMLQuantizationType as Type

    if len(shape) == 1 or quantisation == "f32":
        return Type.F32
    return Type.Q8_0 if quantisation == "q8_0" and shape[-1] % 32 == 0 else Type.F16


def _interleaved(tensor: np.ndarray, name: str, config: decoder.Config) -> np.ndarray:
    """Queries and keys with the two halves of each head interleaved, as `gguf` undoes it."""
    if ".q_proj." not in name and ".k_proj." not in name:
        return tensor
    heads = config.heads if ".q_proj." in name else config.kv_heads
    halves = tensor.reshape(heads, 2, -1, *tensor.shape[1:])
    return halves.swapaxes(1, 2).reshape(tensor.shape)
