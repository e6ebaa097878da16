"""Soft-masking: importances against one gradient an example, and what they do to an update."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_decoder as tiny
import tiny_pairs
from flax import linen as nn

import jcl
from jcl import losses, methods, models, preference
from jcl.methods.masks.soft_mask import normalised

ROWS, BATCHES = 6, 2
PARAMS = models.mlp.init(jax.random.key(0), [5, 8, 7, 4])


def batches(seed: int) -> dict[str, jax.Array]:
    x = jax.random.normal(jax.random.key(seed), (BATCHES, ROWS, 5))
    y = jnp.broadcast_to(jnp.arange(ROWS) % 4, (BATCHES, ROWS))
    weight = jnp.ones((BATCHES, ROWS)).at[1, -2:].set(0.0)
    return {"x": x, "y": y, "weight": weight}


def gated(gates: dict[str, jax.Array], x: jax.Array, y: jax.Array) -> jax.Array:
    h = x
    for name, layer in PARAMS.items():
        h = h @ layer["kernel"] + layer["bias"]
        if name in gates:
            h = jax.nn.relu(h * gates[name])
    return -jax.nn.log_softmax(h)[y]


def by_hand(data: Any) -> dict[str, np.ndarray]:
    """|tanh(z)| of the mean over real examples of |∂ℓ/∂g|, an example at a time, in numpy."""
    ones = {"dense_0": jnp.ones(8), "dense_1": jnp.ones(7)}
    slope = jax.jit(jax.grad(gated))
    rows = [
        slope(ones, data["x"][i, j], data["y"][i, j])
        for i in range(BATCHES)
        for j in range(ROWS)
        if data["weight"][i, j] > 0
    ]
    scores = {}
    for name in ones:
        mean = np.mean([np.abs(np.asarray(r[name], np.float64)) for r in rows], axis=0)
        scores[name] = np.abs(np.tanh((mean - mean.mean()) / mean.std(ddof=1)))
    return scores


def make(tx: Any, **arguments: Any) -> tuple[Any, Any]:
    method = methods.soft_mask(**arguments)
    program = jcl.make(method, models.mlp.apply, losses.cross_entropy(), tx)
    first = jax.tree.map(lambda x: x[0], batches(0))
    return program, program.init(PARAMS, first, jax.random.key(1))


def test_importance_is_the_largest_of_all_stages() -> None:
    program, state = make(optax.sgd(0.0))
    consolidate = jax.jit(program.consolidate)
    want = by_hand(batches(0))
    state = consolidate(state, batches(0))
    for name, score in want.items():
        np.testing.assert_allclose(state.methods["soft_mask"].importance[name], score, rtol=1e-4)
    assert set(state.methods["soft_mask"].importance) == set(want)  # the head is left out
    state = consolidate(state, batches(5))
    for name, score in by_hand(batches(5)).items():
        most = np.maximum(score, want[name])
        np.testing.assert_allclose(state.methods["soft_mask"].importance[name], most, rtol=1e-4)


@pytest.mark.parametrize("tx, at", [(optax.sgd(0.1), "grads"), (optax.adam(1e-2), "updates")])
def test_the_update_of_a_unit_shrinks_by_its_importance(tx: Any, at: Any) -> None:
    rows = jax.tree.map(lambda x: x[0], batches(9))

    def change(strength: float) -> tuple[Any, Any]:
        program, state = make(tx, at=at, strength=strength)
        state = jax.jit(program.consolidate)(state, batches(0))
        after, _ = jax.jit(program.step)(state, rows)
        return state, jax.tree.map(lambda a, b: np.asarray(a - b, np.float64), after.params, PARAMS)

    state, slow = change(0.5)
    _, full = change(0.0)
    for name, layer in full.items():
        rate = 1 - 0.5 * np.asarray(state.methods["soft_mask"].importance.get(name, 0.0))
        np.testing.assert_allclose(slow[name]["kernel"], layer["kernel"] * rate, atol=2e-7)
        np.testing.assert_allclose(slow[name]["bias"], layer["bias"] * rate, atol=2e-7)
        assert np.abs(layer["kernel"]).max() > 1e-3


@pytest.mark.quick
def test_equal_scores_protect_nothing() -> None:
    np.testing.assert_array_equal(normalised(jnp.full((2, 5), 3.0)), np.zeros((2, 5)))
    np.testing.assert_array_equal(normalised(jnp.ones(1)), [0.0])


def test_stacked_layers_have_importances_of_their_own() -> None:
    layers = [models.init_dense(jax.random.key(i), 5, 5) for i in (3, 4)]
    stack = {"stack": jax.tree.map(lambda *x: jnp.stack(x), *layers)}
    data = {k: v for k, v in batches(0).items() if k != "y"} | {"y": batches(3)["x"]}

    def scanned(params: Any, batch: Any, tap: Any) -> jax.Array:
        def layer(h: jax.Array, xs: Any) -> tuple[jax.Array, None]:
            return jnp.tanh(models.dense(xs[0], h, "stack", tap, xs[1])), None

        return jax.lax.scan(layer, batch["x"], (params["stack"], jnp.arange(2)))[0]

    scanned.structure = jcl.Structure(stacks={"stack": 1})

    def unrolled(params: Any, batch: Any, tap: Any) -> jax.Array:
        h = batch["x"]
        for i in range(2):
            h = jnp.tanh(models.dense(params[f"layer_{i}"], h, f"layer_{i}", tap))
        return h

    found = []
    for apply, params in (
        (scanned, stack),
        (unrolled, {f"layer_{i}": p for i, p in enumerate(layers)}),
    ):
        method = methods.soft_mask(masked=lambda path: True)
        program = jcl.make(method, apply, losses.squared_error, optax.sgd(0.1))
        state = program.init(params, jax.tree.map(lambda x: x[0], data), jax.random.key(1))
        found.append(jax.jit(program.consolidate)(state, data).methods["soft_mask"].importance)
    np.testing.assert_allclose(found[0]["stack"][0], found[1]["layer_0"], rtol=1e-5)
    np.testing.assert_allclose(found[0]["stack"][1], found[1]["layer_1"], rtol=1e-5)


@pytest.mark.quick
def test_a_predicate_that_names_no_layer_is_refused() -> None:
    with pytest.raises(ValueError, match="masked"):
        make(optax.sgd(0.1), masked=lambda path: False)


class Seeing(nn.Module):
    """A convolution and a head."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(4)(nn.relu(nn.Conv(6, (3, 3))(x)).mean((1, 2)))


