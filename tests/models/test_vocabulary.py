"""A tokenizer that has more ids than its model has rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcl import models
from jcl.models import vocabulary

pytest.importorskip("transformers")


def words(count: int, **more: Any) -> Any:
    """A tokenizer of so many words, w0, w1 and so on."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(WordLevel({f"w{i}": i for i in range(count)}, unk_token="w0"))
    made.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, **more)


def test_a_tokenizer_longer_than_the_vocabulary_is_refused_or_has_it_grow(folder: Path) -> None:
    words(61).save_pretrained(folder)
    plain = models.load(folder)
    assert len(plain.tokenizer) == plain.config.vocabulary == 61
    longer = words(61)
    longer.add_tokens(["<new>", "<newer>"])
    longer.save_pretrained(folder)
    wanted = "ids from 0 to 62, .* vocabulary is 61, so 2 of them, '<new>' first, .*resize=True"
    with pytest.raises(ValueError, match=wanted) as error:
        models.load(folder)
    assert "\n" not in str(error.value)
    grown = models.load(folder, resize=True)
    assert grown.config.vocabulary == grown.given["vocab_size"] == 63
    batch = {"tokens": jnp.array([[3, 60, 7]])}
    logits = grown.apply(grown.params, batch)
    np.testing.assert_allclose(logits[..., :61], plain.apply(plain.params, batch), atol=1e-6)
    again = models.load(models.save(grown, grown.params, folder.parent / "grown"))
    jax.tree.map(np.testing.assert_array_equal, again.params, grown.params)
    assert again.tokenizer("w3 <newer>")["input_ids"] == [3, 62]
    np.testing.assert_array_equal(again.apply(again.params, batch), logits)


def test_an_image_s_placeholder_may_lie_beyond_the_vocabulary(folder: Path) -> None:
    words(62, extra_special_tokens={"image_token": "w61"}).save_pretrained(folder)
    assert models.load(folder).config.vocabulary == 61
    assert models.load(folder, resize=True).config.vocabulary == 61


def test_a_tower_of_images_has_no_vocabulary_that_could_grow(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        image_size=8, patch_size=4,
    )  # fmt: skip
    transformers.CLIPVisionModel(config).save_pretrained(tmp_path)
    words(3).save_pretrained(tmp_path)  # as beside a whole CLIP
    plain, grown = models.load(tmp_path), models.load(tmp_path, resize=True)
    jax.tree.map(np.testing.assert_array_equal, plain.params, grown.params)


class Words:
    """What is read of a tokenizer, which has no image."""

    image_token = "<image>"

    def get_vocab(self) -> dict[str, int]:
        return {"b": 1, "a": 0, "<image>": 2, "d": 4, "c": 3}


@pytest.mark.quick
def test_tokens_beyond_the_vocabulary_are_found_by_id() -> None:
    assert vocabulary.beyond(Words(), 1) == {"b": 1, "c": 3, "d": 4}
    assert list(vocabulary.beyond(Words(), 3)) == ["c", "d"]
    assert vocabulary.beyond(Words(), 5) == {} == vocabulary.beyond(None, 1)
    with pytest.raises(ValueError, match=r"of here has ids from 0 to 4, .* is 3, so 2 of .* 'c' f"):
        vocabulary.check_tokenizer(Words(), 3, "here")
