"""Tasks as instructions: TRACE, Super-NaturalInstructions, CITB, and reworded probes or labels.

The first three are read from their published files. A task's rows are prompts with the answers that
count as right. `documents` turns them into documents for `data.from_text`, in which the prompt is
given and only the answer is learned.
"""

from __future__ import annotations

import json
import string
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

import numpy as np

from jcl.data.questions import Item, Probe, read
from jcl.method import check


class Instruction(NamedTuple):
    """An instruction and its right answers; training takes the first of them."""

    prompt: str
    answers: tuple[str, ...]
    """The answers as they continue the prompt, with the blank that they start with."""


class Task(NamedTuple):
    """A task's training and test rows."""

    name: str
    train: tuple[Instruction, ...]
    test: tuple[Instruction, ...]


TRACE = (
    "C-STANCE", "FOMC", "MeetingBank", "Py150", "ScienceQA", "NumGLUE-cm", "NumGLUE-ds",
    "20Minuten",
)  # fmt: skip
"""TRACE's tasks, in its order."""


def documents(rows: Iterable[Instruction]) -> list[tuple[str, str]]:
    """`(prompt, answer)` pairs for `data.from_text`.

    >>> documents([Instruction("2 + 2 =", (" 4", " four"))])
    [('2 + 2 =', ' 4')]
    """
    return [(row.prompt, row.answers[0]) for row in rows]


def read_trace(folder: str | Path, tasks: Sequence[str] = TRACE) -> list[Task]:
    """Reads TRACE's tasks, each a folder with `train.json` and `test.json`.

    Each file is a list of entries with `prompt` and `answer`, which are joined with nothing in
    between. `eval.json`, for choices made while training, isn't read.

    Args:
      folder: the folder of the tasks' folders, such as `LLM-CL-Benchmark_5000`.
      tasks: which tasks, in this order.

    Raises:
      ValueError: if a file isn't of this format, naming file, entry and field.

    Source: Wang et al., arXiv 2310.06762; BeyonderXX/TRACE, `utils/data/raw_datasets.py` and
    `utils/data/data_collator.py`; the order is that of its scripts.
    """

    def rows(path: Path) -> tuple[Instruction, ...]:
        entries = _load(path, list)
        return tuple(
            Instruction(_text(path, e, i, "prompt"), (_text(path, e, i, "answer", empty=True),))
            for i, e in enumerate(entries)
        )

    return [
        Task(t, rows(Path(folder, t, "train.json")), rows(Path(folder, t, "test.json")))
        for t in tasks
    ]


def read_superni(
    path: str | Path, *, train: int | None = None, test: int = 100, positive: int = 0,
    validation: int = 0, seed: int = 0,
) -> Task:  # fmt: skip
    """Reads a task of Super-NaturalInstructions, split into training and test.

    Its file has `Definition`, `Positive Examples` and `Instances`. The prompt is Tk-Instruct's:
    the definition, worked examples, and the instance's input. As in Tk-Instruct the first instances
    are the test.

    Args:
      path: the file, such as `tasks/task848_pubmedqa_classification.json`.
      train: how many of the other instances to train on at most, drawn at random; None is all.
      test: how many of the first instances are the test.
      positive: how many worked examples the prompt has.
      validation: how many instances after the test's aren't used.
      seed: seeds the draw.

    Raises:
      ValueError: if the file isn't of this format, naming file, entry and field, or has too few
        instances.

    Source: Wang et al., arXiv 2204.07705; field names as in allenai/natural-instructions, README;
    the prompt as in yizhongw/Tk-Instruct, `src/ni_collator.py`.
    """
    check(test >= 1, "test", test, "at least 1")
    check(train is None or train >= 1, "train", train, "at least 1, or None")
    check(positive >= 0, "positive", positive, "at least 0")
    check(validation >= 0, "validation", validation, "at least 0")
    path = Path(path)
    task = _load(path, dict)
    given = task.get("Definition")
    if isinstance(given, str):  # so in the files' first version
        given = [given]
    if not isinstance(given, list) or not given or not isinstance(given[0], str):
        _refuse(path, "field 'Definition'", given, "a list of texts, at least one")
    start = f"Definition: {_ended(given[0])}\n\n"
    for i, shown in enumerate(_list(path, task, "Positive Examples")[:positive]):
        where = f"Positive Examples[{i}]"
        asked = _ended(_text(path, shown, where, "input"))
        answer = _ended(_text(path, shown, where, "output"))
        start += f" Positive Example {i + 1} -\nInput: {asked}\n Output: {answer}\n\n"
    rows = []
    for i, entry in enumerate(_list(path, task, "Instances")):
        where = f"Instances[{i}]"
        asked = _ended(_text(path, entry, where, "input", empty=True))
        answers = entry.get("output")
        texts = isinstance(answers, list) and all(isinstance(a, str) for a in answers)
        if not texts or not answers:
            _refuse(path, f"{where}, field 'output'", answers, "a list of texts, at least one")
        prompt = f"{start}Now complete the following example -\nInput: {asked}\nOutput:"
        rows.append(Instruction(prompt, tuple(f" {answer.strip()}" for answer in answers)))
    rest = rows[test + validation :]
    wanted = f"above test + validation, {test + validation}"
    check(bool(rest), f"number of Instances in {path}", len(rows), wanted)
    order = np.random.default_rng(seed).permutation(len(rest))[:train]
    return Task(path.stem, tuple(rest[i] for i in order), tuple(rows[:test]))


