"""Readers of text and JSONL: what is a document, what is blank, and which line is wrong."""

import gzip
import json
import warnings

import pytest

from jcl import data

pytestmark = pytest.mark.quick


def test_a_file_is_a_document_and_blank_files_are_none(tmp_path):
    (tmp_path / "b.txt").write_bytes(b"second\r\nline\n")
    (tmp_path / "a.md").write_bytes("\ufefffirst ü".encode())
    (tmp_path / "c.txt").write_text(" \n\n")
    (tmp_path / "code.py").write_text("no text")
    with gzip.open(tmp_path / "d.txt.gz", "wt") as file:
        file.write("packed")
    assert list(data.read_text(tmp_path)) == ["first ü", "second\nline\n", "packed"]
    assert list(data.read_text([tmp_path / "c.txt", tmp_path / "code.py"])) == ["no text"]


@pytest.mark.parametrize("separator", ["\n", "<|endoftext|>", "\n\n"])
def test_separators_are_found_wherever_the_file_is_cut_in_reading(tmp_path, separator):
    # blocks of 2**20 characters end in the midst of a separator and of a document
    given = ["x" * (2**20 - 1), "y", *(f"{i} " + "xyz" * i for i in range(1000))]
    path = tmp_path / "all.txt"
    path.write_text(separator.join(given) + separator)
    assert path.stat().st_size > 2 * 2**20
    assert list(data.read_text(path, separator)) == given


def test_blank_lines_may_hold_blanks_and_be_many(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("\n\na\nb\n \t\nc\n\n\n\n  \n\nd")
    assert list(data.read_text(path, "\n\n")) == ["a\nb", "c", "d"]


def test_documents_are_read_anew_each_time(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one")
    documents = data.read_text(path)
    assert list(documents) == list(documents) == ["one"]
    path.write_text("two")
    assert list(documents) == ["two"]


@pytest.mark.parametrize(
    ("content", "name", "sentence"),
    [
        (b"caf\xe9", "a.txt", r"a.txt has bytes that are not UTF-8 .*but must be UTF-8 text"),
        (gzip.compress(b"a" * 999, mtime=0)[:-9], "a.txt.gz", r"a.txt.gz can't be read"),
        (b"not packed", "a.txt.gz", r"a.txt.gz can't be read"),
    ],
)
def test_a_broken_file_is_named(tmp_path, content, name, sentence):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        list(data.read_text(tmp_path))


def test_what_is_not_there_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(ValueError, match=r"path is '.*none.txt', but must be a file or a folder"):
        data.read_text(tmp_path / "none.txt")
    with pytest.raises(ValueError, match=r"one with files \*\.jsonl"):
        data.read_jsonl(tmp_path)
    with pytest.raises(ValueError, match=r"paths is \[\], but must be at least one"):
        data.read_text([])
    with pytest.raises(ValueError, match="separator is ''"):
        data.read_text(lines(tmp_path / "a.txt"), "")


def lines(path, *records):
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records))
    return path


def test_jsonl_gives_texts_pairs_and_conversations(tmp_path):
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    path = lines(
        tmp_path / "a.jsonl",
        {"text": "ü\n", "q": "1+1?", "a": "2", "messages": talk},
        "",
        {"text": " ", "q": "", "a": "yes", "messages": []},
        {"text": None, "q": "why?", "a": "", "messages": talk},
    )
    assert list(data.read_jsonl(path)) == ["ü\n"]
    assert list(data.read_jsonl(tmp_path, ("q", "a"))) == [("1+1?", "2"), ("", "yes")]
    assert list(data.read_jsonl(path, "messages")) == [talk, talk]


WRONG = ["{'text': 'no JSON'}", '{"text": "cut of', '{"other": "x"}', '["x"]', '{"text": 3}']


@pytest.mark.parametrize("line", [*WRONG, "[" * 100_000])
def test_a_corrupt_line_is_named_by_file_and_number(tmp_path, line):
    path = lines(tmp_path / "a.jsonl", {"text": "good"}, "", line, {"text": "late"})
    documents = iter(data.read_jsonl(path))
    assert next(documents) == "good"
    with pytest.raises(ValueError, match=r"line 3 of .*a\.jsonl can't be used: .*bad='skip'"):
        next(documents)


def test_bytes_that_are_no_utf_8_are_a_corrupt_line_too(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n{"text": "\xff"}\n')
    with pytest.raises(ValueError, match=r"line 2 of .*a\.jsonl"):
        list(data.read_jsonl(tmp_path))


def test_corrupt_lines_are_skipped_by_choice_with_one_warning_that_counts(tmp_path):
    lines(tmp_path / "a.jsonl", {"text": "1"}, *WRONG, {"text": "2"})
    lines(tmp_path / "b.jsonl", WRONG[0], {"text": "3"})
    documents = data.read_jsonl(tmp_path, bad="skip")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert list(documents) == ["1", "2", "3"]
        assert list(documents) == ["1", "2", "3"]
    assert len(told) == 1
    sentence = str(told[0].message)
    assert sentence.startswith("6 of 9 lines are left out; line 2 of ") and "a.jsonl" in sentence
    with pytest.raises(ValueError, match="bad is 'ignore'"):
        data.read_jsonl(tmp_path, bad="ignore")
