"""Asks an edited model questions, and scores its answers, by decoding and by teacher forcing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jcl.data.edits import Edit
from jcl.data.encode import Passage
from jcl.data.encode import encode as tokenised
from jcl.method import Batch, check
from jcl.models import decoder
from jcl.models.generation import left_padded, sample

Call = Callable[[Any, Any], Any]
"""`call(tree, batch) -> logits`: the edited model, with its editor's `forward`. If the batch has a
cache it behaves like a `jcl.models.generation.Call`."""
KINDS = ("reliability", "generality", "locality", "portability")
"""What a question measures: it is the edit's own prompt, a paraphrase, a neighbour or a hop."""


class Exam(NamedTuple):
    """Questions about E edits, in the order of the edits, in pieces of `rows` questions each.

    The arrays are [pieces, rows, ...]; rows beyond the last question have edit -1.
    """

    tokens: np.ndarray
    """int32 [..., W]: prompts, padded on the left."""
    segments: np.ndarray
    """int32 [..., W]: 1 for a token, 0 for padding."""
    answer: np.ndarray
    """int32 [..., A]: the answer's tokens, then -1."""
    edit: np.ndarray
    """int32 [...]: which edit the question is about."""
    kind: np.ndarray
    """int32 [...]: its index in `KINDS`."""


class Answers(NamedTuple):
    """A model's answers, int32 [pieces, rows, A] each."""

    decoded: jax.Array
    """The tokens that it writes after the prompt greedily."""
    forced: jax.Array
    """The likeliest token at each place of the answer, given the answer's tokens before it."""


