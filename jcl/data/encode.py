"""Turns text into token ids, with which of them are learned and the bytes that they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class Passage(NamedTuple):
    """A text, and which parts of it are learned.

    Args:
      text: the text to tokenise.
      spans: half-open ranges of characters that are learned; None is all of them.
      whole: whether the tokenizer adds the tokens with which it begins and ends a document, and
        the end-of-document token; False for a chat template's text, which has them already.
    """

    text: str
    spans: tuple[tuple[int, int], ...] | None = None
    whole: bool = True


class Encoded(NamedTuple):
    """The tokens of a passage."""

    tokens: np.ndarray
    """int32 [n]: the ids."""
    bytes: np.ndarray
    """int32 [n]: how many bytes of text each token stands for."""
    learn: np.ndarray
    """bool [n]: whether a token is learned, that is predicted."""


def check_tokenizer(tokenizer: Any) -> None:
    """Refuses a tokenizer that can't say which characters a token stands for.

    Raises:
      ValueError: if it is neither None nor a fast tokenizer of transformers.
    """
    if tokenizer is not None and not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"tokenizer is {type(tokenizer).__name__}, but must be a fast tokenizer of "
            "transformers, such as AutoTokenizer.from_pretrained gives, or None for bytes"
        )


def largest_id(tokenizer: Any) -> int:
    """The largest token id; 255 for bytes."""
    return 255 if tokenizer is None else max(tokenizer.get_vocab().values())


def encode(tokenizer: Any, passages: Sequence[Passage]) -> list[Encoded]:
    """The tokens of each passage.

    A token stands for the bytes from the end of the token before it to its own end. So characters
    that a tokenizer drops, such as blanks, belong to the next token, or at the end to the last, and
    a document's tokens stand for exactly its bytes in UTF-8. Tokens that the tokenizer adds stand
    for no bytes, nor do the special tokens in a chat template's text. A token is learned if any of
    its characters is in a span.

    Args:
      tokenizer: a fast tokenizer of transformers; None takes the UTF-8 bytes, 0 to 255, as ids,
        with no end-of-document token.
      passages: the texts. Lone surrogates, which UTF-8 can't hold, become U+FFFD.
    """
    passages = [_sound(p) for p in passages]
    if tokenizer is None:
        return [_bytes(p) for p in passages]
    special = np.array(sorted(special_texts(tokenizer)), np.int64)
    out: list[Any] = [None] * len(passages)
    for whole in (True, False):
        places = [i for i, p in enumerate(passages) if p.whole == whole]
        if not places:
            continue
        found = tokenizer(
            [passages[i].text for i in places], add_special_tokens=whole, padding=False,
            truncation=False, return_offsets_mapping=True, return_attention_mask=False,
            return_token_type_ids=False, verbose=False,
        )  # fmt: skip
        for i, ids, where in zip(places, found["input_ids"], found["offset_mapping"], strict=True):
            out[i] = _encoded(
                passages[i], np.array(ids, np.int32), where, tokenizer.eos_token_id, special
            )
    return out


def _encoded(
    passage: Passage, ids: np.ndarray, where: Sequence[Any], end_id: int | None, special: np.ndarray
) -> Encoded:
    spots = np.array(where, np.int64).reshape(-1, 2)
    # an end that lies before an earlier one belongs to an added token, or to part of a character
    ends = np.maximum.accumulate(spots[:, 1])
    before = np.concatenate([[0], ends[:-1]])
    learn = _overlap(np.minimum(spots[:, 0], before), ends, passage.spans)
    edges = _byte_edges(passage.text)
    stops = edges[ends]
    if passage.whole and len(ids):
        stops[spots[:, 1].argmax() :] = edges[-1]
        if end_id is not None and ids[-1] != end_id:
            ids, stops = np.append(ids, end_id), np.append(stops, edges[-1])
            learn = np.append(learn, True)
    size = np.diff(stops, prepend=0)
    if not passage.whole:
        size[np.isin(ids, special)] = 0
    return Encoded(ids.astype(np.int32), size.astype(np.int32), learn)


def _bytes(passage: Passage) -> Encoded:
    tokens = np.frombuffer(passage.text.encode(), np.uint8).astype(np.int32)
    spans = passage.spans
    if spans is not None:
        edges = _byte_edges(passage.text)
        spans = tuple((int(edges[a]), int(edges[b])) for a, b in spans)
    place = np.arange(len(tokens))
    return Encoded(tokens, np.ones(len(tokens), np.int32), _overlap(place, place + 1, spans))


def _overlap(
    starts: np.ndarray, ends: np.ndarray, spans: tuple[tuple[int, int], ...] | None
) -> np.ndarray:
    """Whether each of the ranges [starts, ends) shares a character with a span, bool [n]."""
    if spans is None:
        return np.ones(len(starts), bool)
    hit = np.zeros(len(starts), bool)
    for a, b in spans:
        hit |= (ends > a) & (starts < b)
    return hit


def _byte_edges(text: str) -> np.ndarray:
    """Where each character begins in UTF-8, and where the text ends: int64 [characters + 1]."""
    if text.isascii():
        return np.arange(len(text) + 1)
    code = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    width = 1 + (code >= 0x80).astype(np.int64) + (code >= 0x800) + (code >= 0x10000)
    return np.concatenate([[0], np.cumsum(width)])


def _sound(passage: Passage) -> Passage:
    """A passage in which pairs of surrogates, as JSON has them, are the character they stand for.

    Such a character takes one place where the pair took two, so the spans move with them.
    """
    text = passage.text
    try:
        text.encode()
    except UnicodeEncodeError:

        def sound(text: str) -> str:
            return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")

        spans = passage.spans
        if spans is not None:
            spans = tuple((len(sound(text[:a])), len(sound(text[:b]))) for a, b in spans)
        return passage._replace(text=sound(text), spans=spans)
    return passage


def special_texts(tokenizer: Any) -> dict[int, str]:
    """The texts of a tokenizer's special tokens by id, which `skip_special_tokens` leaves out."""
    added = {i: t.content for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    return added | dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
