"""Reads a user's files as rows of one kind, and says which of them are trained on and which tested.

A row is a JSON object in one form, whatever file it came from; its hash is that of this form, so
that it is known again in another month and another format.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from jcl.data.documents import files_of, read_list, read_text, records
from jcl.data.labelled import table_lines
from jcl.data.packages import needed
from jcl.data.preferences import from_transcripts
from jcl.method import check

Kind = Literal["text", "chat", "classify", "prefer"]
"""Texts; conversations or prompts with answers; texts with a label each; a better and a worse
answer to a prompt."""
KINDS: tuple[Kind, ...] = get_args(Kind)
Row = dict[str, Any]

ENDINGS = ("jsonl", "json", "csv", "tsv", "parquet", "txt", "md")
_TEXT = ("text", "content", "document", "sentence")
_LABEL = ("label", "class", "category")
_PROMPT = ("prompt", "question", "instruction")
_ANSWER = ("answer", "completion", "response", "output")
_BETTER = ("chosen", "preferred")
_WORSE = ("rejected",)
_MESSAGES = ("messages", "conversation", "conversations")


def read_rows(paths: str | Path | Sequence[str | Path], kind: Kind | None = None) -> list[Row]:
    """The rows of files, in order; blank ones are left out.

    Args:
      paths: files or folders: JSONL, a JSON list, CSV, TSV, parquet, plain text or Markdown.
      kind: what the rows are; None is what the columns of the first one say (see `kind_of`).

    Raises:
      ValueError: naming file and line, if a file can't be read or a row hasn't the columns that its
        kind needs; or if there is no row.
    """
    objects = (
        (f"{where} of {path}", given)
        for path in files_of(paths, ENDINGS) for where, given in _objects(path)
    )  # fmt: skip
    found = _formed(objects, kind)
    check(bool(found), "number of rows", 0, f"at least 1 in {paths}")
    return found


def take_rows(given: Iterable[Mapping[str, Any]], kind: Kind | None = None) -> list[Row]:
    """The same of objects in Python, such as dicts, a generator of them, or a `datasets.Dataset`.

    Raises:
      ValueError: as `read_rows` does, but none is none.

    >>> take_rows({"question": f"{i} + {i} =", "answer": f" {2 * i}"} for i in range(1, 3))[0]
    {'prompt': '1 + 1 =', 'answer': ' 2'}
    """
    return _formed(((f"row {i}", row) for i, row in enumerate(given, 1)), kind)


def _formed(objects: Iterable[tuple[str, Any]], kind: Kind | None) -> list[Row]:
    """Objects in the form of their kind, without blank ones; each comes with where it is."""
    check(kind is None or kind in KINDS, "task", kind, f"one of {', '.join(KINDS)}")
    found: list[Row] = []
    for where, given in objects:
        try:
            kind = kind or kind_of(given)
            row = _FORMS[kind](given)
        except ValueError as error:
            raise ValueError(f"{where} can't be used: {error}") from error
        if row is not None:
            found.append(row)
    return found


def kind_of(row: Mapping[str, Any]) -> Kind:
    """The kind of rows with these columns.

    Raises:
      ValueError: if they are of none.

    >>> kind_of({"text": "fine", "label": "good"}), kind_of({"prompt": "2 + 2 =", "answer": " 4"})
    ('classify', 'chat')
    """
    names = {
        "prefer": (_BETTER, _WORSE), "classify": (_TEXT, _LABEL), "chat": (_PROMPT, _ANSWER),
    }  # fmt: skip
    if not isinstance(row, Mapping):
        raise ValueError(f"it is {type(row).__name__}, but must be an object with named values")
    if _named(row, _MESSAGES):
        return "chat"
    for kind, (one, other) in names.items():
        if _named(row, one) and _named(row, other):
            return kind  # type: ignore[return-value]
    if _named(row, _TEXT):
        return "text"
    raise ValueError(
        f"its columns are {list(row)}, of which none says what it is; name a column 'text', or "
        "'text' and 'label', 'prompt' and 'answer', 'messages', or 'chosen' and 'rejected'"
    )


def form_of(row: Row) -> Kind:
    """The kind of a row that `read_rows` made.

    >>> form_of({"prompt": "2 + 2 =", "preferred": " 4", "rejected": " 5"})
    'prefer'
    """
    if "preferred" in row:
        return "prefer"
    if "label" in row:
        return "classify"
    return "text" if "text" in row else "chat"


def hash_of(row: Row) -> str:
    """A row's hash: of its canonical JSON, 32 hexadecimal digits of sha256."""
    text = json.dumps(row, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


class Sorted(NamedTuple):
    """The rows of a stage, apart, and how many were left out for what reason."""

    train: list[Row]
    test: list[Row]
    counts: dict[str, int]
    """`read`, `train`, `test`; `repeated` within the stage, `known` from earlier stages, `tested`
    that are in a test and turned up in training, `forgotten` on somebody's request."""


def sort(
    rows: Sequence[Row],
    tests: Sequence[Row] | None,
    share: float,
    known: frozenset[str],
    tested: frozenset[str],
    forgotten: frozenset[str],
    repeats: bool = False,
) -> Sorted:
    """Sorts a stage's rows into those to train on and those to test.

    Without tests a row is held out if its hash, read as a number in [0, 1), is below `share`: so a
    row never changes sides, whatever comes with it. If none is, the one of the lowest hash is.

    Args:
      rows: the stage's.
      tests: what to test on; None holds some of the rows out.
      share: the share that is held out, in (0, 1).
      known: hashes of what earlier stages trained on.
      tested: hashes of earlier stages' tests.
      forgotten: hashes of rows that were forgotten, which never come back.
      repeats: whether rows that were there before are trained on again.

    Raises:
      ValueError: if nothing is left to train on or to test.
    """
    counts = dict.fromkeys(("read", "train", "test", "repeated", "known", "tested", "forgotten"), 0)
    counts["read"] = len(rows)
    own = {hash_of(row): row for row in rows}
    counts["repeated"] = len(rows) - len(own)
    if tests is None:
        free = [h for h in own if h not in tested | forgotten | known] or list(own)
        held = {h for h in free if int(h, 16) < share * 16 ** len(h)} or {min(free)}
        exam = {h: own[h] for h in held}
    else:
        exam = {h: row for row in tests if (h := hash_of(row)) not in forgotten}
    train: list[Row] = []
    each = rows if repeats else list(own.values())
    for row in each:
        h = hash_of(row)
        if h in forgotten:
            counts["forgotten"] += 1
        elif h in tested or (tests is not None and h in exam):
            counts["tested"] += 1
        elif h in exam:
            continue
        elif h in known and not repeats:
            counts["known"] += 1
        else:
            train.append(row)
    test = [exam[h] for h in sorted(exam)]
    counts |= {"train": len(train), "test": len(test)}
    check(bool(train), "number of new rows to train on", 0, f"at least 1 of {len(rows)}")
    check(bool(test), "number of rows to test on", 0, "at least 1")
    return Sorted(train, test, counts)


def words_of(name: str, counts: Mapping[str, int]) -> str:
    """What is said of a stage's rows: how many there are, and why some are left out.

    >>> words_of("jan", {"read": 9, "train": 6, "test": 1, "known": 2})
    'jan: 9 rows, 6 to train on, 1 to test on; left out: 2 trained on before'
    """
    reasons = {
        "repeated": "repeated within it", "known": "trained on before", "tested": "in a test",
        "forgotten": "forgotten on request",
    }  # fmt: skip
    out = [f"{counts[key]} {words}" for key, words in reasons.items() if counts.get(key)]
    first = (
        f"{name}: {counts['read']} rows, {counts['train']} to train on, {counts['test']} to test on"
    )
    return first + (f"; left out: {', '.join(out)}" if out else "")


def digest_of(rows: Sequence[Row], tests: Sequence[Row] | None) -> str:
    """The sha256 of a stage's rows and tests, hexadecimal."""
    text = json.dumps([[hash_of(row) for row in part] for part in (rows, tests or ())])
    return hashlib.sha256(text.encode()).hexdigest()


def _named(row: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """The first of some names that a row has."""
    return next((name for name in names if name in row), None)


def _text(row: Mapping[str, Any], names: Sequence[str]) -> str:
    name = _named(row, names)
    if name is None:
        raise ValueError(f"its columns are {list(row)}, but must include {' or '.join(names)}")
    value = row[name]
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{name!r} is {type(value).__name__}, but must be text")
    return str(value)


def _as_text(row: Mapping[str, Any]) -> Row | None:
    text = _text(row, _TEXT)
    return {"text": text} if text.strip() else None


def _as_chat(row: Mapping[str, Any]) -> Row | None:
    name = _named(row, _MESSAGES)
    if name is not None:
        messages = row[name]
        if isinstance(messages, str):  # in a table's cell
            messages = json.loads(messages)
        ok = isinstance(messages, list) and all(
            isinstance(m, Mapping) and isinstance(m.get("role"), str) for m in messages
        )
        if not ok:
            raise ValueError(f"{name!r} must be a list of messages, each with role and content")
        return {"messages": [dict(m) for m in messages]} if messages else None
    prompt, answer = _text(row, _PROMPT), _text(row, _ANSWER)
    if row.get("input"):  # Alpaca's second part of an instruction
        prompt = f"{prompt}\n{row['input']}"
    return {"prompt": prompt, "answer": answer} if answer.strip() else None


def _as_labelled(row: Mapping[str, Any]) -> Row | None:
    text, label = _text(row, _TEXT), _text(row, _LABEL)
    if not label.strip():
        raise ValueError("its label is blank, but must name the text's class")
    return {"text": text, "label": label}


def _as_pair(row: Mapping[str, Any]) -> Row | None:
    better, worse = _text(row, _BETTER), _text(row, _WORSE)
    if _named(row, _PROMPT) is not None:
        prompt = _text(row, _PROMPT)
    else:
        prompt, better, worse = from_transcripts({"chosen": better, "rejected": worse})
    if not prompt.strip() or better == worse:
        raise ValueError("its answers must be two different ones, to a prompt that isn't blank")
    return {"prompt": prompt, "preferred": better, "rejected": worse}


_FORMS: dict[Kind, Callable[[Mapping[str, Any]], Row | None]] = {
    "text": _as_text, "chat": _as_chat, "classify": _as_labelled, "prefer": _as_pair,
}  # fmt: skip


def _objects(path: Path) -> Iterator[tuple[str, Any]]:
    """Where each object of a file is, such as `line 3`, and the object."""
    name = path.name.removesuffix(".gz")
    if name.endswith((".csv", ".tsv")):
        yield from _lines_of_table(path)
    elif name.endswith(".parquet"):
        yield from _rows_of_parquet(path)
    elif name.endswith(".json"):
        yield from ((f"entry {i}", row) for i, row in enumerate(read_list(path), 1))
    elif name.endswith(".jsonl"):
        yield from ((f"row {i}", row) for i, row in enumerate(records([path], lambda x: x), 1))
    elif name.endswith((".txt", ".md")):
        texts = read_text(path, "\n\n")
        yield from ((f"paragraph {i}", {"text": text}) for i, text in enumerate(texts, 1))
    else:
        wanted = f".{', .'.join(ENDINGS)}"
        raise ValueError(f"{path} is no file that is read; its name must end in {wanted}")


def _lines_of_table(path: Path) -> Iterator[tuple[str, Any]]:
    lines = table_lines(path)
    _, head = next(lines, (0, []))
    check(len(set(head)) == len(head), f"columns of {path}", head, "named once each")
    yield from ((f"line {n}", dict(zip(head, line, strict=True))) for n, line in lines)


def _rows_of_parquet(path: Path) -> Iterator[tuple[str, Any]]:
    with needed("a parquet file", "pyarrow", "text"):
        import pyarrow as pa
        import pyarrow.parquet as pq

    try:
        number = 0
        for batch in pq.ParquetFile(path).iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield f"row {number}", row
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} can't be read: {str(error).splitlines()[0]}") from error
