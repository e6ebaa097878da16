"""OPLoRA: the kernel's largest singular triples stay, whatever its pair has learned."""

from __future__ import annotations

import called_with
import jax
import numpy as np
import pytest
import tiny_decoder as tiny

from jcl import methods

METHOD = methods.oplora(rank=4, preserved=3)


@pytest.mark.quick
def test_the_largest_singular_triples_stay_exactly() -> None:
    state = tiny.program(METHOD).init(tiny.base(), called_with.BATCH, jax.random.key(0))
    before = called_with.kernels(METHOD, state)
    after = called_with.kernels(METHOD, called_with.perturbed(state))
    np.testing.assert_allclose(before, tiny.base()["blocks"]["query"]["kernel"], atol=1e-6)
    for old, new in zip(before, after, strict=True):
        u, s, v = np.linalg.svd(old)
        np.testing.assert_allclose(new @ v[:3].T, u[:, :3] * s[:3], atol=1e-4)
        np.testing.assert_allclose(u[:, :3].T @ new, s[:3, None] * v[:3], atol=1e-4)
        assert np.abs(new - old).max() > 0.1
        # the change has the pair's rank, outside of what stays
        assert np.linalg.matrix_rank(new - old, tol=1e-3) == 4


def test_it_learns_while_plain_pairs_move_the_largest_directions() -> None:
    ends = {}
    for method in (METHOD, methods.lora(rank=4)):
        state, reports = tiny.run(method)
        tiny.same_base(state.params, tiny.base())
        losses = np.asarray(reports["steps"]["loss"])
        assert losses[0, -1] < losses[0, 0]
        change = called_with.kernels(method, state) - tiny.base()["blocks"]["query"]["kernel"]
        u, _, v = np.linalg.svd(np.asarray(tiny.base()["blocks"]["query"]["kernel"], float))
        inner = np.swapaxes(u[..., :3], -1, -2) @ change @ np.swapaxes(v[:, :3], -1, -2)
        ends[method.name] = np.abs(inner).max()
    assert ends["oplora"] < 1e-5 < 1e-3 < ends["lora"]


def test_what_would_leave_nothing_to_learn_is_refused() -> None:
    with pytest.raises(ValueError, match="preserved is 8, but must be below 8, the smaller side"):
        tiny.program(methods.oplora(preserved=8)).init(
            tiny.base(), called_with.BATCH, jax.random.key(0)
        )
