"""A batch's rows in equal parts, each counted once."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcl import mesh
from jcl.parallel.rows import by_slices, replica_rows, split_rows

pytestmark = pytest.mark.quick


def batch(rows: int) -> dict[str, jax.Array]:
    x = jnp.arange(1.0, 3 * rows + 1).reshape(rows, 3)
    return {"x": x, "task": jnp.arange(rows), "weight": jnp.linspace(0.5, 1.0, rows)}


@pytest.mark.parametrize("rows, parts, size", [(6, 3, 2), (7, 3, 3), (2, 5, 1), (5, 1, 5)])
def test_parts_are_the_rows_in_order_and_padding_weighs_nothing(
    rows: int, parts: int, size: int
) -> None:
    given, found = batch(rows), split_rows(batch(rows), parts)
    for name, x in found.items():
        assert x.shape == (parts, size, *given[name].shape[1:]) and x.dtype == given[name].dtype
        flat = np.asarray(x).reshape(-1, *x.shape[2:])
        np.testing.assert_array_equal(flat[:rows], given[name])
        assert not flat[rows:].any()


@pytest.mark.parametrize("parts", [1, 2])
def test_replicas_share_out_the_rows(parts: int) -> None:
    given = batch(7)
    found = jax.vmap(
        lambda _: replica_rows(given, "replica", parts), axis_name="replica", axis_size=3
    )(jnp.arange(3))
    for name, x in found.items():
        wanted = split_rows(given, 3 * parts)[name]
        np.testing.assert_array_equal(np.asarray(x).reshape(wanted.shape), wanted)


def test_slices_of_a_mesh_share_out_the_rows_and_agree() -> None:
    given = batch(7)

    def total(given: dict[str, jax.Array]) -> jax.Array:
        mine = replica_rows(given, "data")
        return jax.lax.psum(jnp.sum(mine["weight"][..., None] * mine["x"], (0, 1)), "data")

    there = mesh.make(data=4, fsdp=2)
    found = jax.jit(by_slices(total, there))(given)
    wanted = np.sum(np.asarray(given["weight"])[:, None] * np.asarray(given["x"]), 0)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
