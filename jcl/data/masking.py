"""Rows made for other objectives than the next token: masked language models', and T5's.

`masked` and `spans` take a stream of tokens and give the same stream with rows for a masked
language model or for T5. What they hide is drawn anew whenever a row comes, inside the compiled
step, and is a function of (seed, stage, step, place in the batch), so that a run resumes exactly.
Tests hide the same places for ever.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcl.data.bounds import Bounds, Range, with_bounds
from jcl.data.stream import Arrays, Stream, takes_rows
from jcl.method import Batch, check

_TRAIN, _BOUNDARY, _TEST = 6, 7, 8  # so that different uses of a seed never share their draws

Where = Callable[[jax.Array], jax.Array]
"""`(tokens int32 [L]) -> odds [L]`, at least 0: how likely each place is to be masked."""
Change = Callable[[jax.Array, Batch], Batch]
"""`(key, row) -> row`, of one row's arrays, without the axis of rows."""


def masked(
    stream: Stream,
    *,
    mask: int,
    vocabulary: int,
    share: float = 0.15,
    hidden: float = 0.8,
    replaced: float = 0.1,
    where: Where | None = None,
    special: Sequence[int] = (),
    seed: int = 0,
) -> Stream:
    """A stream for a masked language model, whose masks are dynamic, for `losses.masked_token`.

    Of a row's n tokens (padding and `special` ones apart) ⌊share · n + u⌋ are chosen, u uniform in
    [0, 1), without replacement. A chosen token becomes `mask` with probability `hidden`, any token
    of the vocabulary with probability `replaced`, and else stays, which the model can't know.

    A batch has `tokens` int32 [B, L], with what is hidden; `targets` int32 [B, L], as they were;
    `mask` float32 [B, L], 1 where a token was chosen and is to be predicted; and what else the
    stream's rows have, but no `bytes`, for a masked token's loss is no part of a text's code
    length. Which tokens were learned in the stream, such as answers, makes no difference.

    Sources: Devlin et al., arXiv 1810.04805, section 3.1 (15 %; 80, 10 and 10 %); Liu et al.,
    arXiv 1907.11692, section 4.1 (dynamic masks).

    Args:
      stream: of rows with `tokens`, such as `from_text` or `from_bytes` gives.
      mask: the id of the token that hides others.
      vocabulary: how many ids the model knows, of which a replaced token is any.
      share: the share of tokens that are chosen, in (0, 1].
      hidden: the share of the chosen that become `mask`.
      replaced: the share of the chosen that become any token.
      where: the odds by which places are chosen, see `phrases`; those with odds 0 never are, even
        if fewer than the share are left. None gives all the same.
      special: ids that are never chosen, such as those that begin and end a document.
      seed: seeds the draws.

    Raises:
      ValueError: if an argument is out of range, the rows have no tokens, or the stream has members
        (mask each member's stream, with its own seed).
    """
    check(0 < share <= 1, "share", share, "in (0, 1]")
    for name, value in (("hidden", hidden), ("replaced", replaced)):
        check(0 <= value <= 1, name, value, "from 0 to 1")
    check(hidden + replaced <= 1 + 1e-6, "hidden + replaced", hidden + replaced, "at most 1")
    check(vocabulary >= 1, "vocabulary", vocabulary, "at least 1")
    check(0 <= mask < vocabulary, "mask", mask, f"an id from 0 to {vocabulary - 1}")
    outside = [i for i in special if not 0 <= i < vocabulary]
    check(not outside, "special", outside, f"ids from 0 to {vocabulary - 1}")

    _length(stream)  # for its error

    def change(key: jax.Array, row: Batch) -> Batch:
        keys = jax.random.split(key, 4)
        tokens = row["tokens"]
        may = _is_text(row) & ~jnp.isin(tokens, jnp.array(special, jnp.int32))
        odds = jnp.where(may, 1.0 if where is None else where(tokens), 0.0)
        number = jnp.floor(share * jnp.sum(may) + jax.random.uniform(keys[0]))
        # the largest of log odds + Gumbel noise are a draw without replacement
        order = jnp.argsort(-(jnp.log(odds) + jax.random.gumbel(keys[1], tokens.shape)))
        chosen = (jnp.zeros_like(order).at[order].set(jnp.arange(order.size)) < number) & (odds > 0)
        fate = jax.random.uniform(keys[2], tokens.shape)
        other = jax.random.randint(keys[3], tokens.shape, 0, vocabulary, tokens.dtype)
        new = jnp.where(fate < hidden, mask, jnp.where(fate < hidden + replaced, other, tokens))
        return {
            **{k: v for k, v in row.items() if k != "bytes"},
            "tokens": jnp.where(chosen, new, tokens),
            "targets": tokens,
            "mask": chosen.astype(jnp.float32),
        }

    return _changed(stream, change, seed, mask if replaced == 0 else vocabulary - 1)


