"""Multiple-choice probes, scored by likelihood inside `jit`, before and after a stage.

A prompt with one of its choices is a document (choices of one token share a document), and
documents are packed into rows of one length, so that all probes run in one scan of one shape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jcl import losses
from jcl.data.packing import gather, pack_rows
from jcl.data.questions import Item, Probe, from_labels, read
from jcl.data.tokens import Tokens
from jcl.method import Batch, check
from jcl.program import Evaluate, Program, State

__all__ = ["Encoded", "Item", "Probe", "encode", "evaluator", "from_labels", "likelihoods", "read"]

Normalise = Literal["none", "tokens", "bytes"]


class Encoded(NamedTuple):
    """Probes as arrays of fixed shapes: I items of all probes, at most C choices each, D documents.

    A document is a prompt with one choice; choices of a single token share a document.
    """

    names: tuple[str, ...]
    """The probes' names."""
    tokens: np.ndarray
    """int32 [n, B, L]: rows of packed documents."""
    segments: np.ndarray
    """int32 [n, B, L]: the number of the document within its row, from 1 on; 0 is padding."""
    document: np.ndarray
    """int32 [n, B, L]: the document of the next token, if that token is scored; else D."""
    candidate: np.ndarray
    """int32 [D + 1, K]: the tokens to score there; -1 stands for the token that follows."""
    owner: np.ndarray
    """int32 [D + 1, K]: the choice of each candidate, item · C + choice; I · C if there is none."""
    sizes: np.ndarray
    """int32 [I, C]: how many tokens a choice has; 0 where an item has fewer choices."""
    bytes: np.ndarray
    """int32 [I, C]: a choice's length in UTF-8, the space before it not counted."""
    answer: np.ndarray
    """int32 [I]: which choice is right."""
    probe: np.ndarray
    """int32 [I]: which probe an item belongs to."""


def encode(
    probes: Sequence[Probe],
    tokenizer: Any = None,
    length: int | None = None,
    rows: int = 8,
    packed: bool = True,
) -> Encoded:
    """Tokenises probes and lays them out in arrays.

    As in lm-eval-harness, a choice's tokens are those of prompt and choice together after the first
    k, where the prompt alone has k tokens. If the tokenizer merges across the border, a scored
    token may hold the prompt's end. White space at a prompt's end goes to the choice. A document
    that is too long loses the prompt's beginning.

    Args:
      probes: each gets a score of its own.
      tokenizer: one of transformers; None takes the UTF-8 bytes.
      length: L, at most the model's context; None is the longest prompt with its choice.
      rows: B, how many rows are read at once.
      packed: whether several documents share a row, which takes a model that heeds `segments`;
        else each has a row of its own.

    Raises:
      ValueError: if there is nothing to score, a prompt is blank, or a choice has no token of its
        own or doesn't fit into a row.
    """
    items = [item for probe in probes for item in probe.items]
    check(len(items) >= 1, "number of items", len(items), "at least 1")
    check(rows >= 1, "rows", rows, "at least 1")
    for item in items:
        inside = 0 <= item.answer < len(item.choices)
        wanted = f"from 0 to {len(item.choices) - 1}, one of its choices"
        check(inside, f"answer of {item.prompt!r}", item.answer, wanted)
    width = max(len(item.choices) for item in items)
    nobody = len(items) * width
    sizes, size_in_bytes = np.zeros((2, len(items), width), np.int32)
    prompts = [item.prompt.rstrip() for item in items]
    check(all(prompts), "prompt", "", "a text, for a model says nothing of a first token")
    starts = [len(ids) for ids in _ids(tokenizer, prompts)]
    whole = iter(_ids(tokenizer, [i.prompt + choice for i in items for choice in i.choices]))
    documents: list[list[int]] = []
    scored: list[int] = []  # how many of each document's last tokens are scored
    candidates: list[list[int]] = []
    owners: list[list[int]] = []
    for i, item in enumerate(items):
        texts = [next(whole) for _ in item.choices]
        for c, (choice, ids) in enumerate(zip(item.choices, texts, strict=True)):
            sizes[i, c] = len(ids) - starts[i]
            size_in_bytes[i, c] = len(choice.lstrip().encode())
            check(sizes[i, c] >= 1, "choice", choice, f"a token or more after {item.prompt!r}")
        places = list(range(i * width, i * width + len(texts)))
        if (sizes[i, : len(texts)] == 1).all() and all(t[:-1] == texts[0][:-1] for t in texts):
            documents.append(texts[0])
            candidates.append([t[-1] for t in texts])
            owners.append(places)
            scored.append(1)
        else:
            documents += texts
            candidates += [[-1]] * len(texts)
            owners += [[place] for place in places]
            scored += sizes[i, : len(texts)].tolist()
    length = max(map(len, documents)) if length is None else length
    check(max(scored) < length, "length", length, f"above {max(scored)}, a choice's tokens")
    documents = [ids[-length:] for ids in documents]
    laid = _lay_out(documents, scored, length, rows, packed)
    return Encoded(
        tuple(probe.name for probe in probes),
        *laid,
        _table(candidates, -1),
        _table(owners, nobody),
        sizes,
        size_in_bytes,
        np.array([item.answer for item in items], np.int32),
        np.repeat(np.arange(len(probes), dtype=np.int32), [len(p.items) for p in probes]),
    )


