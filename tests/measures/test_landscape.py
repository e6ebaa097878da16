"""Lines and features, against closed forms."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcl import landscape

KEYS = jax.random.split(jax.random.key(0), 3)


def test_a_quadratic_has_no_barrier_and_a_double_well_has_its_own() -> None:
    ends = {"w": jnp.array([-1.0])}, {"w": jnp.array([1.0])}
    bowl = landscape.along(lambda p: jnp.sum(p["w"] ** 2), *ends, points=5)
    np.testing.assert_allclose(bowl, [1, 0.25, 0, 0.25, 1], atol=1e-6)
    assert float(landscape.barrier(bowl)) == 0.0  # the ends are the highest, and on the line
    wells = landscape.along(lambda p: jnp.sum((p["w"] ** 2 - 1) ** 2), *ends, points=5)
    np.testing.assert_allclose(landscape.barrier(wells), 1.0, rtol=1e-6)
    # a slope is taken off
    tilted = wells + jnp.linspace(0, 4, 5)
    np.testing.assert_allclose(landscape.barrier(tilted), 1.0, rtol=1e-6)
    many = landscape.barrier(jnp.stack([wells, tilted, bowl], axis=1))
    np.testing.assert_allclose(many, [1, 1, 0], atol=1e-6)


def test_cka_heeds_neither_turns_nor_scale() -> None:
    x = jax.random.normal(KEYS[0], (40, 6)) + 3
    turn = jnp.linalg.qr(jax.random.normal(KEYS[1], (6, 6)))[0]
    np.testing.assert_allclose(landscape.cka(x, 2.5 * x @ turn + 7), 1.0, rtol=1e-5)
    np.testing.assert_allclose(landscape.cka(x, -x), 1.0, rtol=1e-5)


@pytest.mark.quick
def test_cka_is_the_similarity_of_the_gram_matrices() -> None:
    """HSIC(K, L) / √(HSIC(K, K) HSIC(L, L)) with linear kernels, written with n × n matrices."""
    x, y = (np.asarray(jax.random.normal(k, (12, d))) for k, d in zip(KEYS, (4, 7), strict=False))
    center = np.eye(12) - 1 / 12
    k, l = (center @ (z @ z.T) @ center for z in (x, y))
    expected = (k * l).sum() / np.sqrt((k * k).sum() * (l * l).sum())
    np.testing.assert_allclose(landscape.cka(x, y), expected, rtol=1e-5)
    # features of other inputs are hardly alike where there are many inputs
    wide = [jax.random.normal(k, (2000, 4)) for k in KEYS[1:]]
    assert float(landscape.cka(*wide)) < 0.02
