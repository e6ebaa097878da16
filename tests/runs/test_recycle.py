"""Recycled tuning: the change applied, started from, or distilled."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcl import chain, methods
from jcl.runs.recycle import recycle, steps_to, upgraded


def tree(*values: float, head: bool = False) -> dict[str, Any]:
    params: dict[str, Any] = {
        "a": jnp.full(3, float(values[0])),
        "b": {"c": jnp.full((2, 2), float(values[1]))},
    }
    return {**params, "head": jnp.full(2, 9.0)} if head else params


def test_the_change_is_applied_and_a_new_head_is_taken_as_tuned() -> None:
    found = upgraded(tree(1, 2), tree(1.5, 1, head=True), tree(10, 20))
    np.testing.assert_array_equal(found["a"], jnp.full(3, 10.5))
    np.testing.assert_array_equal(found["b"]["c"], jnp.full((2, 2), 19.0))
    np.testing.assert_array_equal(found["head"], jnp.full(2, 9.0))


def test_an_unchanged_supplier_gives_back_what_was_tuned() -> None:
    keys = jax.random.split(jax.random.key(0), 2)
    base, tuned = ({"w": jax.random.normal(k, (5,))} for k in keys)
    np.testing.assert_allclose(upgraded(base, tuned, base)["w"], tuned["w"], rtol=1e-6)
    np.testing.assert_array_equal(upgraded(base, tuned, base, 0.0)["w"], base["w"])


def test_the_ways() -> None:
    args = (tree(1, 2), tree(1.5, 1, head=True), tree(10, 20))
    plain = methods.ewc()
    for how, at, names in (
        ("none", 10.0, "ewc"),
        ("start", 10.5, "ewc"),
        ("distil", 10.0, "ewc + distil"),
        ("both", 10.5, "ewc + distil"),
    ):
        start, method = recycle(*args, how, plain)  # type: ignore[arg-type]
        assert chain(method).name == names
        np.testing.assert_array_equal(start["a"], jnp.full(3, at))
        np.testing.assert_array_equal(start["head"], jnp.full(2, 9.0))


@pytest.mark.quick
def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="how is 'all', but must be one of"):
        recycle(tree(1, 2), tree(1, 2), tree(1, 2), "all", methods.ewc())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"base_new's b/c is None, but must be \(2, 2\)"):
        upgraded(tree(1, 2), tree(1, 2), {"a": jnp.zeros(3)})


@pytest.mark.quick
def test_steps_to_a_score() -> None:
    curve = np.array([3.0, 2.0, 1.0, 1.5])
    assert steps_to(curve, 2.0, higher_is_better=False) == 1
    assert steps_to(curve, 0.5, higher_is_better=False) is None
