"""Fill in the middle: what is moved, how often, and that it can be put together again."""

from __future__ import annotations

import collections
from typing import Any

import jax
import numpy as np
import pytest

from jcl import data, losses
from jcl.models import decoder


@pytest.mark.quick
def test_a_middle_put_back_is_the_document() -> None:
    texts = [f"document {i} with some text" for i in range(400)]
    made = list(data.fill_in_the_middle(texts, "<", "|", ">", share=0.6, seed=2))
    assert made == list(data.fill_in_the_middle(texts, "<", "|", ">", share=0.6, seed=2))
    forms = collections.Counter()
    for text, new in zip(texts, made, strict=True):
        if new[0] != "<":
            assert new == text
            forms["as it was"] += 1
            continue
        before, rest = new[1:].split("|")
        after, middle = rest.split(">")
        assert before + middle + after == text
        forms["suffix first" if new[1] == "|" else "prefix first"] += 1
    assert abs(forms["as it was"] - 160) < 50
    assert abs(forms["suffix first"] - forms["prefix first"]) < 80


def test_a_decoder_takes_middles_as_any_documents(tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("JCL_CACHE", str(tmp_path))
    texts = data.fill_in_the_middle(["abcdefgh" * 3] * 4, "\x01", "\x02", "\x03", share=1)
    stream = data.from_text({"a": (texts, texts)}, length=32, batch=2, steps=1)
    rows = jax.tree.map(lambda x: x[0], stream.fetch(stream.source, stream.chunk(0, 0, 1)))
    config = decoder.Config(layers=1, width=8, heads=1, kv_heads=1, hidden=8)
    loss, _ = losses.next_token(
        decoder.apply_fn(config), decoder.init(jax.random.key(0), config), rows
    )
    assert np.isfinite(loss) and (rows["tokens"] == 3).sum() == 2
