"""What a method is told where a bank leaves it nothing to keep."""

from __future__ import annotations

import jax.numpy as jnp
import pytest
from tiny_context import context

from jcl.mechanisms.lasting import check_lasting

PARAMS = {"base": jnp.ones(2), "pair": {"a": jnp.ones(2), "b": None}}


@pytest.mark.quick
def test_some_leaf_that_lasts_is_enough() -> None:
    check_lasting("mine", context(), PARAMS)
    check_lasting("mine", context(renewed=lambda p: "bank" if "pair" in p else None), PARAMS)


@pytest.mark.quick
def test_where_all_are_renewed_both_methods_are_named() -> None:
    bank = context(renewed=lambda path: "bank")
    with pytest.raises(ValueError, match=r"bank renews every leaf .* so mine has nothing to keep"):
        check_lasting("mine", bank, PARAMS)
