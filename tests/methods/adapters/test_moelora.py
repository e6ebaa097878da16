"""MoELoRA: shares sum to one, one expert is LoRA, and it computes what CoIN's code does."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_decoder as tiny

from jcl import adapters, methods
from jcl.mechanisms.adapters import routed
from jcl.models.layers import dense

BATCH = jax.tree.map(lambda x: x[0, 0], tiny.stream())


def filled(params: Any) -> Any:
    """Pairs that do something."""
    for path in adapters.paths_with(params):
        lora = adapters.subtree(params, path)["lora"]
        b = 0.3 * jax.random.normal(jax.random.key(9), lora["b"].shape)
        params = adapters.with_subtree(params, path, {"lora": {**lora, "b": b}})
    return params


def test_shares_sum_to_one() -> None:
    keys = jax.random.split(jax.random.key(0), 2)
    scores = 3 * jax.random.normal(keys[0], (5, 4))
    shares = routed(jnp.ones((5, 8)), scores)
    np.testing.assert_allclose(shares.sum(axis=-1), 2.0, rtol=1e-6)  # r / E = 2 a share
    np.testing.assert_allclose(shares[:, ::2], jax.nn.softmax(scores), rtol=1e-6)


def test_it_computes_what_the_authors_do() -> None:
    """result += B_i(A_i(x)) · scaling · router[..., i], one expert after another."""
    draw = np.random.default_rng(0)
    x, kernel = draw.normal(size=(7, 6)), draw.normal(size=(6, 5))
    a, b = draw.normal(size=(6, 4)), draw.normal(size=(4, 5))
    gate = draw.normal(size=(6, 2))
    scores = np.exp(x @ gate)
    shares = scores / scores.sum(axis=1, keepdims=True)
    expected = x @ kernel
    for i in range(2):
        part = slice(2 * i, 2 * i + 2)
        expected += (x @ a[:, part]) @ b[part] * (16 / 4) * shares[:, i : i + 1]
    layer = {"kernel": kernel, "lora": {"a": a, "b": 16 / 4 * b, "router": gate}}
    ours = dense(jax.tree.map(lambda v: jnp.asarray(v, jnp.float32), layer), jnp.float32(x), "here")
    np.testing.assert_allclose(ours, expected, rtol=2e-5, atol=2e-5)


def test_one_expert_is_lora() -> None:
    one, plain = tiny.program(methods.moelora(experts=1, rank=4)), tiny.program(methods.lora(4))
    state = one.init(tiny.base(), BATCH, jax.random.key(0))
    state = state._replace(params=filled(state.params))
    alone = state.params
    for path in adapters.paths_with(alone):
        lora = adapters.subtree(alone, path)["lora"]
        alone = adapters.with_subtree(alone, path, {"lora": {k: lora[k] for k in "ab"}})
    wanted = plain.init(tiny.base(), BATCH, jax.random.key(0))._replace(params=alone)
    ours = jax.jit(one.predict)(state, BATCH)
    np.testing.assert_allclose(ours, jax.jit(plain.predict)(wanted, BATCH), rtol=1e-5, atol=1e-5)
    assert np.abs(ours - tiny.CALL(tiny.base(), BATCH)).max() > 0.1


def test_at_the_start_it_is_the_base_and_then_routers_learn_too() -> None:
    program = tiny.program(methods.moelora(experts=2, rank=4))
    state = program.init(tiny.base(), BATCH, jax.random.key(0))
    plain = tiny.CALL(tiny.base(), BATCH)
    np.testing.assert_allclose(jax.jit(program.predict)(state, BATCH), plain, rtol=1e-5, atol=1e-5)
    assert state.params["blocks"]["query"]["lora"]["router"].shape == (2, 24, 2)
    after, _ = tiny.run(methods.moelora(experts=2, rank=4))
    tiny.same_base(after.params, tiny.base())
    first, last = (s.params["blocks"]["query"]["lora"]["router"] for s in (state, after))
    assert float(jnp.abs(last - first).max()) > 1e-3


@pytest.mark.quick
def test_routed_pairs_are_not_merged() -> None:
    program = tiny.program(methods.moelora())
    state = program.init(tiny.base(), BATCH, jax.random.key(0))
    with pytest.raises(ValueError, match=r"adapter is .*router.* one that kernels can hold"):
        adapters.merge(state.params)
