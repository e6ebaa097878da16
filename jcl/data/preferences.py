"""Pairs of answers of which one is preferred: readers of their files, and streams over stages.

The formats are HH-RLHF, the Stanford Human Preferences (SHP), and questions with labelled answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from jcl.data.arrays import from_arrays
from jcl.data.chats import joined
from jcl.data.documents import Paths, files_of, records
from jcl.data.encode import Encoded, check_tokenizer, encode
from jcl.data.questions import Item
from jcl.data.stream import Arrays, Stream
from jcl.method import check

_ASSISTANT = "\n\nAssistant:"


class Pair(NamedTuple):
    """Two answers to a prompt, each with the blank that it starts with."""

    prompt: str
    preferred: str
    rejected: str


def read_hh(paths: Paths, *, bad: Literal["raise", "skip"] = "raise") -> list[Pair]:
    """Reads pairs from HH-RLHF's files, whose lines are JSON objects with `chosen` and `rejected`.

    Both are transcripts of turns that begin with `\\n\\nHuman:` or `\\n\\nAssistant:`. The prompt
    is the chosen one up to its last `\\n\\nAssistant:`; a line is bad if the rejected one doesn't
    begin with the same prompt.

    Args:
      paths: files, or a folder with `*.jsonl` or `*.jsonl.gz`, as `helpful-base/train.jsonl.gz`.
      bad: see `read_jsonl`.

    Raises:
      ValueError: if a file isn't there, or for a bad line, naming file and number.

    Source: Bai et al., arXiv 2204.05862; the prompt's end as in the code of DPO's authors,
    `preference_datasets.py`.
    """
    return list(_read(paths, ("jsonl",), from_transcripts, bad))


def read_shp(
    paths: Paths, *, ratio: float = 1.0, bad: Literal["raise", "skip"] = "raise"
) -> list[Pair]:
    """Reads pairs from SHP's files, whose lines are JSON objects with a post and two comments.

    Of the fields `history` is the post, `human_ref_A` and `human_ref_B` are the comments, `labels`
    is 1 where A is preferred and 0 where B is, and `score_ratio` says how many times more points
    the preferred one has. The prompt is `\\n\\nHuman: <post>\\n\\nAssistant:`.

    Args:
      paths: files, or a folder such as `askculinary` with `*.json` or `*.jsonl`, `.gz` or not.
      ratio: the least `score_ratio` of a pair; the data set's card and DPO's authors advise 2.
      bad: see `read_jsonl`.

    Raises:
      ValueError: if `ratio` is below 1, a file isn't there, or for a bad line, naming file and
        number.

    Source: Ethayarajh et al., ICML 2022, and the data set's card; the prompt as in the code of
    DPO's authors, `preference_datasets.py`.
    """
    check(ratio >= 1, "ratio", ratio, "at least 1")
    read = _read(paths, ("json", "jsonl"), _from_comments, bad)
    return [pair for pair, times in read if times >= ratio]


def right_over_wrong(items: Sequence[Item], wrong: int | None = None, seed: int = 0) -> list[Pair]:
    """Pairs from questions with labelled answers: the right choice over a wrong one.

    Args:
      items: questions, such as `jcl.data.questions.read("piqa").items`.
      wrong: how many wrong choices of each question to take at most, drawn at random; None is all.
      seed: seeds that draw.

    Raises:
      ValueError: if `wrong` is below 1.

    >>> right_over_wrong([Item("2 + 2 =", (" 4", " 5"), 0)])
    [Pair(prompt='2 + 2 =', preferred=' 4', rejected=' 5')]
    """
    check(wrong is None or wrong >= 1, "wrong", wrong, "at least 1, or None")
    rng = np.random.default_rng(seed)
    pairs = []
    for item in items:
        others = [c for i, c in enumerate(item.choices) if i != item.answer]
        if wrong is not None and len(others) > wrong:
            others = [others[i] for i in sorted(rng.choice(len(others), wrong, replace=False))]
        pairs += [Pair(item.prompt, item.choices[item.answer], other) for other in others]
    return pairs


def encode_pairs(pairs: Iterable[Pair], tokenizer: Any, length: int, name: str = "") -> Arrays:
    """Pairs as arrays of a batch of pairs (see `jcl.preference`), each answer with its prompt.

    An answer ends as a document does, and that end is learned too. If a pair is too long, the
    prompt loses its beginning, equally for both answers; an answer that is still too long loses its
    end.

    Args:
      pairs: the pairs, at least one.
      tokenizer: a fast tokenizer of transformers; None is for UTF-8 bytes.
      length: how many tokens a row has; shorter ones are padded on the right.
      name: the pairs' name in messages.

    Raises:
      ValueError: if there is no pair, a prompt is blank, or two answers are the same.
    """
    check(length >= 2, "length", length, "at least 2")
    check_tokenizer(tokenizer)
    pairs = list(pairs)
    check(bool(pairs), f"number of pairs of {name!r}", 0, "at least 1")
    for i, pair in enumerate(pairs):
        where = f"pair {i} of {name!r}"
        check(bool(pair.prompt.strip()), f"prompt of {where}", pair.prompt, "a text")
        check(pair.preferred != pair.rejected, f"rejected answer of {where}", pair.rejected,
              "another than the preferred")  # fmt: skip
    texts = [joined(p.prompt, answer) for p in pairs for answer in p[1:]]
    found = encode(tokenizer, texts)
    arrays = {
        f"{side}{key}": np.zeros((len(pairs), length - (key == "answer")), kind)
        for side in ("", "rejected_")
        for key, kind in (("tokens", np.int32), ("segments", np.int32), ("answer", np.float32))
    }
    for i, (good, poor) in enumerate(zip(found[::2], found[1::2], strict=True)):
        over = max(len(good.tokens), len(poor.tokens)) - length
        for side, one in (("", good), ("rejected_", poor)):
            tokens, learn = _cut(one, over, length)
            arrays[f"{side}tokens"][i, : len(tokens)] = tokens
            arrays[f"{side}segments"][i, : len(tokens)] = 1
            arrays[f"{side}answer"][i, : len(tokens) - 1] = learn[1:]
    return arrays


def from_pairs(
    stages: Mapping[str, tuple[Iterable[Pair], Iterable[Pair]]],
    tokenizer: Any = None,
    *,
    length: int,
    batch: int,
    epochs: int | None = None,
    steps: int | None = None,
    seed: int = 0,
    boundary_batches: int | None = None,
    test_batch: int = 64,
    vocabulary: int | None = None,
) -> Stream:
    """A stream over stages of preferences.

    Batches are those of `jcl.preference`. Draws are a pure function of (seed, stage, step) and of
    the arguments here, so that a run resumes exactly (see `from_arrays`).

    Args:
      stages: the `(train, test)` pairs of each stage; the stages are the tasks, in this order.
      tokenizer: a fast tokenizer of transformers; None is for UTF-8 bytes.
      length: how many tokens a row has (see `encode_pairs`).
      batch: B, how many pairs a step takes.
      epochs: how often each stage passes over its pairs; give this or `steps`.
      steps: how many steps every stage has, however many pairs it has.
      seed: seeds the order.
      boundary_batches: how many batches a boundary has at most; None is a full pass.
      test_batch: how many test pairs are scored at once at most.
      vocabulary: how many ids the model knows; a token beyond them is refused.

    Raises:
      ValueError: if an argument is out of range, or a pair can't be used, naming the stage.

    >>> pairs = [Pair("2 + 2 =", " 4", " 5"), Pair("1 + 2 =", " 3", " 4")]
    >>> stream = from_pairs({"sums": (pairs, pairs)}, length=12, batch=2, steps=3)
    >>> stream.fetch(stream.source, stream.chunk(0, 2, 3))["rejected_tokens"].shape
    (1, 2, 12)
    """
    train, test = [], []
    for name, (learned, held) in stages.items():
        train.append(encode_pairs(learned, tokenizer, length, name))
        test.append(encode_pairs(held, tokenizer, length, f"{name} (test)"))
        if vocabulary is not None:
            largest = max(int(train[-1][f"{side}tokens"].max()) for side in ("", "rejected_"))
            check(largest < vocabulary, f"token id in {name!r}", largest, f"below {vocabulary}")
    return from_arrays(
        train, test, batch, epochs=epochs, steps=steps, seed=seed, names=list(stages),
        boundary_batches=boundary_batches, test_batch=test_batch,
    )  # fmt: skip


def _read(paths: Paths, endings: Sequence[str], make: Any, bad: Literal["raise", "skip"]) -> Any:
    check(bad in ("raise", "skip"), "bad", bad, "'raise' or 'skip'")
    return records(files_of(paths, endings), make, bad)


def _field(record: Any, name: str, kind: type | tuple[type, ...], wanted: str) -> Any:
    """A field of a line, if it is of the type `kind`.

    Raises:
      ValueError: if it isn't, or isn't there.
    """
    if not isinstance(record, Mapping):
        raise ValueError(f"it is {type(record).__name__}, but must be an object")
    if name not in record:
        raise ValueError(f"it has no field {name!r}, but {list(record)}")
    value = record[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"field {name!r} is {value!r}, but must be {wanted}")
    return value


def _text(record: Any, name: str) -> str:
    text = _field(record, name, str, "text")
    if not text.strip():
        raise ValueError(f"field {name!r} is blank, but must be text")
    return text


def from_transcripts(record: Any) -> Pair:
    """A pair from an object with the transcripts `chosen` and `rejected`; see `read_hh`.

    Raises:
      ValueError: if it is no such object.
    """
    chosen, rejected = _text(record, "chosen"), _text(record, "rejected")
    place = chosen.rfind(_ASSISTANT)
    if place < 0:
        raise ValueError(f"field 'chosen' has no {_ASSISTANT!r}, but must end with such a turn")
    prompt = chosen[: place + len(_ASSISTANT)]
    if not rejected.startswith(prompt):
        raise ValueError("field 'rejected' must begin as 'chosen' does up to its last answer")
    pair = Pair(prompt, chosen[len(prompt) :], rejected[len(prompt) :])
    if pair.preferred == pair.rejected:
        raise ValueError("field 'rejected' is the same as 'chosen', but must be another answer")
    return pair


def _from_comments(record: Any) -> tuple[Pair, float]:
    post = _text(record, "history")
    a, b = (f" {_text(record, f'human_ref_{side}')}" for side in "AB")
    label = _field(record, "labels", int, "0 or 1")
    if label not in (0, 1):
        raise ValueError(f"field 'labels' is {label!r}, but must be 0 or 1")
    if a == b:
        raise ValueError("field 'human_ref_B' is the same as 'human_ref_A', but must be another")
    times = _field(record, "score_ratio", (int, float), "a number")
    good, poor = (a, b) if label == 1 else (b, a)
    return Pair(f"\n\nHuman: {post}{_ASSISTANT}", good, poor), float(times)


def _cut(one: Encoded, over: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """At most `length` tokens, and which are learned, without the prompt's first `over` tokens."""
    prompt = int(np.argmax(one.learn))
    start = min(max(over, 0), max(prompt - 1, 0))  # one token stays before the first learned
    return one.tokens[start : start + length], one.learn[start : start + length]
