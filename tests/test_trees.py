"""Arithmetic over trees, against numpy on each leaf."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jcl
from jcl import trees

pytestmark = pytest.mark.quick

DRAW = np.random.default_rng(0)


def tree(dtype: Any = np.float32) -> Any:
    """Leaves of odd shapes, one of them a scalar and one without elements."""
    shapes = {"a": (3, 5), "b": {"c": (7,), "d": ()}, "e": (0, 4)}
    return jax.tree.map(
        lambda shape: jnp.asarray(DRAW.normal(size=shape), dtype),
        shapes, is_leaf=lambda x: isinstance(x, tuple),
    )  # fmt: skip


def flat(given: Any) -> np.ndarray:
    """All elements in one row, in float64."""
    return np.concatenate([np.ravel(np.asarray(x, np.float64)) for x in jax.tree.leaves(given)])


def test_sums_products_and_norms_are_those_of_the_flat_vectors() -> None:
    a, b = tree(), tree()
    x, y = flat(a), flat(b)
    np.testing.assert_allclose(flat(trees.add(a, b)), x + y, rtol=1e-6)
    np.testing.assert_allclose(flat(trees.subtract(a, b)), x - y, rtol=1e-6)
    np.testing.assert_allclose(flat(trees.scale(-1.75, a)), -1.75 * x, rtol=1e-6)
    np.testing.assert_allclose(flat(trees.axpy(0.3, a, b)), 0.3 * x + y, rtol=1e-5)
    np.testing.assert_allclose(trees.dot(a, b), x @ y, rtol=1e-5)
    np.testing.assert_allclose(trees.norm(a), np.linalg.norm(x), rtol=1e-6)
    assert trees.size(a) == 23 and trees.nbytes(a) == 4 * 23


def test_a_statistic_of_bfloat16_leaves_is_taken_in_float32() -> None:
    ones = {"w": jnp.ones(4097, jnp.bfloat16)}  # bfloat16 has 8 bits: 4097 ones add up to 4096
    assert float(trees.dot(ones, ones)) == 4097 and trees.dot(ones, ones).dtype == jnp.float32
    assert trees.scale(0.5, ones)["w"].dtype == jnp.bfloat16
    assert trees.axpy(0.5, trees.float32(ones), ones)["w"].dtype == jnp.bfloat16
    assert trees.axpy(0.5, ones, trees.float32(ones))["w"].dtype == jnp.float32
    assert trees.zeros(ones)["w"].dtype == jnp.float32
    assert trees.zeros(ones, None)["w"].dtype == jnp.bfloat16
    assert trees.nbytes(ones) == 2 * 4097
    assert trees.like(trees.float32(ones), ones)["w"].dtype == jnp.bfloat16


def test_select_takes_one_tree_whole() -> None:
    a, b = tree(), tree()
    for condition, wanted in ((True, a), (False, b)):
        np.testing.assert_array_equal(flat(trees.select(jnp.array(condition), a, b)), flat(wanted))


def test_a_copy_outlives_what_it_was_made_of() -> None:
    a = {"w": jnp.arange(5.0)}
    copied = trees.copy(a)
    a["w"].delete()
    np.testing.assert_array_equal(copied["w"], np.arange(5.0))


def test_what_is_partitioned_merges_again_whatever_the_predicate() -> None:
    a = {"blocks": {"up": jnp.ones(3), "down": jnp.zeros(2)}, "head": jnp.arange(4.0)}
    for pattern, kept in ((r"blocks/.*", 2), (r".*/down|head", 2), ("nothing", 0), (".*", 3)):
        mine, rest = trees.partition(a, trees.match_path(pattern))
        assert len(jax.tree.leaves(mine)) == kept and len(jax.tree.leaves(rest)) == 3 - kept
        for merged in (trees.merge(mine, rest), trees.merge(rest, mine)):
            jax.tree.map(np.testing.assert_array_equal, merged, a)
    grown = trees.merge({"blocks": {"lora": 1}}, {"blocks": {"up": 2}, "more": 3})
    assert grown == {"blocks": {"lora": 1, "up": 2}, "more": 3}


def test_a_path_is_matched_whole() -> None:
    keep = trees.match_path("blocks/up")
    assert keep("blocks/up") and not keep("blocks/up/kernel") and not keep("my/blocks/up")
    assert trees.every_leaf("whatever")
    with pytest.raises(ValueError, match=r"pattern is '\(', but must be a regular expression"):
        trees.match_path("(")


def test_paths_are_names_of_keys_fields_and_places() -> None:
    from jcl.memory import Ranks

    nested = {"a": [jnp.ones(1), Ranks(*map(jnp.ones, range(1, 6)))]}
    found = [trees.path_name(p) for p, _ in jax.tree_util.tree_leaves_with_path(nested)]
    assert found == ["a/0", *(f"a/1/{field}" for field in Ranks._fields)]


STACKED = jcl.Structure(stacks={"blocks": 1, "blocks/experts": 2})


def layers_and_experts() -> Any:
    return {
        "blocks": {
            "up": jnp.asarray(DRAW.normal(size=(3, 4, 5))),
            "experts": {"up": jnp.asarray(DRAW.normal(size=(3, 2, 4, 5)))},
        },
        "blocks_norm": jnp.asarray(DRAW.normal(size=7)),
    }


def test_a_stack_of_layers_is_mapped_over_by_the_longest_path_that_is_said() -> None:
    given = layers_and_experts()
    axes = {path: trees.stack_axes(path, STACKED) for path in trees.by_path(given)}
    assert axes == {"blocks/up": 1, "blocks/experts/up": 2, "blocks_norm": 0}

    def shift(x: jax.Array, y: jax.Array) -> jax.Array:
        assert x.ndim == y.ndim < 3  # a layer's tensor
        return x / jnp.max(x) + y

    got = trees.per_layer(shift, STACKED, given, given)
    up, experts = np.asarray(given["blocks"]["up"]), np.asarray(given["blocks"]["experts"]["up"])
    most = up.max(axis=(1, 2), keepdims=True), experts.max(axis=(2, 3), keepdims=True)
    np.testing.assert_allclose(got["blocks"]["up"], up / most[0] + up, rtol=1e-6)
    np.testing.assert_allclose(
        got["blocks"]["experts"]["up"], experts / most[1] + experts, rtol=1e-6
    )
    norm = np.asarray(given["blocks_norm"])
    np.testing.assert_allclose(got["blocks_norm"], norm / norm.max() + norm, rtol=1e-6)


def test_without_a_word_about_stacks_a_leaf_is_a_tensor() -> None:
    given = layers_and_experts()
    got = trees.per_layer(jnp.max, jcl.Structure(), given)
    assert {x.shape for x in jax.tree.leaves(got)} == {()}


def test_leaves_of_another_half_stay_none() -> None:
    kept, _ = trees.partition(layers_and_experts(), lambda path: path.endswith("up"))
    got = trees.per_layer(jnp.max, STACKED, kept)
    assert got["blocks_norm"] is None and got["blocks"]["experts"]["up"].shape == (3, 2)


def test_an_empty_choice_is_refused_by_the_arguments_name() -> None:
    given = layers_and_experts()
    assert trees.chosen(given, lambda path: "experts" in path, "mine") == ["blocks/experts/up"]
    with pytest.raises(ValueError, match=r"mine is <function .* but must be true of a leaf among"):
        trees.chosen(given, lambda path: False, "mine")
