"""Reading what flows through a model, against the model's own arithmetic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcl import taps
from jcl.models import decoder, mlp

CONFIG = decoder.Config(layers=4, width=16, heads=2, kv_heads=2, hidden=24, vocabulary=32)


@pytest.fixture(scope="module")
def model():
    params = decoder.init(jax.random.key(0), CONFIG)
    params = jax.tree.map(lambda x: 5 * x if x.ndim > 2 else x, params)
    tokens = jax.random.randint(jax.random.key(1), (3, 7), 0, 32)
    return decoder.apply_fn(CONFIG), params, {"tokens": tokens}


def whole(h):
    return h


@pytest.mark.parametrize("layers", [[1, 3], [2], [3, 0, 2]])
def test_read_layers_stand_in_order_and_add_up(model, layers):
    apply, params, batch = model
    sites = ("blocks/down:in", "blocks/down:out", "blocks:out", "blocks:attention", "blocks:mlp")
    found, outputs = taps.read(apply, params, batch, {s: (layers, whole) for s in sites})
    before, _ = taps.read(apply, params, batch, {"blocks:out": ([0, 1, 2, 3], whole)})
    np.testing.assert_array_equal(outputs, apply(params, batch))
    for i, layer in enumerate(layers):
        product = found["blocks/down:in"][i] @ params["blocks"]["down"]["kernel"][layer]
        np.testing.assert_allclose(found["blocks/down:out"][i], product, atol=1e-5)
        table = params["embed"]["table"][batch["tokens"]]
        old = before["blocks:out"][layer - 1] if layer else table
        added = found["blocks:attention"][i] + found["blocks:mlp"][i]
        np.testing.assert_allclose(found["blocks:out"][i], old + added, atol=1e-5)


def test_one_layer_a_pick_and_a_traced_index(model):
    apply, params, batch = model

    @jax.jit
    def last(layer):
        wanted = {"blocks:out": (layer, lambda h: h[:, -1])}
        return taps.read(apply, params, batch, wanted)[0]["blocks:out"]

    every, _ = taps.read(apply, params, batch, {"blocks:out": ([0, 1, 2, 3], whole)})
    for layer in range(4):
        np.testing.assert_allclose(
            last(jnp.int32(layer)), every["blocks:out"][layer][:, -1], atol=1e-6
        )


@pytest.mark.quick
def test_outside_a_stack():
    params = mlp.init(jax.random.key(0), (4, 5, 3))
    x = jax.random.normal(jax.random.key(1), (6, 4))
    found, _ = taps.read(mlp.apply, params, {"x": x}, {"dense_1:in": (0, whole)})
    first = params["dense_0"]
    np.testing.assert_allclose(
        found["dense_1:in"], jax.nn.relu(x @ first["kernel"] + first["bias"]), atol=1e-6
    )
