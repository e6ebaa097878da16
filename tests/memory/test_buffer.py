"""Buffers: what is written, drawn and appended, against laws and loops over single rows."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from tiny_memory import KEY, kept, ranked, reservoir, ring, rows_of

from jcl import memory

sample = jax.jit(memory.sample, static_argnums=2)


def test_sample_is_uniform_over_what_is_stored() -> None:
    buffer = memory.empty(rows_of(jnp.zeros(4)), 20)
    buffer = reservoir(buffer, KEY, rows_of(jnp.arange(7)))
    ids = sample(buffer, KEY, 70_000)["id"]
    counts = np.bincount(ids, minlength=20)
    assert counts[7:].sum() == 0
    assert stats.chisquare(counts[:7]).pvalue > 1e-3


@pytest.mark.quick
def test_an_empty_buffer_gives_rows_of_weight_zero() -> None:
    buffer = memory.empty(rows_of(jnp.arange(3)), 5)
    assert int(memory.count_filled(buffer)) == 0
    assert not memory.sample(buffer, KEY, 4)["weight"].any()


def test_padding_is_never_stored() -> None:
    buffer = memory.empty(rows_of(jnp.arange(3)), 5)
    offered = rows_of([1, 2, 3, 4], weight=[1, 0, 1, 0])
    for insert in (
        lambda b: reservoir(b, KEY, offered),
        lambda b: ring(b, offered),
        lambda b: ranked(memory.empty(offered, 5, groups=1), offered, offered["y"], jnp.ones(4)),
    ):
        after = insert(buffer)
        assert sorted(kept(after)) == [1, 3]
        assert int(after.seen[0]) == 2 and int(memory.count_filled(after)) == 2


@pytest.mark.parametrize("size", [4, 1000])  # both ways of finding a slot's last row
def test_of_several_rows_for_one_slot_the_last_wins(size: int) -> None:
    rng = np.random.default_rng(0)
    slots = rng.integers(0, min(size, 6) + 2, 12)
    buffer = memory.empty(rows_of(jnp.zeros(12)), size)
    after = memory.write(buffer, jnp.asarray(slots), rows_of(jnp.arange(1, 13)))
    expected = np.zeros(size, int)
    for row, slot in enumerate(slots):
        if slot < size:
            expected[slot] = row + 1
    np.testing.assert_array_equal(after.rows["id"], expected)


def test_ring_holds_the_last_rows_of_each_region() -> None:
    buffer = memory.empty(rows_of(jnp.zeros(5)), 8, regions=2)
    for region, start in ((0, 0), (0, 5), (1, 20)):
        buffer = ring(buffer, rows_of(jnp.arange(start, start + 5)), jnp.int32(region))
    assert sorted(kept(buffer)) == [6, 7, 8, 9, 21, 22, 23, 24]
    only = memory.take(buffer, memory.draw(buffer, KEY, 500, jnp.array([False, True])))
    assert set(np.asarray(only["id"])) == {21, 22, 23, 24}


def test_draw_from_regions_filled_unequally_is_uniform() -> None:
    buffer = memory.empty(rows_of(jnp.zeros(5)), 12, regions=3)
    buffer = ring(buffer, rows_of([1, 2, 3, 4, 5]), 0)  # the first leaves
    buffer = ring(buffer, rows_of([6, 7]), 2)
    counts = np.bincount(sample(buffer, KEY, 60_000)["id"], minlength=8)[2:]
    assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.quick
def test_append_fills_missing_columns_and_drops_others() -> None:
    batch = {**rows_of([1, 2]), "mark": jnp.ones(2)}
    rows = {**rows_of([3]), "outputs": jnp.ones((1, 4))}
    both = memory.append(batch, rows)
    assert set(both) == set(batch)
    assert both["id"].tolist() == [1, 2, 3] and both["mark"].tolist() == [1, 1, 0]


@pytest.mark.quick
def test_a_dropped_row_leaves_no_byte_and_new_ones_find_its_place() -> None:
    def ids(buffer: memory.Buffer) -> list[int]:
        return [int(x) for x in buffer.rows["id"]]

    empty = memory.empty(rows_of(jnp.zeros(1)), 4)
    gone = np.array([False, True, False, False])
    part = memory.drop(reservoir(empty, KEY, rows_of([5, 6, 7])), gone)
    assert ids(part) == [5, 7, 0, 0] and int(part.seen[0]) == 2
    assert ids(reservoir(part, KEY, rows_of([8]))) == [5, 7, 8, 0]
    full = ring(empty, rows_of([4, 5, 6, 7, 8, 9]))  # 8 9 6 7
    left = memory.drop(full, gone)
    assert ids(left) == [8, 8, 6, 7] and int(left.seen[0]) == 6
    assert ids(ring(left, rows_of([1]))) == [8, 8, 1, 7]  # the oldest goes, as it would have
    none = memory.drop(full, np.zeros(4, bool))
    assert all(
        np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (none, full)), strict=True)
    )
    two = memory.empty(rows_of(jnp.zeros(1)), 4, regions=2)
    two = ring(ring(two, rows_of([1, 2]), 0), rows_of([3]), 1)
    assert ids(memory.drop(two, np.array([True, True, False, True]))) == [0, 0, 3, 0]


def test_ranked_rows_are_dropped_with_their_ranks() -> None:
    rows = rows_of([5, 6, 7, 8])
    group, score = jnp.array([0, 1, 0, 1]), jnp.array([0.4, 0.3, 0.2, 0.1])
    buffer = ranked(memory.empty(rows, 4, groups=2), rows, group, score)
    left = memory.drop(buffer, np.array([False, False, True, False]))
    assert left.ranks.group.tolist() == [0, 1, 1, -1] and left.ranks.held.tolist() == [1, 2]
    np.testing.assert_allclose(left.ranks.floor, [0.4, 0.1])
    alone = memory.empty(rows, 4, groups=2)
    three = jax.tree.map(lambda x: x[jnp.array([0, 1, 3])], rows)
    wanted = ranked(alone, three, group[jnp.array([0, 1, 3])], score[jnp.array([0, 1, 3])])
    assert int(left.seen[0]) == int(wanted.seen[0]) == 3
    assert left.ranks.group.tolist() == wanted.ranks.group.tolist()
