"""Documents from plain text and JSONL, read lazily; `jcl.data.datasets` reads data sets.

Every reader returns `Documents`, which read the files anew in each iteration, so that nothing need
be held in memory. Blank documents are dropped.
"""

from __future__ import annotations

import gzip
import json
import re
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from jcl.method import check

Document = str | tuple[str, str] | Sequence[Mapping[str, Any]]
"""A text; a `(prompt, answer)` pair; or a conversation, messages such as `{"role": "user",
"content": "..."}`. Of the latter two only answers are learned (see `jcl.data.chat` and `pair`)."""
Field = str | tuple[str, str]
"""The field of a record with its text or messages, or the two fields of its prompt and answer."""
Paths = str | Path | Sequence[str | Path]
"""A file; a folder, which stands for the files beneath it in the order of their names; or several
of these."""
Made = TypeVar("Made")


@dataclass(frozen=True)
class Documents:
    """Documents that can be iterated over any number of times; each time they are read anew.

    Args:
      read: begins a pass over the documents.
    """

    read: Callable[[], Iterator[Document]]

    def __iter__(self) -> Iterator[Document]:
        return self.read()


def read_text(paths: Paths, separator: str | None = None) -> Documents:
    r"""Documents from UTF-8 files (`.txt` and `.md` of a folder; `.gz` after them is unpacked).

    Args:
      paths: see `Paths`.
      separator: the text between documents, such as `"\n"` or `"<|endoftext|>"`; `"\n\n"` is any
        run of blank lines. None makes each file one document.

    Raises:
      ValueError: if a file isn't there, or, when it is read, isn't UTF-8.
    """
    files = files_of(paths, ("txt", "md"))
    for path in files:
        table = re.search(r"\.([ct]sv|jsonl?|parquet|arrow)(\.gz)?$", path.name)
        ways = {"c": "read_csv(text=...)", "t": "read_csv(text=...)", "j": "read_jsonl"}
        if table:
            way = ways.get(table[1][0], "read_dataset")
            raise ValueError(f"{path} is no plain text, but must be for read_text; use data.{way}")
    check(separator != "", "separator", separator, "None or at least a character")
    blank_lines = separator == "\n\n"
    cut = re.compile(r"\n[ \t]*\n" if blank_lines else re.escape(separator or ""))

    def split(file: Any) -> Iterator[str]:
        rest = ""
        while block := file.read(None if separator is None else 1 << 20):
            *whole, rest = cut.split(rest + block) if separator else (rest + block,)
            yield from whole
        yield rest

    def read() -> Iterator[Document]:
        for path in files:
            with _open(path, "rt", encoding="utf-8-sig") as file:  # drops a byte-order mark
                for text in split(file):
                    if text.strip():
                        yield text.strip("\n") if blank_lines else text

    return Documents(read)


def read_jsonl(
    paths: Paths, field: Field = "text", *, bad: Literal["raise", "skip"] = "raise"
) -> Documents:
    """Documents from files with a JSON object a line (`.jsonl` of a folder; also `.jsonl.gz`).

    Args:
      paths: see `Paths`.
      field: see `Field`; null is a blank document.
      bad: what happens to a line that is no JSON object with that field: `raise` an error, or
        `skip` it, with one warning that says how many there were.

    Raises:
      ValueError: if a file isn't there; when it is read, for a bad line, naming file and number.
    """
    files = files_of(paths, ("jsonl",))
    check(bad in ("raise", "skip"), "bad", bad, "'raise' or 'skip'")
    told: list[str] = []  # documents may be read twice, but are warned of once

    def read() -> Iterator[Document]:
        for document in records(files, lambda record: pick(record, field), bad, told):
            if document is not None:
                yield document

    return Documents(read)


def read_list(path: str | Path) -> list[Any]:
    """The entries of a JSON file that holds a list.

    Raises:
      ValueError: naming the file, if it can't be read, isn't JSON in UTF-8, or holds no list.
    """
    path = Path(path)
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8: {error.reason} at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: line {error.lineno} is no JSON: {error.msg}") from error
    if not isinstance(read, list):
        raise ValueError(f"{path} holds a {type(read).__name__}, but must hold a list of entries")
    return read


def records(
    files: Sequence[Path],
    make: Callable[[Any], Made],
    bad: Literal["raise", "skip"] = "raise",
    told: list[str] | None = None,
) -> Iterator[Made]:
    """`make` of the JSON of each line that isn't blank.

    Args:
      files: as `files_of` gives them.
      make: raises a ValueError that says what is wrong with a record, as in `it has no field 'a'`.
      bad: what happens to a line that isn't JSON or that `make` refuses: `raise` an error that
        names file and line, or `skip` it, with one warning that says how many there were.
      told: a list that remembers the warning, so that another pass doesn't repeat it.

    Raises:
      ValueError: if a file can't be read, or for a bad line.
    """
    lines, wrong, first = 0, 0, ""
    for path in files:
        with _open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                lines += 1
                try:
                    made = make(json.loads(line.decode()))
                except (ValueError, RecursionError) as error:
                    reason = f"line {number} of {path} can't be used: {error}"
                    if bad == "raise":
                        raise ValueError(f"{reason}; bad='skip' leaves it out") from error
                    wrong, first = wrong + 1, first or reason
                    continue
                yield made
    if wrong and not told:
        if told is not None:
            told.append(first)
        warnings.warn(f"{wrong} of {lines} lines are left out; {first}", stacklevel=2)


@contextmanager
def _open(path: Path, mode: str, **options: Any) -> Iterator[Any]:
    """Opens a file; errors name it."""
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, mode, **options) as file:
            yield file
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} has bytes that are not UTF-8 ({error.reason}), but must be UTF-8 text"
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} can't be read: {error}") from error


def files_of(paths: Paths, endings: Sequence[str]) -> list[Path]:
    """The files that `paths` stand for; of folders those with one of `endings`, gzipped or not.

    Raises:
      ValueError: if a path isn't there, or there are no files.
    """
    found: list[Path] = []
    for path in [paths] if isinstance(paths, str | Path) else paths:
        path = Path(path).expanduser()
        if path.is_dir():
            wanted = re.compile(rf".+\.({'|'.join(endings)})(\.gz)?")
            inside = [p for p in sorted(path.rglob("*")) if wanted.fullmatch(p.name)]
            check(bool(inside), "folder", str(path), f"one with files *.{' or *.'.join(endings)}")
            found += inside
        else:
            check(path.is_file(), "path", str(path), "a file or a folder that is there")
            found.append(path)
    check(bool(found), "paths", paths, "at least one")
    return found


def pick(record: Any, field: Field) -> Document | None:
    """The document in a record, None if it is blank.

    Raises:
      ValueError: if the record has no such field, or it is neither text nor messages.
    """
    if not isinstance(record, Mapping):
        raise ValueError(f"it is {type(record).__name__}, but must be an object")
    values: list[Any] = []
    for name in [field] if isinstance(field, str) else field:
        if name not in record:
            raise ValueError(f"it has no field {name!r}, but {list(record)}")
        value = record[name]
        values.append(value.decode() if isinstance(value, bytes) else value)
    if any(v is None for v in values):
        return None
    if all(isinstance(v, str) for v in values):
        # a prompt may be blank, but not the learned text
        if not values[-1].strip():
            return None
        return values[0] if len(values) == 1 else (values[0], values[1])
    if len(values) == 1 and isinstance(values[0], list):
        return values[0] or None
    kinds = [type(v).__name__ for v in values]
    raise ValueError(f"field {field!r} is {', '.join(kinds)}, but must be text or messages")
