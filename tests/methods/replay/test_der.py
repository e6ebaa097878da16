"""DER and DER++: what is stored, and one step against the equation."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import log_softmax, softmax

import jcl
from jcl import losses, methods

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
RATE = 0.3
START = {"w": jnp.asarray(RNG.normal(size=(3, 4)), jnp.float32)}


def apply(params: Any, batch: Any) -> jax.Array:
    return batch["x"] @ params["w"]


def rows(count: int = 6) -> dict[str, jax.Array]:
    x = jnp.asarray(RNG.normal(size=(count, 3)), jnp.float32)
    return {"x": x, "y": jnp.asarray(RNG.integers(0, 4, count))}


def begin(method: jcl.Method, first: Any, **options: Any) -> tuple[Any, jcl.State]:
    """The jitted step, and the state after a first stage of one batch."""
    program = jcl.make(method, apply, losses.cross_entropy(), optax.sgd(RATE), **options)
    step = jax.jit(program.step)
    state, _ = step(jax.jit(program.init)(START, first, KEY), first)
    return step, jax.jit(program.consolidate)(state, jax.tree.map(lambda v: v[None], first))


def slope(w: np.ndarray, batch: Any) -> np.ndarray:
    x = np.asarray(batch["x"], float)
    return x.T @ (softmax(x @ w, axis=1) - np.eye(4)[np.asarray(batch["y"])]) / len(x)


def nll(w: np.ndarray, batch: Any) -> float:
    logp = log_softmax(np.asarray(batch["x"], float) @ w, axis=1)
    return -float(np.mean(logp[np.arange(len(logp)), np.asarray(batch["y"])]))


@pytest.mark.quick
def test_outputs_are_stored_as_the_step_computed_them_before_its_update() -> None:
    first = rows()
    _, state = begin(methods.der(capacity=10), first)
    stored = state.methods["der"].buffer.rows
    assert np.abs(np.asarray(state.params["w"] - START["w"])).max() > 0.01
    np.testing.assert_allclose(stored["outputs"][:6], first["x"] @ START["w"], rtol=1e-6)
    np.testing.assert_array_equal(stored["x"][:6], first["x"])


METHODS = {
    "der": (methods.der, {"alpha": 0.7}),
    "derpp": (methods.derpp, {"alpha": 0.7, "beta": 0.4}),
    "derpp, one draw": (methods.derpp, {"alpha": 0.7, "beta": 0.4, "draws": 1}),
    "derpp, labels alone": (methods.derpp, {"alpha": 0.0, "beta": 0.4}),
    "derpp, one draw, outputs alone": (methods.derpp, {"alpha": 0.7, "beta": 0.0, "draws": 1}),
}


@pytest.mark.parametrize("microbatches", [1, 4])
@pytest.mark.parametrize("name", METHODS)
def test_a_step_follows_the_equation(name: str, microbatches: int) -> None:
    """With one slot every draw is known: L = CE + α mean_C (z - f)² + β CE(x', y')."""
    build, arguments = METHODS[name]
    first = rows(1)
    step, state = begin(build(capacity=1, rows=5, **arguments), first, microbatches=microbatches)
    alpha, beta = arguments["alpha"], arguments.get("beta", 0.0)
    x = np.asarray(first["x"], float)
    z = x @ np.asarray(START["w"], float)
    for _ in range(2):
        batch = rows()
        w = np.asarray(state.params["w"], float)
        state, aux = step(state, batch)
        match = alpha * 2 * x.T @ (x @ w - z) / 4
        whole = slope(w, batch) + match + beta * slope(w, first)
        np.testing.assert_allclose(state.params["w"], w - RATE * whole, rtol=1e-5, atol=1e-6)
        loss = nll(w, batch) + alpha * np.mean((x @ w - z) ** 2) + beta * nll(w, first)
        np.testing.assert_allclose(aux["loss"], loss, rtol=1e-5)
        # the second step knows what is in memory only where the reservoir kept the first row
        if not np.array_equal(state.methods[build().name].buffer.rows["x"], first["x"]):
            break


@pytest.mark.parametrize("teacher", [methods.distil(START, strength=0.4), methods.lwf(0.4)])
def test_a_teacher_beside_the_memory_counts_rows_alike_in_any_microbatches(
    teacher: jcl.Method,
) -> None:
    """Its mean is over all rows, replayed ones too, as the loss is; not over the labelled ones."""
    first, batch = rows(4), rows()
    ends = []
    for parts in (1, 4):
        step, state = begin(jcl.chain(methods.der(4, 5), teacher), first, microbatches=parts)
        ends.append(step(step(state, batch)[0], batch)[0].params["w"])
    np.testing.assert_allclose(*ends, rtol=1e-5, atol=1e-6)


def test_padding_does_not_change_the_terms_of_the_memory() -> None:
    first = rows(1)
    step, state = begin(methods.derpp(capacity=1, rows=5), first)
    batch = {**rows(), "weight": jnp.array([1.0, 1, 1, 0, 0, 0])}
    short = jax.tree.map(lambda v: v[:3], batch)
    ends = [step(state, b)[0].params["w"] for b in (batch, short)]
    np.testing.assert_allclose(*ends, rtol=1e-5)


def test_rows_replayed_by_another_method_keep_their_place_in_the_loss() -> None:
    """er before der: L = mean over fresh and er's rows + α MSE."""
    first = rows(1)
    pair = jcl.chain(methods.er(capacity=1, rows=2), methods.der(capacity=1, rows=5, alpha=0.7))
    step, state = begin(pair, first)
    batch = rows()
    w, x = np.asarray(state.params["w"], float), np.asarray(first["x"], float)
    state, _ = step(state, batch)
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b, b]), batch, first)
    match = 0.7 * 2 * x.T @ (x @ w - x @ np.asarray(START["w"], float)) / 4
    expected = w - RATE * (slope(w, both) + match)
    np.testing.assert_allclose(state.params["w"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("top_k", [1, 2, 4, 9])
def test_top_k_matches_the_largest_outputs_only(top_k: int) -> None:
    first = rows(1)
    step, state = begin(methods.der(capacity=1, rows=5, alpha=0.7, top_k=top_k), first)
    k = min(top_k, 4)
    stored = state.methods["der"].buffer.rows
    assert stored["outputs"].shape == stored["indices"].shape == (1, k)
    x = np.asarray(first["x"], float)
    z = x @ np.asarray(START["w"], float)
    best = np.argsort(-z[0])[:k]
    batch = rows()
    w = np.asarray(state.params["w"], float)
    _, aux = step(state, batch)
    loss = nll(w, batch) + 0.7 * np.mean(((x @ w - z)[0, best]) ** 2)
    np.testing.assert_allclose(aux["loss"], loss, rtol=1e-5)


def test_tokens_count_as_they_do_in_the_loss() -> None:
    """A masked language model's outputs are matched where the mask counts them."""

    def decoder(params: Any, batch: Any) -> jax.Array:
        return params["w"][batch["tokens"]]

    def sequences(count: int) -> dict[str, jax.Array]:
        return {
            "tokens": jnp.asarray(RNG.integers(0, 3, (count, 7))),
            "mask": jnp.asarray(RNG.integers(0, 2, (count, 6)), jnp.float32),
            "weight": jnp.ones(count),
        }

    program = jcl.make(
        methods.derpp(capacity=1, rows=3, alpha=0.7, beta=0.4),
        decoder,
        losses.next_token,
        optax.sgd(5.0),
    )
    first, batch, step = sequences(1), sequences(5), jax.jit(program.step)
    state, _ = step(jax.jit(program.init)(START, first, KEY), first)
    state = jax.jit(program.consolidate)(state, jax.tree.map(lambda v: v[None], first))
    _, aux = step(state, batch)
    fresh, _ = losses.next_token(decoder, state.params, batch)
    old, _ = losses.next_token(decoder, state.params, first)
    gap = np.asarray((decoder(state.params, first) - decoder(START, first)) ** 2).mean(axis=-1)
    match = np.sum(gap[:, :-1] * first["mask"]) / np.sum(first["mask"])
    assert match > 1e-2
    np.testing.assert_allclose(aux["loss"], fresh + 0.7 * match + 0.4 * old, rtol=1e-5)


def test_a_step_costs_the_forward_and_backward_of_its_rows_and_no_more() -> None:
    def flops(method: jcl.Method) -> float:
        method = method._replace(skips=methods.naive().skips)  # the work alone, without its cond
        program = jcl.make(method, jcl.models.mlp.apply, losses.cross_entropy(), optax.sgd(RATE))
        params = jcl.models.mlp.init(KEY, [128, 256, 256, 10])
        batch = {"x": jnp.zeros((64, 128)), "y": jnp.zeros(64, jnp.int32)}
        state = jax.eval_shape(program.init, params, batch, KEY)
        return jax.jit(program.step).lower(state, batch).compile().cost_analysis()["flops"]

    plain = flops(methods.naive())
    assert flops(methods.derpp(rows=64, draws=1)) < 2.05 * plain
    assert flops(methods.derpp(rows=32)) < 2.05 * plain
