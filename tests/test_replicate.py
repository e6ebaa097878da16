"""Members of one compiled function are the programs that they are alone."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jcl
from jcl import losses, mesh, methods, models

SIZES = (6, 8, 4)
PARAMS = models.mlp.init(jax.random.key(0), SIZES)
TASKS, STEPS, ROWS = 2, 4, 8
X = jax.random.normal(jax.random.key(1), (TASKS, STEPS, ROWS, SIZES[0]))
STREAM = {"x": X, "y": jax.random.randint(jax.random.key(2), X.shape[:3], 0, SIZES[-1])}


def make(method: jcl.Method, **options: Any) -> jcl.Program:
    tx = optax.adam(1e-2)
    return jcl.make(method, models.mlp.apply, losses.cross_entropy(), tx, **options)


@pytest.mark.parametrize("how", ["vmap", "map", "devices"])
@pytest.mark.parametrize("members", [3, 11])  # more than, and not a multiple of, the 8 devices
def test_members_are_what_they_are_alone(how: Any, members: int) -> None:
    strengths = jnp.linspace(0.0, 50.0, members)
    many = jcl.replicate(lambda s: make(methods.ewc(strength=s)), strengths, how)
    keys = jax.random.split(jax.random.key(5), members)
    run = partial(jcl.run, params=PARAMS, stream=STREAM)
    states, aux = jax.jit(partial(many.over_members, lambda p, key: run(p, key=key)))(keys)
    assert aux["steps"]["loss"].shape == (members, TASKS, STEPS)
    for i in (0, members - 1):
        alone, _ = run(make(methods.ewc(strength=strengths[i])), key=keys[i])
        for a, b in zip(jax.tree.leaves(alone.params), jax.tree.leaves(states.params), strict=True):
            np.testing.assert_allclose(a, b[i], rtol=1e-4, atol=1e-5)


@pytest.mark.quick
@pytest.mark.parametrize("how", ["vmap", "map", "devices"])
@pytest.mark.parametrize("members", [1, 3, 11])
def test_a_function_of_each_member_sees_its_own_value_and_argument(how: Any, members: int) -> None:
    """Of a method that keeps its value, without a step."""
    values = jnp.arange(1.0, members + 1)
    many = jcl.replicate(
        lambda v: make(jcl.Method("keeps", init=lambda ctx, params: (params, {"value": v}))),
        values, how,
    )  # fmt: skip
    assert many.members == members

    def product(program: jcl.Program, factor: jax.Array) -> jax.Array:
        batch = jax.tree.map(lambda x: x[0, 0], STREAM)
        kept = program.init(PARAMS, batch, jax.random.key(0)).methods["keeps"]["value"]
        return factor * kept

    found = jax.jit(lambda f: many.over_members(product, f))(10 * values)
    np.testing.assert_array_equal(found, 10 * np.arange(1.0, members + 1) ** 2)


@pytest.mark.quick
def test_programs_on_a_mesh_are_no_members() -> None:
    with pytest.raises(ValueError, match=r"mesh is \{.*'fsdp': 2.*\}, but must be None"):
        jcl.replicate(lambda _: make(methods.naive(), mesh=mesh.make(fsdp=2)), jnp.arange(3))
