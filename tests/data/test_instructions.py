"""Files of TRACE, Super-NaturalInstructions and CITB, and probes put as instructions."""

import json

import pytest

from jcl.data import instructions
from jcl.data.instructions import Instruction, Task, as_instructions, documents, drop_long
from jcl.data.questions import Item, Probe

SUPERNI = {
    "Contributors": ["x"],
    "Categories": ["Sentiment"],
    "Definition": ["Say how the text feels"],
    "Positive Examples": [
        {"input": "So good!", "output": "joy", "explanation": "good"},
        {"input": "So bad", "output": "grief", "explanation": "bad"},
    ],
    "Negative Examples": [],
    "Instances": [
        {"id": f"t-{i}", "input": f"text {i} ", "output": [f"a{i}", f"b{i}"]} for i in range(6)
    ],
}


@pytest.fixture
def superni(tmp_path):
    path = tmp_path / "task1_x.json"
    path.write_text(json.dumps(SUPERNI))
    return path


def trace(folder, task, **rows):
    (folder / task).mkdir(parents=True, exist_ok=True)
    for side, entries in rows.items():
        (folder / task / f"{side}.json").write_text(json.dumps(entries))


@pytest.mark.quick
def test_trace_has_a_folder_a_task(tmp_path) -> None:
    entry = {"prompt": "Paragraph: ...\nAnswer:", "answer": "A"}
    trace(tmp_path, "FOMC", train=[entry, {"prompt": "p", "answer": ""}], test=[entry])
    trace(tmp_path, "C-STANCE", train=[entry], test=[entry])
    first, second = instructions.read_trace(tmp_path, ["FOMC", "C-STANCE"])
    assert first.name == "FOMC" and second.name == "C-STANCE"
    assert first.train == (Instruction(entry["prompt"], ("A",)), Instruction("p", ("",)))
    assert first.test == (Instruction(entry["prompt"], ("A",)),)
    assert len(instructions.TRACE) == 8


@pytest.mark.quick
@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([{"prompt": "p", "answer": "a"}, {"prompt": "p"}], "entry 1, field 'answer' is None"),
        ([{"prompt": "", "answer": "a"}], "entry 0, field 'prompt' is ''"),
        (["p"], "entry 0 is 'p'"),
        ({}, "content is 'dict'"),
        ([], "content is 'list'"),
    ],
)
def test_a_bad_file_of_trace_is_refused_by_entry_and_field(tmp_path, entries, words) -> None:
    trace(tmp_path, "FOMC", train=entries)
    with pytest.raises(ValueError, match=f"train.json: {words}"):
        instructions.read_trace(tmp_path, ["FOMC"])


@pytest.mark.quick
def test_superni_is_prompted_as_tk_instruct_does(superni) -> None:
    task = instructions.read_superni(superni, test=2, positive=2)
    # the text that Tk-Instruct's collator makes, but for the blank after the last colon
    assert task.test[1].prompt == (
        "Definition: Say how the text feels.\n\n"
        " Positive Example 1 -\nInput: So good!\n Output: joy.\n\n"
        " Positive Example 2 -\nInput: So bad.\n Output: grief.\n\n"
        "Now complete the following example -\nInput: text 1.\nOutput:"
    )
    assert task.test[1].answers == (" a1", " b1")
    assert documents(task.test)[1] == (task.test[1].prompt, " a1")
    assert "Positive" not in instructions.read_superni(superni, test=2).test[0].prompt


@pytest.mark.quick
def test_superni_splits_by_place_and_draws_the_rest(superni) -> None:
    task = instructions.read_superni(superni, test=2, validation=1)
    assert [r.answers[0] for r in task.test] == [" a0", " a1"]
    assert {r.answers[0] for r in task.train} == {" a3", " a4", " a5"}
    few = [instructions.read_superni(superni, test=2, train=2, seed=s).train for s in (0, 0, 1, 2)]
    assert len(few[0]) == 2 and few[0] == few[1] and len(set(few)) > 1
    with pytest.raises(ValueError, match="number of Instances"):
        instructions.read_superni(superni, test=6)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"Definition": []}, "field 'Definition' is"),
        ({"Instances": None}, "field 'Instances' is None"),
        ({"Instances": [{"input": "a", "output": "b"}]}, r"Instances\[0\], field 'output' is 'b'"),
        ({"Instances": [{"output": ["b"]}]}, r"Instances\[0\], field 'input' is None"),
        ({"Positive Examples": [{"input": "a"}]}, r"Positive Examples\[0\], field 'output'"),
    ],
)
def test_a_bad_task_of_superni_is_refused_by_field(tmp_path, change, words) -> None:
    path = tmp_path / "task.json"
    path.write_text(json.dumps(SUPERNI | change))
    with pytest.raises(ValueError, match=f"task.json: {words}"):
        instructions.read_superni(path, positive=1)
    path.write_text("{")
    with pytest.raises(ValueError, match=r"task.json is no JSON"):
        instructions.read_superni(path)


