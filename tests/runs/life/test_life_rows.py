"""Files of any kind become the same rows; which are held out depends on each row alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jcl.runs.life.rows import Row, form_of, hash_of, kind_of, read_rows, sort

pytestmark = pytest.mark.quick
NONE: frozenset[str] = frozenset()
TEXTS = [{"text": f"text {i}"} for i in range(200)]


def parted(rows: list[Row], tests: list[Row] | None = None, **more: frozenset[str]) -> object:
    given = {"known": NONE, "tested": NONE, "forgotten": NONE, **more}
    return sort(rows, tests, 0.1, **given)


def test_one_text_in_six_files_is_one_row(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    (tmp_path / "a.jsonl").write_text('{"text": "naïve", "id": 3}\n\n')
    (tmp_path / "a.json").write_text('[{"content": "naïve"}]')
    (tmp_path / "a.csv").write_text("id,text\n3,naïve\n")
    (tmp_path / "a.tsv").write_text("text\tid\nnaïve\t3\n")
    (tmp_path / "a.txt").write_text("naïve\n\n")
    pq.write_table(pa.table({"text": ["naïve"], "n": [1]}), tmp_path / "a.parquet")
    found = {p.suffix: read_rows(p) for p in sorted(tmp_path.iterdir())}
    assert len(found) == 6
    assert all(rows == [{"text": "naïve"}] for rows in found.values()), found


def test_columns_say_what_rows_are(tmp_path: Path) -> None:
    given = {
        "chat": {"instruction": "Add.", "input": "2, 2", "output": "4"},
        "classify": {"sentence": "fine", "class": 1},
        "prefer": {"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5"},
        "text": {"text": "some"},
    }
    wanted = {
        "chat": {"prompt": "Add.\n2, 2", "answer": "4"},
        "classify": {"text": "fine", "label": "1"},
        "prefer": {"prompt": "2 + 2 =", "preferred": " 4", "rejected": " 5"},
        "text": {"text": "some"},
    }
    for kind, row in given.items():
        assert kind_of(row) == kind
        (tmp_path / "a.jsonl").write_text(json.dumps(row))
        assert read_rows(tmp_path / "a.jsonl") == [wanted[kind]]
        assert form_of(wanted[kind]) == kind
    turns = {"messages": [{"role": "user", "content": "hi"}]}
    assert kind_of(turns) == "chat"
    talk = "\n\nHuman: hi\n\nAssistant:"
    (tmp_path / "a.jsonl").write_text(
        json.dumps({"chosen": f"{talk} yes", "rejected": f"{talk} no"})
    )
    assert read_rows(tmp_path / "a.jsonl")[0]["preferred"] == " yes"


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.jsonl", '{"text": "a"}\n{"body": "b"}', r"row 2 of .*l can't be used: its columns"),
        ("a.jsonl", "[1]", r"it is list, but must be an object"),
        ("a.jsonl", "{oops", r"line 1 of .*a.jsonl can't be used"),
        ("a.csv", "text,text\na,b", r"columns of .*a.csv is \['text', 'text'\], but must be named"),
        ("a.csv", "text,label\na", r"number of columns of line 2 of .* is 1, but must be 2"),
        ("a.csv", "text,label\na, ", r"line 2 of .*: its label is blank"),
        ("a.txt", "\n\n", r"number of rows is 0, but must be at least 1"),
        ("a.doc", "x", r"a.doc is no file that is read; its name must end in .jsonl"),
        ("a.jsonl", '{"messages": [{"content": "x"}]}', r"must be a list of messages"),
        ("a.jsonl", '{"prompt": "x", "chosen": "y", "rejected": "y"}', r"must be two different"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_row_is_refused(
    tmp_path: Path, name: str, content: str, sentence: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=sentence):
        read_rows(tmp_path / name)


def test_a_row_never_changes_sides() -> None:
    whole, half = (
        sort(TEXTS, None, 0.1, NONE, NONE, NONE),
        sort(TEXTS[:100], None, 0.1, NONE, NONE, NONE),
    )
    assert 5 < len(whole.test) < 40
    assert {hash_of(r) for r in half.test} <= {hash_of(r) for r in whole.test}
    assert not {hash_of(r) for r in half.test} & {hash_of(r) for r in whole.train}
    assert whole.counts["train"] + whole.counts["test"] == 200


def test_what_is_left_out_is_counted() -> None:
    tests = TEXTS[:3]
    rows = [*TEXTS[:10], *TEXTS[5:7]]  # three of the test, two twice
    known, forgotten = frozenset({hash_of(TEXTS[7])}), frozenset({hash_of(TEXTS[8])})
    found = sort(rows, tests, 0.1, known, NONE, forgotten)
    assert found.train == [TEXTS[i] for i in (3, 4, 5, 6, 9)]
    assert found.counts == {
        "read": 12, "train": 5, "test": 3, "repeated": 2, "known": 1, "tested": 3, "forgotten": 1,
    }  # fmt: skip
    again = sort(rows, tests, 0.1, known, NONE, forgotten, repeats=True)
    assert again.counts["train"] == 8 and again.counts["known"] == 0
    earlier = sort(TEXTS[3:10], None, 0.1, NONE, frozenset({hash_of(TEXTS[3])}), NONE)
    assert earlier.counts["tested"] == 1 and TEXTS[3] not in earlier.train


def test_few_rows_have_a_test_all_the_same() -> None:
    found = sort(TEXTS[:4], None, 0.001, NONE, NONE, NONE)
    assert len(found.test) == 1 and len(found.train) == 3
    with pytest.raises(ValueError, match="number of new rows to train on is 0"):
        sort(TEXTS[:4], None, 0.1, frozenset(map(hash_of, TEXTS)), NONE, NONE)
