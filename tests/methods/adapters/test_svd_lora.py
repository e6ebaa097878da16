"""Pairs that start as a part of their kernel: the model stays, and what learns is that part."""

from __future__ import annotations

from typing import Any, get_args

import called_with
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_decoder as tiny

from jcl import methods
from jcl.mechanisms import subspaces

BASE = tiny.base()
ROWS = jax.tree.map(lambda x: x[0, :4], tiny.stream()) | {"weight": jnp.ones((4, 4))}
MOMENTS = subspaces.input_moments(tiny.APPLY, BASE, ROWS)


def started(method: Any) -> Any:
    return tiny.program(method).init(BASE, called_with.BATCH, jax.random.key(0))


@pytest.mark.quick
@pytest.mark.parametrize("start", get_args(subspaces.Start))
def test_at_the_start_it_is_the_model_and_the_pair_is_the_part(start: Any) -> None:
    moments = None if start in ("principal", "minor") else MOMENTS
    method = methods.svd_lora(rank=4, alpha=6.0, start=start, moments=moments)
    state = started(method)
    kernel = np.asarray(BASE["blocks"]["query"]["kernel"], float)
    np.testing.assert_allclose(called_with.kernels(method, state), kernel, atol=1e-5)
    pair = state.params["blocks"]["query"]["lora"]
    part = 1.5 * np.asarray(pair["a"] @ pair["b"], float)
    u, s, v = np.linalg.svd(kernel)
    if start == "principal":
        np.testing.assert_allclose(part, (u[..., :4] * s[:, None, :4]) @ v[:, :4], atol=1e-4)
    assert np.linalg.matrix_rank(part[0], tol=1e-3) == 4
    tiny.same_base(state.params, BASE)


def test_without_its_pair_the_kernel_lacks_the_part() -> None:
    """Where a pair goes to 0 the model is the residual that the authors keep in the kernel."""
    method = methods.svd_lora(rank=4, start="principal")
    state = started(method)
    gone = state._replace(
        params=jax.tree_util.tree_map_with_path(
            lambda path, x: jnp.zeros_like(x) if "lora" in jax.tree_util.keystr(path) else x,
            state.params,
        )
    )
    left = np.linalg.svd(called_with.kernels(method, gone), compute_uv=False)
    whole = np.linalg.svd(np.asarray(BASE["blocks"]["query"]["kernel"], float), compute_uv=False)
    np.testing.assert_allclose(left[:, :4], whole[:, 4:8], rtol=1e-3)


def test_a_frozen_a_stays_while_b_learns() -> None:
    method = methods.svd_lora(rank=4, start="null", moments=MOMENTS, train="b")
    state, _ = tiny.run(method, trainable=None)
    first = started(method).params["blocks"]["query"]["lora"]
    last = state.params["blocks"]["query"]["lora"]
    np.testing.assert_array_equal(first["a"], last["a"])
    assert np.abs(last["b"] - first["b"]).max() > 1e-3


def test_given_moments_are_read_and_wrong_ones_refused() -> None:
    tilted = jnp.diag(jnp.linspace(0.01, 9.0, 24))
    some = {f"blocks/{name}": jnp.stack([tilted, tilted]) for name in ("query", "value")}
    method = methods.svd_lora(rank=4, start="null", moments=some)
    pair = started(method).params["blocks"]["query"]["lora"]
    # inputs are smallest along the first four axes, and only these are read
    np.testing.assert_allclose(np.asarray(pair["a"])[:, 4:], 0, atol=1e-5)
    del some["blocks/value"]
    with pytest.raises(ValueError, match=r"shape of moments of blocks/value is None, but must be"):
        started(methods.svd_lora(rank=4, start="null", moments=some))
    with pytest.raises(ValueError, match="rank is 9, but must be at most 8, the smaller side"):
        started(methods.svd_lora(rank=9))
    with pytest.raises(ValueError, match="moments is 'given', but must be None, where"):
        methods.svd_lora(start="minor", moments=some)
