"""Merging against sorts, closed forms and a numpy copy of the published TIES algorithm."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jcl
from jcl import merging

largest = jax.jit(merging._largest)


def by_sorting(x: np.ndarray, count: int, among: np.ndarray) -> np.ndarray:
    """The oracle: a stable sort puts the earliest of equals first."""
    order = [i for i in np.argsort(-np.abs(x), kind="stable") if among[i]]
    marks = np.zeros(x.size, bool)
    marks[order[: max(count, 0)]] = True
    return marks


@pytest.mark.quick
@pytest.mark.parametrize("scale", [1.0, 1e-38, 1e37])
def test_largest_is_a_stable_sort_with_ties_masks_and_any_count(scale: float) -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        x = (rng.integers(-3, 4, 24) * np.float32(scale)).astype(np.float32)
        among = rng.random(24) < 0.7
        count = int(rng.integers(-1, 27))
        got = largest(jnp.asarray(x), count, jnp.asarray(among))
        np.testing.assert_array_equal(got, by_sorting(x, count, among))


@pytest.mark.quick
def test_largest_of_distinct_values_is_exact_for_every_count() -> None:
    x = np.random.default_rng(1).standard_normal(50).astype(np.float32)
    for count in range(51):
        got = np.asarray(largest(jnp.asarray(x), count))
        assert got.sum() == count
        np.testing.assert_array_equal(got, by_sorting(x, count, np.ones(50, bool)))


def test_largest_ranks_a_tree_as_one_vector_and_maps() -> None:
    tree = {"a": jnp.array([[1.0, -5.0], [2.0, 2.0]]), "b": jnp.array([2.0, -3.0])}
    got = largest(tree, 3)  # 5, 3 and the first of three twos
    np.testing.assert_array_equal(got["a"], [[False, True], [True, False]])
    np.testing.assert_array_equal(got["b"], [False, True])
    x = jax.random.normal(jax.random.key(0), (4, 30))
    each = jax.vmap(merging._largest)(x, jnp.array([0, 1, 15, 30]))
    np.testing.assert_array_equal(each.sum(1), [0, 1, 15, 30])


def test_share_is_rounded_and_whole_at_one() -> None:
    assert [int(merging.count_of(f, 10)) for f in (0.0, 0.1, 0.3, 0.7, 0.96, 1.0)] == [
        0,
        1,
        3,
        7,
        10,
        10,
    ]
    odd = 2**25 + 1  # float32 has no such number
    assert int(merging.count_of(1.0, odd)) == odd
    assert int(merging.whole_count(1.0, odd)) == odd


@pytest.mark.quick
def test_a_whole_share_is_cut_off_as_fractions_are() -> None:
    for size in (1, 3, 10, 64, 77, 1000, 12_345):
        for hundredths in range(101):
            wanted = hundredths * size // 100
            assert int(merging.whole_count(hundredths / 100, size)) == wanted, (hundredths, size)


def trees(seed: int, dtype: Any = jnp.float32) -> dict[str, jax.Array]:
    a, b = jax.random.split(jax.random.key(seed))
    return {
        "w": jax.random.normal(a, (7, 5)).astype(dtype),
        "b": (1e4 * jax.random.normal(b, (5,))).astype(dtype),
    }


FLAT = jcl.Structure()


@pytest.mark.parametrize("between", [merging.lerp, partial(merging.slerp, structure=FLAT)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_end_points_are_exact(between: Any, dtype: Any) -> None:
    a, b = trees(0, dtype), trees(1, dtype)
    at = jax.jit(between)
    for t, end in ((0.0, a), (1.0, b)):
        got = at(t, a, b)
        for key in a:
            np.testing.assert_array_equal(got[key], end[key])
            assert got[key].dtype == dtype


def test_slerp_walks_the_arc_and_lerp_the_chord() -> None:
    a, b = {"x": jnp.array([1.0, 0.0])}, {"x": jnp.array([0.0, 1.0])}
    third = merging.slerp(1 / 3, a, b, FLAT)["x"]
    np.testing.assert_allclose(third, [np.cos(np.pi / 6), np.sin(np.pi / 6)], rtol=1e-6)
    np.testing.assert_allclose(merging.lerp(0.25, a, b)["x"], [0.75, 0.25])
    parallel = merging.slerp(0.5, a, {"x": jnp.array([3.0, 0.0])}, FLAT)["x"]
    np.testing.assert_allclose(parallel, [2.0, 0.0], rtol=1e-6)
    zero = merging.slerp(0.5, {"x": jnp.zeros(2)}, b, FLAT)["x"]
    np.testing.assert_allclose(zero, [0.0, 0.5], rtol=1e-6)


def test_moved_is_exact_at_both_ends() -> None:
    base, params = trees(0), trees(1)
    own = merging.task_vector(params, base)
    moved = jax.jit(merging.step_along)
    for scale, end in ((0.0, base), (1.0, params)):
        for key in base:
            np.testing.assert_array_equal(moved(base, params, own, scale)[key], end[key])
    other = trees(2)
    got = moved(base, params, other, 0.3)
    np.testing.assert_allclose(got["w"], base["w"] + 0.3 * other["w"], atol=1e-5)


def test_what_dare_drops_of_a_leaf_depends_on_its_path_and_not_on_other_leaves() -> None:
    alone, among = ({"x": jnp.ones(50), **more} for more in ({}, {"a": jnp.ones(9)}))
    kept = [merging.dare(jax.random.key(0), tree, 0.5)["x"] for tree in (alone, among)]
    np.testing.assert_array_equal(*kept)


def test_dare_drops_a_share_and_keeps_the_mean() -> None:
    kept = merging.dare(jax.random.key(0), {"x": jnp.ones(40_000)}, 0.75)["x"]
    assert set(np.unique(kept)) == {0.0, 4.0}
    # the mean of 40,000 draws with variance p / (1 - p) = 3 stays within 5 deviations of 1
    assert abs(float(kept.mean()) - 1) < 5 * np.sqrt(3 / 40_000)
    same = merging.dare(jax.random.key(0), trees(0), 0.0)
    np.testing.assert_array_equal(same["w"], trees(0)["w"])


def test_trim_over_the_model_and_by_leaf() -> None:
    vector = {"a": jnp.array([1.0, -2.0, 3.0, -4.0]), "b": jnp.array([10.0, 20.0, -30.0, 40.0])}
    model = merging.trim(vector, 0.5)
    np.testing.assert_array_equal(model["a"], np.zeros(4))
    np.testing.assert_array_equal(model["b"], vector["b"])
    leaf = merging.trim_layers(vector, 0.5, FLAT)
    np.testing.assert_array_equal(leaf["a"], [0, 0, 3, -4])
    np.testing.assert_array_equal(leaf["b"], [0, 0, -30, 40])


def published_ties(vectors: np.ndarray, density: float) -> np.ndarray:
    """`ties_merging` of the authors' code, "dis-mean", [tasks, d] -> [d], trimmed to int(K d)."""
    kept = int(density * vectors.shape[1])
    trimmed = np.zeros_like(vectors)
    for row, vector in zip(trimmed, vectors, strict=True):
        top = np.argsort(-np.abs(vector), kind="stable")[:kept]
        row[top] = vector[top]
    sign = np.sign(trimmed.sum(0))
    assert sign.sum() != 0  # the published code then counts the negative entries, ours none
    sign[sign == 0] = np.sign(sign.sum())  # resolve_zero_signs, "majority"
    agrees = np.where(sign > 0, trimmed > 0, trimmed < 0)
    chosen = trimmed * agrees
    return chosen.sum(0) / np.maximum((chosen != 0).sum(0), 1)


