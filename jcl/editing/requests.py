"""Turns edits in words into the arrays that an editor reads."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from jcl.data.edits import Edit
from jcl.data.encode import Passage, check_tokenizer
from jcl.data.encode import encode as tokenised
from jcl.data.stream import Arrays
from jcl.method import check

CONTEXTS = (
    "{}",
    "The weather was fine that day. {}",
    "Therefore, it was written down. {}",
    "Because there is more to say. {}",
    "I have thought about it. {}",
    "You may have heard of this. {}",
)
"""Contexts to put before a prompt, so that the edit doesn't depend on the subject's place. MEMIT
lets the model continue each of these five first words; ours are the same for every model."""


def encode(
    edits: Sequence[Edit],
    tokenizer: Any = None,
    contexts: Sequence[str] = CONTEXTS,
    length: int | None = None,
) -> Arrays:
    """The arrays of `Facts`, in NumPy, with weight 1.

    Context, prompt, a space and the target are tokenised as one text, as the model will read it,
    after the tokens with which the tokenizer begins a document. A token that spans the prompt's end
    is part of the target. If a subject occurs several times in its prompt, the last place where it
    is a whole word counts, else the last place.

    Args:
      edits: their `prompt`, `subject` and `target` are read.
      tokenizer: a fast tokenizer of transformers; None takes the UTF-8 bytes.
      contexts: templates with one `{}` for the prompt each; the first is `{}` itself.
      length: L; None is the longest text's.

    Raises:
      ValueError: if an edit has no target, a subject isn't in its prompt, a text is longer than
        `length`, or `contexts` are no such templates.

    >>> facts = encode([Edit("Rome is in", "Rome", "Gaul")], contexts=["{}", "So: {}"])
    >>> facts["tokens"].shape, facts["subject"]
    ((1, 2, 19), array([[3, 7]], dtype=int32))
    """
    check_tokenizer(tokenizer)
    check(len(edits) >= 1, "number of edits", len(edits), "at least 1")
    fit = bool(contexts) and contexts[0] == "{}" and all(c.count("{}") == 1 for c in contexts)
    check(fit, "contexts", tuple(contexts), "texts with one {} each, of which the first is '{}'")
    asked: list[Passage] = []  # each text with its answer marked, and in `sought` its subject
    sought: list[Passage] = []
    for edit in edits:
        prompt, target = edit.prompt.rstrip(), edit.target.strip()
        check(bool(target), "target", edit.target, f"a text that goes on from {prompt!r}")
        start, stop = _place(prompt, edit.subject)
        for context in contexts:
            at, whole = context.index("{}"), context.replace("{}", prompt).rstrip()
            text = f"{whole} {target}"
            asked.append(Passage(text, ((len(whole), len(text)),)))
            sought.append(Passage(text, ((at + start, at + stop),)))
        text = f"{prompt[start:stop]} is a"
        asked.append(Passage(text, ()))
        sought.append(Passage(text, ((0, stop - start),)))
    # the end-of-document token, which an answer doesn't end with, is cut off
    end = None if tokenizer is None else tokenizer.eos_token_id
    found = [(e.tokens[:-1], e.learn[:-1]) if e.tokens[-1] == end else (e.tokens, e.learn)
             for e in tokenised(tokenizer, asked)]  # fmt: skip
    places = [np.flatnonzero(e.learn[: len(ids)])[-1]
              for e, (ids, _) in zip(tokenised(tokenizer, sought), found, strict=True)]  # fmt: skip
    longest = max(len(ids) for ids, _ in found)
    length = longest if length is None else length
    check(longest <= length, "length", length, f"at least {longest}, the tokens of the longest")
    shape = (len(edits), len(contexts) + 1, length)

    def padded(rows: Sequence[np.ndarray], dtype: Any) -> np.ndarray:
        full = np.zeros((len(rows), length), dtype)
        for row, values in zip(full, rows, strict=True):
            row[: len(values)] = values
        return full.reshape(shape)

    tokens = padded([ids for ids, _ in found], np.int32)
    segments = padded([np.ones(len(ids)) for ids, _ in found], np.int32)
    mask = padded([learn for _, learn in found], np.float32)
    subject = np.array(places, np.int32).reshape(shape[:2])
    return {
        "tokens": tokens[:, :-1],
        "segments": segments[:, :-1],
        "mask": mask[:, :-1, 1:],
        "subject": subject[:, :-1],
        "essence": tokens[:, -1],
        "essence_segments": segments[:, -1],
        "essence_subject": subject[:, -1],
        "weight": np.ones(len(edits), np.float32),
    }


def _place(prompt: str, subject: str) -> tuple[int, int]:
    """Where a subject is in its prompt, as a half-open range of characters."""
    subject = subject.strip()
    check(bool(subject), "subject", subject, f"a part of the prompt {prompt!r}")
    word = re.escape(subject)
    spots = [*re.finditer(rf"(?<!\w){word}(?!\w)", prompt)] or [*re.finditer(word, prompt)]
    check(bool(spots), "subject", subject, f"a part of the prompt {prompt!r}")
    return spots[-1].span()


def pad(facts: Arrays, count: int) -> Arrays:
    """The facts filled up to `count` edits, so that one compiled shape serves all batches.

    The rows at the end repeat the last edit with weight 0.

    Raises:
      ValueError: if there are more than `count` edits.
    """
    there = len(facts["weight"])
    check(there <= count, "number of edits", there, f"at most {count}")
    padded = {k: np.concatenate([x, np.repeat(x[-1:], count - there, axis=0)])
              for k, x in facts.items()}  # fmt: skip
    padded["weight"][there:] = 0
    return padded
