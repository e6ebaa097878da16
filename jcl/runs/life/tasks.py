"""What each kind of rows is trained by and scored by: arrays, loss, score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jcl import losses
from jcl.data.bounds import bounds_of, with_bounds
from jcl.data.chats import joined
from jcl.data.corpora import Labelled
from jcl.data.labelled import encode_labelled
from jcl.data.packing import gather, pack_rows
from jcl.data.preferences import Pair, encode_pairs
from jcl.data.stream import Arrays, Stream
from jcl.data.tokens import Tokens, tokenise
from jcl.measures import evaluation
from jcl.mechanisms import preference
from jcl.method import Batch, Objective
from jcl.runs.life.rows import Kind, Row

BOUNDARY = 8
"""How many batches of a stage a boundary gets."""


class Exam(NamedTuple):
    """A test as arrays."""

    arrays: Arrays
    """[n, ...]; a long text has several rows."""
    item: np.ndarray
    """int64 [n]: of which test row each is a part."""


class Task(NamedTuple):
    """How one kind of rows is learned and scored."""

    measure: str
    higher_is_better: bool
    loss: Objective
    score: evaluation.Score
    prepare: Callable[[Batch], Batch]
    """What the model reads for a batch, when it is scored."""
    train: Callable[[Sequence[Row]], Arrays]
    """Rows to train on as arrays [n, ...]."""
    exam: Callable[[Sequence[Row]], Exam]
    """Rows to test on."""


def task_of(kind: Kind, tokenizer: Any, length: int, labels: Sequence[str]) -> Task:
    """The task of a kind of rows.

    Args:
      kind: of the rows.
      tokenizer: a fast tokenizer of transformers; None is for UTF-8 bytes.
      length: how many tokens a row has. Longer texts become several rows, other rows lose their
        end, and prompts of pairs their beginning.
      labels: the names of the classes, in the order of the head's columns.
    """
    if kind in ("text", "chat"):
        packing = "fit" if kind == "text" else "alone"
        overlong = "split" if kind == "text" else "cut"

        def tokens(rows: Sequence[Row]) -> Tokens:
            # in memory: what is in the user's files is written nowhere but into the run's folder
            return tokenise([document(row) for row in rows], tokenizer, cache=False)

        def train(rows: Sequence[Row]) -> Arrays:
            found = pack_rows(tokens(rows), length, packing, overlong)  # type: ignore[arg-type]
            return _wide(gather(found, np.arange(found.number)))

        def exam(rows: Sequence[Row]) -> Exam:
            found = pack_rows(tokens(rows), length, "alone", overlong)  # type: ignore[arg-type]
            item = np.searchsorted(found.tokens.offsets, found.starts, side="right") - 1
            return Exam(_wide(gather(found, np.arange(found.number))), item)

        what = "log perplexity" if kind == "text" else "log perplexity of answers"
        score = evaluation.token_nll()
        return Task(what, False, losses.fused_next_token(), score, losses.with_targets, train, exam)
    if kind == "classify":

        def encode(rows: Sequence[Row]) -> Arrays:
            texts = [Labelled(row["text"], row["label"]) for row in rows]
            return encode_labelled(texts, labels, tokenizer, length=length)

        return Task(
            "accuracy", True, losses.cross_entropy(), evaluation.accuracy(), lambda batch: batch,
            encode, lambda rows: Exam(encode(rows), np.arange(len(rows))),
        )  # fmt: skip

    def pairs(rows: Sequence[Row]) -> Arrays:
        given = [Pair(row["prompt"], row["preferred"], row["rejected"]) for row in rows]
        return encode_pairs(given, tokenizer, length, "rows")

    return Task(
        "pairs ranked rightly", True, preference.ranking(), preference.accuracy,
        preference.pair_rows, pairs, lambda rows: Exam(pairs(rows), np.arange(len(rows))),
    )  # fmt: skip


def document(row: Row) -> Any:
    """A row of text or of a chat as `jcl.data.documents.Document`."""
    if "text" in row:
        return row["text"]
    return row["messages"] if "messages" in row else (row["prompt"], row["answer"])


def longest(kind: Kind, rows: Sequence[Row], tokenizer: Any, share: float = 0.95) -> int:
    """How many tokens that share of some rows has at most."""
    sizes: Any
    if kind in ("text", "chat"):
        sizes = np.diff(tokenise([document(r) for r in rows], tokenizer, cache=False).offsets)
    elif kind == "classify":
        texts = [row["text"] or " " for row in rows]
        sizes = np.diff(tokenise([t if t.strip() else "." for t in texts], tokenizer,
                                 cache=False).offsets)  # fmt: skip
    else:
        both = [(r["prompt"], r[side]) for r in rows for side in ("preferred", "rejected")]
        sizes = np.diff(tokenise([joined(*b).text for b in both], tokenizer, cache=False).offsets)
    return int(np.quantile(sizes, share))


def _wide(arrays: Arrays) -> Arrays:
    """Packed rows in the dtypes of a batch."""
    kinds = {"tokens": np.int32, "segments": np.int32, "mask": np.float32, "bytes": np.float32}
    return {name: x.astype(kinds[name]) for name, x in arrays.items()}


def stage_of(name: str, task: int, arrays: Arrays, batch: int, steps: int, seed: int) -> Stream:
    """A stream of one stage, whose batches have one shape however many rows there are.

    So the next month compiles nothing new. Rows stay on the host; each epoch is shuffled anew, and
    a draw is a pure function of (seed, task, step).

    Args:
      name: the stage's.
      task: of its rows: how many stages led to the state on which it is learned.
      arrays: the rows, [n, ...].
      batch: how many rows a step takes.
      steps: how many steps there are.
      seed: seeds the order.
    """
    count = len(next(iter(arrays.values())))

    def order(epoch: int) -> np.ndarray:
        return np.random.default_rng((seed, task, epoch)).permutation(count)

    def rows_at(places: np.ndarray, weight: np.ndarray) -> Arrays:
        epochs = {e: order(e) for e in np.unique(places // count).tolist()}
        picked = np.array([epochs[p // count][p % count] for p in places.ravel().tolist()])
        picked = picked.reshape(places.shape)
        found = {key: x[picked] for key, x in arrays.items()}
        found["weight"] = weight.astype(np.float32)
        found["task"] = np.full(places.shape, task, np.int32)
        return found

    def chunk(stage: int, start: int, stop: int, rows: slice = slice(None)) -> Arrays:
        places = np.arange(start * batch, stop * batch).reshape(-1, batch)[:, rows]
        return rows_at(places, np.ones(places.shape))

    def boundary(stage: int, rows: slice = slice(None)) -> Arrays:
        places = np.arange(BOUNDARY * batch).reshape(-1, batch)[:, rows]
        return rows_at(np.minimum(places, count - 1), places < count)

    own = {**arrays, "task": np.array([task], np.int32)}
    fetch = with_bounds(lambda source, rows: dict(rows), bounds_of(own))
    return Stream((name,), (0,), (steps,), chunk, boundary, (), fetch, (name,), ())


def example_of(arrays: Arrays, batch: int) -> Arrays:
    """A batch of zeros with the shapes and dtypes of such a stage's."""
    rows = {key: np.zeros((batch, *x.shape[1:]), x.dtype) for key, x in arrays.items()}
    return rows | {"weight": np.zeros(batch, np.float32), "task": np.zeros(batch, np.int32)}


def score_rows(task: Task, program: Any) -> Callable[[Any, Batch], Any]:
    """`(state, batch) -> (sums [B], weights [B])`: what each row adds to a test's score."""

    def one(state: Any, row: Batch) -> Any:
        batch = jax.tree.map(lambda x: x[None], row)
        given = task.prepare(batch)
        stage = state.stage - (state.stage_step == 0)
        told = {**given, "stage": jax.numpy.full_like(batch["task"], stage)}
        if "answer" in batch:  # a pair's two rows, which the score reads as one
            told = {**batch, "stage": told["stage"]}
        return task.score(program.predict(state, given), told)

    return lambda state, batch: jax.vmap(lambda row: one(state, row))(batch)