@pytest.mark.parametrize("density", [0.2, 0.6, 1.0])
def test_ties_one_vector_at_a_time_is_the_published_merge_of_all(density: float) -> None:
    rng = np.random.default_rng(5)
    vectors = rng.standard_normal((5, 60)).astype(np.float32)
    vectors[1, :20] = -vectors[0, :20]  # sums of exactly 0 where the others are trimmed
    vectors[2:, :20] *= 1e-3
    votes = merging.no_votes({"x": jnp.zeros(60)})
    for vector in vectors:
        votes = merging.vote(votes, merging.trim({"x": jnp.asarray(vector)}, density))
    np.testing.assert_allclose(
        merging.elect(votes)["x"], published_ties(vectors, density), rtol=1e-5, atol=1e-6
    )


def test_ties_breaks_a_tied_sign_by_the_majority_of_the_model() -> None:
    vectors = [np.array([1.0, 2.0, 3.0, -1.0]), np.array([-1.0, 2.0, 3.0, -1.0])]
    votes = merging.no_votes(jnp.zeros(4))
    for vector in vectors:
        votes = merging.vote(votes, jnp.asarray(vector))
    np.testing.assert_allclose(merging.elect(votes), [1, 2, 3, -1])
    np.testing.assert_allclose(merging.elect(votes), published_ties(np.stack(vectors), 1.0))
