"""Streams of documents: what is drawn when, that it resumes exactly, that models train on it."""

import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_text as tiny

import jcl
from jcl import data, evaluation, losses, methods, models
from jcl.data import packed_stream as packed

RNG = np.random.default_rng(0)


def letters(alphabet, count):
    """Documents of 2 to 60 letters, no two alike."""
    return [
        f"{i}:" + "".join(RNG.choice(list(alphabet), RNG.integers(0, 58))) for i in range(count)
    ]


A, B = letters("abc", 60), letters("xyz", 90)
DOMAINS = {"a": (A, A[:7]), "b": (B, B[:20])}
TALKS = [
    [{"role": "user", "content": f"the cat {i}?"}, {"role": "assistant", "content": f"on {i}"}]
    for i in range(9)
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JCL_CACHE", str(tmp_path))


def make(domains=DOMAINS, tokenizer=None, **given):
    if "epochs" not in given:
        given.setdefault("steps", 8)
    return data.from_text(domains, tokenizer, **{"length": 24, "batch": 4, **given})


def drawn(s, stage, start=0, stop=None):
    rows = s.chunk(stage, start, s.steps[stage] if stop is None else stop)
    return jax.tree.map(np.asarray, s.fetch(s.source, rows))


def same(a, b):
    for key in a:
        assert a[key].dtype == b[key].dtype, key
        np.testing.assert_array_equal(a[key], b[key], key)


def rows_of(batch):
    """How often each row of real weight comes, by its content."""
    tokens = batch["tokens"].reshape(-1, batch["tokens"].shape[-1])
    seen = [t.tobytes() for t in tokens[batch["weight"].ravel() > 0]]
    return {t: seen.count(t) for t in seen}


@pytest.mark.quick
def test_batches_are_what_the_contract_says():
    s = make(tokenizer=tiny.byte_level())
    assert s.names == s.tests == ("a", "b") and s.tasks == (0, 1) and s.steps == (8, 8)
    for stage in (0, 1):
        batch = drawn(s, stage)
        shapes = {k: (v.shape[2:], v.dtype) for k, v in batch.items()}
        assert shapes == {
            "tokens": ((24,), np.int32), "segments": ((24,), np.int32),
            "mask": ((23,), np.float32), "bytes": ((), np.float32),
            "weight": ((), np.float32), "task": ((), np.int32),
        }  # fmt: skip
        assert (batch["task"] == stage).all() and batch["segments"].max() > 1
        crossing = batch["segments"][..., 1:] != batch["segments"][..., :-1]
        assert (batch["mask"][crossing] == 0).all() and batch["mask"].mean() > 0.5
        pad = batch["segments"][..., 1:] == 0
        np.testing.assert_array_equal(batch["mask"] == 0, crossing | pad)


@pytest.mark.parametrize("on_device", [0, 2**28])
def test_an_epoch_has_every_row_once_each_in_another_order(on_device):
    s = make(epochs=3, on_device=on_device)
    one = make(epochs=1, on_device=on_device)
    for stage in (0, 1):
        every = rows_of(drawn(one, stage))
        assert set(every.values()) == {1} and len(every) > 2 * 4
        assert set(rows_of(drawn(s, stage)).values()) == {3}
        assert s.steps[stage] == -(-3 * len(every) // 4)
        assert s.chunk(stage, 0, s.steps[stage])["weight"].sum() == 3 * len(every)
        flat = drawn(s, stage)["tokens"].reshape(-1, 24)[: 3 * len(every)]
        epochs = flat.reshape(3, len(every), 24)
        assert len({e.tobytes() for e in epochs}) == 3
        assert len({np.sort(e, axis=0).tobytes() for e in epochs}) == 1
    # each token of each document but its first, once an epoch
    batch = drawn(one, 0)
    real = batch["mask"] * batch["weight"][..., None]
    assert real.sum() == sum(len(t) - 1 for t in A)
    assert (batch["bytes"] * batch["weight"]).sum() == sum(len(t) - 1 for t in A)


@pytest.mark.parametrize("cipher", [1, 2**16])
@pytest.mark.parametrize("on_device", [0, 2**28])
def test_a_stream_made_anew_gives_the_same_from_the_middle_of_an_epoch(
    on_device, cipher, monkeypatch
):
    monkeypatch.setattr(packed, "_CIPHER", cipher)  # 1: Grain's own shuffle
    stages = ["a", {"a": 1, "b": 3}, "a"]
    given = {"epochs": 2, "stages": stages, "seed": 7, "on_device": on_device}
    whole = make(**given)
    for stage in range(2):
        batches = drawn(whole, stage)
        for start, stop in ((3, 9), (whole.steps[stage] - 2, whole.steps[stage])):
            fresh = make(**given)
            cut = {k: v[start:stop] for k, v in batches.items()}
            same(drawn(fresh, stage, start, stop), cut)
        assert set(rows_of(drawn(whole, 0)).values()) == {2}
    assert not np.array_equal(drawn(whole, 0)["tokens"], drawn(whole, 2)["tokens"])
    other = drawn(make(**{**given, "seed": 8}), 0)["tokens"]
    assert not np.array_equal(drawn(whole, 0)["tokens"], other)


@pytest.mark.quick
@pytest.mark.parametrize("on_device", [0, 2**28])
def test_a_process_reads_its_part_of_each_batch(on_device):
    s = make(on_device=on_device)
    part = slice(1, 3)
    for read, which in ((s.chunk, (1, 2, 5)), (s.boundary, (1,))):
        same(read(*which, rows=part), {k: v[:, part] for k, v in read(*which).items()})


def test_rows_on_the_device_and_on_the_host_are_the_same_draws():
    given = {"stages": [{"a": 1, "b": 1}, "b"], "tokenizer": tiny.byte_level(), "epochs": 2}
    here, there = make(on_device=0, **given), make(**given)
    assert here.source == () and set(there.chunk(0, 0, 1)) == {"row", "weight", "task"}
    for stage in (0, 1):
        same(drawn(here, stage), drawn(there, stage))
        kept = [
            jax.tree.map(np.asarray, s.fetch(s.source, s.boundary(stage))) for s in (here, there)
        ]
        same(*kept)


def test_the_shapes_and_dtypes_of_a_chunk_do_not_depend_on_what_is_in_it():
    narrow, wide = data.tokenise(A), data.tokenise(B, tiny.byte_level())
    s = make({"a": (narrow, narrow), "b": (wide, wide)}, on_device=0)
    kinds = [{k: (v.shape, v.dtype) for k, v in s.chunk(i, 0, 1).items()} for i in (0, 1)]
    assert kinds[0] == kinds[1] and kinds[0]["tokens"] == ((1, 4, 24), np.uint16)


def test_mixtures_keep_their_shares_at_every_moment():
    s = make(stages=["b", {"a": 1, "b": 3}, {"a": 1, "b": 1}], batch=8, steps=(1, 25, 5))
    assert s.names == ("b", "a + b", "a + b") and s.tasks == (1, 1, -1)
    batch = drawn(s, 1)
    np.testing.assert_array_equal((batch["task"] == 0).sum(1), 2)
    np.testing.assert_array_equal((drawn(s, 2)["task"] == 0).sum(1), 4)
    mine = np.isin(batch["tokens"], [ord(c) for c in "xyz"]).any(-1)
    assert not mine[batch["task"] == 0].any() and mine[batch["task"] == 1].any()
    # each domain goes through its own epochs
    for task in (0, 1):
        counts = rows_of({k: v[batch["task"] == task] for k, v in batch.items()}).values()
        assert max(counts) - min(counts) <= 1


def test_boundary_passes_over_the_stage_s_rows():
    s = make(stages=["a", "b", {"a": 1, "b": 1}], steps=1)
    count = {i: len(rows_of(drawn(make(epochs=1), i))) for i in (0, 1)}
    total = -(-sum(count.values()) // 4)
    for stage, expected in enumerate((count[0], count[1], sum(count.values()))):
        slices = s.boundary(stage)
        assert slices["row"].shape == (total, 4)
        seen = rows_of(jax.tree.map(np.asarray, s.fetch(s.source, slices)))
        assert len(seen) == expected and set(seen.values()) == {1}
    assert make(boundary_batches=2).boundary(1)["row"].shape == (2, 4)
    assert make(on_device=0, batch=1).boundary(0)["tokens"].shape == (64, 1, 24)


def test_tests_have_every_row_once_or_some_evenly_spread():
    s = make(test_batch=3)
    sizes = s.test["weight"].sum((1, 2))
    for task, texts in enumerate((A[:7], B[:20])):
        real = s.test["mask"][task] * s.test["weight"][task][..., None]
        assert real.sum() == sum(len(t) - 1 for t in texts)
        assert (s.test["task"][task] == task).all()
    few = make(test_rows=2)
    assert (few.test["weight"].sum((1, 2)) == 2).all() and sizes[1] > 6
    for task, count in enumerate(sizes.astype(int)):
        every = s.test["tokens"][task].reshape(-1, 24)
        np.testing.assert_array_equal(
            few.test["tokens"][task].reshape(-1, 24)[:2], every[[0, count // 2]]
        )
    assert {k: v.dtype for k, v in few.test.items()} == {k: v.dtype for k, v in drawn(s, 0).items()}


def test_bits_per_byte_of_a_uniform_model_are_exact_and_those_of_its_tokens():
    texts = ["the naïve cat ☕ sat", "a dog on the mat\n", " x"]
    tokenizer = tiny.byte_level()
    s = make({"a": (texts, texts)}, tokenizer, steps=1)
    vocabulary = len(tokenizer)

    def apply(params, batch):
        return jnp.zeros((*batch["tokens"].shape, vocabulary))

    program = jcl.make(methods.naive(), apply, losses.next_token, optax.sgd(0.1))
    state = program.init({"w": jnp.zeros(1)}, drawn(s, 0, 0, 1), jax.random.key(0))
    score = evaluation.evaluator(s.test, evaluation.bits_per_byte())(program, state)[0]
    # all but each document's first token, which nothing precedes; the last ends the document
    ids = [tokenizer(t)["input_ids"] for t in texts]
    predicted = sum(map(len, ids))
    first = sum(len(tokenizer.decode(i[:1]).encode()) for i in ids)
    size = sum(len(t.encode()) for t in texts) - first
    np.testing.assert_allclose(score, predicted * np.log2(vocabulary) / size, rtol=1e-6)


@pytest.mark.parametrize("packing", ["fit", "alone"])
def test_conversations_become_a_stream_whose_prompts_are_not_learned(packing):
    tokenizer = tiny.byte_level()
    s = make(
        {"talk": (TALKS, TALKS)}, tokenizer, length=64, packing=packing, overlong="cut", epochs=1
    )
    batch = drawn(s, 0)
    real = (batch["mask"] > 0) & (batch["weight"][..., None] > 0)
    answers = tokenizer.decode(batch["tokens"][..., 1:][real]).split("<|im_end|>")
    assert sorted(answers) == sorted(["", *(f"on {i}" for i in range(9))])
    assert (batch["segments"].max() > 1) == (packing == "fit")
    if packing == "alone":
        tokens, mask = data.chat(tokenizer, TALKS[0])
        row = np.flatnonzero((batch["tokens"][:, :, : len(tokens)] == tokens).all(-1).ravel())[0]
        np.testing.assert_array_equal(
            batch["mask"].reshape(-1, 63)[row], np.pad(mask, (0, 64 - len(tokens)))
        )


def test_readers_tokens_and_pairs_are_documents_too(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("\n".join(A))
    read = data.read_text(path, "\n")
    expected = drawn(make(), 0)
    same(drawn(make({"a": (read, read), "b": DOMAINS["b"]}), 0), expected)
    tokens = data.tokenise(A)
    same(drawn(make({"a": (tokens, tokens), "b": DOMAINS["b"]}), 0), expected)
    pairs = [("1 + 1 = ", "2"), ("2 + 2 = ", "4")]
    batch = drawn(make({"a": (pairs, pairs)}, batch=1, epochs=1, packing="alone"), 0)
    assert batch["mask"].sum(-1).ravel().tolist() == [1, 1]


def test_events_say_which_domain_is_tokenised():
    heard = []
    make(on_event=heard.append)
    assert [e["domain"] for e in heard] == ["a", "b", "a (test)", "b (test)"]
    heard.clear()
    make(on_event=heard.append)
    assert not heard  # all kept


def small_decoder():
    config = models.decoder.Config(
        vocabulary=256, layers=1, width=16, heads=2, kv_heads=1, hidden=16
    )
    return models.decoder.init(jax.random.key(0), config), models.decoder.apply_fn(config)


def test_a_decoder_scores_packed_documents_as_it_does_each_alone():
    params, apply = small_decoder()
    params = jax.tree.map(lambda x: 5 * x, params)  # so that what is attended to makes a difference
    program = jcl.make(methods.naive(), apply, losses.next_token, optax.sgd(0.1))
    scores = []
    for packing in ("fit", "alone"):
        s = make(packing=packing, length=64, steps=1)
        state = program.init(params, drawn(s, 0, 0, 1), jax.random.key(0))
        evaluate = evaluation.evaluator(s.test, evaluation.bits_per_byte())
        scores.append(jax.jit(partial(evaluate, program))(state))
    np.testing.assert_allclose(*scores, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("on_device", [0, 2**28])
def test_fit_learns_and_resumes_in_mid_epoch_bit_for_bit(on_device, tmp_path):
    params, apply = small_decoder()
    program = jcl.make(methods.naive(), apply, losses.next_token, optax.adam(1e-2))
    given = {"epochs": 2, "on_device": on_device, "boundary_batches": 2, "batch": 8}
    stream = make(**given)
    evaluate = jcl.evaluator(stream.test, evaluation.bits_per_byte())

    def fit(stream, **more):
        return jcl.fit(
            program, params, jax.random.key(1), stream, evaluate=evaluate, chunk=3, **more
        )

    whole = fit(stream)
    assert whole.scores[1, 0] < whole.scores[0, 0] - 1 and whole.step_traces == 1
    stop = 6  # in the midst of the first stage's second epoch or before it

    class Stopped(Exception):
        pass

    def interrupt(event):
        if event["kind"] == "progress" and event["step"] > stop:
            raise Stopped

    out = tmp_path / "run"
    with pytest.raises(Stopped):
        fit(stream, out=out, checkpoint_every=3, on_event=interrupt)
    again = fit(make(**given), out=out, resume=True)
    assert stream.steps[0] > stop
    jax.tree.map(np.testing.assert_array_equal, again.state.params, whole.state.params)
    np.testing.assert_array_equal(again.scores, whole.scores)


def test_run_scans_it_as_fit_does():
    params, apply = small_decoder()
    program = jcl.make(methods.naive(), apply, losses.next_token, optax.sgd(0.1))
    stream = make(boundary_batches=1, steps=4)
    fetch = partial(stream.fetch, stream.source)
    run = partial(jcl.run, program, fetch=fetch, boundary_batches=1)
    state, _ = jax.jit(run)(params, jax.random.key(1), data.stack(stream))
    fitted = jcl.fit(program, params, jax.random.key(1), stream).state
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, state.params, fitted.params)


def test_members_differ_in_their_seed_only():
    streams = [make(seed=i) for i in range(2)]
    both = data.members(streams)
    np.testing.assert_array_equal(
        both.chunk(1, 2, 4)["row"], np.stack([s.chunk(1, 2, 4)["row"] for s in streams])
    )


def test_draws_cost_the_same_wherever_they_are_and_small_ones_cost_little():
    first = packed._draws([(0, 10), (10, 70_000)], np.array([0.5, 0.5]), (0, 0), 8)
    far = [first(10**9 + i) for i in range(20)]
    assert all(((f < 10) == (np.arange(8) % 2 == 0)).sum() in (0, 8) for f in far)
    # Grain's shuffle takes each of 70,000 once an epoch
    alone = packed._draws([(0, 70_000)], np.array([1.0]), (0, 0), 1000)
    got = np.concatenate([alone(i) for i in range(70)])
    np.testing.assert_array_equal(np.sort(got), np.arange(70_000))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"length": 1}, "domain 'a': length is 1, but must be at least 2"),
        ({"batch": 0}, "batch is 0"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": None}, r"epochs and steps is \(None, None\), but must be one of the two"),
        ({"epochs": 1}, r"epochs and steps is \(1, 2\), but must be one of the two"),
        ({"epochs": 0, "steps": None}, "epochs is 0"),
        ({"steps": (1, 2, 3)}, "number of steps is 3, but must be 2, one a stage"),
        ({"seed": -1}, "seed is -1"),
        ({"test_rows": 0}, "test_rows is 0"),
        ({"boundary_batches": 0}, "boundary_batches is 0"),
        ({"stages": ["a", "c"]}, r"stage's domain is 'c', but must be one of \['a', 'b'\]"),
        ({"vocabulary": 122}, "domain 'b': token id is 122, but must be below 122"),
        ({"packing": "tight"}, "domain 'a': packing is 'tight'"),
        ({"tokenizer": "gpt2"}, "domain 'a': tokenizer is str, but must be a fast tokenizer"),
        ({"domains": {}}, "number of domains is 0"),
        ({"domains": {"a": (A, [""])}}, r"domain 'a \(test\)': documents is empty or all blank"),
        ({"domains": {"a": (A, ["x"])}}, r"domain 'a \(test\)': documents have nothing to predict"),
    ],
)
def test_bad_input_is_refused_with_a_sentence(given, sentence):
    given = {"domains": DOMAINS, "length": 10, "batch": 2, "steps": 2, **given}
    with pytest.raises(ValueError, match=sentence):
        data.from_text(**given)
    s = make()
    with pytest.raises(ValueError, match="steps 7 to 9 are asked for, but stage 0 has 8"):
        s.chunk(0, 7, 9)


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(ImportError, match=r"needs grain.*pip install 'jcl-kit\[text\]'"):
        make()
