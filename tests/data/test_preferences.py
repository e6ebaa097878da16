"""Preference files and streams: what is a pair, which field is wrong, what a row holds."""

from __future__ import annotations

import gzip
import json
from typing import Any

import jax
import numpy as np
import pytest
import tiny_text as tiny

from jcl import data
from jcl.data.preferences import Pair, encode_pairs
from jcl.data.questions import Item

# as Anthropic's files have them
HH = {
    "chosen": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Why?\n\nAssistant: Because.",
    "rejected": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Why?\n\nAssistant: No idea",
}
# the fields that SHP's card lists
SHP = {
    "post_id": "qt3nxl", "domain": "askculinary_train", "upvote_ratio": 0.98,
    "history": "What sauce?", "c_root_id_A": "hkh25sc", "c_root_id_B": "hkh25lp",
    "created_at_utc_A": 1636822112, "created_at_utc_B": 1636822110, "score_A": 340, "score_B": 166,
    "human_ref_A": "Brown", "human_ref_B": "White", "labels": 1, "seconds_difference": 2.0,
    "score_ratio": 2.05,
}  # fmt: skip


def write(path: Any, *rows: Any) -> Any:
    with (gzip.open if path.suffix == ".gz" else open)(path, "wt") as file:
        file.write("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))
    return path


@pytest.mark.quick
def test_a_transcript_is_a_prompt_up_to_its_last_answer(tmp_path: Any) -> None:
    write(tmp_path / "train.jsonl.gz", HH, "", {"chosen": "\n\nAssistant: a: b", "rejected":
          "\n\nAssistant: c", "more": 1})  # fmt: skip
    assert data.read_hh(tmp_path) == [
        Pair("\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Why?\n\nAssistant:", " Because.",
             " No idea"),
        Pair("\n\nAssistant:", " a: b", " c"),
    ]  # fmt: skip


@pytest.mark.quick
def test_a_comment_is_preferred_as_its_label_says(tmp_path: Any) -> None:
    write(tmp_path / "train.json", SHP, {**SHP, "labels": 0, "score_ratio": 3})
    prompt = "\n\nHuman: What sauce?\n\nAssistant:"
    both = [Pair(prompt, " Brown", " White"), Pair(prompt, " White", " Brown")]
    assert data.read_shp(tmp_path) == both
    assert data.read_shp(tmp_path / "train.json", ratio=2.5) == both[1:]


def without(row: dict[str, Any], field: str) -> dict[str, Any]:
    return {k: v for k, v in row.items() if k != field}


@pytest.mark.quick
@pytest.mark.parametrize(
    ("read", "row", "says"),
    [
        (data.read_hh, without(HH, "rejected"), "it has no field 'rejected', but"),
        (data.read_hh, {**HH, "chosen": 3}, "field 'chosen' is 3, but must be text"),
        (data.read_hh, {**HH, "rejected": " \n"}, "field 'rejected' is blank"),
        (data.read_hh, {**HH, "chosen": "hello"}, "field 'chosen' has no '.*Assistant:'"),
        (data.read_hh, {**HH, "rejected": "\n\nHuman: Bye"}, "field 'rejected' must begin as"),
        (data.read_hh, {**HH, "rejected": HH["chosen"]}, "field 'rejected' is the same"),
        (data.read_hh, ["a"], "it is list, but must be an object"),
        (data.read_hh, "{broken", "Expecting property name"),
        (data.read_shp, without(SHP, "history"), "it has no field 'history'"),
        (data.read_shp, {**SHP, "labels": 2}, "field 'labels' is 2, but must be 0 or 1"),
        (data.read_shp, {**SHP, "labels": True}, "field 'labels' is True, but must be 0 or 1"),
        (data.read_shp, {**SHP, "score_ratio": "2"}, "field 'score_ratio' is '2', but must be a n"),
        (data.read_shp, {**SHP, "human_ref_B": "Brown"}, "field 'human_ref_B' is the same"),
    ],
)
def test_a_bad_line_is_named_by_file_number_and_field(
    tmp_path: Any, read: Any, row: Any, says: str
) -> None:
    good = HH if read is data.read_hh else SHP
    path = write(tmp_path / "bad.jsonl", good, row)
    with pytest.raises(ValueError, match=rf"line 2 of .*bad\.jsonl can't be used: {says}"):
        read(path)
    with pytest.warns(UserWarning, match="1 of 2 lines are left out; line 2"):
        assert len(read(path, bad="skip")) == 1


@pytest.mark.quick
def test_files_and_arguments_are_looked_over(tmp_path: Any) -> None:
    with pytest.raises(ValueError, match=r"path is '.*none\.jsonl', but must be a file"):
        data.read_hh(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match="folder is"):
        data.read_shp(tmp_path)
    write(tmp_path / "a.json", SHP)
    with pytest.raises(ValueError, match=r"ratio is 0.5, but must be at least 1"):
        data.read_shp(tmp_path, ratio=0.5)
    with pytest.raises(ValueError, match="bad is 'ignore'"):
        data.read_shp(tmp_path, bad="ignore")  # type: ignore[arg-type]


@pytest.mark.quick
def test_right_choices_over_wrong_ones() -> None:
    items = [Item("q", (" a", " b", " c"), 1), Item("r", (" x", " y"), 0)]
    every = [Pair("q", " b", " a"), Pair("q", " b", " c"), Pair("r", " x", " y")]
    assert data.right_over_wrong(items) == every
    one = data.right_over_wrong(items * 50, wrong=1, seed=3)
    assert one == data.right_over_wrong(items * 50, wrong=1, seed=3)
    assert len(one) == 100 and set(one) == set(every)
    with pytest.raises(ValueError, match="wrong is 0"):
        data.right_over_wrong(items, wrong=0)


def text(row: Any) -> bytes:
    return bytes(np.asarray(row).astype(np.uint8)).rstrip(b"\0")


@pytest.mark.quick
def test_a_row_is_a_prompt_its_answer_and_padding() -> None:
    rows = encode_pairs([Pair("ab:", " xyz", " q")], None, 9)
    assert text(rows["tokens"][0]) == b"ab: xyz"
    assert text(rows["rejected_tokens"][0]) == b"ab: q"
    np.testing.assert_array_equal(rows["segments"][0], [1] * 7 + [0] * 2)
    np.testing.assert_array_equal(rows["rejected_segments"][0], [1] * 5 + [0] * 4)
    # answer[i] is of predicting token i + 1
    np.testing.assert_array_equal(rows["answer"][0], [0, 0, 1, 1, 1, 1, 0, 0])
    np.testing.assert_array_equal(rows["rejected_answer"][0], [0, 0, 1, 1, 0, 0, 0, 0])


@pytest.mark.quick
def test_what_is_too_long_loses_the_same_prompt_then_the_answers_end() -> None:
    pair = Pair("abcdef", "123", "12345")
    rows = encode_pairs([pair], None, 8)  # three bytes over
    assert text(rows["tokens"][0]) == b"def123"
    assert text(rows["rejected_tokens"][0]) == b"def12345"
    rows = encode_pairs([pair], None, 4)
    assert text(rows["tokens"][0]) == b"f123" and text(rows["rejected_tokens"][0]) == b"f123"
    np.testing.assert_array_equal(rows["rejected_answer"][0], [1, 1, 1])


@pytest.mark.quick
def test_an_answer_ends_as_a_document_does() -> None:
    tokenizer = tiny.byte_level()
    rows = encode_pairs([Pair("the cat", " sat", " sat on the mat")], tokenizer, 16)
    for side, text in (("", "the cat sat"), ("rejected_", "the cat sat on the mat")):
        there = rows[f"{side}segments"][0] == 1
        ids = rows[f"{side}tokens"][0][there]
        assert tokenizer.decode(ids) == f"{text}<|end|>"
        learned = ids[1:][rows[f"{side}answer"][0][: len(ids) - 1] == 1]
        assert tokenizer.decode(learned) == f"{text.removeprefix('the cat')}<|end|>"


SUMS = [Pair(f"{i} + 1 =", f" {i + 1}", f" {i + 2}") for i in range(10)]


def stream(seed: int = 0, **options: Any) -> data.Stream:
    stages = {"low": (SUMS[:6], SUMS[6:7]), "high": (SUMS[4:], SUMS[:3])}
    return data.from_pairs(stages, length=12, batch=4, steps=5, seed=seed, **options)


def drawn(given: data.Stream, stage: int, start: int, stop: int) -> Any:
    return [
        given.fetch(given.source, jax.tree.map(lambda x, i=i: x[i], rows))
        for rows in [given.chunk(stage, start, stop)]
        for i in range(stop - start)
    ]


def same(a: Any, b: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.quick
def test_a_draw_depends_on_seed_stage_and_step_alone() -> None:
    whole = drawn(stream(), 1, 0, 5)
    same(drawn(stream(), 1, 3, 5), whole[3:])
    other = drawn(stream(seed=1), 1, 0, 5)
    assert any(
        not np.array_equal(a["tokens"], b["tokens"]) for a, b in zip(whole, other, strict=True)
    )
    first = {text(row) for b in drawn(stream(), 0, 0, 5) for row in b["tokens"]}
    assert first == {(p.prompt + p.preferred).encode() for p in SUMS[:6]}
    given = stream()
    assert given.tests == ("low", "high") and given.test["weight"].sum(axis=(1, 2)).tolist() == [
        1,
        3,
    ]


@pytest.mark.parametrize(
    ("pairs", "options", "says"),
    [
        ([], {}, "number of pairs of 'a' is 0"),
        ([Pair(" ", "x", "y")], {}, "prompt of pair 0 of 'a' is ' '"),
        ([Pair("q", "x", "x")], {}, "rejected answer of pair 0 of 'a' is 'x', but must be another"),
        (SUMS, {"length": 1}, "length is 1"),
        (SUMS, {"batch": 0}, "batch is 0"),
        (SUMS, {"vocabulary": 60}, "token id in 'a' is 61, but must be below 60"),
        (SUMS, {"tokenizer": "bytes"}, "tokenizer is str"),
    ],
)
def test_refused(pairs: Any, options: Any, says: str) -> None:
    tokenizer = options.pop("tokenizer", None)
    options = {"length": 12, "batch": 2, "steps": 3} | options
    with pytest.raises(ValueError, match=says):
        data.from_pairs({"a": (pairs, SUMS)}, tokenizer, **options)
