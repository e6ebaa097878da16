"""Parts of a kernel and its leading directions, against numpy and against peft."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_decoder as tiny

from jcl import taps
from jcl.mechanisms import subspaces

RNG = np.random.default_rng(0)
KERNEL = RNG.normal(size=(2, 12, 7)).astype(np.float32)  # two stacked layers, [in, out]
INPUTS = RNG.normal(size=(2, 50, 12)) * np.linspace(0.1, 3, 12)
MOMENT = (np.swapaxes(INPUTS, -1, -2) @ INPUTS / 50).astype(np.float32)


def product(start: Any, rank: int = 3, kernel: Any = KERNEL, moment: Any = MOMENT) -> np.ndarray:
    some = None if start in ("principal", "minor") else jnp.asarray(moment)
    a, b = subspaces.part_of(jnp.asarray(kernel), start, rank, some)
    assert a.shape[-1] == rank == b.shape[-2]
    return np.asarray(a @ b)


@pytest.mark.quick
def test_principal_and_minor_components_together_are_the_kernel() -> None:
    np.testing.assert_allclose(product("principal", 4) + product("minor", 3), KERNEL, atol=1e-5)
    u, s, v = np.linalg.svd(KERNEL[1].astype(float), full_matrices=False)
    np.testing.assert_allclose(product("principal", 4)[1], (u * s)[:, :4] @ v[:4], atol=1e-5)


def test_previewed_and_preserved_components_together_are_the_kernel() -> None:
    both = product("previewed", 4) + product("preserved", 3)
    np.testing.assert_allclose(both, KERNEL, atol=1e-4)
    # what the smallest components answer to the inputs is the least of all parts of this rank
    sizes = {s: np.linalg.norm(INPUTS[0] @ product(s)[0]) for s in ("previewed", "preserved")}
    assert sizes["preserved"] < 0.5 * sizes["previewed"]


def test_the_null_part_reads_the_directions_in_which_inputs_are_smallest() -> None:
    found = product("null")
    for layer in range(2):
        basis = np.linalg.eigh(MOMENT[layer].astype(float))[1][:, :3]
        np.testing.assert_allclose(found[layer], basis @ basis.T @ KERNEL[layer], atol=1e-4)


def test_leading_directions_are_orthonormal_and_what_is_outside_has_none_of_them() -> None:
    u, v = subspaces.leading(jnp.asarray(KERNEL), 2)
    np.testing.assert_allclose(np.swapaxes(u, -1, -2) @ u, np.tile(np.eye(2), (2, 1, 1)), atol=1e-5)
    np.testing.assert_allclose(np.swapaxes(v, -1, -2) @ v, np.tile(np.eye(2), (2, 1, 1)), atol=1e-5)
    rest = subspaces.outside(u, jnp.asarray(KERNEL))
    np.testing.assert_allclose(np.swapaxes(u, -1, -2) @ rest, 0, atol=1e-5)
    # of W only its smaller components are left
    np.testing.assert_allclose(rest, KERNEL - product("principal", 2), atol=1e-5)


@pytest.mark.parametrize(("start", "mode"), [("previewed", "ipm"), ("preserved", "kpm")])
def test_the_parts_of_corda_are_pefts(start: str, mode: str) -> None:
    torch, peft = (pytest.importorskip(name) for name in ("torch", "peft"))
    from peft.tuners.lora.config import CordaConfig
    from peft.tuners.lora.corda import preprocess_corda

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(12, 7, bias=False))
    inputs = torch.tensor(INPUTS[0], dtype=torch.float32)
    config = peft.LoraConfig(
        r=3, lora_alpha=6, target_modules=["0"], init_lora_weights="corda",
        corda_config=CordaConfig(corda_method=mode),
    )  # fmt: skip
    kernel = model[0].weight.detach().numpy().T.copy()
    preprocess_corda(model, config, run_model=lambda: model(inputs))
    moment = model[0].covariance_matrix if hasattr(model[0], "covariance_matrix") else None
    adapted = peft.get_peft_model(model, config)
    pair = adapted.base_model.model[0]
    wanted = 2.0 * (pair.lora_B["default"].weight @ pair.lora_A["default"].weight).T
    moment = INPUTS[0].T @ INPUTS[0] if moment is None else moment.numpy()
    found = product(start, kernel=kernel, moment=jnp.asarray(moment, jnp.float32))
    np.testing.assert_allclose(found, wanted.detach().numpy(), rtol=1e-3, atol=1e-4)


def test_the_principal_part_is_pefts() -> None:
    torch, peft = (pytest.importorskip(name) for name in ("torch", "peft"))
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(12, 7, bias=False))
    kernel = model[0].weight.detach().numpy().T.copy()
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=["0"], init_lora_weights="pissa")
    pair = peft.get_peft_model(model, config).base_model.model[0]
    ours = subspaces.part_of(jnp.asarray(kernel), "principal", 3)
    theirs = [pair.lora_A["default"].weight.T, pair.lora_B["default"].weight.T]
    for mine, his in zip(ours, theirs, strict=True):  # to the signs of singular vectors
        np.testing.assert_allclose(
            np.abs(mine) * 2**-0.5, np.abs(his.detach().numpy()), rtol=1e-3, atol=1e-5
        )


def test_moments_are_means_over_what_counts() -> None:
    rows = jax.tree.map(lambda x: x[0, :3], tiny.stream())  # [3, B, L]
    weight = jnp.ones((3, 4)).at[1, 2:].set(0)
    found = subspaces.input_moments(
        tiny.APPLY, tiny.base(), {**rows, "weight": weight}, r"blocks/(query|down)"
    )
    total, count = np.zeros((2, 40, 40)), 0
    for i in range(3):
        batch = jax.tree.map(lambda x: x[i], rows)  # noqa: B023
        seen, _ = taps.read(
            tiny.APPLY, tiny.base(), batch, {"blocks/down:in": ([0, 1], lambda h: h)}
        )
        h = np.asarray(seen["blocks/down:in"], float)[:, np.asarray(weight[i]) > 0]
        total += np.einsum("lbti,lbtj->lij", h, h)
        count += h.shape[1] * h.shape[2]
    np.testing.assert_allclose(found["blocks/down"], total / count, rtol=1e-4, atol=1e-5)
    assert found["blocks/query"].shape == (2, 24, 24)
    with pytest.raises(ValueError, match="targets is 'no', but must be a regular expression that"):
        subspaces.input_moments(tiny.APPLY, tiny.base(), {**rows, "weight": weight}, "no")
