"""GGUF files that we write: read again by us, by llama.cpp's own package and by transformers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from perturbed import perturb

from jcl import adapters, models, trees
from jcl.models import decoder, gguf_write
from jcl.models.rope import Rope

gguf = pytest.importorskip("gguf")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SMALL: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 48,
    "head_dim": 16, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
}  # fmt: skip
LINEAR = {"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.0}
CASES = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "llama3": {"rope_parameters": LLAMA3, "head_dim": 32},
    "qwen2": {"tie_word_embeddings": True, "rope_parameters": LINEAR},
    "qwen3": {"head_dim": 128},  # transformers takes no other from a file
}
TOKENS = np.random.default_rng(0).integers(0, 61, (2, 11))


def made(case: str, folder: Path) -> models.Model:
    """A tiny random model of transformers, as we load it."""
    config = transformers.AutoConfig.for_model(case.removesuffix("3") if "llama" in case else case,
                                               **SMALL | CASES[case])  # fmt: skip
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    perturb(model)
    model.save_pretrained(folder)
    return models.load(folder)


@pytest.mark.parametrize("case", CASES)
def test_what_we_write_is_the_model_for_us_and_for_transformers(case: str, tmp_path: Path) -> None:
    model = made(case, tmp_path / "model")
    path = models.save_gguf(model, model.params, tmp_path / "a" / "x.gguf", "f32")
    again = models.load(path)
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)
    batch = {"tokens": jnp.asarray(TOKENS)}
    wanted = np.asarray(model.apply(model.params, batch))
    np.testing.assert_allclose(again.apply(again.params, batch), wanted, atol=1e-5)
    assert again.tokenizer is None and again.given["max_position_embeddings"] == 48
    if case in ("llama", "llama3"):  # whose biases and factors transformers leaves out of a file
        return
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name)
    with torch.no_grad():
        found = theirs(torch.tensor(TOKENS)).logits.numpy()
    plain = case != "qwen2"  # transformers leaves linear stretching out
    assert (np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()) == plain


@pytest.fixture(scope="module")
def tiny() -> models.Model:
    config = decoder.Config(vocabulary=48, layers=2, width=64, heads=2, kv_heads=1, hidden=40)
    return models.of(config, decoder.init(jax.random.key(0), config))


def test_a_plain_llama_is_one_for_transformers(tiny: models.Model, tmp_path: Path) -> None:
    path = models.save_gguf(tiny, tiny.params, tmp_path / "x.gguf", "f32")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name)
    tokens = TOKENS % 48
    with torch.no_grad():
        found = theirs(torch.tensor(tokens)).logits.numpy()
    wanted = np.asarray(tiny.apply(tiny.params, {"tokens": jnp.asarray(tokens)}))
    assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()


@pytest.mark.quick
@pytest.mark.parametrize("quantisation", ["f16", "q8_0"])
def test_numbers_are_rounded_as_the_file_says(
    tiny: models.Model, quantisation: str, tmp_path: Path
) -> None:
    path = models.save_gguf(tiny, tiny.params, tmp_path / "x.gguf", quantisation)
    read = gguf.GGUFReader(path)
    types = {t.name: t.tensor_type.name for t in read.tensors}
    mostly = quantisation.upper()
    assert types["blk.1.attn_q.weight"] == types["token_embd.weight"] == mostly
    assert types["blk.0.attn_norm.weight"] == types["output_norm.weight"] == "F32"
    assert types["blk.0.ffn_down.weight"] == "F16"  # its rows of 40 are no whole blocks of 32
    field = read.get_field("general.file_type").contents()
    assert field == gguf.LlamaFileType[f"MOSTLY_{mostly}"]
    again = trees.by_path(models.load(path).params)
    for name, x in trees.by_path(tiny.params).items():
        off = np.abs(np.asarray(again[name]) - np.asarray(x)).max() / np.abs(x).max()
        assert off <= (1 / 127 if quantisation == "q8_0" else 2**-11), name
        assert off > 0 or x.ndim == 1 or "norm" in name, name


@pytest.mark.quick
@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"window": 8}, "window is 8, but must be None for a llama in a .gguf"),
        ({"activation": "gelu"}, "activation is 'gelu', but must be silu"),
        ({"rope": None}, "rope is None, but must be rotary positions"),
        ({"rope": Rope(kind="dynamic", factor=2.0)}, "rope kind is 'dynamic', but must be default"),
        ({"rope": Rope(width=8)}, "rope width is 8, but must be 32, the whole head"),
        (
            {"rope": Rope(kind="yarn", factor=2.0, options=(("mscale", 0.5),))},
            "yarn's options is .*mscale.*, but must be beta_fast",
        ),
    ],
)
def test_a_setting_that_llama_cpp_has_no_word_for_is_refused(
    changed: dict[str, Any], words: str, tiny: models.Model, tmp_path: Path
) -> None:
    other = tiny._replace(config=replace(tiny.config, **changed))
    with pytest.raises(ValueError, match=words):
        models.save_gguf(other, tiny.params, tmp_path / "x.gguf")
    assert not any(tmp_path.iterdir())


@pytest.mark.quick
def test_what_can_not_be_written_is_refused_and_leaves_nothing(
    tiny: models.Model, tmp_path: Path
) -> None:
    pair = {"lora": {"a": jnp.ones((2, 64, 1)), "b": jnp.ones((2, 1, 64))}}
    adapted = adapters.with_subtree(tiny.params, "blocks/query", pair)
    large = {**tiny.params, "embed": {"table": tiny.params["embed"]["table"] + 1e5}}
    bert = tiny._replace(given={"model_type": "bert"})
    for model, params, name, kind, words in (
        (tiny, tiny.params, "x.bin", "f16", "path is .*x.bin.*, but must be a new file"),
        (tiny, tiny.params, "x.gguf", "q4_0", "quantisation is 'q4_0', but must be one of"),
        (bert, tiny.params, "x.gguf", "f16", "model_type is 'bert', but must be one of"),
        (tiny, adapted, "x.gguf", "f16", "params is .*lora/a.*, but must be those of the model"),
        (tiny, large, "x.gguf", "f16", "largest number in model.embed_tokens.weight is 1000"),
    ):
        with pytest.raises(ValueError, match=words):
            models.save_gguf(model, params, tmp_path / name, kind)
    assert not any(tmp_path.iterdir())
    (tmp_path / "x.gguf").touch()
    with pytest.raises(ValueError, match=r"x\.gguf', but must be a new file"):
        models.save_gguf(tiny, tiny.params, tmp_path / "x.gguf")
    assert set(gguf_write.QUANTISATIONS) == {"f16", "q8_0", "f32"}
