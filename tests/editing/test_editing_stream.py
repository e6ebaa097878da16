"""A stream of edits: one compiled write, killed and resumed, and undone."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_model import APPLY, CONFIG, EDITS, LENGTH, PARAMS

from jcl import checkpoint, trees
from jcl.editing import Editor, encode
from jcl.editing.editors.grace import grace
from jcl.editing.measures import examine
from jcl.editing.stream import compiled, run
from jcl.editing.undo import undo

MANY = [
    *EDITS,
    EDITS[0]._replace(prompt="Pisa is in", subject="Pisa", paraphrases=("Pisa was in",)),
    EDITS[1]._replace(prompt="Bern has", subject="Bern", neighbours=(("Bonn has", "a"),)),
]
FACTS = encode(MANY, None, ["{}"], LENGTH)
EXAM = examine(MANY, rows=4)
TEXT = {"tokens": jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 2, 16)), jnp.int32)}


def shift() -> Editor:
    """Adds to one kernel what depends on the edits, and counts them."""

    def write(params, state, facts):
        amount = jnp.sum(facts["weight"][:, None, None] * facts["tokens"]) / 1e4
        kernel = params["blocks"]["down"]["kernel"] + amount
        blocks = {**params["blocks"], "down": {"kernel": kernel}}
        return {**params, "blocks": blocks}, state + jnp.sum(facts["weight"])

    return Editor("shift", lambda params, facts: jnp.float32(0), write)


def stream(editor, **options):
    options = {"batch": 1, "every": 2, **options}
    return run(compiled(editor, APPLY, CONFIG), PARAMS, FACTS, EXAM, TEXT, **options)


def same(lines, others):
    """Equal but for what they took."""
    drop = ("write_seconds", "score_seconds")
    strip = lambda line: {k: v for k, v in line.items() if k not in drop}  # noqa: E731
    assert [strip(x) for x in lines] == [strip(x) for x in others]


@pytest.fixture(scope="module")
def whole():
    return stream(shift())


def test_a_stream_is_one_write_and_one_scoring_compiled_once(whole):
    steps = compiled(shift(), APPLY, CONFIG)
    again = run(steps, PARAMS, FACTS, EXAM, TEXT, every=2)
    other = {**FACTS, "tokens": FACTS["tokens"][::-1]}  # another stream of the same shapes
    run(steps, PARAMS, other, EXAM, TEXT, every=3)
    assert steps.traces["score"] == 1 and steps.write._cache_size() == 1
    same(again.lines, whole.lines)
    assert [x["edits"] for x in whole.lines] == [0, 2, 4, 6]
    assert float(whole.state) == 6
    before, after = (p["blocks"]["down"]["kernel"] for p in (PARAMS, whole.params))
    np.testing.assert_allclose(after - before, FACTS["tokens"].sum() / 1e4, rtol=1e-3)


@pytest.mark.quick
def test_batches_write_the_same_edits_the_last_one_filled_up_with_weight_0(whole):
    found = stream(shift(), batch=4, every=4)
    assert [x["edits"] for x in found.lines] == [0, 4, 6] and float(found.state) == 6
    trees_equal(found.params, whole.params, 1e-6)


def trees_equal(a, b, rtol=0.0):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol)


@pytest.mark.quick
def test_the_first_line_is_of_the_unedited_model(whole):
    first = whole.lines[0]
    assert first["locality"] == first["locality_forced"] == 1
    assert first["now"] is None and first["retained"] is None
    assert whole.lines[1]["perplexity"] != first["perplexity"] == whole.base.perplexity
    assert first["portability"] is None  # no edit has a hop


class Killed(Exception):
    """In mid-stream."""


@pytest.mark.parametrize("at", [2, 4])
def test_killed_and_resumed_gives_the_same_numbers(tmp_path, whole, at):
    def kill(line):
        if line["edits"] == at:
            raise Killed

    with pytest.raises(Killed):
        stream(shift(), folder=tmp_path, on_line=kill)
    seen = [json.loads(x) for x in (tmp_path / "stream.jsonl").read_text().splitlines()]
    assert seen[-1]["edits"] == at  # written, but not yet in a checkpoint, so it comes again
    found = stream(shift(), folder=tmp_path)
    same(found.lines, whole.lines)
    trees_equal(found.params, whole.params)
    same([json.loads(x) for x in (tmp_path / "stream.jsonl").read_text().splitlines()], whole.lines)
    again = stream(shift(), folder=tmp_path)  # it is done
    same(again.lines, whole.lines)
    trees_equal(again.params, whole.params)


def test_a_checkpoint_has_what_the_editor_changes_alone(tmp_path):
    stream(shift(), folder=tmp_path)
    (last,) = [p for p in (tmp_path / "checkpoints").glob("step_*6.json")]
    like = (trees.partition(PARAMS, lambda p: p == "blocks/down/kernel")[0], jnp.float32(0))
    (params, state), step = checkpoint.restore(last.parent, like)
    assert step == 6 and float(state) == 6 and trees.size(params) == 3 * 24 * 16


def test_another_stream_in_the_folder_is_refused(tmp_path):
    stream(shift(), folder=tmp_path)
    with pytest.raises(ValueError, match="batch is 2, but must be 1, as in the stream that"):
        stream(shift(), folder=tmp_path, batch=2)
    facts = {**FACTS, "tokens": FACTS["tokens"] + 1}
    with pytest.raises(ValueError, match=r"sha256 is .*, but must be "):
        run(compiled(shift(), APPLY, CONFIG), PARAMS, facts, EXAM, TEXT, every=2, folder=tmp_path)


def test_edits_are_undone_bit_for_bit():
    found = stream(shift(), keep=2)
    assert len(found.past) == 2
    params, state = found.params, found.state
    for past in reversed(found.past):
        params, state = undo(params, state, past)
    four = encode(MANY[:4], None, ["{}"], LENGTH)
    exam = examine(MANY[:4], rows=4)
    alone = run(compiled(shift(), APPLY, CONFIG), PARAMS, four, exam, TEXT, every=2)
    trees_equal((params, state), (alone.params, alone.state))


def test_now_and_retained_are_of_the_latest_and_of_all_before():
    """With a model that says right what was asked in an odd place, whatever is written."""
    editor = shift()._replace(write=lambda params, state, facts: (params, state + 1))
    found = stream(editor)
    base = found.base.answers
    right = EXAM._replace(answer=np.where(EXAM.edit[..., None] % 2 == 1, base.decoded, EXAM.answer))
    known = run(compiled(editor, APPLY, CONFIG), PARAMS, FACTS, right, TEXT, every=3)
    assert [x["now"] for x in known.lines] == [None, 1 / 3, 2 / 3]
    assert [x["retained"] for x in known.lines] == [None, None, 1 / 3]
    assert known.lines[-1]["reliability"] == 0.5 and known.lines[-1]["locality"] == 1


def test_a_codebook_goes_through_a_stream_and_keeps_locality():
    found = stream(grace(APPLY, 1, radius=1e-3, capacity=6, steps=3), every=6)
    assert found.params["blocks"]["down"]["kernel"] is PARAMS["blocks"]["down"]["kernel"]
    assert int(found.state.written) == 6 and int(found.state.refused) == 0
    assert found.lines[-1]["locality"] == 1
    assert found.lines[-1]["perplexity"] == found.lines[0]["perplexity"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "batch is 0, but must be at least 1"),
        ({"batch": 4, "every": 6}, "every is 6, but must be a multiple of 4, the batch"),
        ({"keep": -1}, "keep is -1, but must be at least 0"),
    ],
)
def test_bad_arguments_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        stream(shift(), **options)


def test_an_exam_of_other_edits_is_refused():
    with pytest.raises(ValueError, match="edits of the exam is 4, but must be 6"):
        run(compiled(shift(), APPLY, CONFIG), PARAMS, FACTS, examine(EDITS), TEXT)
