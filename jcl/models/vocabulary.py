"""A tokenizer beside its model's vocabulary: which of its ids the model has no row for."""

from __future__ import annotations

from typing import Any

OTHER_SENSES = ("image_token", "audio_token", "video_token")
"""Names of a tokenizer's tokens that stand for no text, and that a model of text alone lacks."""


def beyond(tokenizer: Any, vocabulary: int) -> dict[str, int]:
    """The tokens whose ids are not below `vocabulary`, by id; none where there is no tokenizer.

    A placeholder of an image isn't counted, which Gemma 3's tokenizer has one id beyond the
    vocabulary of the models of text alone.
    """
    if tokenizer is None:
        return {}
    senses = {str(getattr(tokenizer, name, None)) for name in OTHER_SENSES}
    found = {t: i for t, i in tokenizer.get_vocab().items() if i >= vocabulary and t not in senses}
    return dict(sorted(found.items(), key=lambda item: item[1]))


def check_tokenizer(tokenizer: Any, vocabulary: int, folder: str) -> None:
    """Refuses a tokenizer that is longer than the vocabulary.

    Raises:
      ValueError: if a token's id has no row, in one sentence with both numbers and what to do.
    """
    found = beyond(tokenizer, vocabulary)
    if found:
        first, last = next(iter(found)), max(found.values())
        raise ValueError(
            f"the tokenizer of {folder} has ids from 0 to {last}, but the model's vocabulary is "
            f"{vocabulary}, so {len(found)} of them, {first!r} first, have no row; give "
            f"resize=True for {last + 1} rows, or leave those tokens out of the tokenizer"
        )
