"""GGUF files, written by llama.cpp's own package: names, numbers, settings, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jcl.models import gguf as files

gguf = pytest.importorskip("gguf")
pytestmark = pytest.mark.quick

WIDTH, HEADS, KV_HEADS, HEAD, HIDDEN, VOCABULARY = 32, 4, 2, 8, 64, 40
SHAPES = {
    "token_embd": (VOCABULARY, WIDTH),
    "output_norm": (WIDTH,),
    "blk.0.attn_norm": (WIDTH,),
    "blk.0.attn_q": (HEADS * HEAD, WIDTH),
    "blk.0.attn_k": (KV_HEADS * HEAD, WIDTH),
    "blk.0.attn_v": (KV_HEADS * HEAD, WIDTH),
    "blk.0.attn_output": (WIDTH, HEADS * HEAD),
    "blk.0.ffn_norm": (WIDTH,),
    "blk.0.ffn_gate": (HIDDEN, WIDTH),
    "blk.0.ffn_up": (HIDDEN, WIDTH),
    "blk.0.ffn_down": (WIDTH, HIDDEN),
}
THEIRS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "model.layers.0.input_layernorm",
    "attn_q": "model.layers.0.self_attn.q_proj",
    "attn_k": "model.layers.0.self_attn.k_proj",
    "attn_v": "model.layers.0.self_attn.v_proj",
    "attn_output": "model.layers.0.self_attn.o_proj",
    "ffn_norm": "model.layers.0.post_attention_layernorm",
    "ffn_gate": "model.layers.0.mlp.gate_proj",
    "ffn_up": "model.layers.0.mlp.up_proj",
    "ffn_down": "model.layers.0.mlp.down_proj",
}
"""As in transformers' modeling_llama.py."""


def permuted(weights: np.ndarray, heads: int) -> np.ndarray:
    """`LlamaModel.permute` of llama.cpp's convert_hf_to_gguf.py: halves become interleaved."""
    halves = weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
    return halves.swapaxes(1, 2).reshape(weights.shape)


def write(
    path: Path, kind: str = "llama", quantised: Any = None, **more: Any
) -> dict[str, np.ndarray]:
    """A model of one layer, with `more` of its metadata.

    Returns its tensors as transformers names and orders them.
    """
    draw = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, kind)
    writer.add_context_length(77)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(5000.0)
    writer.add_bos_token_id(3)
    for key, value in more.items():
        add = writer.add_string if isinstance(value, str) else writer.add_float32
        add = writer.add_uint32 if isinstance(value, int) else add
        add(f"{kind}.{key}", value)
    given = {}
    for name, shape in SHAPES.items():
        x = draw.normal(size=shape).astype(np.float32)
        given[THEIRS[name.removeprefix("blk.0.")] + ".weight"] = x
        if kind == "llama" and name.endswith(("_q", "_k")):
            x = permuted(x, HEADS if name.endswith("_q") else KV_HEADS)
        if quantised is not None and x.ndim > 1:
            packed = gguf.quants.quantize(x, quantised)
            writer.add_tensor(f"{name}.weight", packed, raw_dtype=quantised)
        else:
            writer.add_tensor(f"{name}.weight", x)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return given


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_tensors_come_back_in_the_order_of_transformers(kind: str, tmp_path: Path) -> None:
    given = write(tmp_path / "x.gguf", kind)
    config, tensors = files.open_file(tmp_path / "x.gguf")
    assert tensors.names == set(given) and tensors.file("model.norm.weight").name == "x.gguf"
    for name, x in given.items():
        np.testing.assert_array_equal(tensors.read(name), x, err_msg=name)
    assert config["model_type"] == kind and config["hidden_size"] == WIDTH
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (HEADS, KV_HEADS)
    assert (config["vocab_size"], config["intermediate_size"]) == (VOCABULARY, HIDDEN)
    assert (config["num_hidden_layers"], config["max_position_embeddings"]) == (1, 77)
    assert (config["bos_token_id"], config["head_dim"]) == (3, HEAD)
    assert config["rope_parameters"] == {"rope_type": "default", "rope_theta": 5000.0}
    assert config["rms_norm_eps"] == pytest.approx(1e-5) and config["tie_word_embeddings"]


