"""Importances against gradients written out by hand, and against what must not change them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import jcl
from jcl import importance, losses, models, taps, trees

FEATURES, CLASSES = 5, 3


def logistic(params: Any, batch: Any) -> jax.Array:
    """Logistic regression without taps, so that the scan over rows is taken."""
    return batch["x"] @ params["dense_0"]["kernel"] + params["dense_0"]["bias"]


def data(seed: int, count: int, *, padding: int = 0) -> dict[str, np.ndarray]:
    """`count` rows of fractional weights and, after them, `padding` rows of nonsense."""
    rng = np.random.default_rng(seed)
    rows = {
        "x": rng.normal(size=(count, FEATURES)),
        "y": rng.integers(0, CLASSES, count),
        "weight": rng.uniform(0.25, 2.0, count),
    }
    nonsense = {"x": np.full((padding, FEATURES), 1e3), "y": np.zeros(padding, int)}
    nonsense["weight"] = np.zeros(padding)
    joined = {k: np.concatenate([rows[k], nonsense[k]]) for k in rows}
    return {k: v.astype(np.int32 if k == "y" else np.float32) for k, v in joined.items()}


def batched(rows: dict[str, np.ndarray], batches: int) -> dict[str, jax.Array]:
    return {k: jnp.asarray(v.reshape(batches, -1, *v.shape[1:])) for k, v in rows.items()}


def measure(
    apply: Any, params: Any, batches: Any, seed: int = 0, loss: Any = None, **how: Any
) -> Any:
    """`importance.fisher`, or `sensitivity` without labels, as a method's `consolidate` does it."""

    def consolidate(state: Any, ctx: Any, params: Any, batches: Any) -> Any:
        found = importance.fisher(ctx, params, batches, **how) if how else None
        return params, found or importance.sensitivity(ctx, params, batches)

    def init(ctx: Any, params: Any) -> Any:
        return params, trees.zeros(params)

    probe = jcl.Method("probe", init=init, consolidate=consolidate)
    program = jcl.make(probe, apply, loss or losses.cross_entropy(), optax.sgd(0.1))
    example = jax.tree.map(lambda x: x[0], batches)
    state = program.init(params, example, jax.random.key(seed))
    return jax.jit(program.consolidate)(state, batches).methods["probe"]


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def closed_form(params: Any, rows: dict[str, np.ndarray], labels: str) -> Any:
    """Logistic regression's diagonal Fisher: ∂(-log p_y)/∂W = x (p - e_y)ᵀ, in float64.

    Over labels drawn from p, E (p_c - [c = y])² is p_c (1 - p_c).
    """
    x, w = rows["x"].astype(float), rows["weight"].astype(float)
    kernel, bias = (np.asarray(params["dense_0"][k], float) for k in ("kernel", "bias"))
    p = softmax(x @ kernel + bias)
    slopes = (p - np.eye(CLASSES)[rows["y"]]) ** 2 if labels == "empirical" else p * (1 - p)
    return {
        "dense_0": {
            "kernel": np.einsum("b,bi,bc->ic", w, x**2, slopes) / w.sum(),
            "bias": np.einsum("b,bc->c", w, slopes) / w.sum(),
        }
    }


def assert_close(found: Any, wanted: Any, rtol: float = 2e-5) -> None:
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max()),
        found,
        wanted,
    )


@pytest.mark.parametrize("labels", ["empirical", "exact"])
@pytest.mark.parametrize("apply", [models.mlp.apply, logistic], ids=["closed form", "rows"])
def test_fisher_of_logistic_regression_is_the_analytic_one(apply: Any, labels: str) -> None:
    params = models.mlp.init(jax.random.key(0), [FEATURES, CLASSES])
    rows = data(1, 24, padding=8)
    found = measure(apply, params, batched(rows, 4), labels=labels)
    assert_close(found, closed_form(params, data(1, 24), labels))


@pytest.mark.quick
@pytest.mark.parametrize("apply", [models.mlp.apply, logistic], ids=["closed form", "rows"])
def test_sampled_fisher_is_the_exact_one_in_expectation(apply: Any) -> None:
    params = models.mlp.init(jax.random.key(0), [FEATURES, CLASSES])
    rows = data(1, 24)
    batches = batched(rows, 4)
    wanted = closed_form(params, rows, "exact")
    draw = jax.jit(lambda seed: measure(apply, params, batches, seed=seed, labels="sampled"))
    draws = jax.lax.map(draw, jnp.arange(400))
    for name in ("kernel", "bias"):
        sample = np.asarray(draws["dense_0"][name], float)
        error = sample.std(axis=0, ddof=1) / np.sqrt(len(sample))
        assert np.all(error > 0)  # the draws differ
        z = (sample.mean(axis=0) - wanted["dense_0"][name]) / error
        assert np.abs(z).max() < 4.5
        other = closed_form(params, rows, "empirical")["dense_0"][name]
        assert np.abs((sample.mean(axis=0) - other) / error).max() > 10  # it can tell them apart


