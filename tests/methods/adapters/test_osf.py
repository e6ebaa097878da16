"""OSF: peft's own run on the same weights; what rests and what learns over stages."""

from __future__ import annotations

from typing import Any

import called_with
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_decoder as tiny

import jcl
from jcl import losses, methods, models

TARGETS = "blocks/(query|value)"
METHOD = methods.osf(0.5, TARGETS)
RNG = np.random.default_rng(0)


def model_kernels(state: jcl.State) -> np.ndarray:
    return called_with.kernels(METHOD, state)


@pytest.mark.quick
def test_at_the_start_it_is_the_model() -> None:
    state = tiny.program(METHOD).init(tiny.base(), called_with.BATCH, jax.random.key(0))
    np.testing.assert_allclose(
        model_kernels(state), tiny.base()["blocks"]["query"]["kernel"], atol=1e-6
    )
    shapes = jax.tree.map(jnp.shape, state.params["blocks"]["query"]["lora"])
    assert shapes == {"a": (2, 24, 12), "b": (2, 12, 24), "s": (2, 12)}  # 12 of 24 rest


def test_with_plain_descent_the_largest_triples_stay_in_a_stage_and_are_new_in_the_next() -> None:
    program = tiny.program(METHOD, optax.sgd(2.0))
    state = program.init(tiny.base(), called_with.BATCH, jax.random.key(0))
    step = jax.jit(program.step)
    for stage in range(2):
        before = model_kernels(state)
        rows = jax.tree.map(lambda x: x[stage], tiny.stream())  # noqa: B023
        for i in range(4):
            state, _ = step(state, jax.tree.map(lambda x: x[i], rows))  # noqa: B023
        after = model_kernels(state)
        assert np.abs(after - before).max() > 1e-3
        for old, new in zip(before, after, strict=True):
            u, s, v = np.linalg.svd(old)
            k = len(s) // 2
            np.testing.assert_allclose(u[:, :k].T @ new, s[:k, None] * v[:k], atol=2e-5)
            np.testing.assert_allclose(new @ v[:k].T, u[:, :k] * s[:k], atol=2e-5)
        state = jax.jit(program.consolidate)(state, rows)
        np.testing.assert_allclose(model_kernels(state), after, atol=1e-6)
    tiny.same_base(state.params, tiny.base())


@pytest.mark.parametrize("adam", [False, True])
@pytest.mark.parametrize("size", [(10, 6), (6, 10), (8, 8)])
def test_a_stage_is_pefts(size: tuple[int, int], adam: bool) -> None:
    torch, peft = (pytest.importorskip(name) for name in ("torch", "peft"))
    torch.manual_seed(0)
    base = torch.nn.Sequential(torch.nn.Linear(*size))
    weight, bias = (x.detach().numpy().copy() for x in base[0].parameters())
    adapted = peft.get_peft_model(base, peft.OSFConfig(target_modules=["0"], effective_rank=0.5))
    learns = [x for x in adapted.parameters() if x.requires_grad]
    tx: Any = torch.optim.Adam(learns, 1e-2) if adam else torch.optim.SGD(learns, 0.1, 0.9)

    params = {"dense_0": {"kernel": jnp.asarray(weight.T), "bias": jnp.asarray(bias)}}
    ours = jcl.make(
        methods.osf(0.5, "dense_0"), models.mlp.apply, losses.squared_error,
        optax.adam(1e-2) if adam else optax.sgd(0.1, 0.9),
    )  # fmt: skip
    rows = [{"x": RNG.normal(size=(16, size[0])), "y": RNG.normal(size=(16, size[1]))}] * 5
    rows = [jax.tree.map(lambda x: x.astype(np.float32), r) for r in rows]
    state = ours.init(params, rows[0], jax.random.key(0))
    for batch in rows:
        tx.zero_grad()
        error = adapted(torch.tensor(batch["x"])) - torch.tensor(batch["y"])
        (0.5 * (error**2).sum(-1).mean()).backward()
        tx.step()
        state, _ = ours.step(state, batch)
    with torch.no_grad():
        wanted = adapted(torch.tensor(rows[0]["x"])).numpy()
    np.testing.assert_allclose(ours.predict(state, rows[0]), wanted, rtol=1e-4, atol=1e-5)
    assert np.abs(wanted - (rows[0]["x"] @ weight.T + bias)).max() > 0.05
