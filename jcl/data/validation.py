"""Rows of training that are held out, by which hyper-parameters and states are chosen.

A row's side depends on its text alone, so that equal ones fall on the same side and stay there when
other rows are added.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from jcl.method import check

Row = TypeVar("Row")


def is_held_out(content: str | bytes, share: float) -> bool:
    """Whether a row is held out, by its text or its bytes; `share` is the chance that it is.

    >>> sum(is_held_out(f"text {i}", 0.1) for i in range(10_000))
    1009
    """
    return _place(content) < share


def hold_rows_out(rows: Sequence[Row], share: float) -> tuple[list[Row], list[Row]]:
    """Splits rows into those to train on and those held out.

    Args:
      rows: texts; or tuples, of which the first is the text or the prompt; or conversations.
      share: the chance that a row is held out, 0 to hold none out. Of few rows that all fall on
        the other side the one nearest to it is held out.

    Raises:
      ValueError: if `share` isn't at least 0 and below 1, or no row is left to train on.
    """
    check(0 <= share < 1, "validation", share, "at least 0 and below 1")
    if not share or not rows:
        return list(rows), []
    places = [_place(_text_of(row)) for row in rows]
    bound = max(share, min(places) + 2**-32)
    sides: tuple[list[Row], list[Row]] = [], []
    for row, place in zip(rows, places, strict=True):
        sides[place < bound].append(row)
    check(bool(sides[0]), "number of rows that are left", 0, "at least 1")
    return sides


def _text_of(row: Any) -> str:
    text = row[0] if isinstance(row, tuple) else row
    return text if isinstance(text, str) else repr(text)


def _place(content: str | bytes) -> float:
    """A number from 0 to 1 that looks drawn, by a row's text or its bytes."""
    raw = content.encode("utf-8", "replace") if isinstance(content, str) else content
    digest = hashlib.blake2b(raw, digest_size=4, person=b"validation").digest()
    return int.from_bytes(digest, "big") / 2**32


def validation_split(
    domains: Mapping[str, tuple[Any, Any]], share: float
) -> tuple[dict[str, tuple[Any, Any]], dict[str, tuple[Any, Any]] | None]:
    """Holds a share of each domain's training rows out, to choose by them and not by the tests.

    Args:
      domains: the `(train, test)` rows of each domain, as `from_text` or `from_pairs` takes them
        (see `hold_rows_out`), or uint8 arrays as `from_bytes` does, of whose every sixteenth part
        the end is held out.
      share: of the rows or bytes, 0 to hold none out.

    Returns:
      The domains without these rows; and the same with these rows as tests in place of their own,
      None where `share` is 0.

    Raises:
      ValueError: if `share` isn't at least 0 and below 1, or a domain has no row left to train on.

    >>> texts = [f"text {i}" for i in range(10)]
    >>> train, held = validation_split({"a": (texts, ["another"])}, 0.2)
    >>> train["a"][1], len(train["a"][0]), len(held["a"][1])
    (['another'], 6, 4)
    """
    check(0 <= share < 1, "validation", share, "at least 0 and below 1")
    if not share:
        return dict(domains), None
    learned, held = {}, {}
    for name, (train, test) in domains.items():
        try:
            split = _blocks if isinstance(train, np.ndarray) else hold_rows_out
            kept, out = split(train, share)
        except ValueError as error:
            raise ValueError(f"domain {name!r}: {error}") from error
        learned[name], held[name] = (kept, test), (kept, out)
    return learned, held


def _blocks(data: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Splits bytes so that both sides cover the whole."""
    blocks = np.array_split(data, 16)
    cuts = [len(block) - round(share * len(block)) for block in blocks]
    train, held = (
        np.concatenate([block[side] for block, side in zip(blocks, sides, strict=True)])
        for sides in ([slice(c) for c in cuts], [slice(c, None) for c in cuts])
    )
    return train, held
