"""Bottleneck adapters: the base at the start, the formula after."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_decoder as tiny

from jcl import methods
from jcl.models.layers import after_sublayer

BATCH = jax.tree.map(lambda x: x[0, 0], tiny.stream())


@pytest.mark.parametrize("after", [("attention", "mlp"), ("mlp",)])
def test_it_starts_as_the_base_bit_for_bit_and_adapters_alone_learn(after: tuple) -> None:
    method = methods.bottleneck(width=4, after=after)
    program = tiny.program(method)
    state = program.init(tiny.base(), BATCH, jax.random.key(0))
    np.testing.assert_array_equal(
        jax.jit(program.predict)(state, BATCH), tiny.CALL(tiny.base(), BATCH)
    )
    last, _ = tiny.run(method)
    tiny.same_base(last.params, tiny.base())
    blocks = last.params["blocks"]
    assert ("attention_adapter" in blocks) == ("attention" in after)
    shapes = jax.tree.map(jnp.shape, blocks["mlp_adapter"])
    assert shapes == {
        "down": {"kernel": (2, 24, 4), "bias": (2, 4)},
        "up": {"kernel": (2, 4, 24), "bias": (2, 24)},
    }
    assert float(jnp.abs(blocks["mlp_adapter"]["up"]["kernel"]).max()) > 1e-3


@pytest.mark.quick
def test_it_adds_a_small_network_to_what_a_sublayer_adds() -> None:
    draw = np.random.default_rng(0)
    down, up = draw.normal(size=(24, 4)), draw.normal(size=(4, 24))
    c, e, x = draw.normal(size=4), draw.normal(size=24), draw.normal(size=(3, 5, 24))
    wanted = x + np.maximum(x @ down + c, 0) @ up + e
    params = {"down": {"kernel": down, "bias": c}, "up": {"kernel": up, "bias": e}}
    block = jax.tree.map(jnp.float32, {"attention_adapter": params})
    ours = after_sublayer(block, "attention", jnp.float32(x))
    np.testing.assert_allclose(ours, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.quick
def test_a_model_without_blocks_is_refused() -> None:
    program = tiny.program(methods.bottleneck())
    with pytest.raises(ValueError, match=r"parameters is \[\], but must be with blocks/output"):
        program.init({"dense_0": {"kernel": jnp.ones((2, 2))}}, BATCH, jax.random.key(0))
