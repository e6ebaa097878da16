"""Rows with a class each: texts in CSV files, images in a folder for each class."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jcl.data.corpora import Labelled
from jcl.data.documents import Document, Documents, Paths, files_of
from jcl.data.encode import check_tokenizer
from jcl.data.images import read_image
from jcl.data.stream import Arrays
from jcl.method import check
from jcl.records import record

IMAGES = ("png", "jpg", "jpeg", "webp", "bmp", "gif")


def read_csv(
    paths: Paths, text: str | tuple[str, str], label: str | None = None, separator: str = ","
) -> Documents | list[Labelled]:
    """Texts from CSV files whose first line names the columns (`.csv` and `.tsv` of a folder).

    Columns that aren't named here are left out, and so is the first line.

    Args:
      paths: see `documents.Paths`; `.gz` is unpacked.
      text: the column of the text, or the two of a prompt and its answer.
      label: the column of a row's class; None reads texts without classes.
      separator: what is between the columns; a `.tsv` has tabs.

    Returns:
      Without `label` documents, read anew in each pass, without blank ones; with it a list of
      `Labelled(text, label)` for `encode_labelled`.

    Raises:
      ValueError: if a file isn't there or isn't UTF-8, its first line lacks a column, or a line has
        more or fewer columns than the first, naming file and line.
    """
    files = files_of(paths, ("csv", "tsv"))
    columns = [text] if isinstance(text, str) else list(text)
    pair = label is None or len(columns) == 1
    check(pair, "text", text, "one column where label is given")
    wanted = columns if label is None else [*columns, label]
    if label is not None:
        return [Labelled(*row) for path in files for row in _rows(path, wanted, separator)]

    def read() -> Iterator[Document]:
        for path in files:
            for row in _rows(path, wanted, separator):
                if row[-1].strip():
                    yield row[0] if len(row) == 1 else (row[0], row[1])

    return Documents(read)


def _rows(path: Path, columns: Sequence[str], separator: str) -> Iterator[list[str]]:
    """The named columns of each line."""
    lines = table_lines(path, separator)
    _, head = next(lines, (0, []))
    for name in columns:
        check(name in head, f"column of {path}", name, f"one of {head}")
    at = [head.index(name) for name in columns]
    yield from ([line[i] for i in at] for _, line in lines)


def table_lines(path: Path, separator: str = ",") -> Iterator[tuple[int, list[str]]]:
    """The lines of a CSV file with their numbers, that of the columns' names first; no blank ones.

    Args:
      path: the file; `.gz` is unpacked.
      separator: what is between the columns; a `.tsv` has tabs.

    Raises:
      ValueError: if the file can't be read, isn't UTF-8, or a line has more or fewer columns than
        the first, naming file and line.
    """
    tabs = path.name.removesuffix(".gz").endswith(".tsv")
    opened: Any = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file, delimiter="\t" if tabs else separator, strict=True)
            wide: int | None = None
            for line in lines:
                if not line:
                    continue
                wide = len(line) if wide is None else wide
                where = f"number of columns of line {lines.line_num} of {path}"
                check(len(line) == wide, where, len(line), f"{wide}, as its first line has")
                yield lines.line_num, line
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} has bytes that are not UTF-8 ({error.reason})") from error
    except (OSError, EOFError, csv.Error) as error:
        raise ValueError(f"{path} can't be read: {error}") from error


def encode_labelled(
    rows: Sequence[Labelled],
    labels: Sequence[str],
    tokenizer: Any = None,
    *,
    length: int,
    first: int = 0,
) -> Arrays:
    """Texts with classes as arrays of a batch: `tokens` and `segments` int32 [n, length], and `y`.

    A longer text loses its end.

    Args:
      rows: the texts, such as `read_csv(..., label=)` gives.
      labels: the names of all classes, of which the i-th is number `first + i`.
      tokenizer: one of transformers; None takes the UTF-8 bytes.
      length: how many tokens a row has; shorter ones are padded on the right.
      first: the number of the first class, where tasks have classes of their own in one head.

    Raises:
      ValueError: if a row's label isn't among `labels`, which are named once each.

    >>> rows = [Labelled("good", "yes"), Labelled("bad", "no")]
    >>> encode_labelled(rows, ["no", "yes"], length=5)["y"]
    array([1, 0], dtype=int32)
    """
    check_tokenizer(tokenizer)
    check(length >= 1, "length", length, "at least 1")
    check(len(rows) >= 1, "number of rows", len(rows), "at least 1")
    check(len(set(labels)) == len(labels), "labels", list(labels), "the classes, once each")
    number = {label: first + i for i, label in enumerate(labels)}
    for i, row in enumerate(rows):
        check(row.label in number, f"label of row {i}", row.label, f"one of {list(labels)}")
    if tokenizer is None:
        ids = [list(row.text.encode("utf-8", "replace"))[:length] for row in rows]
    else:
        texts = [row.text for row in rows]
        ids = tokenizer(texts, truncation=True, max_length=length)["input_ids"]
    tokens, segments = np.zeros((2, len(rows), length), np.int32)
    for i, row_ids in enumerate(ids):
        tokens[i, : len(row_ids)], segments[i, : len(row_ids)] = row_ids, 1
    segments[:, 0] = 1  # an empty text still has a first token
    return {
        "tokens": tokens,
        "segments": segments,
        "y": np.array([number[row.label] for row in rows], np.int32),
    }


@record
class Images(NamedTuple):
    """Images with a class each."""

    rows: Arrays
    """`x` uint8 [n, side, side, 3], and `y` int32 [n]."""
    labels: tuple[str, ...]
    """The classes' names; the i-th is number i."""


def read_images(folder: str | Path, side: int, labels: Sequence[str] | None = None) -> Images:
    """Images from a folder with a folder for each class, as torchvision's `ImageFolder` has them.

    Args:
      folder: `folder/cat/1.png`, `folder/dog/7.jpg`, ..., in any depth below the class's folder.
      side: the images are scaled and cropped to so many pixels a side (see `images.read_image`).
      labels: the names of the classes in order; None is those of the folder, sorted. Give a test's
        folder the training's, for a class that it lacks must not shift the others.

    Raises:
      ValueError: if there is no such folder, it has other classes than `labels`, a class has no
        image, or a file can't be read.
    """
    folder = Path(folder).expanduser()
    check(folder.is_dir(), "folder", str(folder), "a folder that is there")
    check(side >= 1, "side", side, "at least 1")
    found = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    check(bool(found), "folder", str(folder), "one with a folder of images for each class")
    names = tuple(found if labels is None else labels)
    unknown = sorted(set(found) - set(names))
    check(not unknown, f"classes of {folder}", unknown, f"among {list(names)}")
    files: list[tuple[Path, int]] = []
    for name in found:
        inside = sorted((folder / name).rglob("*"))
        mine = [p for p in inside if p.suffix.lower().lstrip(".") in IMAGES]
        check(bool(mine), f"number of images in {folder / name}", 0, f"at least 1 of {IMAGES}")
        files += [(path, names.index(name)) for path in mine]
    x = np.stack([read_image(path, side) for path, _ in files])
    return Images({"x": x, "y": np.array([y for _, y in files], np.int32)}, names)
