"""Hidden units: which models have them, how much they answer, and how they are renewed."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_context

from jcl.mechanisms import units
from jcl.models import mlp

PARAMS = mlp.init(jax.random.key(1), (3, 4, 5, 2))
BATCH = {
    "x": jax.random.normal(jax.random.key(2), (6, 3)),
    "weight": jnp.array([1.0, 1.0, 1.0, 1.0, 1.0, 0.0]),
}


def context(apply: Any = mlp.apply, **changes: Any) -> Any:
    return tiny_context.context(apply=apply, params=PARAMS, batch=BATCH, **changes)


def hidden(count: int) -> list[np.ndarray]:
    """What the two hidden layers answer to the first rows, by hand."""
    found, h = [], np.asarray(BATCH["x"])[:count]
    for name in ("dense_0", "dense_1"):
        layer = PARAMS[name]
        h = np.maximum(h @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"]), 0)
        found.append(h)
    return found


@pytest.mark.quick
def test_units_answer_over_the_rows_that_count() -> None:
    layers = units.hidden_layers("mine", context(), PARAMS)
    assert [tuple(one) for one in layers] == [("dense_0", "dense_1", 4), ("dense_1", "dense_2", 5)]
    found = units.answers(layers, context(), BATCH)
    for path, by_hand in zip(found, hidden(5), strict=True):
        np.testing.assert_allclose(found[path], np.abs(by_hand).mean(0), rtol=1e-5)


@pytest.mark.quick
def test_a_worn_unit_gets_new_weights_in_and_none_out() -> None:
    layers = units.hidden_layers("mine", context(), PARAMS)
    worn = {"dense_0": jnp.array([0, 1, 0, 0], bool), "dense_1": jnp.array([0, 0, 0, 0, 1], bool)}
    plain = jax.tree.map(lambda x: 0.01 * jnp.ones_like(x), PARAMS)
    limits = units.bounds(layers, PARAMS)
    key = jax.random.key(3)
    moved = units.renew(layers, worn, limits, key, PARAMS, plain)
    after = jax.tree.map(lambda p, u: np.asarray(p + u), PARAMS, moved)
    first, second, last = (after[f"dense_{i}"] for i in range(3))
    np.testing.assert_allclose(limits["dense_0"], 3**0.5 * np.std(PARAMS["dense_0"]["kernel"]))
    fresh = np.abs(first["kernel"][:, 1])
    assert (fresh <= limits["dense_0"]).all() and fresh.max() > 0
    np.testing.assert_allclose([first["bias"][1], second["bias"][4]], 0, atol=1e-7)
    np.testing.assert_allclose(second["kernel"][1, :4], 0, atol=1e-7)
    np.testing.assert_allclose(last["kernel"][4], 0, atol=1e-7)
    kept = [first["kernel"][:, [0, 2, 3]], last["kernel"][:4], last["bias"]]
    was = [PARAMS["dense_0"]["kernel"][:, [0, 2, 3]], PARAMS["dense_2"]["kernel"][:4],
           PARAMS["dense_2"]["bias"]]  # fmt: skip
    for now, before in zip(kept, was, strict=True):
        np.testing.assert_allclose(now, np.asarray(before) + 0.01, rtol=1e-5)


def _with_a_scale(params: Any, batch: Any, call: Any) -> jax.Array:
    return params["scale"] * mlp.apply(
        {k: v for k, v in params.items() if k != "scale"}, batch, call
    )


@pytest.mark.quick
@pytest.mark.parametrize("which", ["one layer", "another leaf", "a frozen leaf"])
def test_other_models_are_refused(which: str) -> None:
    params, ctx = PARAMS, context()
    if which == "one layer":
        params = {"dense_0": PARAMS["dense_0"]}
    elif which == "another leaf":
        params, ctx = {**PARAMS, "scale": jnp.ones(())}, context(_with_a_scale)
    else:
        ctx = context(frozen={"dense_2": {"kernel": PARAMS["dense_2"]["kernel"]}})
    with pytest.raises(ValueError, match="must be two or more dense layers that follow each other"):
        units.hidden_layers("mine", ctx, params)
