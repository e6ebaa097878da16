"""LLaMA Pro's mask by itself; tests/mechanisms/test_growth.py trains models that were grown."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jcl import methods

pytestmark = pytest.mark.quick

ONES: Any = {
    "blocks": {"up": {"kernel": jnp.ones((4, 3, 2), jnp.bfloat16)}, "norm": jnp.ones((4, 5))},
    "blocks_of_another": jnp.ones((4, 2)),
    "head": jnp.ones(7),
}


def test_updates_go_to_the_given_blocks_alone() -> None:
    method = methods.llama_pro([1, 3])
    params, state = method.init(None, ONES)  # type: ignore[arg-type]
    assert params is ONES and state == ()
    found = method.updates(state, None, ONES)  # type: ignore[arg-type]
    for leaf in (found["blocks"]["up"]["kernel"], found["blocks"]["norm"]):
        np.testing.assert_array_equal(leaf.reshape(4, -1).astype(float).min(1), [0, 1, 0, 1])
        np.testing.assert_array_equal(leaf.reshape(4, -1).astype(float).max(1), [0, 1, 0, 1])
    assert found["blocks"]["up"]["kernel"].dtype == jnp.bfloat16
    assert not found["head"].any() and not found["blocks_of_another"].any()


@pytest.mark.parametrize(
    "layers, said", [([], "at least one block"), ([0, -1], "from 0"), ([4], "below 4, the blocks")]
)
def test_blocks_that_are_not_there_are_refused(layers: list[int], said: str) -> None:
    with pytest.raises(ValueError, match=f"layers is .*, but must be .*{said}"):
        methods.llama_pro(layers).init(None, ONES)  # type: ignore[arg-type]
