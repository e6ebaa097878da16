"""Counted against what a product of matrices is known to take."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
import pytest
from jax import lax

import jcl
from jcl import flops, losses, methods, models

X, W = jnp.zeros((3, 4)), jnp.zeros((4, 4))
ONCE = 2 * 3 * 4 * 4


@pytest.mark.quick
def test_a_scan_counts_as_often_as_it_runs() -> None:
    def body(x: jax.Array, _: None) -> tuple[jax.Array, None]:
        return x @ W, None

    assert flops.count(lambda x: lax.scan(body, x, None, length=5)[0], X) == 5 * ONCE


@pytest.mark.quick
def test_what_no_result_depends_on_is_not_counted() -> None:
    assert flops.count(lambda x: (x @ W, x)[1], X) == 0
    # inside a call too
    assert flops.count(lambda x: jax.jit(lambda y: (y @ W, y @ W @ W))(x)[0], X) == ONCE


@pytest.mark.quick
def test_what_each_device_does_counts_for_all_of_them() -> None:
    there = jcl.mesh.make(data=2, fsdp=3)
    rows = jax.P(("data", "fsdp"))
    x = jnp.zeros((6, 4))

    def spread(x: jax.Array) -> jax.Array:
        return jax.shard_map(lambda x: x @ W, mesh=there, in_specs=rows, out_specs=rows)(x)

    assert flops.count(spread, x) == 2 * ONCE


@pytest.mark.quick
def test_the_dearest_branch_counts() -> None:
    def either(yes: bool, x: jax.Array) -> jax.Array:
        return lax.cond(yes, lambda: x @ W @ W, lambda: x @ W)

    assert flops.count(either, jnp.bool_(True), X) == 2 * ONCE


@pytest.mark.quick
def test_a_gradient_is_twice_its_forward_pass_and_rematerialising_once_more() -> None:
    def f(x: jax.Array, w: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(x @ w))

    gradient = jax.grad(f, argnums=(0, 1))
    assert flops.count(gradient, X, W) == 3 * ONCE
    again = jax.value_and_grad(jax.checkpoint(f), argnums=(0, 1))
    assert flops.count(again, X, W) == 4 * ONCE


@pytest.mark.quick
def test_convolutions_and_ragged_products() -> None:
    image, kernel = jnp.zeros((1, 2, 8, 8)), jnp.zeros((5, 2, 3, 3))
    assert flops.count(lambda a, b: lax.conv(a, b, (1, 1), "VALID"), image, kernel) == (
        2 * 5 * 6 * 6 * 2 * 3 * 3
    )
    experts, sizes = jnp.zeros((2, 4, 5)), jnp.array([1, 2])
    assert flops.count(lax.ragged_dot, X, experts, sizes) == 2 * 3 * 4 * 5

    def loss(x: jax.Array, w: jax.Array) -> jax.Array:
        return jnp.sum(lax.ragged_dot(x, w, sizes) ** 2)

    assert flops.count(jax.grad(loss, argnums=(0, 1)), X, experts) == 3 * 2 * 3 * 4 * 5


def test_a_decoder_takes_two_a_parameter_and_token() -> None:
    config = models.decoder.Config(vocabulary=64, layers=3, width=32, heads=2, kv_heads=2)
    params = models.decoder.init(jax.random.key(0), config)
    batch = {"tokens": jnp.zeros((2, 8), jnp.int32)}
    weights = sum(x.size for x in jax.tree.leaves(params) if x.ndim > 1) - 2 * 3 * 32
    attention = 2 * config.layers * config.width * 8  # scores and values, all pairs
    expected = 2 * (weights + attention) * 16
    assert flops.count(models.decoder.apply_fn(config), params, batch) == expected


@pytest.mark.quick
@pytest.mark.parametrize(
    ("method", "passes"),
    [
        (methods.naive(), 3),
        (methods.ewc(), 3),
        (methods.er(capacity=8, rows=2), 6),
        (methods.lwf(), 4),
    ],
    ids=["naive", "ewc", "er", "lwf"],
)
def test_methods_cost_what_they_compute(method: jcl.Method, passes: int) -> None:
    """One forward pass, two backward; replay doubles the batch, a teacher is one pass more."""
    params = {"w": jnp.zeros((6, 5)), "v": jnp.zeros((5, 7))}
    batch = {"x": jnp.zeros((2, 6)), "y": jnp.zeros(2, jnp.int32)}
    program = jcl.make(
        method, lambda p, b: b["x"] @ p["w"] @ p["v"], losses.cross_entropy(), optax.sgd(0.1)
    )
    state = jax.eval_shape(program.init, params, batch, jax.random.key(0))
    first, second = 2 * 2 * 6 * 5, 2 * 2 * 5 * 7
    forward = first + second
    backward = forward + second  # no gradient of the inputs
    expected = {3: 1, 6: 2, 4: 1}[passes] * (forward + backward) + (forward if passes == 4 else 0)
    assert flops.count(program.step, state, batch) == expected
