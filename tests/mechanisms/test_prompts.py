"""What prompts start as, and that a chain has one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_decoder as tiny
from tiny_context import context

import jcl
from jcl import methods
from jcl.mechanisms import prompts

BATCH = jax.tree.map(lambda x: x[0, 0], tiny.stream())


@pytest.mark.quick
def test_the_table_may_be_frozen() -> None:
    table = {"embed": {"table": jnp.ones((4, 2))}}
    ctx = context(frozen=table, added=lambda path: None)
    np.testing.assert_array_equal(prompts.embedding_table("mine", ctx, {}), jnp.ones((4, 2)))
    with pytest.raises(ValueError, match=r"parameters is \[\], but must be a language model's"):
        prompts.embedding_table("mine", context(frozen={}, added=lambda path: None), {})


@pytest.mark.quick
@pytest.mark.parametrize("turned", [False, True], ids=["first", "second"])
def test_a_chain_has_one_prompt(turned: bool) -> None:
    """Else one would read, or overwrite, what the other has made."""
    both = [methods.prompt_tuning(length=5), methods.progressive_prompts(stages=2, length=3)]
    one, other = reversed(both) if turned else both
    sentence = f"^{one.name} adds prompt/table, and so would {other.name}; a chain has one of them"
    with pytest.raises(ValueError, match=sentence):
        tiny.program(jcl.chain(one, other)).init(tiny.base(), BATCH, jax.random.key(0))
