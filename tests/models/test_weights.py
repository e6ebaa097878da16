"""Stored tensors become leaves, and what is no leaf, copy or known buffer is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jcl import models
from jcl.models import encoder
from jcl.models.pretrained import FAMILIES
from jcl.models.weights import widened

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.quick


def add(folder: Path, **tensors: Any) -> None:
    path = folder / "model.safetensors"
    more = {name.replace("/", "."): np.asarray(x, np.float32) for name, x in tensors.items()}
    save_file(load_file(path) | more, path)


def test_a_tensor_of_no_leaf_is_refused_by_name(folder: Path) -> None:
    add(folder, **{"score/weight": np.ones((2, 32)), "model/layers/0/self_attn/sinks": np.ones(4)})
    with pytest.raises(ValueError, match=r"'model\.layers\.0\.self_attn\.sinks' and 1 more in"):
        models.load(folder)


def test_a_layer_too_many_is_refused(folder: Path) -> None:
    add(folder, **{"model/layers/2/input_layernorm/weight": np.ones(32)})
    with pytest.raises(ValueError, match=r"model\.layers\.2\.input_layernorm"):
        models.load(folder)


def test_buffers_of_older_versions_are_left_alone(folder: Path) -> None:
    add(folder, **{"model/layers/0/self_attn/rotary_emb/inv_freq": np.ones(4)})
    models.load(folder)


def test_a_head_that_is_the_embedding_is_a_copy_and_another_one_is_used(folder: Path) -> None:
    table = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    add(folder, **{"lm_head/weight": table})
    assert models.load(folder).config.tied
    add(folder, **{"lm_head/weight": 2 * table})
    own = models.load(folder)
    assert not own.config.tied and own.given["tie_word_embeddings"] is False
    np.testing.assert_array_equal(own.params["head"]["kernel"], 2 * table.T)


def test_a_copy_that_is_none_is_refused(tmp_path: Path) -> None:
    config = encoder.Config(vocabulary=31, layers=1, width=8, heads=2, hidden=8, masked=True)
    layout = FAMILIES["bert"].layout(config)
    wanted = encoder.init(jax.random.key(0), config)
    leaves = {
        "/".join(k.key for k in path): x for path, x in jax.tree_util.tree_leaves_with_path(wanted)
    }
    assert set(leaves) == set(layout)
    given = {
        "model_type": "bert", "vocab_size": 31, "hidden_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 2, "intermediate_size": 8,
    }  # fmt: skip
    model = models.Model(config, wanted, None, encoder.apply_fn(config), given)
    folder = models.save(model, wanted, tmp_path / "m")
    table = np.asarray(wanted["embed"]["table"])
    add(folder, **{"cls/predictions/decoder/weight": table, "cls/seq_relationship/bias": [1, 2]})
    assert models.load(folder).config.masked
    add(folder, **{"cls/predictions/decoder/weight": table + 1})
    with pytest.raises(ValueError, match=r"cls\.predictions\.decoder\.weight"):
        models.load(folder)


def test_floats_of_16_bits_are_held_in_32() -> None:
    for dtype in (jnp.bfloat16, jnp.float16, jnp.float32):
        assert widened(np.dtype(dtype)) == np.float32
    assert widened(np.dtype(np.float64)) == np.float64


def test_the_text_part_of_a_model_with_images_is_read(tmp_path: Path) -> None:
    import torch

    text = {
        "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "query_pre_attn_scalar": 8, "sliding_window": 5,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": 8, "patch_size": 4,
    }  # fmt: skip
    torch.manual_seed(0)
    whole = transformers.Gemma3ForConditionalGeneration(
        transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    ).eval()
    whole.save_pretrained(tmp_path)
    ids = np.arange(4, 24)[None]
    with torch.no_grad():
        wanted = whole(torch.tensor(ids)).logits.numpy()
    model = models.load(tmp_path)
    ours = np.asarray(model.apply(model.params, {"tokens": jnp.asarray(ids)}))
    assert model.given["model_type"] == "gemma3_text"
    assert np.abs(ours - wanted).max() <= 1e-5 * np.abs(wanted).max()
