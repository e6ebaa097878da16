"""Images with questions about them: CoIN's and LLaVA's files, and tasks in words on real images.

A conversation is about one image, or none. As arrays it has `image` uint8 [n, H, W, C], which the
model reads before `tokens` (see `jcl.models.multimodal`); only answers are learned.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from jcl.data import sources
from jcl.data.documents import read_list
from jcl.data.encode import Passage, encode
from jcl.data.idx import read_digits
from jcl.data.idx import read_idx as read_idx  # its place in version 0.1, until the next release
from jcl.data.registry.fetch import fetch
from jcl.data.stream import Arrays
from jcl.method import check

Turns = tuple[tuple[str, str], ...]
"""(question, answer) pairs, without white space around them."""
SIDE = 28
"""How many pixels a side of the images of `image_questions` has."""


class Conversation(NamedTuple):
    """Questions and answers about an image.

    Args:
      image: the image's path below the folder of images; "" if there is none.
      turns: the questions and answers, at least one.
      name: the entry's `id` or `question_id`, or "".
    """

    image: str
    turns: Turns
    name: str = ""


def read_conversations(path: str | Path) -> list[Conversation]:
    """Reads conversations from a file in the format of LLaVA and CoIN.

    The file is a list of entries. In training files each has `conversations`, in which `human` and
    `gpt` take turns, `{"from": "human", "value": "<image>\\nWhat is it?"}`, and an `image` unless
    it is text alone; `<image>` occurs once, in the first question. In CoIN's test files each entry
    has `text` and `answer` instead.

    Args:
      path: the file, such as `Instruction_Original/GQA/train.json`.

    Raises:
      ValueError: if the file isn't of this format, naming file, entry and field.

    Source: haotian-liu/LLaVA, `llava/train/train.py`; zackschen/CoIN, `ETrain/Dataset` for
    training and `ETrain/Eval/LLaVA/CoIN` for testing.
    """
    entries = enumerate(read_list(path))
    return [_conversation(Path(path), number, entry) for number, entry in entries]


def _conversation(path: Path, number: int, entry: Any) -> Conversation:
    def refuse(field: str, found: Any, wanted: str) -> None:
        shown = json.dumps(found, ensure_ascii=False)[:80]
        raise ValueError(f"{path}: entry {number}: {field} is {shown}, but must be {wanted}")

    def text(field: str, value: Any, empty: bool = False) -> str:
        if not isinstance(value, str) or not (value.strip() or empty):
            refuse(field, value, "a text")
        return value.strip()

    if not isinstance(entry, dict):
        refuse("it", entry, "an object")
    image = text("image", entry["image"]) if "image" in entry else ""
    if Path(image).is_absolute() or ".." in Path(image).parts:
        refuse("image", image, "a path below the folder of images")
    name = str(entry.get("id", entry.get("question_id", "")))
    if "conversations" not in entry:
        for field in ("text", "answer"):
            if field not in entry:
                refuse(field, None, "there, or else conversations")
        question = text("text", entry["text"]).replace("<image>", "").strip()
        return Conversation(image, ((question, text("answer", entry["answer"])),), name)
    said = entry["conversations"]
    if not isinstance(said, list) or not said or len(said) % 2:
        refuse("conversations", said, "a list in which human and gpt take turns")
    texts = []
    for i, turn in enumerate(said):
        at, speaker = f"conversations.{i}", ("human", "gpt")[i % 2]
        if not isinstance(turn, dict) or "from" not in turn or "value" not in turn:
            refuse(at, turn, "an object with from and value")
        if turn["from"] != speaker:
            refuse(f"{at}.from", turn["from"], repr(speaker))
        value = text(f"{at}.value", turn["value"])
        marks = value.count("<image>")
        if marks != (i == 0 and bool(image)):
            wanted = "once in it" if i == 0 and image else "in the first question about an image"
            refuse(f"{at}.value", value, f"a text with <image> only {wanted}")
        # the image comes before the text wherever the mark stands, as in LLaVA
        texts.append(text(f"{at}.value", value.replace("<image>", "")))
    return Conversation(image, tuple(zip(texts[::2], texts[1::2], strict=True)), name)


def read_image(path: str | Path, side: int) -> np.ndarray:
    """Reads an image as uint8 [side, side, 3]: its shorter side is scaled, its middle is cropped.

    Raises:
      ValueError: if the file can't be read as an image.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as opened:
            whole = ImageOps.exif_transpose(opened).convert("RGB")
    except OSError as error:
        raise ValueError(f"{path} can't be read as an image: {error}") from error
    return np.asarray(ImageOps.fit(whole, (side, side), Image.Resampling.BICUBIC), np.uint8)


