"""CoIN's files and what is wrong in them; worded tasks; which tokens are learned."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jcl import data
from jcl.data import images


def told(value: str = "<image>\nWhat is it?", answer: str = "A cat.") -> list[dict[str, str]]:
    return [{"from": "human", "value": value}, {"from": "gpt", "value": answer}]


def write(folder: Path, content: Any) -> Path:
    path = folder / "train.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.quick
def test_coins_training_and_test_files_are_read(tmp_path: Path) -> None:
    later = [*told("What is it?\n<image>"), *told("And its colour?", "Black.")]
    entries = [
        {"id": 7, "image": "COCO/a.jpg", "conversations": told()},
        {"id": "b", "image": "b.png", "conversations": later},
        {"conversations": told("2 + 2?", "4")},
        {"question_id": "9", "image": "c.jpg", "text": "Which?\n", "answer": "this"},
    ]
    assert images.read_conversations(write(tmp_path, entries)) == [
        ("COCO/a.jpg", (("What is it?", "A cat."),), "7"),
        ("b.png", (("What is it?", "A cat."), ("And its colour?", "Black.")), "b"),
        ("", (("2 + 2?", "4"),), ""),
        ("c.jpg", (("Which?", "this"),), "9"),
    ]


@pytest.mark.quick
@pytest.mark.parametrize(
    ("entry", "wrong"),
    [
        ({"image": 3, "conversations": told()}, "image is 3, but must be a text"),
        ({"image": "../a.jpg", "conversations": told()}, 'image is "../a.jpg", but must be a path'),
        ({"image": "a.jpg", "text": "What?"}, "answer is null, but must be there"),
        ({"image": "a.jpg", "conversations": told()[:1]}, "conversations is .* human and gpt take"),
        ({"image": "a.jpg", "conversations": [{"from": "human"}] * 2}, "conversations.0 is .* and"),
        ({"image": "a.jpg", "conversations": told()[::-1]}, "conversations.0.from is .*'human'"),
        ({"image": "a.jpg", "conversations": told("What?")}, "conversations.0.value .* once in it"),
        ({"conversations": told()}, "conversations.0.value .*<image> only in the first question"),
        ({"image": "a.jpg", "conversations": told("<image>")}, "conversations.0.value is .*xt"),
        ({"image": "a.jpg", "conversations": told(answer=" ")}, "conversations.1.value is .*"),
        ("text", "it is .*, but must be an object"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_by_file_entry_and_field(
    entry: Any, wrong: str, tmp_path: Path
) -> None:
    good = {"image": "a.jpg", "conversations": told()}
    with pytest.raises(ValueError, match=rf"train\.json: entry 1: {wrong}"):
        images.read_conversations(write(tmp_path, [good, entry]))


@pytest.mark.quick
def test_files_that_are_no_list_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train\.json: line 2 is no JSON"):
        images.read_conversations(write(tmp_path, "[\n{]"))
    with pytest.raises(ValueError, match=r"train\.json holds a dict, but must hold a list"):
        images.read_conversations(write(tmp_path, {}))
    with pytest.raises(ValueError, match="can't be read"):
        images.read_conversations(tmp_path / "none.json")


@pytest.mark.quick
def test_only_answers_are_learned() -> None:
    turns = [(("What?", "yes"), ("Why?", "so")), (("What?", "no"),)]
    made = images.tokenised(turns, None, 30, ("{}", " {}"))
    tokens, learned = made["tokens"], made["mask"] > 0
    assert bytes(tokens[0, 1:][learned[0]].astype(np.uint8)) == b" yes\n so\n"
    assert bytes(tokens[1, 1:][learned[1]].astype(np.uint8)) == b" no\n"
    assert bytes(tokens[0][made["segments"][0] > 0].astype(np.uint8)) == b"What? yes\nWhy? so\n"
    with pytest.raises(ValueError, match="number of tokens of conversation 0 is 18, but must be"):
        images.tokenised(turns, None, 17, ("{}", " {}"))


@pytest.mark.quick
def test_images_are_scaled_and_cut_in_the_middle(tmp_path: Path) -> None:
    from PIL import Image

    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = (250, 120, 10)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    np.testing.assert_array_equal(images.read_image(tmp_path / "wide.png", 8), wide[:, 8:16])
    asked = [
        images.Conversation("wide.png", (("What?", "orange"),)),
        images.Conversation("", (("What?", "nothing"),)),
    ]
    made = images.with_images(asked, tmp_path, None, length=40, side=4)
    assert made["image"].shape == (2, 4, 4, 3) and made["has_image"].tolist() == [1, 0]
    assert made["image"][0].std(axis=(0, 1)).max() < 40 and not made["image"][1].any()
    (tmp_path / "bad.png").write_text("no image")
    with pytest.raises(ValueError, match=r"bad\.png can't be read as an image"):
        images.read_image(tmp_path / "bad.png", 8)


def idx(array: np.ndarray) -> bytes:
    head = b"\0\0\x08" + bytes([array.ndim]) + np.array(array.shape, ">i4").tobytes()
    return gzip.compress(head + array.tobytes())


@pytest.fixture
def fashion(tmp_path: Path) -> Path:
    """A data set of twelve images in Fashion-MNIST's files."""
    pixels = np.arange(12 * 784, dtype=np.uint32).astype(np.uint8).reshape(12, 28, 28)
    labels = (np.arange(12) % 10).astype(np.uint8)
    for name in ("train", "t10k"):
        (tmp_path / f"{name}-images-idx3-ubyte.gz").write_bytes(idx(pixels))
        (tmp_path / f"{name}-labels-idx1-ubyte.gz").write_bytes(idx(labels))
    return tmp_path