def read_citb(
    order: str | Path, tasks: str | Path, *, train: int = 500, validation: int = 50,
    test: int = 100, positive: int = 2, seed: int = 0,
) -> list[Task]:  # fmt: skip
    """Reads the tasks of a stream of CITB, which names tasks of Super-NaturalInstructions in order.

    Args:
      order: a file with a task's name in each line, such as
        `task_orders/stream=cl_dialogue_tasks/order1.txt`.
      tasks: the folder with a file `<task>.json` for each task.
      train: how many instances of each task to train on; InstrDialog has 500, 50 and 100 for
        training, validation and test.
      validation: how many instances of each task aren't used.
      test: how many of the first instances of each task are its test.
      positive: how many worked examples a prompt has; CITB has two.
      seed: seeds the draw of training instances.

    Raises:
      ValueError: if there is no such file, it names a task twice or none, or a task's file isn't
        in its format.

    Source: Zhang et al., arXiv 2310.14510; hyintell/CITB, `data/CIT_data/task_orders` and
    `train_dev_test_split_by_task` of `continual_learning/utils.py`.
    """
    order = Path(order)
    check(order.is_file(), "order", str(order), "a file")
    names = order.read_text(encoding="utf-8").split()
    check(len(names) >= 1, f"number of tasks in {order}", 0, "at least 1")
    twice = sorted({name for name in names if names.count(name) > 1})
    check(not twice, f"tasks in {order}", twice, "named once each")
    return [
        read_superni(
            Path(tasks, f"{name}.json"),
            train=train, test=test, positive=positive, validation=validation, seed=seed,
        )
        for name in names
    ]  # fmt: skip


Answers = Literal["given", "letters", "text"]

_WORDINGS = {
    "boolq": "Read the passage and answer the question.",
    "piqa": "Say how the goal is reached.",
    "commonsenseqa": "Answer by common sense.",
    "openbookqa": "Complete what is said of nature.",
    "mmlu": "Answer the exam question.",
    "hellaswag": "Say what happens next.",
}
_HOW = {"given": "", "letters": " Give the letter.", "text": " Give the words."}


def questions_as_instructions(
    name: str, answers: Answers = "given", limit: int | None = None
) -> Task:
    """A published set of questions as a task, split at random into training and test.

    Args:
      name: one that `questions.read` knows: `boolq`, `piqa`, `commonsenseqa`, `openbookqa`, `mmlu`.
      answers: see `as_instructions`.
      limit: how many questions there are at most, evenly spread; None is all.

    Raises:
      ValueError: as `questions.read` and `as_instructions` do.
    """
    return as_instructions(read(name, limit=limit), _WORDINGS[name], answers)