def tokenised(
    conversations: Sequence[Turns],
    tokenizer: Any,
    length: int,
    template: tuple[str, str] = ("USER: {} ASSISTANT:", " {}"),
) -> Arrays:
    """Conversations as `tokens`, `segments` int32 [n, length] and `mask` float32 [n, length - 1].

    Turns follow one another in one document; the answers and the document's end are learned.

    Args:
      conversations: the turns of each conversation.
      tokenizer: a fast tokenizer of transformers; None is for bytes, where a line break ends each
        answer.
      length: how many tokens a row has; shorter ones are padded.
      template: the text around a question, and around an answer.

    Raises:
      ValueError: if a conversation has more tokens than `length`.
    """
    asks, answers = template
    passages = []
    for turns in conversations:
        whole, spans = "", []
        for question, answer in turns:
            whole += asks.replace("{}", question)
            start = len(whole)
            whole += answers.replace("{}", answer) + ("\n" if tokenizer is None else "")
            spans.append((start, len(whole)))
        passages.append(Passage(whole, tuple(spans)))
    rows = encode(tokenizer, passages)
    tokens, segments = np.zeros((2, len(rows), length), np.int32)
    mask = np.zeros((len(rows), length - 1), np.float32)
    for i, row in enumerate(rows):
        n = len(row.tokens)
        check(n <= length, f"number of tokens of conversation {i}", n, f"at most {length}")
        tokens[i, :n], segments[i, :n], mask[i, : n - 1] = row.tokens, 1, row.learn[1:]
    return {"tokens": tokens, "segments": segments, "mask": mask}


def with_images(
    conversations: Sequence[Conversation],
    folder: str | Path,
    tokenizer: Any,
    *,
    length: int,
    side: int,
    template: tuple[str, str] = ("USER: {} ASSISTANT:", " {}"),
) -> Arrays:
    """Conversations and their images as arrays for `data.from_arrays`, all in memory.

    They are the arrays of `tokenised`, with `image` uint8 [n, side, side, 3] and `has_image`
    int32 [n].

    Args:
      conversations: from `read_conversations`.
      folder: the folder of the images.
      tokenizer: as in `tokenised`.
      length: as in `tokenised`.
      side: how many pixels a side of the vision tower's images has.
      template: as in `tokenised`.

    Raises:
      ValueError: if an image can't be read, or a conversation is too long.
    """
    blank = np.zeros((side, side, 3), np.uint8)
    root = Path(folder)
    images = [read_image(root / c.image, side) if c.image else blank for c in conversations]
    rows = tokenised([c.turns for c in conversations], tokenizer, length, template)
    here = np.array([bool(c.image) for c in conversations], np.int32)
    return {**rows, "image": np.stack(images), "has_image": here}


def fashion_mnist(split: Literal["train", "test"], root: Path | None = None) -> Arrays:
    """Fashion-MNIST, 60,000 or 10,000 images: `image` uint8 [n, 28, 28, 1], `y` int32 [n].

    `root` is the folder of `fetch("fashion")`, which is called if it is None; as vectors the images
    are `data.fashion_mnist()`.

    Source: Xiao et al., arXiv 1708.07747.
    """
    root = fetch("fashion") if root is None else root
    found = read_digits(root, {"train": "train", "test": "t10k"}[split], ".gz")
    return {**found, "image": found["image"][..., None]}