def phrases(ids: Sequence[Sequence[int]], others: float = 0.0) -> Where:
    """Odds of 1 where one of some phrases stands, and `others` elsewhere, for `masked`.

    A tokenizer writes a word in several ways, such as with a blank before it or not; give each.

    Sources of the use: entities (Kim et al., arXiv 2410.15126, MELT; Lu et al., arXiv 2302.09432,
    BBT-Fin), words of time and events (Han et al., arXiv 2012.15283, ECONET).

    Args:
      ids: the phrases' token ids.
      others: the odds of all other places.

    Raises:
      ValueError: if there are no phrases, one of them is empty, or `others` is negative.
    """
    check(len(ids) > 0, "ids", ids, "at least one phrase")
    check(all(len(phrase) > 0 for phrase in ids), "ids", ids, "phrases of at least one token")
    check(others >= 0, "others", others, "at least 0")

    def equal(windows: jax.Array, phrase: jax.Array) -> jax.Array:
        return jnp.all(windows == phrase, axis=-1)

    def where(tokens: jax.Array) -> jax.Array:
        found = jnp.zeros(tokens.shape, bool)
        for length in sorted({len(phrase) for phrase in ids}):
            if length > tokens.shape[0]:
                continue
            same = jnp.array([phrase for phrase in ids if len(phrase) == length], tokens.dtype)
            count = tokens.shape[0] - length + 1
            windows = tokens[jnp.arange(count)[:, None] + jnp.arange(length)]
            starts = jax.lax.map(partial(equal, windows), same).any(0)
            for offset in range(length):
                found = found.at[offset : offset + count].max(starts)
        return jnp.where(found, 1.0, others)

    return where