DEEP = models.mlp.init(jax.random.key(2), [FEATURES, 7, 6, CLASSES])


def untapped(params: Any, batch: Any) -> jax.Array:
    return models.mlp.apply(params, batch)


def by_vmap(rows: dict[str, np.ndarray], power: int, scalar: Any) -> Any:
    """The textbook's way: a gradient for each row, all of them held at once."""
    slopes = jax.vmap(jax.grad(scalar), in_axes=(None, 0, 0))(DEEP, rows["x"], rows["y"])
    w = rows["weight"] / rows["weight"].sum()
    return jax.tree.map(lambda g: np.einsum("b,b...->...", w, np.abs(g) ** power), slopes)


@pytest.mark.parametrize("labels", ["empirical", "sampled", "exact"])
def test_dense_closed_form_equals_the_scan_over_rows(labels: str) -> None:
    batches = batched(data(3, 24, padding=4), 2)
    dense = measure(models.mlp.apply, DEEP, batches, labels=labels)
    rows = measure(untapped, DEEP, batches, labels=labels)
    assert_close(dense, rows)


@pytest.mark.parametrize("apply", [models.mlp.apply, untapped], ids=["closed form", "rows"])
def test_deep_statistics_equal_a_gradient_for_each_row(apply: Any) -> None:
    rows = data(3, 24)

    def nll(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return -jax.nn.log_softmax(models.mlp.apply(params, {"x": x[None]})[0])[y]

    def squares(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.sum(models.mlp.apply(params, {"x": x[None]}) ** 2)

    batches = batched(rows, 2)
    assert_close(measure(apply, DEEP, batches, labels="empirical"), by_vmap(rows, 2, nll))
    assert_close(measure(apply, DEEP, batches), by_vmap(rows, 1, squares))


STATISTICS = [{"labels": "empirical"}, {"labels": "exact"}, {}]
NAMES = ["empirical", "exact", "sensitivity"]


@pytest.mark.parametrize("how", STATISTICS, ids=NAMES)
@pytest.mark.parametrize("apply", [models.mlp.apply, untapped], ids=["closed form", "rows"])
def test_neither_batch_size_nor_padding_matters(apply: Any, how: dict[str, str]) -> None:
    one = measure(apply, DEEP, batched(data(4, 24), 24), **how)
    for batches in (1, 8):
        assert_close(measure(apply, DEEP, batched(data(4, 24), batches), **how), one)
    padded = measure(apply, DEEP, batched(data(4, 24, padding=24), 6), **how)
    assert_close(padded, one)


def test_the_square_of_a_batch_mean_would_depend_on_the_batch() -> None:
    """The mistake that the statistic avoids, so that the test above is seen to mean something."""
    rows = data(4, 24)

    @jax.jit
    def squared_mean(parts: Any) -> jax.Array:
        slope = jax.grad(lambda p, b: losses.cross_entropy()(untapped, p, b)[0])
        slopes = jax.vmap(slope, (None, 0))(DEEP, parts)
        return jcl.trees.norm(jax.tree.map(lambda g: jnp.mean(g**2, 0), slopes))

    assert squared_mean(batched(rows, 1)) < 0.5 * squared_mean(batched(rows, 24))


@pytest.mark.parametrize("how", STATISTICS, ids=NAMES)
@pytest.mark.parametrize("apply", [models.mlp.apply, untapped], ids=["closed form", "rows"])
def test_padding_alone_is_worth_nothing(apply: Any, how: dict[str, str]) -> None:
    found = measure(apply, DEEP, batched(data(5, 0, padding=8), 2), **how)
    assert all(np.all(np.asarray(x) == 0) for x in jax.tree.leaves(found))


@pytest.mark.parametrize("apply", [models.mlp.apply, logistic], ids=["closed form", "rows"])
def test_a_certain_model_has_a_finite_exact_fisher(apply: Any) -> None:
    # class 1 is certain in 56 rows and in 8 has e^-80 to e^-94: around float32's least numbers,
    # where the share of a row in the batch's weight is 0 and its inverse infinite
    params = {
        "dense_0": {
            "kernel": jnp.zeros((FEATURES, CLASSES)).at[0, 1].set(-1.0),
            "bias": jnp.asarray([0.0, 0.0, -200.0]),
        }
    }
    rows = data(6, 64)
    rows["x"][:, 0] = np.concatenate([np.full(56, -5.0), np.arange(80, 96, 2)])
    found = measure(apply, params, batched(rows, 1), labels="exact")
    assert_close(found, closed_form(params, rows, "exact"), rtol=1e-6)


def test_sensitivity_of_a_linear_model_is_the_closed_form() -> None:
    # ∂‖xW + b‖²/∂W = 2 x fᵀ, so Ω is the mean of 2 |x| |f|ᵀ
    params = models.mlp.init(jax.random.key(0), [FEATURES, CLASSES])
    rows = data(7, 24)
    w = rows["weight"] / rows["weight"].sum()
    f = np.asarray(logistic(params, rows))
    wanted = 2 * np.einsum("b,bi,bc->ic", w, np.abs(rows["x"]), np.abs(f))
    for apply in (models.mlp.apply, logistic):
        found = measure(apply, params, batched(rows, 4))["dense_0"]
        np.testing.assert_allclose(found["kernel"], wanted, rtol=2e-5)
        np.testing.assert_allclose(found["bias"], 2 * w @ np.abs(f), rtol=2e-5)


def test_a_layer_that_is_used_twice_takes_the_scan_over_rows() -> None:
    """Its gradient is a sum of two outer products, whose square the closed form doesn't give."""
    params = {"dense_0": {"kernel": 0.3 * jax.random.normal(jax.random.key(8), (3, 3))}}

    def twice(params: Any, batch: Any, tap: Any = taps.identity) -> jax.Array:
        h = jnp.tanh(models.dense(params["dense_0"], batch["x"][:, :3], "dense_0", tap))
        return models.dense(params["dense_0"], h, "dense_0", tap)

    batches = batched(data(9, 24), 2)
    found = measure(twice, params, batches, labels="empirical")
    wanted = measure(lambda p, b: twice(p, b), params, batches, labels="empirical")
    assert_close(found, wanted)


def test_half_precision_parameters_have_float32_statistics() -> None:
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), DEEP)
    found = measure(models.mlp.apply, half, batched(data(4, 24), 2), labels="empirical")
    assert {x.dtype for x in jax.tree.leaves(found)} == {jnp.dtype("float32")}


