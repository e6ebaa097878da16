"""States in fewer bits and in the host's memory do what they did before."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jcl
from jcl import losses, mesh, methods, models, storage

KEYS = jax.random.split(jax.random.key(0), 3)
PARAMS = models.mlp.init(KEYS[0], [16, 32, 8])
BATCH = {
    "x": jax.random.normal(KEYS[1], (16, 16)),
    "y": jax.random.randint(KEYS[2], (16,), 0, 8),
}


def trained(method: jcl.Method, spread: jax.sharding.Mesh | None = None) -> jcl.State:
    """Two stages of three steps."""
    program = jcl.make(
        method, models.mlp.apply, losses.cross_entropy(), optax.sgd(0.1), mesh=spread
    )
    shardings: Any = None
    if program.layout is not None:
        shapes = jax.eval_shape(program.init, PARAMS, BATCH, KEYS[0])
        shardings = mesh.of_state(shapes, program.layout)
    step = jax.jit(program.step, out_shardings=(shardings, None), donate_argnums=0)
    close = jax.jit(program.consolidate, out_shardings=shardings, donate_argnums=0)
    state = jax.jit(program.init, out_shardings=shardings)(PARAMS, BATCH, KEYS[0])
    for _ in range(2):
        for _ in range(3):
            state, _ = step(state, BATCH)
        state = close(state, jax.tree.map(lambda x: x[None], BATCH))
    return state


def apart(a: Any, b: Any) -> float:
    return float(jcl.trees.norm(jcl.trees.subtract(a, b)) / jcl.trees.norm(b))


@pytest.mark.parametrize("build", [methods.ewc, methods.mas, methods.l2sp])
def test_bfloat16_rounds_once_a_boundary(build: Any) -> None:
    plain, small = trained(build(strength=0.5)), trained(storage.compress(build(strength=0.5)))
    name = build().name
    for kept, whole in zip(
        jax.tree.leaves(small.methods[name]), jax.tree.leaves(plain.methods[name]), strict=True
    ):
        assert kept.dtype == (jnp.bfloat16 if whole.ndim > 1 else whole.dtype)
    assert apart(small.params, plain.params) < 1e-3
    assert jcl.trees.nbytes(small.methods) < 0.6 * jcl.trees.nbytes(plain.methods)


def test_int8_is_off_by_half_a_step_at_most() -> None:
    x = jax.random.normal(KEYS[0], (5, 64)) * jnp.logspace(-8, 8, 5)[:, None]
    packed = storage._quantise(x)
    assert packed.values.dtype == jnp.int8 and packed.scale.shape == (5, 1)
    off = jnp.abs(packed.values * packed.scale - x)
    assert bool((off <= 0.5001 * jnp.max(jnp.abs(x), axis=1, keepdims=True) / 127).all())
    assert not jnp.isnan(storage._quantise(jnp.zeros((2, 3))).values).any()


def test_int8_penalties_pull_nearly_alike() -> None:
    plain = trained(methods.ewc(strength=0.5))
    small = trained(storage.compress(methods.ewc(strength=0.5), "int8"))
    assert 0 < apart(small.params, plain.params) < 0.02
    assert jcl.trees.nbytes(small.methods) < 0.4 * jcl.trees.nbytes(plain.methods)


@pytest.mark.parametrize("axes", [{}, {"fsdp": 4}])
def test_what_is_offloaded_stays_pinned_on_the_host(axes: dict[str, int]) -> None:
    plain = trained(methods.ewc(strength=0.5))
    away = trained(storage.offload(methods.ewc(strength=0.5)), mesh.make(**axes))
    kinds = {x.sharding.memory_kind for x in jax.tree.leaves(away.methods)}
    assert kinds == {"pinned_host"}
    assert {x.sharding.memory_kind for x in jax.tree.leaves(away.params)} == {"device"}
    assert apart(away.params, plain.params) < 1e-6


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_fewer_bits_are_sharded_like_the_parameters(dtype: Any) -> None:
    method = storage.compress(methods.ewc(strength=0.5), dtype)
    state = trained(method, mesh.make(fsdp=2, tensor=4))
    kept = state.methods["ewc"].fisher["dense_0"]["kernel"]
    values = kept.values if dtype == "int8" else kept
    assert values.sharding.spec == state.params["dense_0"]["kernel"].sharding.spec
    assert apart(state.params, trained(method).params) < 1e-5


@pytest.mark.quick
def test_what_would_be_rounded_every_step_is_refused() -> None:
    with pytest.raises(ValueError, match="method is 'si', but must be one that doesn't observe"):
        storage.compress(methods.si())
    with pytest.raises(ValueError, match="dtype is 'int4', but must be"):
        storage.compress(methods.ewc(), "int4")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one method; wrap a chain's parts"):
        storage.offload(jcl.chain(methods.ewc(), methods.er(capacity=4, rows=2)))


@pytest.mark.quick
def test_hooks_that_a_method_lacks_stay_undefined() -> None:
    wrapped = storage.offload(methods.ewc())
    assert not jcl.method.defines(wrapped, "observe")
    assert np.array_equal(wrapped.reads, methods.ewc().reads)