def spans(
    stream: Stream,
    *,
    sentinels: Sequence[int],
    end: int,
    start: int = 0,
    share: float = 0.15,
    mean: float = 3.0,
    seed: int = 0,
) -> Stream:
    """A stream for T5: spans are cut out of a row's text, and the decoder writes them.

    Of n tokens round(share · n) are cut out, as round of that / `mean` spans; kept and cut pieces
    alternate, beginning with a kept one, and all ways to do so are equally likely. For instance,
    `a b c d e f` becomes `a X d e Y`, and the decoder writes `X b c Y f`, X and Y being sentinels.

    A batch has `inputs` int32 [B, S] with `input_segments`, which end with `end`; `tokens` int32
    [B, T] with `segments`, from `start` to `end`; `mask` float32 [B, T - 1]; `weight` and `task`.
    S and T are fixed by the rows' length; segments of 0 are padding. Any loss of the next token
    will do. A row is one text here, whatever documents it holds, as in T5's own training; a row of
    fewer than two tokens counts for nothing.

    Source: Raffel et al., arXiv 1910.10683, section 3.1.4, and the authors' way to draw spans
    (`random_spans_noise_mask` in t5/data/preprocessors.py, read in copies of it), by which 568
    tokens give inputs of 512 and targets of 114.

    Args:
      stream: of rows with `tokens`, such as `from_text(packing="split")` or `from_bytes` gives.
      sentinels: ids that stand for the spans, in this order: at least as many as spans of a row.
      end: the id that ends a text.
      start: the id with which the decoder starts.
      share: the share of tokens that are cut out, in (0, 1).
      mean: the mean length of a span, at least 1.
      seed: seeds the draws.

    Raises:
      ValueError: if an argument is out of range, the sentinels don't suffice, the rows have no
        tokens, or the stream has members.
    """
    check(0 < share < 1, "share", share, "in (0, 1)")
    check(mean >= 1, "mean", mean, "at least 1")
    length = _length(stream)
    check(length >= 2, "length of a row", length, "at least 2")
    # of a text of each length; a table, for float32 rounds some numbers otherwise
    numbers = np.array([_numbers(n, share, mean) for n in range(length + 1)])
    cut, count = numbers.max(0).tolist()
    kept = int(max(n - c + k for n, (c, k) in enumerate(numbers)))
    wanted = f"{count} ids, as many as a row of {length} tokens has spans"
    check(len(sentinels) >= count, "number of sentinels", len(sentinels), f"at least {wanted}")
    marks = jnp.array(sentinels[:count], jnp.int32)

    def change(key: jax.Array, row: Batch) -> Batch:
        text = _is_text(row)
        n = jnp.sum(text)
        # the tokens of the text first, in order, whatever lies between them
        tokens = row["tokens"][jnp.argsort(~text, stable=True)]
        places = jnp.arange(length)
        number, pieces = jnp.asarray(numbers)[n]
        keys = jax.random.split(key)
        lengths = [
            _segments(keys[0], n - number, pieces, length, count),
            _segments(keys[1], number, pieces, length, count),
        ]
        edges = jnp.cumsum(jnp.stack(lengths, axis=1).reshape(-1))
        piece = jnp.searchsorted(edges, places, side="right")  # even ones are kept
        span = piece // 2
        is_cut = (piece % 2 == 1) & (places < n)
        begins = is_cut & (jnp.pad(is_cut, (1, 0))[:-1] == 0)
        stays = ~is_cut & (places < n)
        mark = marks[jnp.minimum(span, count - 1)]
        good = n >= 2

        def write(*parts: tuple[jax.Array, jax.Array, jax.Array], size: int) -> Any:
            """Ids at their places, [size], with `end` after the last, and segments."""
            out = jnp.zeros(size, jnp.int32)
            used = jnp.int32(0)
            for values, at, taken in parts:
                out = out.at[jnp.where(taken, at, size)].set(values, mode="drop")
                used = jnp.maximum(used, jnp.max(jnp.where(taken, at + 1, 0)))
            there = (jnp.arange(size) <= used) & good
            return jnp.where(there, out.at[used].set(end), 0), there.astype(jnp.int32)

        # before a place of the inputs stand what stays and the marks of the spans so far
        at = jnp.cumsum(stays | begins) - 1
        inputs, input_segments = write((tokens, at, stays), (mark, at, begins), size=kept + 1)
        # and in the targets, after `start`, what is cut out, and as many marks
        at = 1 + jnp.cumsum(is_cut) + span
        first = jnp.array([start]), jnp.array([0]), jnp.array([True])
        targets, segments = write(
            first, (mark, at - 1, begins), (tokens, at, is_cut), size=cut + count + 2
        )
        return {
            "inputs": inputs,
            "input_segments": input_segments,
            "tokens": targets,
            "segments": segments,
            "mask": segments[1:].astype(jnp.float32),
            "weight": jnp.where(good, row["weight"], 0.0),
            "task": row["task"],
        }

    return _changed(stream, change, seed, max(*sentinels[:count], end, start))


def _is_text(row: Batch) -> jax.Array:
    """Which of a row's places are no padding, bool [L]."""
    return row["segments"] > 0 if "segments" in row else jnp.ones(row["tokens"].shape, bool)


def _numbers(n: int, share: float, mean: float) -> tuple[int, int]:
    """How many of n tokens are cut out, and as how many spans."""
    if n < 2:
        return 0, 0
    cut = min(max(round(n * share), 1), n - 1)
    return cut, min(max(round(cut / mean), 1), cut, n - cut)