def test_quantised_tensors_are_off_by_half_a_step(tmp_path: Path) -> None:
    """Q8_0 rounds 32 numbers to 255 steps up to their largest, with a scale in half precision."""
    given = write(tmp_path / "x.gguf", quantised=gguf.GGMLQuantizationType.Q8_0)
    _, tensors = files.open_file(tmp_path / "x.gguf")
    for name, x in given.items():
        found = tensors.read(name)
        assert found.dtype == np.float32 and found.shape == x.shape
        if x.ndim > 1:
            blocks = (np.asarray(v).reshape(-1, 32) for v in (found - x, x))
            off, size = (np.abs(v).max(-1) for v in blocks)
            assert (off <= size / 127 * (0.5 + 127 * 2**-11)).all(), name
            assert off.max() > 0


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"rope.scaling.attn_factor": 2.0}, r"llama\.rope\.scaling\.attn_factor in .* is 2\.0"),
        ({"attention.sliding_window": 9}, r"llama\.attention\.sliding_window in .* is 9"),
        ({"rope.dimension_count": 4}, r"llama\.rope\.dimension_count in .* is 4, but must be 8"),
        ({"expert_count": 8}, r"llama\.expert_count in .* is 8, but must be 0"),
        ({"rope.scaling.type": "longrope"}, r"llama\.rope\.scaling\.type is 'longrope'"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_metadata_that_is_not_read_is_refused(more: Any, words: str, tmp_path: Path) -> None:
    write(tmp_path / "x.gguf", **more)
    with pytest.raises(ValueError, match=words):
        files.open_file(tmp_path / "x.gguf")


def test_how_positions_are_stretched_is_read(tmp_path: Path) -> None:
    def rope(**more: Any) -> dict[str, Any]:
        write(tmp_path / "x.gguf", **more)
        return files.open_file(tmp_path / "x.gguf")[0]["rope_parameters"]

    base = {"rope_theta": 5000.0}
    assert rope() == {**base, "rope_type": "default"}
    linear = {**base, "rope_type": "linear", "factor": 4.0}
    kind, by = "rope.scaling.type", "rope.scaling.factor"
    assert rope(**{kind: "linear", by: 4.0}) == linear
    assert rope(**{"rope.scale_linear": 4.0}) == linear  # as older files say it
    assert rope(**{kind: "none", "rope.scaling.original_context_length": 16}) == rope()
    said = {kind: "yarn", by: 4.0, "rope.scaling.original_context_length": 16}
    wanted = {"original_max_position_embeddings": 16, "beta_fast": 32.0, "beta_slow": 1.0}
    assert rope(**said) == {**linear, "rope_type": "yarn", **wanted}


def test_a_folder_must_have_one(tmp_path: Path) -> None:
    assert files.find(tmp_path) is None and files.find(tmp_path / "none") is None
    write(tmp_path / "a.gguf")
    assert files.find(tmp_path) == files.find(tmp_path / "a.gguf") == tmp_path / "a.gguf"
    (tmp_path / "b.gguf").touch()
    with pytest.raises(ValueError, match=r"has 2 \.gguf files, but must have one; name the file"):
        files.find(tmp_path)
    (tmp_path / "c.safetensors").touch()  # the weights proper are there
    assert files.find(tmp_path) is None


def test_what_can_not_be_read_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "x.gguf", "gemma")
    with pytest.raises(ValueError, match=r"architecture is 'gemma' in .*, but must be one of"):
        files.open_file(tmp_path / "x.gguf")
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + bytes(40))
    with pytest.raises(ValueError, match=r"x\.gguf is damaged"):
        files.open_file(tmp_path / "x.gguf")
