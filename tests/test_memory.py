"""Memory: statistics of what is kept, against laws and against loops over single rows."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

import jcl
from jcl import losses, memory, methods, models
from jcl.method import Ctx

KEY = jax.random.key(0)
sample = jax.jit(memory.sample, static_argnums=2)
reservoir, ring, ranked = map(jax.jit, (memory.reservoir, memory.ring, memory.ranked))


def rows_of(ids: Any, group: Any = None, weight: Any = None) -> dict[str, jax.Array]:
    ids = jnp.asarray(ids)
    return {
        "x": ids.astype(jnp.float32)[:, None],
        "id": ids.astype(jnp.int32),
        "y": jnp.zeros_like(ids) if group is None else jnp.asarray(group, jnp.int32),
        "task": jnp.zeros(ids.shape, jnp.int32),
        "weight": jnp.ones(ids.shape) if weight is None else jnp.asarray(weight, jnp.float32),
    }


def kept(buffer: memory.Buffer) -> np.ndarray:
    real = np.asarray(buffer.rows["weight"]) > 0
    return np.asarray(buffer.rows["id"])[real]


# ---------------------------------------------------------------- uniformity

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


def test_ranked_with_random_scores_is_uniform_too() -> None:
    def insert(buffer: memory.Buffer, key: jax.Array, rows: Any) -> memory.Buffer:
        return memory.ranked(buffer, rows, rows["y"], jax.random.uniform(key, (BATCH,)))

    assert uniformity(insert) > 1e-3


def test_sample_is_uniform_over_what_is_stored() -> None:
    buffer = memory.empty(rows_of(jnp.zeros(4)), 20)
    buffer = reservoir(buffer, KEY, rows_of(jnp.arange(7)))
    ids = sample(buffer, KEY, 70_000)["id"]
    counts = np.bincount(ids, minlength=20)
    assert counts[7:].sum() == 0
    assert stats.chisquare(counts[:7]).pvalue > 1e-3


# ---------------------------------------------------------------- buffers


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


def test_append_fills_missing_columns_and_drops_others() -> None:
    batch = {**rows_of([1, 2]), "mark": jnp.ones(2)}
    rows = {**rows_of([3]), "outputs": jnp.ones((1, 4))}
    both = memory.append(batch, rows)
    assert set(both) == set(batch)
    assert both["id"].tolist() == [1, 2, 3] and both["mark"].tolist() == [1, 1, 0]


# ---------------------------------------------------------------- ranked


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


def feed(
    name: str, groups: int | None, batches: list[dict[str, jax.Array]], size: int
) -> memory.Buffer:
    """Offers batches under a policy; the loss of row i is i mod 7."""
    keep = memory.policy(name, size, groups)
    buffer = keep.empty(batches[0])
    insert = jax.jit(lambda b, k, rows: keep.insert(b, context(k), rows))
    for i, rows in enumerate(batches):
        buffer = insert(buffer, jax.random.fold_in(KEY, i), rows)
    return buffer


def context(key: jax.Array, **changes: Any) -> Ctx:
    def loss(params: Any, rows: Any) -> Any:
        value = jnp.sum(params * rows["x"]) % 7
        return value, None

    zero = jnp.int32(0)
    ctx = Ctx(
        jnp.float32(1), None, zero, zero, zero, key, {}, lambda p, rows: rows["x"], loss,
        lambda *_: 0, {}, True,
    )  # fmt: skip
    return ctx._replace(**changes)


def test_class_balanced_keeps_the_rare_and_balances_the_rest() -> None:
    rng = np.random.default_rng(0)
    group = rng.choice(4, 600, p=[0.8, 0.15, 0.04, 0.01])
    batches = [rows_of(np.arange(i, i + 10), group[i : i + 10]) for i in range(0, 600, 10)]
    buffer = feed("class", 4, batches, 60)
    seen, counts = np.bincount(group), np.asarray(buffer.ranks.held)
    assert seen[3] < 15 and counts[3] == seen[3]  # a class smaller than its share is kept whole
    assert counts.sum() == 60 and counts[0] - counts[1] in (-1, 0, 1)
    uniform = np.bincount(group[kept(feed("reservoir", None, batches, 60))], minlength=4)
    assert uniform[0] > 40  # which a reservoir does not do


def test_task_balanced_reads_the_task_column() -> None:
    batches = [
        {**rows_of(np.arange(i, i + 10)), "task": jnp.full(10, i >= 180, jnp.int32)}
        for i in range(0, 200, 10)
    ]
    counts = np.asarray(feed("task", 2, batches, 20).ranks.held)
    assert counts.tolist() == [10, 10]


def test_highest_loss_keeps_the_highest() -> None:
    buffer = feed("loss", None, [rows_of(np.arange(i, i + 10)) for i in range(0, 70, 10)], 20)
    assert sorted(kept(buffer) % 7) == [5] * 10 + [6] * 10


# ---------------------------------------------------------------- selectors


def test_hardest_returns_the_rows_of_highest_loss_and_never_padding() -> None:
    rows = rows_of([3, 6, 13, 5, 20], weight=[1, 1, 0, 1, 1])
    best = memory.hardest(context(KEY).loss, jnp.float32(1), rows, 2)
    assert sorted(np.asarray(best["id"])) == [6, 20]


def herding_by_hand(features: np.ndarray, count: int) -> list[int]:
    """Algorithm 4 of iCaRL, as written."""
    phi = features / np.linalg.norm(features, axis=1, keepdims=True)
    mean = phi.mean(axis=0)
    mean /= np.linalg.norm(mean)
    chosen: list[int] = []
    for k in range(1, count + 1):
        gaps = np.linalg.norm(mean - (phi + phi[chosen].sum(axis=0)) / k, axis=1)
        gaps[chosen] = np.inf
        chosen.append(int(np.argmin(gaps)))
    return chosen


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


def test_herding_policy_shrinks_old_classes_to_their_first_exemplars() -> None:
    keep = memory.policy("herding", 12, 4)
    rng = np.random.default_rng(2)

    def stage(first: int) -> dict[str, jax.Array]:
        rows = rows_of(np.arange(100 * first, 100 * first + 40), first + np.arange(40) % 2)
        rows["x"] = jnp.asarray(rng.normal(size=(40, 5)) + 1, jnp.float32)
        return jax.tree.map(lambda v: v.reshape(4, 10, *v.shape[1:]), rows)

    batches = [stage(0), stage(2)]
    buffer = keep.empty(jax.tree.map(lambda v: v[0], batches[0]))
    finish = jax.jit(lambda b, rows: keep.finish(b, context(KEY), jnp.float32(1), rows))
    for rows, share in zip(batches, (6, 3), strict=True):
        buffer = finish(buffer, rows)
        ids = kept(buffer)
        for part in batches[: 6 // share]:  # one stage with six exemplars a class, two with three
            x = np.asarray(part["x"]).reshape(40, 5)
            y, number = np.asarray(part["y"]).ravel(), np.asarray(part["id"]).ravel()
            for g in np.unique(y):
                mine = np.flatnonzero(y == g)
                expected = number[mine[herding_by_hand(x[mine], share)]]
                assert set(expected) == set(ids) & set(number[mine])


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


# ---------------------------------------------------------------- arguments and speed


@pytest.mark.parametrize(
    "arguments, name",
    [
        (("newest", 5), "policy"),
        (("reservoir", 0), "capacity"),
        (("class", 5), "groups"),
        (("ring", 5, 6), "groups"),
    ],
)
def test_policies_refuse_bad_arguments(arguments: Any, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is .* must be"):
        memory.policy(*arguments)


def test_a_balanced_policy_names_the_column_that_a_batch_lacks() -> None:
    with pytest.raises(ValueError, match="'y'"):
        memory.policy("class", 5, 2).empty({"tokens": jnp.zeros((2, 3)), "weight": jnp.ones(2)})


REHEARSAL = {
    "er": methods.er(capacity=777, rows=4),
    "er, hardest": methods.er(capacity=777, rows=4, select="loss"),
    "er, classes": methods.er(capacity=777, rows=4, policy="class", groups=4),
    "er, ring": methods.er(capacity=777, rows=4, policy="ring"),
    "er, loss": methods.er(capacity=777, rows=4, policy="loss"),
    "er, gss": methods.er(capacity=777, rows=4, policy="gss"),
    "der": methods.der(capacity=777, rows=4),
    "derpp": methods.derpp(capacity=777, rows=4),
    "agem": methods.agem(capacity=777, rows=4),
    "agem from er": jcl.chain(
        methods.er(capacity=777, rows=4), methods.agem(rows=4, share="er", at="updates")
    ),
}


def copies(method: jcl.Method) -> list[str]:
    """Instructions of a compiled scan over steps that copy an array of 777 rows of 33 columns."""
    program = jcl.make(method, models.mlp.apply, losses.cross_entropy(), optax.sgd(0.1))
    chunk = {"x": jnp.zeros((3, 5, 33)), "y": jnp.zeros((3, 5), jnp.int32)}
    example = jax.tree.map(lambda v: v[0], chunk)
    params = models.mlp.init(KEY, [33, 8, 4])
    state = jax.eval_shape(program.init, params, example, KEY)
    assert any(x.shape == (777, 33) for x in jax.tree.leaves(state))
    run = jax.jit(lambda s, c: jcl.advance(program, s, c), donate_argnums=0)
    text = run.lower(state, chunk).compile().as_text()
    return [line for line in text.splitlines() if "f32[777,33]" in line and " copy(" in line]


@pytest.mark.parametrize("name", REHEARSAL)
def test_a_step_does_not_copy_the_buffer(name: str) -> None:
    assert not copies(REHEARSAL[name])


def test_a_write_that_does_not_wait_for_the_reads_would_copy_it() -> None:
    def observe(state: Any, ctx: Ctx, info: jcl.Info) -> Any:
        return state._replace(buffer=memory.reservoir(state.buffer, ctx.key, info.batch))

    assert copies(REHEARSAL["er"]._replace(observe=observe))


def test_a_step_that_diverged_leaves_no_rows() -> None:
    program = jcl.make(
        methods.er(capacity=8, rows=4), models.mlp.apply, losses.cross_entropy(), optax.sgd(0.1)
    )
    batch = {"x": jnp.ones((5, 3)), "y": jnp.zeros(5, jnp.int32)}
    state = program.init(models.mlp.init(KEY, [3, 4]), batch, KEY)
    state, aux = jax.jit(program.step)(state, {**batch, "x": batch["x"].at[0, 0].set(jnp.nan)})
    assert int(aux["er/stored"]) == 0


def test_online_inserts_are_fast() -> None:
    """A hundred times the 3,600 rows a second that Avalanche's reservoir takes, ten at a time."""
    example = {"x": jnp.zeros((10, 784)), "y": jnp.zeros(10, jnp.int32), "weight": jnp.ones(10)}

    def steps(buffer: memory.Buffer) -> memory.Buffer:
        def one(b: memory.Buffer, key: jax.Array) -> Any:
            return memory.reservoir(b, key, example), None

        return jax.lax.scan(one, buffer, jax.random.split(KEY, 2000))[0]

    optimised = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
    run, seconds = jax.jit(steps, donate_argnums=0, compiler_options=optimised), []
    for _ in range(5):
        buffer = jax.block_until_ready(memory.empty(example, 500))
        begin = time.process_time()
        jax.block_until_ready(run(buffer))
        seconds.append(time.process_time() - begin)
    assert 20_000 / min(seconds) > 100 * 3_600
