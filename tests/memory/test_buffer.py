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
