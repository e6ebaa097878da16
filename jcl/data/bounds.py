"""What integers a data set holds, and whether a model, a loss or a method has room for them.

Inside a compiled step an index out of range reads another row, or adds nothing, without a word. So
data is looked at on the host, once and before anything is compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from jcl.method import Limits

Range = tuple[int, int]
"""The smallest and the largest value."""
Bounds = Callable[[str], Range | None]
"""`(column) -> (smallest, largest)`; None if there is no such column of integers. Only what is
asked for is looked at."""

_PIECE = 2**24  # how many numbers of a column, which may lie on disk, are in memory at once


def bounds_of(arrays: Mapping[str, Any]) -> Bounds:
    """The bounds of columns of any shape; `positions` are the places of `tokens` [..., L].

    A column of tracers has none.
    """

    def bounds(column: str) -> Range | None:
        if column == "positions":
            return _positions(arrays)
        values = arrays.get(column)
        return None if values is None else range_of(values)

    return bounds


def with_bounds(fetch: Callable[..., Any], bounds: Bounds) -> Callable[..., Any]:
    """The same function of a stream, which says at `fetch.bounds` what integers its batches hold.

    They belong to it and not to the stream, so that another `fetch` isn't judged by them.
    """
    fetch.bounds = bounds  # type: ignore[attr-defined]
    return fetch


def range_of(values: Any) -> Range | None:
    """The smallest and the largest of some integers; None if they aren't, or there are none."""
    if isinstance(values, jax.core.Tracer) or not getattr(values, "is_fully_addressable", True):
        return None
    if not hasattr(values, "dtype") or np.dtype(values.dtype).kind not in "iu" or not values.size:
        return None
    flat = np.asarray(values).reshape(-1)
    parts = [flat[at : at + _PIECE] for at in range(0, len(flat), _PIECE)]
    return min(int(p.min()) for p in parts), max(int(p.max()) for p in parts)


def joined(bounds: Iterable[Bounds]) -> Bounds:
    """The bounds of several sets of rows together."""
    known = list(bounds)

    def both(column: str) -> Range | None:
        found = [r for one in known if (r := one(column)) is not None]
        return (min(r[0] for r in found), max(r[1] for r in found)) if found else None

    return both


def _positions(arrays: Mapping[str, Any]) -> Range | None:
    """The largest place of a token within its document, as models count them."""
    tokens, segments = arrays.get("tokens"), arrays.get("segments")
    if tokens is None or isinstance(tokens, jax.core.Tracer) or not np.size(tokens):
        return None
    length = np.shape(tokens)[-1]
    if segments is None:
        return 0, length - 1
    if isinstance(segments, jax.core.Tracer):
        return None
    return 0, max(longest_document(np.asarray(segments).reshape(-1, length)) - 1, 0)


def longest_document(segments: np.ndarray) -> int:
    """How many tokens the longest document of some rows has, from their segments [n, L]."""
    longest = 0
    count = max(_PIECE // segments.shape[1], 1)
    for at in range(0, len(segments), count):
        part = segments[at : at + count].astype(np.int64)
        names = part + np.arange(len(part))[:, None] * (part.max() + 1)
        longest = max(longest, int(np.bincount(names[part > 0]).max(initial=0)))
    return longest


def check_limits(bounds: Bounds, limits: Limits, whose: str, where: str) -> None:
    """Refuses rows with values for which there is no room.

    Args:
      bounds: of the rows.
      limits: how many values each column may have, and why.
      whose: what has these limits, such as `the model`.
      where: what the rows are, such as `the stream`.

    Raises:
      ValueError: in one sentence, which names the column.
    """
    for column, (count, reason) in limits.items():
        found = bounds(column)
        if found is not None and not (found[0] >= 0 and found[1] < count):
            raise ValueError(
                f"{column} of {where} is from {found[0]} to {found[1]}, but must be from 0 to "
                f"{count - 1}, for the {reason} of {whose} is {count}"
            )
