"""Byte windows: where they lie, that every byte counts once in the test, and what is refused."""

import jax
import numpy as np
import pytest

from jcl import data

# neighbours differ by 1, so that a window shows where it lies and that it is unbroken
A = np.arange(0, 100, dtype=np.uint8)
B = np.arange(150, 250, dtype=np.uint8)
DOMAINS = {"a": (A, A[:29]), "b": (B, B[:50])}


def drawn(s, stage, start=0, stop=None):
    rows = s.chunk(stage, start, s.steps[stage] if stop is None else stop)
    return jax.tree.map(np.asarray, s.fetch(s.source, rows))


@pytest.mark.quick
def test_windows_lie_in_their_domain_everywhere_in_it():
    s = data.from_bytes(DOMAINS, length=10, batch=50, steps=40)
    assert s.names == s.tests == ("a", "b") and s.tasks == (0, 1)
    for stage, text in enumerate((A, B)):
        batch = drawn(s, stage)
        tokens = batch["tokens"]
        assert tokens.shape == (40, 50, 10) and tokens.dtype == np.int32
        assert (np.diff(tokens, axis=-1) == 1).all()
        assert tokens.min() == text[0] and tokens.max() == text[-1]
        counts = np.bincount(tokens[..., 0].ravel() - text[0])
        assert len(counts) == 91 and counts.min() > 5  # 22 expected at each of 91 places
        assert (batch["task"] == stage).all() and (batch["weight"] == 1).all()


def test_draws_depend_on_seed_stage_and_step_alone():
    def tokens(seed, *given):
        return drawn(data.from_bytes(DOMAINS, 10, 4, 8, seed), *given)["tokens"]

    whole = tokens(1, 0, 0, 8)
    np.testing.assert_array_equal(tokens(1, 0, 5, 7), whole[5:7])
    assert not np.array_equal(tokens(2, 0, 0, 8), whole)
    assert not np.array_equal(tokens(1, 1, 0, 8) - 150, whole)


def test_stages_mix_and_recur():
    stages = ["a", {"a": 1, "b": 3}, "b", "a", {"a": 1, "b": 1}]
    s = data.from_bytes(DOMAINS, 10, 100, (1, 20, 1, 1, 20), stages=stages)
    assert s.names == ("a", "a + b", "b", "a", "a + b")
    assert s.tasks == (0, 1, 1, 0, -1)
    batch = drawn(s, 1)
    assert abs((batch["task"] == 0).mean() - 0.25) < 0.04
    np.testing.assert_array_equal(batch["tokens"][..., 0] < 150, batch["task"] == 0)
    assert not np.array_equal(drawn(s, 0)["tokens"], drawn(s, 3)["tokens"])


@pytest.mark.quick
def test_test_windows_predict_every_byte_once():
    s = data.from_bytes(DOMAINS, length=8, batch=2, steps=1)
    # a: (29 - 1) / 7 = 4 windows; b: 7, and its last byte is in none
    np.testing.assert_array_equal(s.test["weight"].sum((1, 2)), [4, 7])
    first = s.test["tokens"][0][s.test["weight"][0] > 0]
    np.testing.assert_array_equal(first[:, 1:].ravel(), A[1:29])
    few = data.from_bytes(DOMAINS, length=8, batch=2, steps=1, test_rows=3)
    np.testing.assert_array_equal(few.test["weight"].sum((1, 2)), [3, 3])


@pytest.mark.quick
def test_boundary_passes_over_the_stage_s_text():
    short = {"a": (A[:40], A), "b": (B, B)}
    s = data.from_bytes(short, 10, 4, 1, stages=["a", "b", {"a": 1, "b": 1}])
    for stage, count in enumerate((4, 11, 15)):
        rows = s.boundary(stage)
        assert rows["start"].shape == (4, 4)
        batch = jax.tree.map(np.asarray, s.fetch(s.source, rows))
        real = batch["weight"] > 0
        assert real.sum() == count
        assert len(set(batch["tokens"][real][:, 0])) == count
        np.testing.assert_array_equal(batch["tokens"][real][:, 0] >= 150, batch["task"][real] == 1)
    few = data.from_bytes(short, 10, 4, 1, boundary_batches=2)
    assert few.boundary(0)["start"].shape == few.boundary(1)["start"].shape == (2, 4)


def test_bytes_will_do_too():
    s = data.from_bytes({"a": (b"hello world", b"world hello")}, 5, 3, 2)
    letters = bytes(drawn(s, 0)["tokens"][0, 0].astype(np.uint8).tolist())
    assert letters in b"hello world"


@pytest.mark.quick
@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"length": 30}, r"number of bytes of domain 'a' \(test\) is 29, but must be at least 30"),
        ({"length": 1}, "length is 1, but must be at least 2"),
        ({"batch": 0}, "batch is 0"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": (1, 2, 3)}, "number of steps is 3, but must be 2, one a stage"),
        ({"stages": ["a", "c"]}, r"stage's domain is 'c', but must be one of \['a', 'b'\]"),
        ({"stages": [{"a": 0}]}, "stage's shares is"),
        ({"domains": {}}, "number of domains is 0"),
        (
            {"domains": {"a": (A.astype(int), A)}},
            r"domain 'a' is int64 \(100,\), but must be bytes",
        ),
    ],
)
def test_bad_input_is_refused_with_a_sentence(given, sentence):
    given = {"domains": DOMAINS, "length": 10, "batch": 2, "steps": 2, **given}
    with pytest.raises(ValueError, match=sentence):
        data.from_bytes(**given)
