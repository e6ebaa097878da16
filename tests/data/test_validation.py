"""Rows held out of training: on which side each falls, and that the sides never meet."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from jcl import data
from jcl.data.corpora import Labelled, held_out
from jcl.data.preferences import Pair
from jcl.data.validation import is_held_out

pytestmark = pytest.mark.quick
TEXTS = [f"text {i}" for i in range(400)]


@pytest.mark.parametrize(
    "rows",
    [
        TEXTS,
        [Labelled(text, "a") for text in TEXTS],
        [(text, "an answer") for text in TEXTS],
        [[{"role": "user", "content": text}] for text in TEXTS],
    ],
    ids=["texts", "labelled", "pairs", "chats"],
)
def test_each_row_is_on_one_side_and_stays_there_when_others_come(rows: list) -> None:
    train, out = data.hold_rows_out(rows, 0.1)
    assert Counter(map(str, train + out)) == Counter(map(str, rows)) and 20 < len(out) < 60
    fewer = data.hold_rows_out(rows[:200], 0.1)
    assert fewer == ([r for r in rows[:200] if r in train], [r for r in rows[:200] if r in out])
    wider = data.hold_rows_out(rows, 0.2)[1]
    assert all(row in wider for row in out)
    assert data.hold_rows_out(rows, 0.0) == (rows, [])


def test_rows_of_one_prompt_are_on_one_side() -> None:
    pairs = [Pair(text, " yes", f" no {i}") for text in TEXTS for i in range(3)]
    train, out = data.hold_rows_out(pairs, 0.1)
    assert not {p.prompt for p in train} & {p.prompt for p in out}


def test_it_is_another_draw_than_that_of_the_tests() -> None:
    train, _ = held_out([Labelled(text, "a") for text in TEXTS])
    rest, out = data.hold_rows_out(train, 0.1)
    assert 0.05 < len(out) / len(train) < 0.15 and rest + out


def test_of_few_rows_one_is_held_out_at_least_and_not_the_last() -> None:
    few = [text for text in TEXTS if not is_held_out(text, 0.1)][:5]
    train, out = data.hold_rows_out(few, 0.1)
    assert len(out) == 1 and len(train) == 4
    with pytest.raises(ValueError, match="number of rows that are left is 0, but must be at least"):
        data.hold_rows_out(["alone", "alone"], 0.1)
    with pytest.raises(ValueError, match=r"validation is 1\.0, but must be at least 0 and below 1"):
        data.hold_rows_out(few, 1.0)


def test_domains_keep_their_tests_and_bytes_are_held_out_all_over() -> None:
    numbers = np.arange(160, dtype=np.uint8)
    given = {"texts": (TEXTS, ["a test"]), "bytes": (numbers, numbers[:3])}
    train, held = data.validation_split(given, 0.2)
    assert held is not None and list(train) == list(held) == ["texts", "bytes"]
    for name, (learned, test) in train.items():
        assert learned is held[name][0] and test is given[name][1]
        assert sorted([*learned, *held[name][1]]) == sorted(given[name][0])
    assert held["bytes"][1].tolist() == [n for n in range(160) if n % 10 > 7]
    assert data.validation_split(given, 0.0) == (given, None)
    with pytest.raises(ValueError, match="domain 'one': number of rows that are left is 0"):
        data.validation_split({"one": (["alone"], [])}, 0.1)
