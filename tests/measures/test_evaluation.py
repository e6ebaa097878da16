"""Evaluators and scores against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jcl
from jcl import data, evaluation, losses, methods

RNG = np.random.default_rng(0)
CLASSES = np.array([[1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1]], bool)
SIZES = (5, 9, 3)


def exam():
    return [
        {"x": RNG.normal(size=(n, 4)).astype(np.float32), "y": RNG.integers(2 * i, 2 * i + 2, n)}
        for i, n in enumerate(SIZES)
    ]


def apply(params, batch):
    return batch["x"] @ params["w"]


def setting():
    tests = exam()
    w = RNG.normal(size=(4, 6)).astype(np.float32)
    program = jcl.make(methods.naive(), apply, losses.cross_entropy(), optax.sgd(0.1))
    test = data.from_arrays(tests, tests, batch=3, steps=1, test_batch=4).test
    example = {"x": jnp.zeros((2, 4)), "y": jnp.zeros(2, jnp.int32)}
    return tests, w, program, test, program.init({"w": jnp.asarray(w)}, example, jax.random.key(0))


@pytest.mark.parametrize("mask", ["all", "seen", "task"])
@pytest.mark.parametrize(("finished", "steps"), [(0, 0), (0, 2), (1, 0), (1, 5), (3, 0)])
def test_accuracy_and_nll_under_each_mask(mask, finished, steps):
    tests, w, program, test, state = setting()
    state = state._replace(stage=jnp.int32(finished), stage_step=jnp.int32(steps))
    begun = finished + (steps > 0)
    hits, nats = [], []
    for i, t in enumerate(tests):
        logits = (t["x"] @ w).astype(np.float64)
        keep = np.ones(6, bool)
        if mask == "task":
            keep = CLASSES[i]
        elif mask == "seen" and begun:  # before any training a guess is among all
            keep = CLASSES[:begun].any(0)
        logits = np.where(keep, logits, -1e9)
        hits.append(np.mean(logits.argmax(-1) == t["y"]))
        logp = logits - np.log(
            np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True)
        )
        logp = logp - logits.max(-1, keepdims=True)
        nats.append(-logp[np.arange(len(t["y"])), t["y"]].mean())
    score = evaluation.accuracy(CLASSES, mask)
    found = jax.jit(lambda s: evaluation.evaluator(test, score)(program, s))(state)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, hits, rtol=1e-6)
    found = evaluation.evaluator(test, evaluation.nll(CLASSES, mask))(program, state)
    np.testing.assert_allclose(found, nats, rtol=1e-4)


def test_members_give_a_row_each():
    _, w, _, test, _ = setting()
    members = jcl.replicate(
        lambda rate: jcl.make(methods.naive(), apply, losses.cross_entropy(), optax.sgd(rate)),
        jnp.array([0.1, 0.2]),
    )
    example = {"x": jnp.zeros((2, 2, 4)), "y": jnp.zeros((2, 2), jnp.int32)}
    params = {"w": jnp.stack([w, np.zeros_like(w)])}
    state = members.init(params, example, jax.random.split(jax.random.key(0), 2))
    evaluate = evaluation.evaluator(test, evaluation.nll())
    found = evaluate(members, state)
    assert found.shape == (2, 3)
    np.testing.assert_allclose(found[1], np.log(6), rtol=1e-6)
    assert (np.abs(found[0] - np.log(6)) > 1e-3).all()


@pytest.mark.quick
def test_bits_per_byte_of_a_known_distribution():
    vocabulary, share = 8, 0.5
    tokens = RNG.integers(0, vocabulary, (7, 5)).astype(np.int32)
    # the next token is known with probability 1/2, the rest is spread over the others
    other = (1 - share) / (vocabulary - 1)

    def sure(params, batch):
        hot = jax.nn.one_hot(jnp.roll(batch["tokens"], -1, axis=1), vocabulary)
        return jnp.log(jnp.where(hot > 0, share, other)) + params["shift"]

    program = jcl.make(methods.naive(), sure, losses.next_token, optax.sgd(0.1))
    test = data.pack([{"tokens": tokens, "task": np.zeros(7, np.int32)}], 3)
    state = program.init(
        {"shift": jnp.ones(())}, {"tokens": jnp.asarray(tokens)}, jax.random.key(0)
    )
    bits = evaluation.evaluator(test, evaluation.bits_per_byte())(program, state)
    np.testing.assert_allclose(bits, [1.0], rtol=1e-5)
    nats = evaluation.evaluator(test, evaluation.token_nll())(program, state)
    np.testing.assert_allclose(nats, [np.log(2)], rtol=1e-5)
    # four predicted tokens a row that stand for eight bytes
    wide = {**test, "bytes": np.full(test["weight"].shape, 8.0, np.float32)}
    bits = evaluation.evaluator(wide, evaluation.bits_per_byte())(program, state)
    np.testing.assert_allclose(bits, [0.5], rtol=1e-5)


def test_a_mask_leaves_tokens_out():
    logits = jnp.asarray(RNG.normal(size=(3, 4, 5)), jnp.float32)
    tokens = RNG.integers(0, 5, (3, 4))
    mask = np.array([[1, 0, 1], [0, 0, 0], [1, 1, 1]], np.float32)
    batch = {"tokens": jnp.asarray(tokens), "mask": jnp.asarray(mask), "weight": jnp.ones(3)}
    added, weight = evaluation.token_nll()(logits, batch)
    logp = np.asarray(jax.nn.log_softmax(logits))
    rows, places = np.nonzero(mask)
    expected = -logp[rows, places, tokens[rows, places + 1]].sum()
    np.testing.assert_allclose(added, expected, rtol=1e-5)
    assert float(weight) == 5


@pytest.mark.quick
def test_each_class_has_a_score_of_its_own_and_all_rows_have_one():
    y = np.array([0, 0, 0, 0, 1, 2])  # of a model that always says 0
    tests = [{"x": np.zeros((n, 2), np.float32), "y": y[:n], "task": np.full(n, n)} for n in (6, 4)]
    test = data.pack(tests, 4)
    apply = lambda params, batch: jnp.tile(params["b"], (batch["x"].shape[0], 1))  # noqa: E731
    program = jcl.make(methods.naive(), apply, losses.cross_entropy(), optax.sgd(0.1))
    example = {"x": jnp.zeros((2, 2)), "y": jnp.zeros(2, jnp.int32)}
    state = program.init({"b": jnp.array([1.0, 0, 0, 0])}, example, jax.random.key(0))
    each = evaluation.evaluator(evaluation.by_label(test, 4), evaluation.accuracy())(program, state)
    np.testing.assert_array_equal(each, [1, 0, 0, np.nan])
    judge = evaluation.evaluator(test, evaluation.accuracy())
    np.testing.assert_array_equal(judge.by_label(4)(program, state), each)
    tasks = np.asarray(evaluation.evaluator(test, evaluation.accuracy())(program, state))
    np.testing.assert_allclose(tasks, [4 / 6, 1])
    assert evaluation.test_sizes(test).tolist() == [6, 4]
    assert evaluation.differ([6, 4]) and not evaluation.differ([100, 109, 100])
    scores = np.stack([tasks, tasks])
    np.testing.assert_allclose(
        jcl.metrics.micro_average(scores, evaluation.test_sizes(test)), 8 / 10
    )
    np.testing.assert_allclose(jcl.metrics.average(scores), (4 / 6 + 1) / 2)


def test_bad_masks_are_refused():
    with pytest.raises(ValueError, match="mask is 'none'"):
        evaluation.accuracy(CLASSES, "none")
    with pytest.raises(ValueError, match="classes is None"):
        evaluation.nll(mask="seen")