def _ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    if tokenizer is None:
        return [list(text.encode()) for text in texts]
    return [list(ids) for ids in tokenizer(list(texts), verbose=False)["input_ids"]]


def _table(rows: Sequence[Sequence[int]], fill: int) -> np.ndarray:
    """int32 [len(rows) + 1, widest]: the rows, with `fill` after their ends and in the last row."""
    table = np.full((len(rows) + 1, max(map(len, rows))), fill, np.int32)
    for i, row in enumerate(rows):
        table[i, : len(row)] = row
    return table


def _lay_out(
    documents: Sequence[Sequence[int]], scored: Sequence[int], length: int, rows: int, packed: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`tokens`, `segments` and `document` of `Encoded`; empty rows fill up the last batch."""
    offsets = np.cumsum([0, *map(len, documents)])
    tokens = np.concatenate([np.asarray(d, np.int32) for d in documents])
    ends = np.repeat(offsets[1:] - np.asarray(scored), np.diff(offsets))
    learn = np.arange(len(tokens)) >= ends
    held = Tokens(tokens, np.zeros(len(tokens), np.int32), learn, offsets)
    laid = pack_rows(held, length, "fit" if packed else "alone")
    arrays = gather(laid, np.arange(laid.number))
    segments = arrays["segments"].astype(np.int64)
    piece = np.searchsorted(offsets, laid.starts, side="right") - 1
    place = piece[np.minimum(laid.first[:-1, None] + segments - 1, len(piece) - 1)]
    document = np.full(segments.shape, len(documents))
    document[:, :-1] = np.where(arrays["mask"], place[:, 1:], len(documents))

    def batches(x: np.ndarray, fill: int) -> np.ndarray:
        full = np.full((-(-len(x) // rows) * rows, length), fill, np.int32)
        full[: len(x)] = x
        return full.reshape(-1, rows, length)

    return batches(arrays["tokens"], 0), batches(segments, 0), batches(document, len(documents))


def likelihoods(
    predict: Callable[[Batch], Any], encoded: Encoded, task: int | jax.Array = 0
) -> jax.Array:
    """log p(choice | prompt) in nats, float32 [I, C]; 0 where an item has no such choice.

    Args:
      predict: `batch -> TokenScores [B, L]` for `batch["targets"]`, or plain logits [B, L, V].
      encoded: the probes.
      task: the rows' `task`, for methods that tell tasks apart.
    """
    candidates, owners = jnp.asarray(encoded.candidate), jnp.asarray(encoded.owner)

    def add(total: jax.Array, part: Any) -> tuple[jax.Array, None]:
        tokens, segments, document = part
        batch = losses.with_targets(
            {
                "tokens": tokens,
                "segments": segments,
                "mask": (document[:, :-1] < len(candidates) - 1).astype(jnp.float32),
                "weight": (segments[:, 0] > 0).astype(jnp.float32),
                "task": jnp.full(len(tokens), task, jnp.int32),
            }
        )

        def nll(wanted: jax.Array) -> jax.Array:
            targets = jnp.where(wanted < 0, batch["targets"], wanted)
            outputs = predict({**batch, "targets": targets})
            if isinstance(outputs, losses.TokenScores):
                return outputs.nll
            chosen = jnp.take_along_axis(outputs.astype(jnp.float32), targets[..., None], axis=-1)
            return jax.nn.logsumexp(outputs.astype(jnp.float32), axis=-1) - chosen[..., 0]

        # the model runs once, for only the last gather depends on the mapped candidates
        lost = jax.vmap(nll, in_axes=-1, out_axes=-1)(candidates[document])
        return total.at[owners[document]].add(-lost), None

    start = jnp.zeros(encoded.sizes.size + 1, jnp.float32)
    parts = (encoded.tokens, encoded.segments, encoded.document)
    total, _ = lax.scan(add, start, jax.tree.map(jnp.asarray, parts))
    return total[:-1].reshape(encoded.sizes.shape)


def evaluator(encoded: Encoded, normalise: Normalise = "none") -> Evaluate:
    """`evaluate(program, state) -> float32 [probes]`: the share of items answered rightly.

    The rows' `task` is the stage last trained on, for methods that tell tasks apart.

    Args:
      encoded: from `encode`.
      normalise: what a choice's log-likelihood is divided by, so that short ones don't win: `none`
        (lm-eval's acc), its number of `tokens`, or its `bytes` (lm-eval's acc_bytes, and for ASCII
        its acc_norm).

    Raises:
      ValueError: if `normalise` is unknown.
    """
    sizes = {"none": np.ones_like(encoded.sizes), "tokens": encoded.sizes, "bytes": encoded.bytes}
    check(normalise in sizes, "normalise", normalise, f"one of {list(sizes)}")
    there = encoded.sizes > 0
    divisor = np.where(there, np.maximum(sizes[normalise], 1), 1)
    counts = np.bincount(encoded.probe, minlength=len(encoded.names))

    def member(program: Program, state: State) -> jax.Array:
        stage = jnp.maximum(state.stage - (state.stage_step == 0), 0)
        scores = likelihoods(lambda batch: program.predict(state, batch), encoded, stage)
        chosen = jnp.argmax(jnp.where(there, scores / divisor, -jnp.inf), axis=1)
        right = (chosen == encoded.answer).astype(jnp.float32)
        return jax.ops.segment_sum(right, encoded.probe, len(counts)) / counts

    return lambda program, state: program.over_members(member, state)
