"""Decoders with a head of classes: transformers' own classes give their logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_text

from jcl import models
from jcl.models import decoder
from jcl.models.sequence_classifier import sequence_classifier

transformers = pytest.importorskip("transformers")
ROWS = ["a cat", "another cat sat on the mat", "f(x)"]


def made(head: bool = False, tied: bool = False) -> tuple[models.Model, Any]:
    """A tiny Llama with a tokenizer, and its parameters with a head of three classes."""
    tokenizer = tiny_text.byte_level()
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)
    config = decoder.Config(
        vocabulary=len(tokenizer), layers=2, width=16, heads=2, kv_heads=1, hidden=24, tied=tied
    )
    params = decoder.init(jax.random.key(0), config)
    kernel = jax.random.normal(jax.random.key(1), (16, 3))
    classifier = {"kernel": kernel} | ({"bias": jnp.ones(3)} if head else {})
    return models.of(config, params, tokenizer), {**params, "classifier": classifier}


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_transformers_gives_the_same_logits_of_padded_rows(tmp_path: Path, tied: bool) -> None:
    torch = pytest.importorskip("torch")
    model, params = made(tied=tied)
    models.save(model, params, tmp_path / "out", labels=["cat", "mat", "code"])
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert type(theirs).__name__ == "LlamaForSequenceClassification"
    assert theirs.config.id2label == {0: "cat", 1: "mat", 2: "code"}
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    rows = tokenizer(ROWS, padding=True, return_tensors="np")
    with torch.no_grad():
        given = {k: torch.tensor(rows[k]) for k in ("input_ids", "attention_mask")}
        wanted = theirs.eval()(**given).logits.numpy()
    batch = {"tokens": jnp.asarray(rows["input_ids"]), "segments": rows["attention_mask"]}
    np.testing.assert_allclose(model.apply(params, batch), wanted, atol=1e-5)


@pytest.mark.quick
def test_what_transformers_has_no_place_for_is_refused(tmp_path: Path) -> None:
    model, params = made(head=True)
    with pytest.raises(
        ValueError, match="params has 'classifier/bias', but a classifier must be a"
    ):
        models.save(model, params, tmp_path / "out")
    model, params = made()
    with pytest.raises(
        ValueError, match=r"labels is \['a', 'b'\], but must be 3, one for each cla"
    ):
        models.save(model, params, tmp_path / "out", labels=["a", "b"])
    shapes = {"classifier/kernel": (16, 3)}
    with pytest.raises(
        ValueError, match="model_type is 'olmoe', but must be one that transformers"
    ):
        sequence_classifier("olmoe", {}, shapes, None)
    assert not (tmp_path / "out").exists()
