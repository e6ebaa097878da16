"""Selection: statistics of what is kept, against laws and against the rules row by row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from tiny_memory import KEY, context, herding_by_hand, kept, ranked, rows_of

from jcl import memory

STREAM, SLOTS, BATCH, SEEDS = 60, 10, 6, 6000


def uniformity(insert: Callable[..., memory.Buffer]) -> float:
    """p-value that every one of 60 rows is kept in 10 slots with the same probability.

    Counts over seeds sum to a constant, so their squared deviations over their variance,
    times (n-1)/n, are chi-squared with n-1 degrees of freedom.
    """

    def inclusion(key: jax.Array) -> jax.Array:
        def one(buffer: memory.Buffer, i: jax.Array) -> Any:
            rows = rows_of(i * BATCH + jnp.arange(BATCH))
            return insert(buffer, jax.random.fold_in(key, i), rows), None

        buffer = memory.empty(rows_of(jnp.zeros(BATCH)), SLOTS, groups=1)
        buffer, _ = jax.lax.scan(one, buffer, jnp.arange(STREAM // BATCH))
        return jnp.zeros(STREAM).at[buffer.rows["id"]].add(1.0)

    counts = np.asarray(jnp.sum(jax.jit(jax.vmap(inclusion))(jax.random.split(KEY, SEEDS)), axis=0))
    assert counts.sum() == SEEDS * SLOTS
    p = SLOTS / STREAM
    chi = np.sum((counts - SEEDS * p) ** 2) / (SEEDS * p * (1 - p)) * (STREAM - 1) / STREAM
    return float(stats.chi2.sf(chi, STREAM - 1))


def off_by_one(buffer: memory.Buffer, key: jax.Array, rows: Any) -> memory.Buffer:
    """Draws from {0..n-1} where n rows came before: the published slip that favours late rows."""
    size = memory.capacity(buffer)
    index = buffer.seen[0] + jnp.arange(BATCH)
    place = jax.random.randint(key, index.shape, 0, jnp.maximum(index, 1))
    slots = jnp.where(index < size, index, jnp.where(place < size, place, size))
    return memory.write(buffer, slots, rows)._replace(seen=buffer.seen + BATCH)


def always(buffer: memory.Buffer, key: jax.Array, rows: Any) -> memory.Buffer:
    """Overwrites a random slot for every row."""
    index = buffer.seen[0] + jnp.arange(BATCH)
    place = jax.random.randint(key, index.shape, 0, SLOTS)
    slots = jnp.where(index < SLOTS, index, place)
    return memory.write(buffer, slots, rows)._replace(seen=buffer.seen + BATCH)


def test_reservoir_is_uniform_and_the_test_would_notice_if_it_were_not() -> None:
    assert uniformity(memory.reservoir) > 1e-3
    assert uniformity(off_by_one) < 1e-3
    assert uniformity(always) < 1e-3


@pytest.mark.quick
def test_ranked_with_random_scores_is_uniform_too() -> None:
    def insert(buffer: memory.Buffer, key: jax.Array, rows: Any) -> memory.Buffer:
        return memory.ranked(buffer, rows, rows["y"], jax.random.uniform(key, (BATCH,)))

    assert uniformity(insert) > 1e-3


def ranked_by_hand(size: int, groups: int, offers: list[tuple[int, int, float]]) -> dict[int, int]:
    """The same rule, one row at a time over Python lists: {id: group}."""
    stored: list[tuple[int, int, float]] = []
    full: set[int] = set()
    for row in offers:
        _, g, s = row
        sizes = [sum(x[1] == c for x in stored) for c in range(groups)]
        if len(stored) < size:
            stored.append(row)
        else:
            loser = g if g in full else int(np.argmax(sizes))
            lowest = min((x for x in stored if x[1] == loser), key=lambda x: x[2])
            if g in full and s <= lowest[2]:
                continue
            stored.remove(lowest)
            stored.append(row)
        sizes = [sum(x[1] == c for x in stored) for c in range(groups)]
        if len(stored) == size:
            full |= {c for c in range(groups) if sizes[c] == max(sizes)}
    return {x[0]: x[1] for x in stored}


@pytest.mark.parametrize("seed", range(5))
def test_ranked_equals_the_rule_row_by_row(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size, groups, count, batch = 13, 4, 120, 8
    group = rng.choice(groups, count, p=[0.7, 0.2, 0.08, 0.02])
    score = rng.permutation(count).astype(float)
    buffer = memory.empty(rows_of(jnp.zeros(batch)), size, groups=groups)
    for i in range(0, count, batch):
        part = slice(i, i + batch)
        rows = rows_of(np.arange(i, i + batch), group[part])
        buffer = ranked(buffer, rows, rows["y"], jnp.asarray(score[part]))
    offers = [(i, int(group[i]), score[i]) for i in range(count)]
    expected = ranked_by_hand(size, groups, offers)
    assert sorted(kept(buffer)) == sorted(expected)
    counts = np.bincount(list(expected.values()), minlength=groups)
    np.testing.assert_array_equal(buffer.ranks.held, counts)
    stored = np.asarray(buffer.ranks.score)
    for g in range(groups):
        mine = stored[np.asarray(buffer.ranks.group) == g]
        assert buffer.ranks.floor[g] == (mine.min() if mine.size else np.inf)


def test_hardest_returns_the_rows_of_highest_loss_and_never_padding() -> None:
    rows = rows_of([3, 6, 13, 5, 20], weight=[1, 1, 0, 1, 1])
    best = memory.hardest(context(KEY).loss, jnp.float32(1), rows, 2)
    assert sorted(np.asarray(best["id"])) == [6, 20]


def test_herding_equals_the_algorithm_class_by_class() -> None:
    rng = np.random.default_rng(1)
    features = rng.normal(size=(50, 6)) + 1
    group = rng.integers(0, 3, 50)
    real = rng.random(50) > 0.1
    rank = np.asarray(
        jax.jit(memory.herding, static_argnums=3)(
            jnp.asarray(features), jnp.asarray(group), jnp.asarray(real), 3, jnp.int32(8)
        )
    )
    for g in range(3):
        mine = np.flatnonzero((group == g) & real)
        expected = mine[herding_by_hand(features[mine], 8)]
        found = [int(np.flatnonzero((rank == k) & (group == g))[0]) for k in range(8)]
        assert found == expected.tolist()
    assert (rank < 50).sum() == 24 and (rank[~real] == 50).all()


def test_gss_replaces_with_the_probability_of_the_paper() -> None:
    """Slot j goes with probability C_j / ΣC · C_j / (C_j + c); a row with c >= 1 never enters."""
    scores, like, trials = np.array([0.2, 0.5, 1.0, 1.6]), 0.4, 40_000
    buffer = memory.empty(rows_of(jnp.zeros(4)), 4, groups=1)
    buffer = memory.gss(buffer, KEY, rows_of([1, 2, 3, 4]), jnp.asarray(scores))
    assert sorted(kept(buffer)) == [1, 2, 3, 4]

    def offer(key: jax.Array, c: float) -> jax.Array:
        return memory.gss(buffer, key, rows_of([9]), jnp.array([c])).rows["id"] == 9

    offers = jax.jit(jax.vmap(offer, (0, None)))
    replaced = offers(jax.random.split(KEY, trials), like)
    counts = np.asarray(replaced.sum(axis=0))
    p = scores / scores.sum() * scores / (scores + like)
    observed, expected = [*counts, trials - counts.sum()], [*p, 1 - p.sum()]
    assert stats.chisquare(observed, trials * np.array(expected)).pvalue > 1e-3
    assert not offers(jax.random.split(KEY, trials), 1.0).any()


def test_gss_keeps_gradients_more_different_than_a_reservoir_does() -> None:
    def loss(params: Any, rows: Any) -> Any:
        return jnp.sum(rows["x"] @ params), None

    def alikeness(name: str, key: jax.Array) -> jax.Array:
        keep = memory.policy(name, 20)
        start, noise = jax.random.split(key)
        x = jax.random.normal(noise, (40, 10, 3)) + jnp.array([2.0, 0, 0])  # most pull one way

        def one(buffer: memory.Buffer, xs: Any) -> Any:
            key, x = xs
            ctx = context(key, loss=loss, params=jnp.zeros(3))
            return keep.insert(buffer, ctx, {**rows_of(jnp.arange(10)), "x": x}), None

        buffer = keep.empty({**rows_of(jnp.arange(10)), "x": x[0]})
        buffer, _ = jax.lax.scan(one, buffer, (jax.random.split(start, 40), x))
        stored = buffer.rows["x"] / jnp.linalg.norm(buffer.rows["x"], axis=1, keepdims=True)
        return jnp.mean(stored @ stored.T)

    keys = jax.random.split(KEY, 10)
    gss, uniform = jax.jit(
        jax.vmap(lambda key: (alikeness("gss", key), alikeness("reservoir", key)))
    )(keys)
    assert gss.mean() < 0.85 * uniform.mean()


def test_gradient_likeness_is_one_plus_the_largest_cosine() -> None:
    def loss(params: Any, rows: Any) -> Any:
        return jnp.sum(rows["x"] @ params), None

    rows = {"x": jnp.array([[1.0, 0], [0, 3]]), "weight": jnp.ones(2)}
    others = {"x": jnp.array([[2.0, 2], [-1, 0], [0, 5]]), "weight": jnp.array([1.0, 1, 0])}
    found = memory.gradient_likeness(loss, jnp.zeros(2), rows, others)
    np.testing.assert_allclose(found, [1 + 0.5**0.5] * 2, rtol=1e-6)
    none = memory.gradient_likeness(loss, jnp.zeros(2), rows, {**others, "weight": jnp.zeros(3)})
    np.testing.assert_allclose(none, 1.1, rtol=1e-6)


@pytest.mark.parametrize("name", ["reservoir", "task", "loss", "gss"])
def test_padding_changes_nothing_of_what_is_kept(name: str) -> None:
    def loss(params: Any, rows: Any) -> Any:
        return jnp.sum(rows["x"] @ params), None

    def filled(more: int) -> Any:
        keep = memory.policy(name, 5, groups=1 if name == "task" else None)

        def one(buffer: memory.Buffer, xs: Any) -> Any:
            key, x = xs
            ctx = context(key, loss=loss, params=jnp.zeros(3))
            rows = {**rows_of(jnp.arange(8)), "x": x}
            pad = jax.tree.map(lambda v: jnp.zeros((more, *v.shape[1:]), v.dtype), rows)
            return keep.insert(buffer, ctx, memory.append(rows, pad)), None

        x = jax.random.normal(KEY, (20, 8, 3))
        buffer = keep.empty({**rows_of(jnp.arange(8)), "x": x[0]})
        return jax.lax.scan(one, buffer, (jax.random.split(KEY, 20), x))[0].rows["x"]

    np.testing.assert_array_equal(filled(5), filled(0))