def test_a_convolutions_units_are_its_channels() -> None:
    data = batches(0) | {"x": jax.random.normal(jax.random.key(3), (BATCHES, ROWS, 4, 4, 2))}
    first = jax.tree.map(lambda x: x[0], data)
    model = models.flax.linen(Seeing(), first, jax.random.key(1), head="Dense_0")
    conv, head = model.params["Conv_0"], model.params["Dense_0"]
    programs = [
        jcl.make(m, model.apply, losses.cross_entropy(), optax.sgd(0.1))
        for m in (methods.soft_mask(), methods.naive())
    ]

    def gated(gates: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
        h = nn.Conv(6, (3, 3)).apply({"params": conv}, x)
        h = jax.nn.relu(h * gates).mean((0, 1))
        return -jax.nn.log_softmax(h @ head["kernel"] + head["bias"])[y]

    real = [(i, j) for i in range(BATCHES) for j in range(ROWS) if data["weight"][i, j] > 0]
    slope = jax.jit(jax.grad(gated))
    found = [np.abs(slope(jnp.ones(6), data["x"][at], data["y"][at])) for at in real]
    score = np.mean(np.float64(found), axis=0)
    wanted = np.abs(np.tanh((score - score.mean()) / score.std(ddof=1)))
    states = [
        jax.jit(p.consolidate)(p.init(model.params, first, jax.random.key(1)), data)
        for p in programs
    ]
    importance = states[0].methods["soft_mask"].importance
    assert set(importance) == {"Conv_0"}
    np.testing.assert_allclose(importance["Conv_0"], wanted, rtol=1e-3)
    slow, free = (
        jcl.trees.subtract(jax.jit(p.step)(s, first)[0].params, model.params)
        for p, s in zip(programs, states, strict=True)
    )
    for name in ("kernel", "bias"):
        ratio = slow["Conv_0"][name] - (1 - wanted) * free["Conv_0"][name]
        assert np.abs(ratio).max() < 1e-5 < np.abs(free["Conv_0"][name]).max()
    np.testing.assert_allclose(slow["Dense_0"]["kernel"], free["Dense_0"]["kernel"], atol=1e-6)


def test_of_a_pair_of_answers_one_gate_is_on_both() -> None:
    made = tiny_pairs.program(methods.soft_mask())
    state = tiny_pairs.start(made)
    batch = tiny_pairs.BATCH
    after = jax.jit(made.consolidate)(state, jax.tree.map(lambda x: x[None], batch))
    found = after.methods["soft_mask"].importance
    head = tiny.APPLY.structure.head_of(state.params)
    assert head not in found

    def gated(gates: dict[str, jax.Array], pair: Any) -> jax.Array:
        def tap(site: str, layer: Any, h: jax.Array) -> jax.Array:
            path = site.removesuffix(":out")
            return h if path == site or path not in gates else h * gates[path][layer]

        def apply(params: Any, rows: Any) -> Any:
            return tiny.APPLY(params, rows, tap)

        return preference.ranking()(apply, state.params, pair)[0]

    ones = {path: jnp.ones_like(x) for path, x in found.items()}
    slope = jax.jit(jax.grad(gated))
    each = [slope(ones, jax.tree.map(lambda x, i=i: x[i : i + 1], batch)) for i in range(4)]
    for path, score in found.items():
        mean = np.mean([np.abs(np.asarray(one[path], np.float64)) for one in each], axis=0)
        away = mean - mean.mean(-1, keepdims=True)
        expected = np.abs(np.tanh(away / mean.std(-1, ddof=1, keepdims=True)))
        np.testing.assert_allclose(score, expected, rtol=1e-3, atol=1e-5)