@pytest.mark.quick
def test_citb_names_tasks_in_order(tmp_path, superni) -> None:
    (tmp_path / "task2_y.json").write_text(json.dumps(SUPERNI))
    order = tmp_path / "order1.txt"
    order.write_text("task2_y\ntask1_x")
    stream = instructions.read_citb(order, tmp_path, train=2, validation=1, test=2)
    assert [task.name for task in stream] == ["task2_y", "task1_x"]
    assert [len(task.train) for task in stream] == [2, 2]
    order.write_text("task1_x\ntask1_x\n")
    with pytest.raises(ValueError, match="task1_x"):
        instructions.read_citb(order, tmp_path)
    order.write_text("task3\n")
    with pytest.raises(ValueError, match=r"task3\.json"):
        instructions.read_citb(order, tmp_path, test=2)


PLAIN = tuple(Item(f"Question: {i}\nAnswer:", (" wet", " dry "), 1) for i in range(20))
LISTED = tuple(
    Item(f"Question: {i}\nA. wet\nB. B. dry\nC. a\nlie\nAnswer:", (" A", " B", " C"), 2)
    for i in range(20)
)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("items", "answers", "prompt", "answer"),
    [
        (PLAIN, "given", "Q.\nQuestion: {}\nAnswer:", " dry"),
        (PLAIN, "text", "Q. Give the words.\nQuestion: {}\nAnswer:", " dry"),
        (PLAIN, "letters", "Q. Give the letter.\nQuestion: {}\nA. wet\nB. dry\nAnswer:", " B"),
        (LISTED, "given", "Q.\nQuestion: {}\nA. wet\nB. B. dry\nC. a\nlie\nAnswer:", " C"),
        (LISTED, "text", "Q. Give the words.\nQuestion: {}\nAnswer:", " a\nlie"),
        (
            LISTED, "letters",
            "Q. Give the letter.\nQuestion: {}\nA. wet\nB. B. dry\nC. a\nlie\nAnswer:", " C",
        ),
    ],
)  # fmt: skip
def test_a_probe_is_put_as_instructions(items, answers, prompt, answer) -> None:
    task = as_instructions(Probe("p", items), "Q.", answers)
    everything = {*task.train, *task.test}
    assert everything == {Instruction(prompt.format(i), (answer,)) for i in range(20)}
    assert len(task.train) + len(task.test) == 20 and len(task.train) > len(task.test) > 0


@pytest.mark.quick
def test_a_question_stays_on_its_side() -> None:
    whole, part = (as_instructions(Probe("p", items), "Q.") for items in (PLAIN, PLAIN[5:]))
    assert set(part.train) <= set(whole.train) and set(part.test) <= set(whole.test)


@pytest.mark.quick
def test_rows_that_fit_are_kept() -> None:
    task = Task(
        "t", (Instruction("ab", ("c",)), Instruction("abcd", ("e",))), (Instruction("ab", ("c",)),)
    )
    assert drop_long(task, None, 5).train == task.train[:1]
    assert drop_long(task, None, 7) == task
    with pytest.raises(ValueError, match="length is 4"):
        drop_long(task, None, 4)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("change", "words"), [({"answers": "x"}, "answers is 'x'"), ({"share": 1.0}, "share is 1.0")]
)
def test_bad_arguments_are_named(change, words) -> None:
    with pytest.raises(ValueError, match=words):
        as_instructions(Probe("p", PLAIN), "Q.", **change)


@pytest.mark.network
def test_real_questions_become_instructions() -> None:
    task = instructions.questions_as_instructions("commonsenseqa", "text", limit=50)
    assert task.train[0].prompt.startswith("Answer by common sense. Give the words.\nQuestion: ")
    assert "\nA. " not in task.train[0].prompt and len(task.train) + len(task.test) == 50
