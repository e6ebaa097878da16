"""Streams of documents: tokenised, packed into rows, and drawn with Grain."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from jcl.data.bounds import Bounds, Range, joined, with_bounds
from jcl.data.documents import Document
from jcl.data.packages import needed
from jcl.data.packing import Packing, Rows, gather, pack_rows
from jcl.data.stages import Stage, each_stage, plan
from jcl.data.stream import Arrays, Stream, pack
from jcl.data.tokens import OnEvent, Tokens, largest_token, tokenise
from jcl.method import Batch, check

_TRAIN, _BOUNDARY = 4, 5  # so that different uses of a seed never share their draws


def from_text(
    domains: Mapping[str, tuple[Iterable[Document] | Tokens, Iterable[Document] | Tokens]],
    tokenizer: Any = None,
    *,
    length: int,
    batch: int,
    steps: int | Sequence[int] | None = None,
    epochs: int | None = None,
    stages: Sequence[Stage] | None = None,
    seed: int = 0,
    packing: Packing = "fit",
    overlong: Literal["split", "cut"] = "split",
    boundary_batches: int | None = None,
    test_rows: int | None = None,
    test_batch: int = 64,
    on_device: int = 2**28,
    vocabulary: int | None = None,
    cache: bool = True,
    on_event: OnEvent | None = None,
) -> Stream:
    """A stream over domains of documents.

    A batch has these arrays:
    - `tokens` int32 [B, length].
    - `segments` int32 [B, length]: the number of the document within its row, from 1; 0 is padding.
    - `mask` float32 [B, length - 1]: 1 where the next token is predicted, which it never is from
      another document (see `pack_rows`).
    - `bytes` float32 [B]: how many bytes of text the predicted tokens stand for, so that bits per
      byte compare across tokenizers.
    - `weight` float32 [B] and `task` int32 [B].

    A stage draws its domains' rows without replacement, shuffled anew in each epoch. In a mixture
    each domain goes through its own epochs, in turns that keep the shares at every moment. Draws
    are a pure function of (seed, stage, step) and of the arguments here, so a run resumes exactly
    at any step, also in the middle of an epoch, with nothing to save. Other documents, or another
    tokenizer, length, batch or packing, make another stream, with which a run can't be resumed.
    Tokenising itself, when interrupted, begins anew.

    Args:
      domains: the `(train, test)` documents of each domain, such as a list of texts, of
        conversations or of `(prompt, answer)` pairs, or the result of a `read_...` function; or
        `Tokens`. The domains are the tasks, in this order.
      tokenizer: a fast tokenizer of transformers; None is for UTF-8 bytes.
      length: how many tokens a row has.
      batch: B, how many rows a step takes.
      steps: how many steps all stages have, or each of them; give this or `epochs`.
      epochs: how often a stage passes over the rows of its domains, all together; rows of weight 0
        fill up the last batch.
      stages: what each stage trains on, as in `from_bytes`; None is each domain in turn.
      seed: seeds the order.
      packing: see `pack_rows`; `alone` pads each document on the right.
      overlong: see `pack_rows`; `cut` suits conversations.
      boundary_batches: how many batches a boundary has at most, drawn from all rows of the stage's
        domains. None is all rows; if rows aren't kept on the device it is 64 batches, since all of
        a boundary's batches are read at once.
      test_rows: how many rows a domain's test has at most, evenly spread; None is all.
      test_batch: how many test rows are scored at once at most.
      on_device: if the rows of all domains take at most this many bytes, they are kept on the
        device: `chunk` gives row numbers, a batch is gathered inside the compiled step, and nothing
        is copied from the host in training. Otherwise they stay on disk, `chunk` reads the rows
        that it gives, and `source` is ().
      vocabulary: how many ids the model knows; a token beyond them is refused, for inside a
        compiled step it would silently be read as another.
      cache: see `tokenise`.
      on_event: see `tokenise`; the events also have `domain`.

    Raises:
      ValueError: if an argument is out of range, or a domain has nothing to predict.
      ImportError: if grain isn't installed; the message says how to install it.

    >>> texts = ["a text", "and another", "x"]
    >>> stream = from_text({"a": (texts, texts)}, length=8, batch=2, steps=3, cache=False)
    >>> stream.fetch(stream.source, stream.chunk(0, 2, 3))["tokens"].shape
    (1, 2, 8)
    """
    check(batch >= 1, "batch", batch, "at least 1")
    check(0 <= seed < 2**32, "seed", seed, "from 0 to 2**32 - 1")
    check(
        (epochs is None) != (steps is None), "epochs and steps", (epochs, steps), "one of the two"
    )
    check(epochs is None or epochs >= 1, "epochs", epochs, "at least 1")
    check(test_rows is None or test_rows >= 1, "test_rows", test_rows, "at least 1")
    tests = tuple(domains)
    names, tasks, shares = plan(stages, tests)

    def rows_of(documents: Any, name: str) -> Rows:
        def tell(event: dict[str, Any]) -> None:
            if on_event is not None:
                on_event({**event, "domain": name})

        try:
            if not isinstance(documents, Tokens):
                documents = tokenise(documents, tokenizer, cache=cache, on_event=tell)
            if vocabulary is not None:
                largest = largest_token(documents)
                check(largest < vocabulary, "token id", largest, f"below {vocabulary}")
            return pack_rows(documents, length, packing, overlong)
        except ValueError as error:
            raise ValueError(f"domain {name!r}: {error}") from error

    train = [rows_of(pair[0], name) for name, pair in domains.items()]
    exam = [rows_of(pair[1], f"{name} (test)") for name, pair in domains.items()]
    counts = np.array([r.number for r in train])
    offsets = np.concatenate([[0], np.cumsum(counts)])
    check(offsets[-1] < 2**31, "rows of all domains", int(offsets[-1]), "below 2**31")
    pools = [np.flatnonzero(s) for s in shares]  # the domains that each stage has
    if epochs is not None:
        drawn = [epochs * int(counts[p].sum()) for p in pools]
        taken = tuple(math.ceil(n / batch) for n in drawn)
    else:
        taken = each_stage(steps or 0, len(names))
        drawn = [n * batch for n in taken]

    kind = np.result_type(*(r.tokens.tokens for r in train))
    width = length * (kind.itemsize + np.min_scalar_type(length).itemsize + 1)
    kept = int(offsets[-1]) * width <= on_device
    source = _concatenate([gather(r, np.arange(r.number)) for r in train]) if kept else ()

    def slices(rows: np.ndarray, weight: np.ndarray, part: slice) -> Arrays:
        """The slices for row numbers [n, batch], of which each batch's `part` is taken."""
        rows, weight = rows[:, part], weight[:, part]
        task = np.searchsorted(offsets, rows, side="right") - 1
        own = {"weight": weight.astype(np.float32), "task": task.astype(np.int32)}
        if kept:
            return {"row": rows.astype(np.int32), **own}
        flat, of = rows.ravel(), task.ravel()
        order = np.argsort(of, kind="stable")
        parts = [gather(train[t], flat[of == t] - offsets[t]) for t in np.unique(of)]
        back = np.argsort(order)
        got = {k: v[back] for k, v in _concatenate(parts).items()}
        got["tokens"] = got["tokens"].astype(kind)  # the same dtype for any domains
        return {k: v.reshape(*rows.shape, *v.shape[1:]) for k, v in got.items()} | own

    draws = [
        _draws([(offsets[t], counts[t]) for t in p], s[p], (seed, i), batch)
        for i, (p, s) in enumerate(zip(pools, shares, strict=True))
    ]

    def chunk(stage: int, start: int, stop: int, rows: slice = slice(None)) -> Arrays:
        if not 0 <= start < stop <= taken[stage]:
            raise ValueError(
                f"steps {start} to {stop} are asked for, but stage {stage} has {taken[stage]}"
            )
        place = np.arange(start * batch, stop * batch).reshape(-1, batch)
        drawn_rows = np.stack([draws[stage](step) for step in range(start, stop)])
        return slices(drawn_rows, place < drawn[stage], rows)

    count = math.ceil(max(counts[p].sum() for p in pools) / batch)
    most = boundary_batches if boundary_batches is not None or kept else 64
    count = count if most is None else min(count, most)
    check(count >= 1, "boundary_batches", boundary_batches, "at least 1")

    def boundary(stage: int, rows: slice = slice(None)) -> Arrays:
        rng = np.random.default_rng((_BOUNDARY, seed, stage))
        pool = rng.permutation(
            np.concatenate([np.arange(offsets[t], offsets[t + 1]) for t in pools[stage]])
        )
        index = np.arange(count * batch).reshape(count, batch)
        return slices(pool[np.minimum(index, len(pool) - 1)], index < len(pool), rows)

    def fetch(source: Any, rows: Any) -> Batch:
        got = rows
        if source:
            got = {
                k: jnp.asarray(v).at[rows["row"]].get(mode="promise_in_bounds")
                for k, v in source.items()
            }
        return {
            "tokens": jnp.asarray(got["tokens"]).astype(jnp.int32),
            "segments": jnp.asarray(got["segments"]).astype(jnp.int32),
            "mask": jnp.asarray(got["mask"]).astype(jnp.float32),
            "bytes": jnp.asarray(got["bytes"]),
            "weight": jnp.asarray(rows["weight"]),
            "task": jnp.asarray(rows["task"]),
        }

    fetch = with_bounds(fetch, joined([_bounds(r) for r in train]))
    return Stream(
        names, tasks, taken, chunk, boundary, source, fetch, tests,
        pack([_exam(r, i, test_rows) for i, r in enumerate(exam)], test_batch),
    )  # fmt: skip