def _segments(key: jax.Array, items: jax.Array, pieces: jax.Array, most: int, count: int) -> Any:
    """Lengths int32 [count] of `pieces` pieces of `items` items; all ways are equally likely.

    At most `most` items and `count` pieces; the lengths of further pieces are 0.
    """
    gap = jnp.arange(most)
    drawn = jnp.where(gap < items - 1, jax.random.uniform(key, (most,)), jnp.inf)
    rank = jnp.argsort(jnp.argsort(drawn))
    cuts = (rank < pieces - 1) & (gap < items - 1)  # of the gaps between neighbours, one fewer
    owner = jnp.cumsum(jnp.pad(cuts, (1, 0))[:-1])
    return jnp.zeros(count, jnp.int32).at[owner].add(jnp.where(gap < items, 1, 0), mode="drop")


def _length(stream: Stream) -> int:
    """How many tokens the stream's rows have."""
    rows = jax.eval_shape(stream.fetch, stream.source, stream.chunk(0, 0, 1))
    check("tokens" in rows, "columns of the stream", sorted(rows), "of text, with tokens")
    return rows["tokens"].shape[-1]


def _changed(stream: Stream, change: Change, seed: int, largest: int) -> Stream:
    """The stream with each row changed, which also gives each row of a slice its own `draw`.

    Args:
      stream: of rows with tokens.
      change: what becomes of a row.
      seed: seeds the draws.
      largest: the largest id that a change may write.
    """
    check(0 <= seed < 2**32, "seed", seed, "from 0 to 2**32 - 1")
    single = stream.members is None
    check(single, "number of members", stream.members, "None: change each member's stream")

    def with_draws(rows: Arrays, part: slice, kind: int, stage: int, first: int) -> Arrays:
        begin = part.start or 0
        steps, count = rows["weight"].shape
        draws = [_draws((kind, seed, stage, first + i), begin + count) for i in range(steps)]
        return {**rows, "draw": np.stack(draws)[:, begin:]}

    def chunk(stage: int, start: int, stop: int, rows: slice = slice(None)) -> Arrays:
        return with_draws(_part(stream.chunk, rows, stage, start, stop), rows, _TRAIN, stage, start)

    def boundary(stage: int, rows: slice = slice(None)) -> Arrays:
        return with_draws(_part(stream.boundary, rows, stage), rows, _BOUNDARY, stage, 0)

    def each(draw: jax.Array, row: Batch) -> Batch:
        return change(jax.random.key(draw), row)

    def over(draws: jax.Array, rows: Batch) -> Batch:
        fn = each
        for _ in range(draws.ndim):
            fn = jax.vmap(fn)
        return fn(draws, rows)

    def fetch(source: Any, rows: Any) -> Batch:
        plain = {k: v for k, v in rows.items() if k != "draw"}
        return over(jnp.asarray(rows["draw"]), stream.fetch(source, plain))

    test = stream.test
    if test:
        shape = test["weight"].shape
        draws = _draws((_TEST, seed), math.prod(shape)).reshape(shape)
        test = jax.tree.map(np.asarray, jax.jit(over)(draws, dict(test)))
    known = getattr(stream.fetch, "bounds", None)
    if known is not None:
        fetch = with_bounds(fetch, partial(_widened, known, largest))
    return stream._replace(chunk=chunk, boundary=boundary, fetch=fetch, test=test)


def _part(read: Callable[..., Arrays], rows: slice, *at: int) -> Arrays:
    """What a stream reads at a place, of each step's rows only some."""
    if takes_rows(read):
        return read(*at, rows=rows)
    return {k: v[:, rows] for k, v in read(*at).items()}


def _draws(seed: tuple[int, ...], count: int) -> np.ndarray:
    """Seeds uint32 [count]; the first are the same for any larger count."""
    return np.random.default_rng(seed).integers(0, 2**32, count, dtype=np.uint32)


def _widened(known: Bounds, largest: int, column: str) -> Range | None:
    """The bounds of rows of which any token may have become another, up to `largest`."""
    tokens = known("tokens")
    if column not in ("tokens", "inputs") or tokens is None:
        return known(column)
    return min(tokens[0], 0), max(tokens[1], largest)
