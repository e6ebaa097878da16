"""Rows of packed documents: each token is predicted in exactly one place, from its own document."""

import numpy as np
import pytest

from jcl.data.packing import gather, pack_rows
from jcl.data.tokens import Tokens

pytestmark = pytest.mark.quick

WAYS = [("fit", "split"), ("split", "split"), ("alone", "split"), ("fit", "cut"), ("alone", "cut")]


def numbered(sizes, learn=None):
    """Documents whose i-th token is i, so that a row shows where its tokens are from."""
    total = sum(sizes)
    return Tokens(
        np.arange(total, dtype=np.uint16),
        np.arange(total, dtype=np.int32) % 5,
        np.ones(total, bool) if learn is None else learn,
        np.cumsum([0, *sizes]),
    )


def everything(rows):
    return gather(rows, np.arange(rows.number))


def first_of_each(given):
    first = np.zeros(len(given.tokens), bool)
    first[given.offsets[:-1]] = True
    return first


def within_reach(given, length):
    """Which tokens are among their document's first `length`."""
    place = np.arange(len(given.tokens)) - np.repeat(given.offsets[:-1], np.diff(given.offsets))
    return place < length


@pytest.mark.parametrize(("packing", "overlong"), WAYS)
def test_every_token_is_predicted_exactly_as_often_as_it_should_be(packing, overlong):
    rng = np.random.default_rng(0)
    for trial in range(200):
        length = int(rng.integers(2, 12))
        sizes = [*rng.integers(1, rng.integers(2, 40), size=rng.integers(1, 25)).tolist(), 2]
        learn = rng.random(sum(sizes)) < rng.choice([0.3, 1.0])
        learn[-1] = True
        given = numbered(sizes, learn)
        got = everything(pack_rows(given, length, packing, overlong))
        tokens, segments, mask = got["tokens"].astype(int), got["segments"], got["mask"]
        assert tokens.shape == segments.shape == (len(mask), length)
        # what is predicted is the next token of the same document
        here, after = tokens[:, :-1][mask], tokens[:, 1:][mask]
        np.testing.assert_array_equal(after, here + 1)
        np.testing.assert_array_equal(segments[:, :-1][mask], segments[:, 1:][mask])
        assert (segments[:, 1:][mask] > 0).all()
        # once each token that is to be learned, but the first of its document
        expected = learn & ~first_of_each(given)
        if overlong == "cut":
            expected &= within_reach(given, length)
        counts = np.bincount(after, minlength=len(learn))
        np.testing.assert_array_equal(counts, expected.astype(int), f"trial {trial}")
        # and its bytes with it
        assert got["bytes"].dtype == np.float32
        np.testing.assert_array_equal(got["bytes"].sum(), given.bytes[expected].sum())
        text = np.where(mask, given.bytes[tokens[:, 1:]], 0).sum(1)
        np.testing.assert_array_equal(got["bytes"], text)


@pytest.mark.parametrize(("packing", "overlong"), WAYS)
def test_segments_are_stretches_of_one_document_numbered_from_1(packing, overlong):
    rng = np.random.default_rng(1)
    given = numbered(rng.integers(1, 30, size=60).tolist())
    document = np.searchsorted(given.offsets, np.arange(len(given.tokens)), side="right")
    got = everything(pack_rows(given, 16, packing, overlong))
    for tokens, segments in zip(got["tokens"].astype(int), got["segments"], strict=True):
        used = int((segments > 0).sum())
        assert used >= 2 and (segments[used:] == 0).all() and (tokens[used:] == 0).all()
        assert segments[0] == 1 and set(np.diff(segments[:used].astype(int))) <= {0, 1}
        for s in range(1, segments.max() + 1):
            own = tokens[segments == s]
            assert len(own) >= 2 and (np.diff(own) == 1).all()
            assert len(set(document[own])) == 1
        if packing == "alone":
            assert segments.max() == 1


