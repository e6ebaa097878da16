"""The closed form against its normal equations, and against the authors' formulas in torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jcl.editing import solve
from jcl.editing.editors.alphaedit import null_space

D, OUT, N = 20, 7, 4


@pytest.fixture(scope="module")
def arrays():
    draw = np.random.default_rng(0)
    x = draw.normal(size=(200, D)) * np.geomspace(3, 0.2, D)
    k, v = draw.normal(size=(N, D)), draw.normal(size=(N, OUT))
    return {"C": x.T @ x / 200, "K": k, "V": v, "bare": draw.normal(size=D)}


def least(C, K, V, slack, met=None):
    C, K, V, met = (None if x is None else jnp.asarray(x, jnp.float32) for x in (C, K, V, met))
    return np.asarray(solve.least_change(solve.factor(C), K, V, slack, met), np.float64)


@pytest.mark.parametrize("slack", [0.1, 30.0])
def test_normal_equations(arrays, slack):
    C, K, V = arrays["C"], arrays["K"], arrays["V"]
    change = least(C, K, V, slack)
    right = K.T @ V
    rest = (slack * C + K.T @ K) @ change - right
    assert np.linalg.norm(rest) < 1e-3 * np.linalg.norm(right)
    assert np.linalg.norm(right) > 1


@pytest.mark.quick
def test_no_slack_meets_the_values_with_the_least_change(arrays):
    C, K, V = arrays["C"], arrays["K"], arrays["V"]
    change = least(C, K, V, 0.0)
    np.testing.assert_allclose(K @ change, V, atol=1e-4)
    # the least of tr(ΔᵀCΔ): minimum norm in coordinates in which C is the identity
    root = np.linalg.cholesky(C)
    other = np.linalg.solve(root.T, np.linalg.lstsq(K @ np.linalg.inv(root.T), V, rcond=None)[0])
    np.testing.assert_allclose(change, other, rtol=1e-3, atol=1e-3 * np.abs(other).max())


def test_one_fact_without_slack_is_rank_one(arrays):
    change = least(arrays["C"], arrays["K"][:1], arrays["V"][:1], 0.0, arrays["bare"][None])
    np.testing.assert_allclose(arrays["bare"] @ change, arrays["V"][0], atol=1e-4)
    size = np.linalg.svd(change, compute_uv=False)
    assert size[1] < 1e-5 * size[0]


@pytest.mark.quick
def test_romes_code(arrays):
    """`compute_u.py` and the end of `compute_v.py`, on the same arrays in torch."""
    C, k, bare, v = (torch.tensor(x) for x in (
        arrays["C"], arrays["K"].mean(0), arrays["bare"], arrays["V"][0]
    ))  # fmt: skip
    left = torch.inverse(C) @ k.unsqueeze(1)
    left = left.squeeze() / left.norm()
    right = v / torch.dot(bare, left)
    wanted = left.unsqueeze(1) @ right.unsqueeze(0)
    mean = arrays["K"].mean(0, keepdims=True)
    change = least(arrays["C"], mean, arrays["V"][:1], 0.0, arrays["bare"][None])
    np.testing.assert_allclose(change, wanted, rtol=2e-3, atol=1e-3 * float(wanted.abs().max()))


@pytest.mark.quick
def test_memits_code(arrays):
    """`memit_main.py`: columns are facts there, and it solves in double."""
    C, K, V = (torch.tensor(x) for x in (arrays["C"], arrays["K"].T, arrays["V"].T))
    adjusted = torch.linalg.solve(3.0 * C + K @ K.T, K)
    wanted = (V @ adjusted.T).T
    change = least(arrays["C"], arrays["K"], arrays["V"], 3.0)
    np.testing.assert_allclose(change, wanted, rtol=2e-3, atol=1e-3 * float(wanted.abs().max()))


@pytest.mark.quick
def test_alphaedits_code(arrays):
    """`get_project`, and the system of `AlphaEdit_main.py`, which isn't symmetric."""
    C, K, V = (torch.tensor(x) for x in (arrays["C"], arrays["K"].T, arrays["V"].T))
    U, S, _ = torch.linalg.svd(C, full_matrices=False)
    small = (S < 0.5).nonzero(as_tuple=True)[0]
    assert 0 < len(small) < D
    P = U[:, small] @ U[:, small].T
    old = torch.tensor(np.random.default_rng(1).normal(size=(D, 3)))
    cache = old @ old.T
    wanted = torch.linalg.solve(P @ (K @ K.T + cache) + 0.5 * torch.eye(D), P @ K @ V.T)

    ours = null_space(jnp.asarray(arrays["C"], jnp.float32), 0.5)
    np.testing.assert_allclose(ours, P, atol=1e-4)
    past = ours @ jnp.asarray(cache, jnp.float32) @ ours
    change = least(past + 0.5 * jnp.eye(D), arrays["K"] @ np.asarray(ours), arrays["V"], 1.0)
    np.testing.assert_allclose(change, wanted, rtol=2e-3, atol=1e-3 * float(wanted.abs().max()))


def test_a_direction_that_no_key_has_taken_does_no_harm():
    C = np.diag([1.0, 1.0, 0.0])
    change = least(C, np.array([[1.0, 0, 0]]), np.ones((1, 2)), 0.0)
    np.testing.assert_allclose(change, [[1, 1], [0, 0], [0, 0]], atol=1e-5)


@pytest.mark.quick
def test_what_is_refused():
    params = {"blocks": {"down": {"kernel": jnp.zeros((2, 3, 4))}, "int8": {"kernel": {}}}}
    with pytest.raises(ValueError, match="path is 'blocks/up', but must be that of a dense layer"):
        solve.kernel(params, "blocks/up", (0,))
    with pytest.raises(ValueError, match="kernel at path is 'blocks/int8', but must be whole"):
        solve.kernel(params, "blocks/int8", (0,))
    with pytest.raises(ValueError, match=r"layers is \(1, 2\), but must be from 0 to 1"):
        solve.kernel(params, "blocks/down", (1, 2))
    kernel = solve.kernel(params, "blocks/down", (1,))
    with pytest.raises(ValueError, match=r"shape of moment is \(2, 4, 4\), .* be \(2, 3, 3\)"):
        solve.check_moment(jnp.zeros((2, 4, 4)), kernel, 2)


@pytest.mark.quick
def test_a_change_is_added_to_one_layer_in_the_kernels_dtype():
    kernel = jnp.ones((2, 3, 4), jnp.bfloat16)
    new = solve.add(kernel, 1, jnp.full((3, 4), 0.5))
    assert new.dtype == jnp.bfloat16
    np.testing.assert_array_equal(new[1].astype(float), 1.5)
    assert jax.numpy.array_equal(new[0], kernel[0])