def digits(split: Literal["train", "test"]) -> Arrays:
    """1,438 or 359 handwritten digits of `sources`: `image` uint8 [n, 28, 28, 1], `y` int32 [n].

    Each of the 8 × 8 pixels becomes 3 × 3, with a margin of 2 pixels around.
    """
    given = sources.digits()[split == "test"]
    small = np.round(255 * given["x"]).astype(np.uint8).reshape(-1, 8, 8)
    large = np.kron(small, np.ones((3, 3), np.uint8))
    return {"image": np.pad(large, ((0, 0), (2, 2), (2, 2)))[..., None], "y": given["y"]}


NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
GARMENTS = (
    "t-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot",
)  # fmt: skip
WORN = ("chest", "legs", "chest", "chest", "chest", "feet", "chest", "feet", "hand", "feet")


class _Task(NamedTuple):
    """A question about the images of one source."""

    images: Literal["digits", "garments"]
    ask: Callable[[int, np.random.Generator], tuple[str, str]]
    """`(label, draws) -> (question, answer)`."""


def _larger(label: int, rng: np.random.Generator) -> tuple[str, str]:
    than = int(rng.integers(0, 9))  # so that about half of the answers are yes
    return f"Is it larger than {NUMBERS[than]}?", "yes" if label > than else "no"


_TASKS = {
    "digit": _Task("digits", lambda y, rng: ("What digit is this?", NUMBERS[y])),
    "larger": _Task("digits", _larger),
    "parity": _Task("digits", lambda y, rng: ("Is it even or odd?", ("even", "odd")[y % 2])),
    "garment": _Task("garments", lambda y, rng: ("What garment is this?", GARMENTS[y])),
    "worn": _Task("garments", lambda y, rng: ("Where is it worn?", WORN[y])),
    "shoe": _Task(
        "garments", lambda y, rng: ("Is it a shoe?", "yes" if WORN[y] == "feet" else "no")
    ),
    "caption digit": _Task("digits", lambda y, rng: ("Describe it.", f"the digit {NUMBERS[y]}")),
    "caption garment": _Task("garments", lambda y, rng: ("Describe it.", f"a {GARMENTS[y]}")),
}
TASKS = tuple(_TASKS)
"""The tasks that `image_questions` knows, about digits and garments."""


class Worded(NamedTuple):
    """Images with a question about each."""

    image: np.ndarray
    """uint8 [n, 28, 28, 1]."""
    turns: list[Turns]
    """One question and answer for each image."""
    y: np.ndarray
    """int32 [n]: the images' labels."""


def image_questions(
    task: str,
    split: Literal["train", "test"] = "train",
    *,
    limit: int | None = None,
    seed: int = 0,
    fashion: Path | None = None,
) -> Worded:
    """A question about each image of a real data set, with its answer in words.

    Args:
      task: one of `TASKS`, such as `digit` (What digit is this? seven), `larger` (Is it larger than
        five? yes) or `garment` (What garment is this? sandal).
      split: whether to take the training or the test images, which all tasks divide alike.
      limit: how many images there are at most, drawn at random; None is all.
      seed: seeds the draw and the questions.
      fashion: the folder of Fashion-MNIST; see `fashion_mnist`.

    Raises:
      ValueError: if the task is unknown.
    """
    check(task in _TASKS, "task", task, f"one of {list(TASKS)}")
    kind, ask = _TASKS[task]
    given = digits(split) if kind == "digits" else fashion_mnist(split, fashion)
    rng = np.random.default_rng((7, seed))
    rows = rng.permutation(len(given["y"]))[:limit]
    turns: list[Turns] = [(ask(int(label), rng),) for label in given["y"][rows]]
    return Worded(given["image"][rows], turns, given["y"][rows])


worded = image_questions  # its name in version 0.1, until the next release