def _bounds(rows: Rows) -> Bounds:
    """The bounds of packed rows, for which their tokens, which may lie on disk, aren't read."""

    def bounds(column: str) -> Range | None:
        if column == "tokens":
            return 0, largest_token(rows.tokens)
        return (0, int(rows.sizes.max()) - 1) if column == "positions" else None

    return bounds


def _exam(rows: Rows, task: int, limit: int | None) -> Arrays:
    """The rows of a test, at most `limit`, evenly spread, in the dtypes of a batch."""
    count = rows.number if limit is None else min(limit, rows.number)
    got = gather(rows, np.arange(count) * rows.number // count)
    return {
        "tokens": got["tokens"].astype(np.int32),
        "segments": got["segments"].astype(np.int32),
        "mask": got["mask"].astype(np.float32),
        "bytes": got["bytes"],
        "task": np.full(count, task, np.int32),
    }


def _concatenate(parts: Sequence[Arrays]) -> Arrays:
    return {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}


def _draws(
    ranges: Sequence[tuple[int, int]], shares: np.ndarray, seed: tuple[int, int], batch: int
) -> Callable[[int], np.ndarray]:
    """`(step) -> row numbers [batch]`: of each range, a first row and a count, by its share."""
    with needed("from_text", "grain", "text"):
        import grain

    def shuffled(first: int, count: int) -> Any:
        if count >= _CIPHER:
            number = int(np.random.SeedSequence((_TRAIN, *seed, first)).generate_state(1)[0])
            return grain.MapDataset.range(first, first + count).shuffle(seed=number).repeat()

        @lru_cache(maxsize=2)  # neighbouring steps share an epoch's order
        def order(epoch: int) -> np.ndarray:
            return first + np.random.default_rng((_TRAIN, *seed, first, epoch)).permutation(count)

        places = grain.MapDataset.range(count).repeat()
        return places.map_with_index(lambda i, _: order(i // count)[i % count])

    parts = [shuffled(int(first), int(count)) for first, count in ranges]
    mixed = parts[0] if len(parts) == 1 else grain.MapDataset.mix(parts, shares.tolist())
    return mixed.batch(batch).__getitem__


_CIPHER = 2**16
"""From how many rows on Grain shuffles. It needs no memory for that, but uses a cipher of at least
16 bits and walks until it meets one of the rows, which takes 3.6 ms a draw at 10 rows."""
