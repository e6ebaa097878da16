"""Packs documents of any length into rows of a fixed one, of which each sees only itself."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from jcl.data.stream import Arrays
from jcl.data.tokens import Tokens
from jcl.method import check
from jcl.records import record

Packing = Literal["fit", "split", "alone"]


@record
class Rows(NamedTuple):
    """Which pieces of documents lie in which row; `gather` makes arrays of them.

    Args:
      tokens: the documents.
      length: how many tokens a row has.
      starts: int64 [pieces], where in `tokens` each piece begins; a row's pieces are neighbours.
      sizes: int32 [pieces], how many tokens each piece has.
      first: int64 [rows + 1], the first piece of each row, and the number of pieces.
    """

    tokens: Tokens
    length: int
    starts: np.ndarray
    sizes: np.ndarray
    first: np.ndarray

    @property
    def number(self) -> int:
        """How many rows there are."""
        return len(self.first) - 1


def pack_rows(
    tokens: Tokens,
    length: int,
    packing: Packing = "fit",
    overlong: Literal["split", "cut"] = "split",
) -> Rows:
    """Lays documents into rows of `length` tokens.

    Each learned token (see `Tokens.learn`) is predicted in exactly one place, except a document's
    first token, which has nothing before it to be predicted from. (Many tokenizers begin documents
    with a token of their own, which is then the first.) A document of one token is left out. Where
    a document is cut, the last token before the cut comes again as the first after it, where it is
    given and not predicted; the piece after the cut sees nothing else of the text before.

    Args:
      tokens: the documents.
      length: how many tokens a row has.
      packing: `fit` cuts only documents longer than a row, and combines pieces so that little is
        padding (best fit, the longest first). `split` lays documents end to end and cuts wherever a
        row is full, so that only the last row has padding, or the last place of a row where no
        document could begin. `alone` puts one piece in each row.
      overlong: what happens to the rest of a document longer than a row: `split` makes further
        pieces, `cut` leaves it out, which suits conversations (not with `packing="split"`).

    Raises:
      ValueError: if an argument is out of range, or no token would be predicted.

    Source: Ding et al., arXiv 2404.10830, for `fit`: fewer cuts make better models than `split`.
    """
    check(length >= 2, "length", length, "at least 2")
    check(packing in ("fit", "split", "alone"), "packing", packing, "'fit', 'split' or 'alone'")
    check(overlong in ("split", "cut"), "overlong", overlong, "'split' or 'cut'")
    check(packing != "split" or overlong == "split", "overlong", overlong, "'split' as packing is")
    if packing == "split":
        starts, sizes, row = _end_to_end(tokens.offsets, length)
    else:
        starts, sizes = _pieces(tokens.offsets, length, overlong == "split")
        row = np.arange(len(starts))
    # pieces that predict nothing are left out, but not end to end, where places depend on them
    learned = _any_learned(tokens.learn, starts, sizes)
    if not learned.any():
        raise ValueError("documents have nothing to predict: each is a single token or a prompt")
    if packing != "split":
        starts, sizes = starts[learned], sizes[learned]
        row = _best_fit(sizes, length) if packing == "fit" else np.arange(len(starts))
    order = np.argsort(row, kind="stable")
    first = np.searchsorted(row[order], np.arange(row.max() + 2))
    return Rows(tokens, length, starts[order], sizes[order].astype(np.int32), first)


def gather(rows: Rows, index: np.ndarray) -> Arrays:
    """Some rows as arrays, at a cost that depends only on how many they are.

    Args:
      rows: from `pack_rows`.
      index: int [n], which rows.

    Returns:
      `tokens` [n, L] in the dtype in which they are stored, 0 for padding; `segments` [n, L] in the
      smallest unsigned dtype, 1 for a row's first piece and 0 for padding; `mask` bool [n, L - 1],
      whether token i + 1 is predicted; `bytes` float32 [n], how many bytes of text a row's
      predicted tokens stand for.
    """
    index = np.asarray(index)
    shape = (len(index), rows.length)
    pieces = rows.first[index + 1] - rows.first[index]
    piece = _ranges(rows.first[index], pieces)
    sizes = rows.sizes[piece].astype(np.int64)
    owner = np.repeat(np.repeat(np.arange(len(index)), pieces), sizes)
    inside = _ranges(np.zeros_like(sizes), sizes)  # the place within the piece
    used = np.bincount(owner, minlength=len(index))
    place = owner * rows.length + _ranges(np.zeros_like(used), used)
    source = _ranges(rows.starts[piece], sizes)
    learn = (inside > 0) & rows.tokens.learn[source]

    def lay(values: np.ndarray, dtype: np.dtype | type) -> np.ndarray:
        flat = np.zeros(shape[0] * shape[1], dtype)
        flat[place] = values
        return flat.reshape(shape)

    segments = np.repeat(_ranges(np.ones_like(pieces), pieces), sizes)
    text = np.bincount(owner, rows.tokens.bytes[source] * learn, minlength=len(index))
    return {
        "tokens": lay(rows.tokens.tokens[source], rows.tokens.tokens.dtype),
        "segments": lay(segments, np.min_scalar_type(rows.length)),
        "mask": lay(learn, bool)[:, 1:],
        "bytes": text.astype(np.float32),
    }


def _ranges(starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """`[s, s + 1, ..., s + n - 1]` for each start and size, one after another."""
    ends = np.cumsum(sizes)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - ends + sizes, sizes)


def _pieces(offsets: np.ndarray, length: int, further: bool) -> tuple[np.ndarray, np.ndarray]:
    """Starts and sizes of pieces of at least 2 tokens, documents longer than a row being cut."""
    predicted = np.diff(offsets) - 1
    counts = -(-predicted // (length - 1))  # 0 for a document of one token
    if not further:
        counts = np.minimum(counts, 1)
    at = _ranges(np.zeros_like(counts), counts) * (length - 1)
    return (
        np.repeat(offsets[:-1], counts) + at,
        np.minimum(length, np.repeat(predicted + 1, counts) - at),
    )


def _end_to_end(offsets: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Starts, sizes and rows of pieces that are laid end to end."""
    found: list[tuple[int, int, int]] = []
    row, room = 0, length
    for at, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        while end - at >= 2:
            if room < 2:  # a piece of a single token would predict nothing
                row, room = row + 1, length
            size = min(end - at, room)
            found.append((at, size, row))
            at, room = at + size - 1, room - size
    starts, sizes, rows = np.array(found, np.int64).reshape(-1, 3).T
    return starts, sizes, rows


def _any_learned(learn: np.ndarray, starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Which pieces have a token to be learned beyond their first, bool [pieces]."""
    if not len(starts):
        return np.zeros(0, bool)
    edges = np.stack([starts + 1, starts + sizes], axis=1).ravel()
    # reduceat allows no edge at the very end, but runs to the end after the last edge
    inside = edges[:-1] if edges[-1] == len(learn) else edges
    return np.logical_or.reduceat(learn, inside)[::2]


def _best_fit(sizes: np.ndarray, length: int) -> np.ndarray:
    """The row of each piece: the longest first, each goes where it leaves the least room."""
    rows = np.empty(len(sizes), np.int64)
    by_room: list[list[int]] = [[] for _ in range(length + 1)]  # open rows
    rooms = 0  # bit r is set where a row with room for r is open
    count = 0
    for i in np.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[i])
        fitting = rooms >> size
        if fitting:
            room = size + (fitting & -fitting).bit_length() - 1
            row = by_room[room].pop()
            if not by_room[room]:
                rooms ^= 1 << room
        else:
            row, room, count = count, length, count + 1
        rows[i] = row
        left = room - size
        if left >= 2:
            by_room[left].append(row)
            rooms |= 1 << left
    return rows