@pytest.mark.quick
def test_fashion_mnist_is_read_from_its_files(fashion: Path) -> None:
    made = images.fashion_mnist("test", fashion)
    assert made["image"].shape == (12, 28, 28, 1) and made["y"].tolist()[:3] == [0, 1, 2]
    assert made["image"].reshape(-1)[:300].tolist() == [i % 256 for i in range(300)]


def test_digits_are_the_pixels_made_larger() -> None:
    small, large = data.digits()[1], images.digits("test")
    assert large["image"].shape == (len(small["y"]), 28, 28, 1)
    again = large["image"][:, 2:26:3, 2:26:3, 0].reshape(-1, 64)
    np.testing.assert_array_equal(again, np.round(255 * small["x"]))
    assert not large["image"][:, :2].any() and not large["image"][:, :, 26:].any()


@pytest.mark.quick
@pytest.mark.parametrize("task", images.TASKS)
def test_answers_are_true_of_the_labels(task: str, fashion: Path) -> None:
    made = images.image_questions(task, limit=40, fashion=fashion)
    assert len(made.image) == len(made.turns) == len(made.y) > 8
    for ((question, answer),), y in zip(made.turns, made.y, strict=True):
        name = (images.GARMENTS if task in ("garment", "worn", "shoe") else images.NUMBERS)[y]
        if task == "larger":
            than = question.removeprefix("Is it larger than ").removesuffix("?")
            assert answer == ("yes" if y > images.NUMBERS.index(than) else "no")
        elif task in ("digit", "garment"):
            assert answer == name
        elif task == "parity":
            assert answer == ("odd" if y % 2 else "even")
        elif task == "shoe":
            assert answer == ("yes" if name in ("sandal", "sneaker", "boot") else "no")
    again = images.image_questions(task, limit=40, fashion=fashion)
    assert again.turns == made.turns
    assert len({t for ((t, _),) in made.turns}) == (9 if task == "larger" else 1)


@pytest.mark.quick
def test_they_make_a_stream(fashion: Path) -> None:
    def arrays(task: str, split: Any) -> Any:
        made = images.image_questions(task, split, limit=12, fashion=fashion)
        return {"image": made.image, **images.tokenised(made.turns, None, 48, ("{}", " {}"))}

    tasks = ("digit", "garment")
    train, test = ([arrays(t, s) for t in tasks] for s in ("train", "test"))
    stream = data.from_arrays(train, test, 4, steps=2, names=tasks)
    batch = stream.fetch(stream.source, {k: v[0] for k, v in stream.chunk(0, 0, 1).items()})
    assert batch["image"].shape == (4, 28, 28, 1) and batch["image"].dtype == np.uint8
    with pytest.raises(ValueError, match="task is 'colour', but must be one of"):
        images.image_questions("colour")
