"""The measures of editing on a model made by hand, whose answers are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_model import APPLY, CONFIG, PARAMS

from jcl.data.edits import Edit
from jcl.editing.measures import answers, examine, perplexity, scores
from jcl.models import generation

EDITS = [
    Edit(
        "a b", "a", "xy", paraphrases=("ab", "b a"), neighbours=(("c", "uvw"),),
        hops=(("a", "k"),),
    ),
    Edit("dd", "d", "z", neighbours=(("e", "p"), ("f", "q"))),
]  # fmt: skip


def chain(follows):
    """A language model over bytes that writes, after a byte, the one that `follows` says."""
    table = np.zeros((256, 256), np.float32)
    table[
        np.arange(256), [follows.get(chr(i), 0) and ord(follows.get(chr(i))) for i in range(256)]
    ] = 1
    table = jnp.asarray(table)

    def call(tree, batch):
        logits = table[batch["tokens"]]
        if "prefill" in batch or "cache" in batch:
            return logits[:, -1], batch.get("prefill", batch.get("cache"))
        return logits

    return call


def said(follows, exam):
    return jax.jit(lambda: answers(chain(follows), None, CONFIG, exam))()


@pytest.mark.quick
def test_an_exam_has_every_question_in_the_order_of_the_edits():
    exam = examine(EDITS, rows=5)
    assert exam.tokens.shape == (2, 5, 3) and exam.answer.shape == (2, 5, 4)
    np.testing.assert_array_equal(exam.edit, [[0, 0, 0, 0, 0], [1, 1, 1, -1, -1]])
    np.testing.assert_array_equal(exam.kind, [[0, 1, 1, 2, 3], [0, 2, 2, 0, 0]])
    assert bytes(exam.tokens[0, 0].astype(np.uint8)) == b"a b"
    np.testing.assert_array_equal(exam.segments[0, 1], [0, 1, 1])
    assert bytes(exam.answer[0, 3].astype(np.uint8)) == b" uvw"
    np.testing.assert_array_equal(exam.answer[0, 4], [32, ord("k"), -1, -1])
    wide = examine(EDITS, rows=5, width=9, longest=2, pieces=3)  # the same, in a given shape
    assert wide.tokens.shape == (3, 5, 9) and (wide.edit[2] == -1).all()
    wide = jax.tree.map(lambda x: x[:2], wide)
    np.testing.assert_array_equal(wide.tokens[..., 6:], exam.tokens)
    np.testing.assert_array_equal(wide.answer, exam.answer[..., :2])


@pytest.mark.quick
def test_scores_of_a_model_whose_answers_are_known():
    exam = examine(EDITS, rows=4)
    # b -> " xy", whatever was before; a -> " xy"; c -> " xy"; d -> " xy" ...: all say " xy"
    same = dict.fromkeys("abcdef", " ")
    now = said({**same, " ": "x", "x": "y"}, exam)
    before = said({**same, " ": "p", "p": "q", "q": "r", "u": "v", "x": "y"}, exam)
    decoded = np.asarray(now.decoded).reshape(-1, 4)
    assert [bytes(r[:3].astype(np.uint8)) for r in decoded[:8]] == [b" xy"] * 8
    found = scores(exam, now, before)
    np.testing.assert_array_equal(found["reliability"], [1, 0])
    np.testing.assert_array_equal(found["generality"], [1, np.nan])  # both end in a or b
    np.testing.assert_array_equal(found["locality"], [0, 0])  # " xy" where " pq" was said
    np.testing.assert_array_equal(found["portability"], [0, np.nan])
    # forced: " z" is wrong in its second token, " k" too
    np.testing.assert_array_equal(found["reliability_forced"], [1, 0.5])
    np.testing.assert_array_equal(found["portability_forced"], [0.5, np.nan])
    # of " uvw" the unedited model's likeliest are " pv0", the edited one's " x00"; of " p" " p"
    np.testing.assert_array_equal(found["locality_forced"], [0.5, 0.5])


def test_locality_is_what_the_unedited_model_said_and_not_the_truth():
    exam = examine(EDITS, rows=4)
    wrong = {**dict.fromkeys("abcdef", " "), " ": "m", "m": "n"}  # true of no neighbour
    found = scores(exam, said(wrong, exam), said(wrong, exam))
    np.testing.assert_array_equal(found["locality"], [1, 1])
    np.testing.assert_array_equal(found["locality_forced"], [1, 1])
    # after " m" comes another byte: beyond the two tokens of " p" and " q", but " uvw" has four
    found = scores(exam, said({**wrong, "m": "o"}, exam), said(wrong, exam))
    np.testing.assert_array_equal(found["locality"], [0, 1])


def test_a_right_answer_counts_only_if_it_is_whole():
    exam = examine(EDITS[:1], rows=4)
    follows = {**dict.fromkeys("abc", " "), " ": "x", "x": "z"}
    found = scores(exam, said(follows, exam), said({}, exam))
    assert found["reliability"][0] == 0 and found["reliability_forced"][0] == pytest.approx(2 / 3)


@pytest.mark.quick
def test_only_the_first_pieces_are_asked():
    exam = examine(EDITS, rows=2)
    ask = jax.jit(lambda n: answers(chain({}), None, CONFIG, exam, n))
    found = ask(jnp.int32(2))
    assert (np.asarray(found.decoded)[2:] == -1).all() and (
        np.asarray(found.decoded)[:2] == 0
    ).all()
    ask(jnp.int32(4))
    assert ask._cache_size() == 1


def test_a_decoder_answers_as_generate_does():
    exam = examine(EDITS, rows=3)
    found = jax.jit(lambda p: answers(APPLY, p, CONFIG, exam))(PARAMS)
    rows = np.asarray(exam.tokens).reshape(-1, exam.tokens.shape[-1])
    real = np.asarray(exam.segments).reshape(rows.shape) > 0
    prompts = [r[m].tolist() for r, m in zip(rows, real, strict=True)]
    alone = generation.generate(APPLY, PARAMS, CONFIG, prompts, steps=exam.answer.shape[-1])
    np.testing.assert_array_equal(np.asarray(found.decoded).reshape(len(alone), -1), alone)
    # forced with what it says itself, a model says the same
    own = exam._replace(answer=np.asarray(found.decoded))
    forced = jax.jit(lambda p: answers(APPLY, p, CONFIG, own))(PARAMS).forced
    np.testing.assert_array_equal(forced, found.decoded)


def test_perplexity_is_that_of_numpy():
    tokens = np.random.default_rng(0).integers(0, 256, (2, 3, 8))
    mask = np.ones((2, 3, 7), np.float32)
    mask[1, 2, 3:] = 0
    batches = {"tokens": jnp.asarray(tokens, jnp.int32), "mask": jnp.asarray(mask)}
    found = jax.jit(lambda p: perplexity(APPLY, p, batches))(PARAMS)
    lost = []
    for piece, weight in zip(tokens, mask, strict=True):
        logits = np.asarray(APPLY(PARAMS, {"tokens": jnp.asarray(piece)}), np.float64)
        logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        nll = -np.take_along_axis(logp[:, :-1], piece[:, 1:, None], axis=-1)[..., 0]
        lost += nll[weight > 0].tolist()
    assert float(found) == pytest.approx(np.exp(np.mean(lost)), rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 2}, "width is 2, but must be at least 3, the tokens of the longest prompt"),
        ({"rows": 0}, "rows is 0, but must be at least 1"),
        ({"longest": 0}, "longest is 0, but must be at least 1"),
        ({"vocabulary": 90}, "token id in prompt 0 is 98, but must be below 90"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        examine(EDITS, **arguments)


def test_an_edit_without_an_answer_is_refused():
    with pytest.raises(ValueError, match="answer is '', but must be a text that goes on"):
        examine([EDITS[0]._replace(target="")])
