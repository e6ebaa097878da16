"""Probes' prompts, against what lm-eval-harness's task files say they are."""

import json

import pytest

from jcl.data import questions
from jcl.data.corpora import Labelled

ROWS = {
    "BoolQ/dev.jsonl": [
        {"question": "is it so", "title": "It", "passage": "It is.", "answer": "True"},
        {"question": "is it not", "title": "It", "passage": "It is.", "answer": "False"},
    ],
    "PIQA/validation.jsonl": [
        {"question": "dresser", "options": "A. bobby pin \nB. wood", "answer": "B. wood"},
    ],
    "CommonsenseQA/validation.jsonl": [
        {"question": "Where?", "options": "\nA. a\nB. b\nC. c\nD. d\nE. e", "answer": "C. c"},
        # as the file has them: cut before the third choice, and within the question
        {"question": "When\nA. a\nB. b", "options": "\nC. c\nD. d\nE. e?", "answer": "E. e"},
        {"question": "He had to", "options": ".\nA. a\nB. b\nC. c\nD. d\nE. e", "answer": "A. a"},
    ],
    "OpenBookQA/test.jsonl": [
        {"question": "Fog is ", "options": "A. wet\nB. dry\nC. red\nD. a\nlie",
         "answer": "D. a\nlie"},
    ],
    "MMLU/test.jsonl": [
        {"question": "2 + 2\nis ", "options": "A. 1\nB. 2\nC. 3\nD. 4", "answer": "D. 4"},
    ],
    "hellaswag_val.jsonl": [
        {"activity_label": "Roof", "ctx_a": "A man [substeps] sits.", "ctx_b": "he",
         "endings": ["sleeps [title] now", "x", "y", "z"], "label": 1, "ctx": ""},
    ],
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    for place, rows in ROWS.items():
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


LETTERS = (" A", " B", " C", " D", " E")
ABCDE = "\nA. a\nB. b\nC. c\nD. d\nE. e"


@pytest.mark.quick
@pytest.mark.parametrize(
    ("name", "place", "item"),
    [
        ("boolq", 0, ("It -- It is.\nQuestion: is it so?\nAnswer:", (" no", " yes"), 1)),
        ("boolq", 1, ("It -- It is.\nQuestion: is it not?\nAnswer:", (" no", " yes"), 0)),
        ("piqa", 0, ("Question: dresser\nAnswer:", (" bobby pin ", " wood"), 1)),
        ("commonsenseqa", 0, (f"Question: Where?{ABCDE}\nAnswer:", LETTERS, 2)),
        ("commonsenseqa", 1, (f"Question: When{ABCDE}?\nAnswer:", LETTERS, 4)),
        ("commonsenseqa", 2, (f"Question: He had to.{ABCDE}\nAnswer:", LETTERS, 0)),
        ("openbookqa", 0, ("Fog is", (" wet", " dry", " red", " a\nlie"), 3)),
        ("mmlu", 0, (
            "The following are multiple choice questions (with answers).\n\n2 + 2\nis\nA. 1\nB. 2\n"
            "C. 3\nD. 4\nAnswer:", LETTERS[:4], 3)),
        ("hellaswag", 0, ("Roof: A man sits. He", (" sleeps. now", " x", " y", " z"), 1)),
    ],
)  # fmt: skip
def test_prompts_and_choices(folder, name, place, item):
    probe = questions.read(name, folder)
    assert probe.name == name
    assert probe.items[place] == questions.Item(*item)


@pytest.mark.quick
def test_a_limit_spreads_over_the_file(folder):
    rows = [{"question": f"q{i}", "options": "A. x\nB. y", "answer": "A. x"} for i in range(10)]
    path = folder / "PIQA" / "validation.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    items = questions.read("piqa", folder, limit=3).items
    assert [i.prompt for i in items] == [f"Question: q{i}\nAnswer:" for i in (0, 3, 6)]
    assert len(questions.read("piqa", folder, limit=20).items) == 10


@pytest.mark.quick
def test_labels_as_choices():
    rows = [Labelled("up {} 3 %", "earn"), Labelled("bought", "acq")]
    probe = questions.from_labels("r8", rows, ["acq", "earn"], "News: {}\nTopic:")
    assert probe.items[0] == questions.Item("News: up {} 3 %\nTopic:", (" acq", " earn"), 1)
    assert probe.items[1].answer == 0


@pytest.mark.quick
@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda f: questions.read("arc", f), "probe is 'arc', but must be one of"),
        (lambda f: questions.read("piqa", f, limit=0), "limit is 0"),
        (lambda f: questions.read("piqa", f / "none"), "file of probe 'piqa' is '.*none"),
        (lambda f: questions.read("hellaswag"), "folder is None, but must be one with hellaswag"),
        (
            lambda f: questions.from_labels("x", [Labelled("t", "c")], ["a"]),
            "label of a row of 'x'",
        ),
        (lambda f: questions.from_labels("x", [], ["a"], "no place"), "prompt is 'no place'"),
    ],
)
def test_what_cannot_be_read_is_refused(folder, call, says):
    with pytest.raises(ValueError, match=says):
        call(folder)


@pytest.mark.network
@pytest.mark.parametrize(
    ("name", "number", "choices", "right"),
    [
        ("boolq", 3270, 2, 2033), ("piqa", 1500, 2, 746), ("commonsenseqa", 1221, 5, 255),
        ("openbookqa", 500, 4, 126), ("mmlu", 2850, 4, 717),
    ],
)  # fmt: skip
def test_the_real_counts(name, number, choices, right):
    items = questions.read(name).items
    assert len(items) == number and sum(i.answer == 1 for i in items) == right
    assert {len(i.choices) for i in items} == {choices}
    assert all(i.prompt == i.prompt.rstrip() for i in items)
