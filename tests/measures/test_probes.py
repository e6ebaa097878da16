"""Probes against one plain forward pass a choice, in NumPy from logits."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jcl
from jcl import losses, methods, probes
from jcl.measures.probes import Item, Probe
from jcl.models import decoder

CONFIG = decoder.Config(vocabulary=256, layers=2, width=16, heads=2, kv_heads=1, hidden=24)
PARAMS = jax.tree.map(lambda x: 8 * x, decoder.init(jax.random.key(0), CONFIG))
APPLY = decoder.apply_fn(CONFIG)
FORWARD = jax.jit(APPLY)

PROBES = (
    Probe("letters", (
        Item("two plus two?", (" A", " B", " C"), 1),
        Item("up or down?", (" A", " B"), 0),
        Item("a much longer question, of which the beginning may be lost: why?", (" B", " A"), 1),
    )),
    Probe("texts", (
        Item("the sky is", (" blue", " green today", " B"), 1),
        Item("white space \n", ("stays", " goes"), 0),
        Item("ça va ? ", ("où", "non"), 1),
    )),
    Probe("border", (Item("xa", ("bc", "c"), 0),)),
)  # fmt: skip


def tokenizer(texts, verbose):
    """Bytes, but a space with a letter after it is one token, and so is `ab`."""
    ids = []
    for text in texts:
        text = text.encode()
        found, i = [], 0
        while i < len(text):
            pair = text[i : i + 2]
            if pair == b"ab" or (pair[:1] == b" " and pair[1:].isalpha()):
                found.append(1 if pair == b"ab" else pair[1] - 60)
                i += 2
            else:
                found.append(text[i])
                i += 1
        ids.append(found)
    return {"input_ids": ids}


def logp(ids, start):
    """log p of each of `ids[start:]`, from the logits of the whole."""
    padded = np.zeros((1, 80), np.int32)  # what comes after is not seen
    padded[0, : len(ids)] = ids
    logits = np.asarray(FORWARD(PARAMS, {"tokens": padded})[0], np.float64)
    each = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return [each[i - 1, ids[i]] for i in range(start, len(ids))]


def expected(encoder, length=None):
    """Σ log p [I, C], tokens [I, C] and bytes [I, C] of every choice, nan where there is none."""
    items = [item for probe in PROBES for item in probe.items]
    out = np.full((3, len(items), 3), np.nan)
    for i, item in enumerate(items):
        for c, choice in enumerate(item.choices):
            prompt, whole = encoder([item.prompt.rstrip(), item.prompt + choice], False)[
                "input_ids"
            ]
            start = len(prompt)
            cut = 0 if length is None else max(0, len(whole) - length)
            each = logp(whole[cut:], start - cut)
            out[:, i, c] = sum(each), len(each), len(choice.lstrip().encode())
    return out


def as_bytes(texts, verbose):
    return {"input_ids": [list(text.encode()) for text in texts]}


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("length", [None, 30])
@pytest.mark.parametrize("name", ["bytes", "tokens"])
def test_likelihoods_are_those_of_a_pass_for_each_choice(name, length, packed):
    given, encoder = {"bytes": (None, as_bytes), "tokens": (tokenizer, tokenizer)}[name]
    encoded = probes.encode(PROBES, given, length, rows=3, packed=packed)
    found = jax.jit(lambda p: probes.likelihoods(lambda b: APPLY(p, b), encoded))(PARAMS)
    sums, sizes, size_in_bytes = expected(encoder, length)
    there = ~np.isnan(sums)
    assert found.dtype == jnp.float32 and found.shape == (7, 3)
    np.testing.assert_allclose(found[there], sums[there], rtol=2e-5)
    np.testing.assert_array_equal(encoded.sizes, np.nan_to_num(sizes))
    np.testing.assert_array_equal(encoded.bytes, np.nan_to_num(size_in_bytes))
    assert not found[~there].any()


@pytest.mark.quick
def test_choices_of_one_token_share_a_document():
    shared = probes.encode(PROBES[:1], tokenizer, rows=1, packed=False)
    assert shared.tokens.shape[0] == 3 and shared.candidate.shape == (4, 3)
    longer = probes.encode(PROBES[:1], None, rows=1, packed=False)
    assert longer.tokens.shape[0] == 7 and longer.candidate.shape == (8, 1)
    packed = probes.encode(PROBES[:1], tokenizer, rows=2)
    assert packed.tokens.shape == (1, 2, 54)  # the longest, and the two others together


def test_the_model_runs_once_however_many_candidates_there_are():
    encoded = probes.encode(PROBES[:1], tokenizer, rows=2)
    alone = encoded._replace(candidate=encoded.candidate[:, :1], owner=encoded.owner[:, :1])

    def work(probe):
        jitted = jax.jit(lambda p: probes.likelihoods(lambda b: APPLY(p, b), probe))
        return jitted.lower(PARAMS).compile().cost_analysis()["flops"]

    assert work(encoded) < 1.02 * work(alone)


@pytest.mark.quick
def test_a_tokenizer_that_merges_across_the_border_does_as_in_lm_eval():
    # "xa" is two tokens; of "xabc", x ab c, what is after the first two is scored
    encoded = probes.encode(PROBES[2:], tokenizer, packed=False)
    assert encoded.sizes.tolist() == [[1, 1]]
    np.testing.assert_array_equal(
        encoded.tokens[0, :2, :3], [[ord("x"), 1, ord("c")], [*map(ord, "xac")]]
    )


def state_of(program, **facts):
    example = {"tokens": jnp.zeros((2, 4), jnp.int32)}
    return program.init(PARAMS, example, jax.random.key(0))._replace(**facts)


@pytest.mark.parametrize("normalise", ["none", "tokens", "bytes"])
def test_scores_are_shares_of_right_answers(normalise):
    rng = np.random.default_rng(0)
    words = [f" {rng.choice(['yes', 'no', 'it may be'])}{i}" for i in range(90)]
    items = [Item(f"is {i} so?", tuple(words[3 * i : 3 * i + 3 - i % 2]), i % 2) for i in range(30)]
    given = (Probe("first", tuple(items[:12])), Probe("second", tuple(items[12:])))
    encoded = probes.encode(given, rows=4)
    program = jcl.make(methods.naive(), APPLY, losses.next_token, optax.sgd(0.1))
    found = jax.jit(lambda s: probes.evaluator(encoded, normalise)(program, s))(state_of(program))
    right = []
    for item in items:
        scores = []
        for choice in item.choices:
            whole = (item.prompt + choice).encode()
            each = logp(list(whole), len(item.prompt))
            size = {"none": 1, "tokens": len(each), "bytes": len(choice) - 1}[normalise]
            scores.append(sum(each) / size)
        right.append(int(np.argmax(scores)) == item.answer)
    assert 0 < np.mean(right) < 1
    np.testing.assert_allclose(found, [np.mean(right[:12]), np.mean(right[12:])], rtol=1e-6)


@pytest.mark.quick
def test_a_model_that_gives_logits_or_heeds_no_segments_will_do():
    def plain(params, batch):
        return APPLY(params, {"tokens": batch["tokens"]})

    encoded = probes.encode(PROBES, tokenizer, rows=2, packed=False)
    found = probes.likelihoods(lambda b: plain(PARAMS, b), encoded)
    reference = probes.likelihoods(lambda b: APPLY(PARAMS, b), encoded)
    np.testing.assert_allclose(found, reference, rtol=1e-5, atol=1e-6)


def test_members_have_a_row_of_scores_each():
    def build(rate):
        return jcl.make(methods.naive(), APPLY, losses.next_token, optax.sgd(rate))

    program = jcl.replicate(build, jnp.array([0.1, 0.2]), "map")
    example = {"tokens": jnp.zeros((2, 2, 4), jnp.int32)}
    params = jax.tree.map(lambda x: jnp.stack([x, 0 * x]), PARAMS)
    state = program.init(params, example, jax.random.split(jax.random.key(0), 2))
    encoded = probes.encode(PROBES[:2], tokenizer)
    found = probes.evaluator(encoded)(program, state)
    assert found.shape == (2, 2)
    # a model that knows nothing finds all choices of one token alike, and takes the first
    np.testing.assert_allclose(found[1, 0], 1 / 3)
    alone = probes.evaluator(encoded)(build(0.1), state_of(build(0.1)))
    np.testing.assert_array_equal(found[0], alone)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("finished", "steps", "stage"), [(0, 0, 0), (0, 3, 0), (2, 0, 1), (2, 3, 2)]
)
def test_rows_are_of_the_stage_last_trained_on(finished, steps, stage):
    encoded = probes.encode(PROBES[:1], tokenizer)

    def apply(params, batch):
        # knows the answer to the first question in stage `stage` alone
        hot = jax.nn.one_hot(jnp.full(batch["tokens"].shape, ord("B") - 60), 256)
        return hot * (batch["task"] == stage)[:, None, None]

    program = jcl.make(methods.naive(), apply, losses.next_token, optax.sgd(0.1))
    state = state_of(program, stage=jnp.int32(finished), stage_step=jnp.int32(steps))
    items = (PROBES[0].items[0],)
    encoded = probes.encode([Probe("first", items)], tokenizer)
    assert float(probes.evaluator(encoded)(program, state)[0]) == 1


@pytest.mark.quick
@pytest.mark.parametrize(
    ("items", "arguments", "says"),
    [
        ([], {}, "number of items is 0"),
        ([Item(" ", ("a",), 0)], {}, "prompt is ''"),
        ([Item("a", ("",), 0)], {}, "choice is '', but must be a token or more after 'a'"),
        ([Item("xa", ("b", "c"), 0)], {"tokenizer": tokenizer}, "choice is 'b'"),
        ([Item("a", ("bcd",), 0)], {"length": 3}, "length is 3, but must be above 3"),
        ([Item("a", ("b",), 0)], {"rows": 0}, "rows is 0"),
    ],
)
def test_what_cannot_be_scored_is_refused(items, arguments, says):
    with pytest.raises(ValueError, match=says):
        probes.encode([Probe("p", tuple(items))], **arguments)


@pytest.mark.quick
def test_an_unknown_normalisation_is_refused():
    with pytest.raises(ValueError, match="normalise is 'chars', but must be one of"):
        probes.evaluator(probes.encode(PROBES), "chars")
