"""MIGU: which columns learn, against numpy."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import jcl
from jcl import losses, methods, models

ROWS = 12
PARAMS = models.mlp.init(jax.random.key(0), [5, 10, 20, 4])


def batch(seed: int) -> dict[str, jax.Array]:
    x = jax.random.normal(jax.random.key(seed), (ROWS, 5))
    weight = jnp.ones(ROWS).at[-3:].set(0.0)  # padding, of which nothing may be seen
    return {"x": x.at[-3:].set(100.0), "y": jnp.arange(ROWS) % 4, "weight": weight}


def loudness(params: Any, rows: Any, per_token: bool) -> dict[str, np.ndarray]:
    h, found = np.asarray(rows["x"], np.float64)[:-3], {}
    for name, layer in params.items():
        y = h @ np.asarray(layer["kernel"], np.float64) + np.asarray(layer["bias"], np.float64)
        size = np.abs(y) / (np.abs(y).sum(1, keepdims=True) if per_token else 1)
        found[name] = size.sum(0)
        h = np.maximum(y, 0)
    return found


def train(tx: Any, **arguments: Any) -> tuple[Any, Any]:
    """States before and after the first step of the second stage."""
    program, plain = (
        jcl.make(m, models.mlp.apply, losses.cross_entropy(), tx)
        for m in (methods.migu(**arguments), methods.naive())
    )
    state, free = (p.init(PARAMS, batch(0), jax.random.key(1)) for p in (program, plain))
    step = jax.jit(program.step)
    for seed in range(3):
        state, _ = step(state, batch(seed))
        free, _ = jax.jit(plain.step)(free, batch(seed))
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(free.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)  # nothing is masked in the first stage
    state = jax.jit(program.consolidate)(state, jax.tree.map(lambda x: x[None], batch(0)))
    return state, step(state, batch(7))[0]


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("at, tx", [("grads", optax.sgd(0.1)), ("updates", optax.adam(1e-2))])
def test_only_the_loudest_columns_move(per_token: bool, at: Any, tx: Any) -> None:
    before, after = train(tx, fraction=0.3, per_token=per_token, at=at)
    size = loudness(before.params, batch(7), per_token)
    for name, layer in before.params.items():
        count = int((size[name] >= np.quantile(size[name], 0.7)).sum())  # the authors' rule
        loud = np.argsort(-size[name])[:count]
        moved = np.any(np.asarray(layer["kernel"] != after.params[name]["kernel"]), axis=0)
        assert not np.delete(moved, loud).any()
        assert moved[loud].sum() >= min(count, 3) - 1  # a loud unit may be dead behind its ReLU
        assert np.asarray(layer["bias"] != after.params[name]["bias"]).mean() > 0.6


@pytest.mark.quick
@pytest.mark.parametrize("units", [1, 4, 5, 11, 52])
def test_as_many_units_learn_as_reach_the_authors_quantile(units: int) -> None:
    """By `torch.quantile`; a rounded share would differ, 0.3 of 5 units being 1 instead of 2."""
    torch = pytest.importorskip("torch")
    params = models.mlp.init(jax.random.key(units), [5, units])
    rows = {"x": jax.random.normal(jax.random.key(1), (ROWS, 5)), "y": jnp.zeros((ROWS, units))}
    for fraction in (0.1, 0.3, 0.5, 0.9, 1.0):
        method = methods.migu(fraction, at="updates")
        program = jcl.make(method, models.mlp.apply, losses.squared_error, optax.adam(1e-2))
        state = program.init(params, rows, jax.random.key(2))._replace(stage=jnp.int32(1))
        after, _ = jax.jit(program.step)(state, rows)
        layer, new = params["dense_0"], after.params["dense_0"]
        size = jnp.abs(rows["x"] @ layer["kernel"] + layer["bias"]).sum(0)
        size = torch.tensor(np.asarray(size))
        wanted = int((size >= torch.quantile(size, 1 - fraction)).sum())
        assert np.any(layer["kernel"] != new["kernel"], axis=0).sum() == wanted, fraction


@pytest.mark.quick
def test_masked_before_adam_columns_drift() -> None:
    before, after = train(optax.adam(1e-2), fraction=0.3, at="grads")
    moved = np.asarray(before.params["dense_1"]["kernel"] != after.params["dense_1"]["kernel"])
    assert moved.any(0).mean() > 0.6


def test_stacked_layers_are_chosen_layer_by_layer() -> None:
    stack = models.init_dense(jax.random.key(3), 6, 6)
    stack = jax.tree.map(lambda x: jnp.stack([x, 2 * x[..., ::-1]]), stack)
    rows = {"x": jax.random.normal(jax.random.key(4), (ROWS, 6)), "y": jnp.ones((ROWS, 6))}

    def scanned(params: Any, batch: Any, tap: Any) -> jax.Array:
        def layer(h: jax.Array, xs: Any) -> tuple[jax.Array, None]:
            weights, index = xs
            return jnp.tanh(models.dense(weights, h, "stack", tap, index)), None

        return jax.lax.scan(layer, batch["x"], (params["stack"], jnp.arange(2)))[0]

    scanned.structure = jcl.Structure(stacks={"stack": 1})

    method = methods.migu(fraction=0.5, at="updates")
    program = jcl.make(method, scanned, losses.squared_error, optax.adam(1e-2))
    state = program.init({"stack": stack}, rows, jax.random.key(5))
    state = state._replace(stage=jnp.int32(1))
    after, _ = jax.jit(program.step)(state, rows)
    h = np.asarray(rows["x"], np.float64)
    for i in range(2):
        y = h @ np.asarray(stack["kernel"][i]) + np.asarray(stack["bias"][i])
        moved = np.asarray(stack["kernel"][i] != after.params["stack"]["kernel"][i]).all(0)
        assert set(np.flatnonzero(moved)) == set(np.argsort(-np.abs(y).sum(0))[:3])
        h = np.tanh(y)


class Seeing(nn.Module):
    """A convolution and what reads it, in heads."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = nn.relu(nn.Conv(10, (3, 3))(x)).mean((1, 2))
        return nn.DenseGeneral((2, 2))(h).reshape(len(h), 4)


def test_a_convolutions_loudest_channels_move() -> None:
    """Loud by all places of the rows that aren't padding."""
    x = jax.random.normal(jax.random.key(3), (ROWS, 4, 4, 2)).at[-3:].set(100.0)
    rows = {**batch(0), "x": x}
    model = models.flax.linen(Seeing(), rows, jax.random.key(1))
    method = methods.migu(fraction=0.3)
    program = jcl.make(method, model.apply, losses.cross_entropy(), optax.sgd(0.1))
    state = program.init(model.params, rows, jax.random.key(1))
    state = jax.jit(program.consolidate)(state, jax.tree.map(lambda v: v[None], rows))
    after = jax.jit(program.step)(state, rows)[0].params
    out = nn.Conv(10, (3, 3)).apply({"params": model.params["Conv_0"]}, x[:-3])
    loud = np.argsort(-np.abs(np.asarray(out, float)).sum((0, 1, 2)))[:3]
    moved = np.asarray(after["Conv_0"]["kernel"] != model.params["Conv_0"]["kernel"])
    assert set(np.flatnonzero(moved.any((0, 1, 2)))) == set(loud)
    heads = np.asarray(
        after["DenseGeneral_0"]["kernel"] != model.params["DenseGeneral_0"]["kernel"]
    )
    assert heads.shape == (10, 2, 2) and heads.any(0).sum() == 1