def test_rows_of_fit_cut_only_what_is_longer_than_a_row_and_leave_little_room():
    rng = np.random.default_rng(2)
    sizes = rng.integers(1, 200, size=400).tolist()
    rows = pack_rows(numbered(sizes), 64)
    got = everything(rows)
    document = np.searchsorted(rows.tokens.offsets, rows.starts, side="right") - 1
    pieces = np.bincount(document, minlength=len(sizes))
    np.testing.assert_array_equal(pieces, [-(-(n - 1) // 63) for n in sizes])
    assert (got["segments"] > 0).mean() > 0.97
    # the least that could hold them all
    assert rows.number <= np.ceil(rows.sizes.sum() / 64) * 1.03


def test_a_best_fit_worked_by_hand():
    # 6, 5, 4, 3, 2 in rows of 10: 6 + 4, 5 + 3 + 2
    rows = pack_rows(numbered([4, 2, 6, 3, 5]), 10)
    assert rows.number == 2
    got = everything(rows)
    assert got["segments"].tolist() == [[1] * 4 + [2] * 6, [1] * 2 + [2] * 3 + [3] * 5]
    assert got["tokens"][0].tolist() == [0, 1, 2, 3, 6, 7, 8, 9, 10, 11]


def test_end_to_end_is_worked_by_hand():
    # rows of 4: a cut's last token comes again, given; one token of room is left empty
    got = everything(pack_rows(numbered([3, 1, 5, 2]), 4, "split"))
    assert got["tokens"].tolist() == [[0, 1, 2, 0], [4, 5, 6, 7], [7, 8, 9, 10]]
    assert got["segments"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 2, 2]]
    assert got["mask"].tolist() == [[1, 1, 0], [1, 1, 1], [1, 0, 1]]


def test_long_and_single_documents():
    rows = pack_rows(numbered([1, 1, 10, 1]), 4)
    got = everything(rows)
    assert got["tokens"].tolist() == [[2, 3, 4, 5], [5, 6, 7, 8], [8, 9, 10, 11]]
    assert got["mask"].all()
    cut = everything(pack_rows(numbered([1, 10]), 4, overlong="cut"))
    assert cut["tokens"].tolist() == [[1, 2, 3, 4]]
    for packing in ("fit", "split", "alone"):
        with pytest.raises(ValueError, match="nothing to predict: each is a single token or a pr"):
            pack_rows(numbered([1, 1, 1]), 4, packing)


def test_what_is_all_prompt_takes_no_room():
    learn = np.array([True, False, False, False, False, False, True, True, False, False])
    rows = pack_rows(numbered([4, 3, 3], learn), 4, "alone")
    assert everything(rows)["tokens"].tolist() == [[4, 5, 6, 0]]
    with pytest.raises(ValueError, match="nothing to predict"):
        pack_rows(numbered([4], learn[:4]), 8)
    with pytest.raises(ValueError, match="nothing to predict"):
        pack_rows(numbered([3, 1], np.array([False, False, False, True])), 8)


def test_rows_are_gathered_in_any_order():
    rng = np.random.default_rng(3)
    rows = pack_rows(numbered(rng.integers(1, 30, size=50).tolist()), 16)
    whole = everything(rows)
    index = rng.integers(0, rows.number, size=40)
    for name, got in gather(rows, index).items():
        np.testing.assert_array_equal(got, whole[name][index], name)
        assert got.dtype == whole[name].dtype
    assert whole["tokens"].dtype == np.uint16 and whole["segments"].dtype == np.uint8


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"length": 1}, "length is 1, but must be at least 2"),
        ({"packing": "tight"}, "packing is 'tight', but must be 'fit', 'split' or 'alone'"),
        ({"overlong": "drop"}, "overlong is 'drop', but must be 'split' or 'cut'"),
        ({"packing": "split", "overlong": "cut"}, "overlong is 'cut', but must be 'split' as"),
    ],
)
def test_bad_input_is_refused_with_a_sentence(given, sentence):
    with pytest.raises(ValueError, match=sentence):
        pack_rows(numbered([5]), **{"length": 4, **given})