def as_instructions(
    probe: Probe, instruction: str, answers: Answers = "given", share: float = 0.2
) -> Task:
    """A probe's questions as instructions, with the right choice as answer.

    Args:
      probe: from `questions.read`, or for classification from `questions.from_labels`.
      instruction: the line before each prompt.
      answers: `given` are the probe's own, which are letters for CommonsenseQA and MMLU; `letters`
        lists the choices in the prompt and asks for a letter; `text` asks for the words.
      share: the chance that a question is in the test, which depends on its prompt alone.

    Raises:
      ValueError: if an argument is out of range, or a side of the split is empty.

    >>> from jcl.data.questions import Item
    >>> probe = Probe("tone", tuple(Item(f"{i}\\nTone:", (" bad", " good"), 1) for i in range(9)))
    >>> as_instructions(probe, "Name the tone.").train[0]
    Instruction(prompt='Name the tone.\\n0\\nTone:', answers=(' good',))
    >>> as_instructions(probe, "Name the tone.", "letters").train[0].prompt
    'Name the tone. Give the letter.\\n0\\nA. bad\\nB. good\\nTone:'
    """
    check(answers in _HOW, "answers", answers, f"one of {list(_HOW)}")
    check(0 < share < 1, "share", share, "between 0 and 1")
    sides: tuple[list[Instruction], list[Instruction]] = [], []
    for item in probe.items:
        prompt, choices = _prompt_of(item, answers)
        asked = Instruction(f"{instruction}{_HOW[answers]}\n{prompt}", (choices[item.answer],))
        sides[zlib.crc32(item.prompt.encode()) / 2**32 < share].append(asked)
    for side, rows in zip(("training", "test"), sides, strict=True):
        check(bool(rows), f"number of {side} questions of {probe.name!r}", 0, "at least 1")
    return Task(probe.name, tuple(sides[0]), tuple(sides[1]))


def _prompt_of(item: Item, answers: Answers) -> tuple[str, list[str]]:
    """An item's prompt and choices for this kind of answers."""
    if answers == "given":
        return item.prompt, [f" {choice.strip()}" for choice in item.choices]
    letters = string.ascii_uppercase[: len(item.choices)]
    head, line, cue = item.prompt.rpartition("\n")
    if not line:
        head, cue = item.prompt, "Answer:"
    lettered = [choice.strip() for choice in item.choices] == list(letters)
    texts = [choice.strip() for choice in item.choices]
    if lettered:  # the prompt lists the choices' texts
        stem = head
        for i, letter in reversed(list(enumerate(letters))):
            stem, _, texts[i] = stem.rpartition(f"\n{letter}. ")
    if answers == "text":
        return f"{stem if lettered else head}\n{cue}", [f" {text.strip()}" for text in texts]
    if not lettered:
        head += "".join(f"\n{x}. {t}" for x, t in zip(letters, texts, strict=True))
    return f"{head}\n{cue}", [f" {letter}" for letter in letters]


def drop_long(task: Task, tokenizer: Any, length: int) -> Task:
    """A task without the rows that don't fit into `length` tokens.

    A row is its prompt and first answer, with room for a document's first and last token.

    Args:
      task: the task.
      tokenizer: a fast tokenizer of transformers; None is for bytes.
      length: how many tokens fit.

    Raises:
      ValueError: if no row of a side fits.
    """
    sides = []
    for side, rows in (("training", task.train), ("test", task.test)):
        texts = [row.prompt + row.answers[0] for row in rows]
        if tokenizer is None:
            sizes = [len(text.encode()) for text in texts]
        else:
            sizes = [len(ids) for ids in tokenizer(texts, verbose=False)["input_ids"]]
        kept = tuple(row for row, size in zip(rows, sizes, strict=True) if size + 2 <= length)
        wanted = f"more than the shortest {side} row of {task.name!r}, {min(sizes) + 2} tokens"
        check(bool(kept), "length", length, wanted)
        sides.append(kept)
    return Task(task.name, sides[0], sides[1])


def _ended(text: str) -> str:
    """The text with a full stop, unless it ends in punctuation, as in Tk-Instruct."""
    text = text.strip()
    return text if text and text[-1] in string.punctuation else f"{text}."


def _load(path: Path, kind: type) -> Any:
    check(path.is_file(), "path", str(path), "a file")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(found, kind) or not found:
        wanted = "a list of entries, at least one" if kind is list else "one object"
        _refuse(path, "content", type(found).__name__, wanted)
    return found


def _list(path: Path, task: Mapping[str, Any], field: str) -> list[Any]:
    found = task.get(field)
    if not isinstance(found, list):
        _refuse(path, f"field {field!r}", found, "a list")
    return found


def _text(path: Path, entry: Any, where: int | str, field: str, empty: bool = False) -> str:
    place = f"entry {where}" if isinstance(where, int) else where
    if not isinstance(entry, dict):
        _refuse(path, place, entry, "an object")
    found = entry.get(field)
    if not isinstance(found, str) or not (empty or found.strip()):
        _refuse(path, f"{place}, field {field!r}", found, "a text")
    return found


def _refuse(path: Path, place: str, found: Any, wanted: str) -> NoReturn:
    shown = repr(found)
    raise ValueError(f"{path}: {place} is {shown[:60]}, but must be {wanted}")
