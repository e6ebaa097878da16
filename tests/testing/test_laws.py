"""How laws compare and what they say; each law is held to every method in test_every_method."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from jcl.testing.laws import Broken, same


@pytest.mark.quick
def test_the_leaf_that_is_farthest_apart_is_named_with_both_values() -> None:
    wanted = {"a": jnp.ones(3), "b": jnp.zeros(2), "key": jax.random.key(0)}
    same("a law", wanted, wanted)
    found = {**wanted, "a": jnp.asarray([1.0, 1.1, 1.0]), "b": jnp.asarray([0.0, 0.5])}
    with pytest.raises(Broken, match=r"^a law: b is 0\.5 and not 0, but may differ by no bit$"):
        same("a law", found, wanted)
    same("a law", found, wanted, 0.6)
    with pytest.raises(Broken, match=r"b is 0\.5 and not 0, but may differ by at most 1e-01 of 1"):
        same("a law", found, wanted, 0.1)
    with pytest.raises(Broken, match="a is nan and not 1"):
        same("a law", {**wanted, "a": jnp.full(3, jnp.nan)}, wanted, 0.1)
    with pytest.raises(Broken, match=r"has the leaves \['a'\], but must have \['a', 'b', 'key'\]"):
        same("a law", {"a": wanted["a"]}, wanted)
    with pytest.raises(Broken, match=r"a has shape \(1,\), not \(3,\)"):
        same("a law", {**wanted, "a": jnp.ones(1)}, wanted)