def test_labels_that_a_loss_cannot_draw_are_refused() -> None:
    batches = batched(data(3, 8), 2)

    def plain(apply: Any, params: Any, batch: Any) -> jax.Array:
        return losses.cross_entropy()(apply, params, batch)[0]

    for labels in ("sampled", "exact"):
        with pytest.raises(ValueError, match=f"labels is '{labels}'.*'empirical'"):
            measure(untapped, DEEP, batches, loss=plain, labels=labels)
    assert_close(
        measure(untapped, DEEP, batches, loss=plain, labels="empirical"),
        measure(untapped, DEEP, batches, labels="empirical"),
    )


class Seeing(nn.Module):
    """Two convolutions and what reads them: all of it dense layers."""

    apart: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = jnp.tanh(nn.Conv(3, (2, 2), 2)(x.reshape(-1, 4, 4, 1)))
        conv = nn.remat(nn.Conv) if self.apart else nn.Conv
        x = jnp.tanh(conv(4, (2, 2), use_bias=False)(x))
        return nn.DenseGeneral(CLASSES, axis=(1, 2, 3))(x)


@pytest.mark.parametrize("module", [Seeing(), Seeing(apart=True)], ids=["dense", "rows"])
@pytest.mark.parametrize("how", [{"labels": "empirical"}, {}], ids=["fisher", "sensitivity"])
def test_convolutions_have_the_statistics_of_a_gradient_for_each_row(
    module: Any, how: dict[str, str]
) -> None:
    """At the price of one batch gradient, but for layers inside a transformation."""
    rows = data(5, 8, padding=2)
    rows["x"] = np.random.default_rng(6).normal(size=(10, 16)).astype(np.float32)
    rows["x"][8:] = 1e3
    model = models.flax.linen(module, rows, jax.random.key(0))
    paths = importance._dense_paths(model.apply, model.params, rows)
    assert (paths is None) == module.apart
    found = measure(model.apply, model.params, batched(rows, 2), **how)

    def scalar(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        out = module.apply({"params": params}, x[None])[0]
        return -jax.nn.log_softmax(out)[y] if how else jnp.sum(out**2)

    power = 2 if how else 1
    slopes = jax.vmap(jax.grad(scalar), in_axes=(None, 0, 0))(
        model.params, rows["x"][:8], rows["y"][:8]
    )
    w = rows["weight"][:8] / rows["weight"].sum()
    wanted = jax.tree.map(lambda g: np.einsum("b,b...->...", w, np.abs(g) ** power), slopes)
    assert_close(found, wanted)
