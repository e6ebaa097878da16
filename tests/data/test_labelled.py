"""Labelled rows from files that people have: CSV as spreadsheets write it, folders of images."""

import csv
import gzip

import numpy as np
import pytest
import tiny_text as tiny

from jcl import data
from jcl.data.corpora import Labelled

pytestmark = pytest.mark.quick

ROWS = [("good, really", "yes"), ('a "quoted"\nline', "no"), ("ü", "yes")]


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "reviews.csv"
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text", "label"])
        writer.writerows([i, *row] for i, row in enumerate(ROWS))
    return path


def test_header_and_labels_are_no_prose(table):
    assert list(data.read_csv(table, "text")) == [text for text, _ in ROWS]
    assert list(data.read_csv(table, ("label", "text"))) == [(b, a) for a, b in ROWS]
    assert data.read_csv(table, "text", "label") == [Labelled(*row) for row in ROWS]


def test_other_separators_and_compressed_files(table, tmp_path):
    lines = list(csv.reader(table.read_text(encoding="utf-8-sig").splitlines(keepends=True)))
    folder = tmp_path / "folder"
    folder.mkdir()
    with gzip.open(folder / "a.tsv.gz", "wt", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter="\t").writerows(lines)
    with (folder / "b.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(lines)
    assert data.read_csv(folder, "text", "label") == [Labelled(*row) for row in ROWS] * 2
    with (tmp_path / "semi.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=";").writerows(lines)
    found = data.read_csv(tmp_path / "semi.csv", "text", "label", separator=";")
    assert found == [Labelled(*row) for row in ROWS]


def test_a_document_is_read_anew_and_blank_ones_are_dropped(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text\na\n\n \nb\n")
    documents = data.read_csv(path, "text")
    assert list(documents) == list(documents) == ["a", "b"]


@pytest.mark.parametrize("own", [False, True])
def test_texts_become_tokens_and_labels(own):
    tokenizer = tiny.byte_level() if own else None
    rows = [Labelled("the cat", "b"), Labelled("", "a"), Labelled("sat on the mat", "b")]
    found = data.encode_labelled(rows, ["a", "b"], tokenizer, length=6, first=3)
    assert found["y"].tolist() == [4, 3, 4]
    for row, tokens, segments in zip(rows, found["tokens"], found["segments"], strict=True):
        ids = tokenizer(row.text)["input_ids"] if own else list(row.text.encode())
        used = min(len(ids), 6)
        assert tokens.tolist() == [*ids[:6], *[0] * (6 - used)]
        assert segments.tolist() == [1] * max(used, 1) + [0] * (6 - max(used, 1))


def test_a_folder_of_images_has_a_class_a_folder(tmp_path):
    image = pytest.importorskip("PIL.Image")
    colours = {"cat": (255, 0, 0), "dog": (0, 255, 0)}
    for name, colour in colours.items():
        (tmp_path / name).mkdir()
        for i in range(2):
            image.new("RGB", (8, 6), colour).save(tmp_path / name / f"{i}.png")
    found = data.read_images(tmp_path, 4)
    assert found.labels == ("cat", "dog") and found.rows["y"].tolist() == [0, 0, 1, 1]
    assert found.rows["x"].shape == (4, 4, 4, 3) and found.rows["x"].dtype == np.uint8
    for x, y in zip(found.rows["x"], found.rows["y"], strict=True):
        assert (x == colours[found.labels[y]]).all()
    again = data.read_images(tmp_path, 4, labels=["bird", "cat", "dog"])
    assert again.rows["y"].tolist() == [1, 1, 2, 2] and again.labels == ("bird", "cat", "dog")