def examine(
    edits: Sequence[Edit],
    tokenizer: Any = None,
    *,
    rows: int = 32,
    width: int | None = None,
    longest: int | None = None,
    pieces: int | None = None,
    vocabulary: int | None = None,
) -> Exam:
    """The questions about some edits: each one's prompt, paraphrases, neighbours and hops.

    Prompt, a space and the answer are tokenised as one text; a token that spans both is part of the
    answer, as in `encode`.

    Args:
      edits: the edits, in the order of the stream.
      tokenizer: one of transformers; None takes UTF-8 bytes.
      rows: how many questions are asked at once.
      width: W; None is the longest prompt's. A given width lets one compiled shape serve many
        exams.
      longest: A; None is the longest answer's. Of a longer answer the first A tokens count.
      pieces: how many pieces there are at least, the last of which may be empty.
      vocabulary: how many ids the model knows; None trusts the tokenizer.

    Raises:
      ValueError: if an argument is out of range, or a prompt has more than `width` tokens.
    """
    check(len(edits) >= 1, "number of edits", len(edits), "at least 1")
    check(rows >= 1, "rows", rows, "at least 1")
    asked: list[tuple[int, int, str, str]] = []
    for i, edit in enumerate(edits):
        asked.append((i, 0, edit.prompt, edit.target))
        asked += [(i, 1, prompt, edit.target) for prompt in edit.paraphrases]
        asked += [(i, 2, prompt, answer) for prompt, answer in edit.neighbours]
        asked += [(i, 3, prompt, answer) for prompt, answer in edit.hops]
    passages = []
    for *_, prompt, answer in asked:
        text = f"{prompt.rstrip()} {answer.strip()}"
        passages.append(Passage(text, ((len(prompt.rstrip()), len(text)),)))
    end = None if tokenizer is None else tokenizer.eos_token_id
    prompts, answers = [], []
    for found, (*_, prompt, answer) in zip(tokenised(tokenizer, passages), asked, strict=True):
        ids, learn = found.tokens.tolist(), np.asarray(found.learn, bool)
        if ids[-1] == end:
            ids, learn = ids[:-1], learn[:-1]
        whole = bool(answer.strip()) and bool(learn.any()) and not learn[0]
        check(whole, "answer", answer, f"a text that goes on from {prompt!r}")
        start = int(np.argmax(learn))
        prompts.append(ids[:start])
        answers.append(ids[start:])
    largest = max(max(ids) for ids in prompts + answers)
    tokens, segments = left_padded(prompts, vocabulary or largest + 1, 1)
    wide = tokens.shape[1]
    width = wide if width is None else width
    check(wide <= width, "width", width, f"at least {wide}, the tokens of the longest prompt")
    longest = max(map(len, answers)) if longest is None else longest
    check(longest >= 1, "longest", longest, "at least 1")
    pieces = max(pieces or 1, -(-len(asked) // rows))

    def piled(values: np.ndarray, fill: int) -> np.ndarray:
        full = np.full((pieces * rows, *values.shape[1:]), fill, np.int32)
        full[: len(values)] = values
        return full.reshape(pieces, rows, *values.shape[1:])

    padded = np.full((len(asked), longest), -1, np.int32)
    for row, ids in zip(padded, answers, strict=True):
        row[: min(longest, len(ids))] = ids[:longest]
    margin = ((0, 0), (width - wide, 0))
    # rows beyond the last question have a token too, or attention would have nothing to attend to
    tokens, segments = piled(np.pad(tokens, margin), 0), piled(np.pad(segments, margin), 0)
    segments[..., -1] = 1
    return Exam(
        tokens,
        segments,
        piled(padded, -1),
        piled(np.array([q[0] for q in asked]), -1),
        piled(np.array([q[1] for q in asked]), 0),
    )


def answers(
    call: Call, tree: Any, config: decoder.Config, exam: Exam, pieces: int | jax.Array | None = None
) -> Answers:
    """A model's answers to the first pieces of an exam; to be called inside `jax.jit`.

    Args:
      call: see `Call`.
      tree: its first argument.
      config: the decoder's configuration, which gives the cache's shape.
      exam: from `examine`.
      pieces: how many pieces are asked, without another trace; None is all. The answers to the
        others are -1.
    """
    tokens, segments, given = (jnp.asarray(x) for x in (exam.tokens, exam.segments, exam.answer))
    count, rows, width = tokens.shape
    longest = given.shape[-1]

    def ask(i: jax.Array) -> Answers:
        cache = decoder.empty_cache(config, rows, width + longest)
        key = jax.random.key(0)
        written = sample(call, tree, cache, tokens[i], segments[i], key, steps=longest).tokens
        whole = jnp.concatenate([tokens[i], jnp.maximum(given[i], 0)], axis=1)
        real = jnp.concatenate([segments[i], (given[i] >= 0).astype(jnp.int32)], axis=1)
        question = jnp.pad(segments[i], ((0, 0), (0, longest)))
        batch: Batch = {
            "tokens": whole, "segments": real, "question": question,
            "weight": jnp.ones(rows), "task": jnp.zeros(rows, jnp.int32),
        }  # fmt: skip
        logits = call(tree, batch)[:, width - 1 : -1]
        return Answers(written, jnp.argmax(logits, axis=-1).astype(jnp.int32))

    def body(i: jax.Array, said: Answers) -> Answers:
        return jax.tree.map(lambda all, new: all.at[i].set(new), said, ask(i))

    blank = jnp.full(given.shape, -1)
    pieces = count if pieces is None else pieces
    return lax.fori_loop(0, pieces, body, Answers(blank, blank))


def perplexity(call: Call, tree: Any, batches: Batch) -> jax.Array:
    """exp of the mean negative log-likelihood a token, float32 []; to be called inside `jax.jit`.

    Args:
      call: see `Call`.
      tree: its first argument.
      batches: `tokens` int32 [n, B, L], and perhaps `segments` [n, B, L] and `mask` [n, B, L - 1].
    """

    def add(carry: tuple[jax.Array, jax.Array], part: Batch) -> tuple[Any, None]:
        rows = part["tokens"].shape[0]
        batch = {"weight": jnp.ones(rows), "task": jnp.zeros(rows, jnp.int32), **part}
        logits = call(tree, {k: v for k, v in batch.items() if k != "mask"})
        wide = jax.nn.log_softmax(logits[:, :-1].astype(jnp.float32))
        nll = -jnp.take_along_axis(wide, part["tokens"][:, 1:, None], axis=-1)[..., 0]
        mask = part.get("mask", jnp.ones_like(nll))
        return (carry[0] + jnp.sum(nll * mask), carry[1] + jnp.sum(mask)), None

    (lost, count), _ = lax.scan(add, (jnp.float32(0), jnp.float32(0)), batches)
    return jnp.exp(lost / count)


def scores(exam: Exam, said: Answers, base: Answers) -> dict[str, np.ndarray]:
    """The scores of each edit, float64 [E] by measure; NaN where an edit has no such question.

    `reliability`, `generality` and `portability` are the share of questions to which the model
    wrote exactly the answer. `locality` is the share of neighbours to which it wrote the same as
    the unedited model, over as many tokens as the true answer has. Each also comes with `_forced`,
    as is usual in the field: the share of the answer's tokens that are the likeliest given the
    tokens before them, or, for locality, that are the same as the unedited model's.

    Source: Yao et al., arXiv 2305.13172, section 3, for the measures; zjunlp/EasyEdit,
    `evaluate/evaluate_utils.py`, for the forced ones.

    Args:
      exam: the questions.
      said: the edited model's answers.
      base: the unedited model's answers.
    """
    there, edit, kind = exam.answer >= 0, exam.edit.ravel(), exam.kind.ravel()
    size, count = np.maximum(there.sum(-1), 1), int(edit.max()) + 1
    local = (exam.kind == KINDS.index("locality"))[..., None]
    found = {}
    for suffix, now, before, whole in (
        ("", said.decoded, base.decoded, True),
        ("_forced", said.forced, base.forced, False),
    ):
        wanted = np.where(local, np.asarray(before), exam.answer)
        right = ((np.asarray(now) == wanted) & there).sum(-1)
        right = (right == size if whole else right / size).ravel()
        for index, name in enumerate(KINDS):
            mine = (kind == index) & (edit >= 0)
            asked = np.bincount(edit[mine], minlength=count)
            total = np.bincount(edit[mine], right[mine], minlength=count)
            found[name + suffix] = np.where(asked > 0, total / np.maximum(asked, 1), np.nan)
    return found
