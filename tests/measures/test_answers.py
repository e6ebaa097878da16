"""Exact answers by one forward pass, against answers that are really written."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jcl import data, losses, make, methods, models
from jcl.data.instructions import Instruction, documents
from jcl.measures import answers
from jcl.measures.evaluation import evaluator

CONFIG = models.decoder.Config(vocabulary=256, width=16, layers=1, heads=2, kv_heads=2, context=32)
ROWS = [Instruction(f"{a}+{b}=", (f"{'xy'[(a + b) % 2]}{a}.",)) for a in range(4) for b in range(4)]


def test_exact_match_counts_documents_whose_every_learned_token_is_likeliest() -> None:
    tokens = np.array([[1, 2, 3, 1, 2, 3, 0], [1, 2, 3, 4, 0, 0, 0]])
    batch = {
        "tokens": jnp.asarray(tokens),
        "segments": jnp.asarray([[1, 1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 0, 0, 0]]),
        "mask": jnp.asarray([[0, 1, 0, 0, 1, 0.0], [0, 1, 1, 0, 0, 0]]),
        "weight": jnp.ones(2),
    }
    logits = np.zeros((2, 7, 5))
    logits[0, 1, 3] = 1  # right
    logits[0, 4, 4] = 1  # wrong
    logits[1, 1, 3] = 1  # right, but only the first of two
    logits[0, 0, 4] = 1  # not asked for
    score = answers.exact_match()
    assert [float(x) for x in score(jnp.asarray(logits), batch)] == [1, 3]
    logits[1, 2, 4] = 1
    assert [float(x) for x in score(jnp.asarray(logits), batch)] == [2, 3]
    batch["weight"] = jnp.array([1.0, 0.0])  # a row that only fills the batch up
    assert [float(x) for x in score(jnp.asarray(logits), batch)] == [1, 2]


@pytest.fixture(scope="module")
def trained():
    pairs = documents(ROWS)
    stream = data.from_text(
        {"sums": (pairs, pairs)}, length=16, batch=8, steps=60, packing="alone", cache=False,
        test_batch=4,
    )  # fmt: skip
    apply = models.decoder.apply_fn(CONFIG)
    program = make(methods.naive(), apply, losses.fused_next_token(), optax.adam(1e-2))
    params = models.decoder.init(jax.random.key(0), CONFIG)

    @jax.jit
    def train(params):
        chunk = stream.chunk(0, 0, 60)
        batch = jax.eval_shape(
            lambda c: stream.fetch(stream.source, jax.tree.map(lambda x: x[0], c)), chunk
        )
        state = program.init(params, batch, jax.random.key(1))
        step = lambda s, c: program.step(s, stream.fetch(stream.source, c))  # noqa: E731
        return jax.lax.scan(step, state, chunk)[0]

    return program, train(params), stream


def test_one_forward_pass_tells_what_is_written(trained) -> None:
    program, state, stream = trained
    share = float(evaluator(stream.test, answers.exact_match())(program, state)[0])
    # bytes have no token that ends a document, so as many are written as an answer has
    summary, texts = answers.score_texts(
        program.predict, state, CONFIG, None, ROWS, steps=3, batch=5
    )
    right = np.mean([text == row.answers[0] for text, row in zip(texts, ROWS, strict=True)])
    assert share == pytest.approx(right)
    assert 0.05 < share < 1  # else the two would agree by being trivial
    assert summary.number == len(ROWS)


@pytest.mark.quick
def test_a_text_is_scored_against_any_of_its_answers(trained) -> None:
    program, state, _ = trained
    _, texts = answers.score_texts(program.predict, state, CONFIG, None, ROWS[:3], steps=3, batch=3)
    any_of = [Instruction(row.prompt, ("zz", text)) for row, text in zip(ROWS, texts, strict=False)]
    summary, again = answers.score_texts(
        program.predict, state, CONFIG, None, any_of, steps=3, batch=3
    )
    assert again == texts and summary.exact_match == 1.0
    with pytest.raises(ValueError, match="number of rows is 0"):
        answers.score_texts(program.predict, state, CONFIG, None, [])
