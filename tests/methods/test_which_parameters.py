"""A method acts on the set that its paper names, in every backbone, and refuses where it is empty.

These are the faults C, D and E of issue 14, which says what is right, and their kinds.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_decoder as tiny

import jcl
from jcl import losses, methods, trees
from jcl.models import decoder

KEY = jax.random.key(0)
ROWS = tiny.stream()
FIRST = jax.tree.map(lambda x: x[0, 0], ROWS)
BATCHES = jax.tree.map(lambda x: x[None], FIRST)


def program(method: jcl.Method, tx: Any = None) -> jcl.Program:
    """Trains the whole tiny decoder, whose two blocks are stacked, by plain gradient descent."""
    return tiny.program(method, tx or optax.sgd(0.1), trainable=trees.every_leaf)


def at_boundary(method: jcl.Method, params: Any) -> jcl.State:
    """The state after a stage that began at the base and ended at `params`."""
    made = program(method)
    state = jax.jit(made.init)(tiny.base(), FIRST, KEY)
    return jax.jit(made.consolidate)(state._replace(params=params), BATCHES)


def uneven() -> Any:
    """Task vectors of normal numbers, in the second of two stacked layers five times as large."""
    base = tiny.base()
    leaves, structure = jax.tree.flatten(base["blocks"])
    keys = jax.random.split(jax.random.key(7), len(leaves))
    sizes = jnp.asarray([0.1, 0.5])
    drawn = [
        jax.random.normal(k, x.shape) * sizes.reshape(-1, *[1] * (x.ndim - 1))
        for k, x in zip(keys, leaves, strict=True)
    ]
    return {**jax.tree.map(jnp.zeros_like, base), "blocks": jax.tree.unflatten(structure, drawn)}


def kernels(tree: Any) -> dict[str, np.ndarray]:
    """The stacked kernels [layers, in, out] by name."""
    return {n: np.asarray(x["kernel"]) for n, x in tree["blocks"].items() if "kernel" in x}


def in_each_layer(marks: np.ndarray) -> np.ndarray:
    return marks.reshape(len(marks), -1).sum(axis=1)


def kept(fraction: float, size: int) -> int:
    return size - round((1 - fraction) * size)


def test_of_low_rank_pairs_only_loud_units_learn() -> None:
    """The authors mask the gradients of lora_A and lora_B by the outputs of each."""
    chain = jcl.chain(methods.lora(rank=2), methods.migu(fraction=0.5))
    made = tiny.program(chain, optax.sgd(0.1))
    state = jax.jit(made.init)(tiny.base(), FIRST, KEY)
    step = jax.jit(made.step)
    state, _ = step(state, FIRST)  # B is 0 before
    state = jax.jit(made.consolidate)(state, BATCHES)
    after, _ = step(state, jax.tree.map(lambda x: x[1, 0], ROWS))
    for name in ("query", "value"):
        old, new = (s.params["blocks"][name]["lora"] for s in (state, after))
        for leaf in ("a", "b"):
            learnt = np.any(old[leaf] != new[leaf], axis=-2)  # [layers, units]
            np.testing.assert_array_equal(learnt.sum(axis=-1), learnt.shape[-1] // 2)


def test_mofo_moves_its_share_of_each_layer() -> None:
    made = program(methods.mofo(fraction=0.1), optax.sgd(1.0))
    state = jax.jit(made.init)(tiny.base(), FIRST, KEY)
    after, _ = jax.jit(made.step)(state, FIRST)
    old, new = kernels(state.params), kernels(after.params)
    for name, kernel in old.items():
        moved = in_each_layer(kernel != new[name])
        np.testing.assert_array_equal(moved, kept(0.1, kernel[0].size), name)


def test_packnet_keeps_its_share_of_each_layer() -> None:
    sizes = jnp.asarray([0.2, 1.0])
    base = tiny.base()
    blocks = jax.tree.map(lambda x: x * sizes.reshape(-1, *[1] * (x.ndim - 1)), base["blocks"])
    method = methods.packnet(prune=0.5, stages=3)
    after = at_boundary(method, {**base, "blocks": blocks}).params
    for name, kernel in kernels(after).items():
        np.testing.assert_array_equal(in_each_layer(kernel != 0), kernel[0].size // 2, name)


def test_packnet_prunes_no_stacked_vector() -> None:
    """Leaves with fewer than two axes train in the first stage and then stay."""
    method = methods.packnet(prune=0.5, stages=3, prunable=trees.every_leaf)
    base = tiny.base()
    after = at_boundary(method, base).params
    scales = [k for k, x in base["blocks"].items() if "scale" in x]
    assert scales
    for name in scales:
        np.testing.assert_array_equal(
            after["blocks"][name]["scale"], base["blocks"][name]["scale"], name
        )


@pytest.mark.quick
def test_ties_of_a_leaf_trims_each_layer() -> None:
    base = tiny.base()
    method = methods.ties(density=0.1, scale=1.0, scope="leaf")
    after = kernels(at_boundary(method, trees.add(base, uneven())).params)
    for name, kernel in kernels(base).items():
        # what was cut is back at the base, to rounding; what was kept is a hundred times as far
        left = in_each_layer(np.abs(after[name] - kernel) > 1e-3)
        np.testing.assert_array_equal(left, int(0.1 * kernel[0].size), name)


def test_online_ties_trims_each_layer() -> None:
    method = methods.online_merging(alpha=0.1, density=0.1, form="ties")
    state = at_boundary(method, trees.add(tiny.base(), uneven()))
    for name, kernel in kernels(state.methods["online_merging"].vector).items():
        left = in_each_layer(kernel != 0)
        np.testing.assert_array_equal(left, int(0.1 * kernel[0].size), name)


def test_the_arc_between_is_that_of_each_layer() -> None:
    base = tiny.base()
    end = trees.add(base, uneven())
    after = kernels(at_boundary(methods.wise_ft(0.5, spherical=True), end).params)
    for name, first in kernels(base).items():
        for layer, (u, v) in enumerate(zip(first, kernels(end)[name], strict=True)):
            u, v = np.float64(u), np.float64(v)
            cosine = np.sum(u * v) / (np.linalg.norm(u) * np.linalg.norm(v))
            assert cosine < 0.999  # far from where the two are interpolated linearly
            half = (u + v) / (2 * np.cos(np.arccos(cosine) / 2))
            np.testing.assert_allclose(after[name][layer], half, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_soft_mask_spares_the_head_alone(tied: bool) -> None:
    config = dataclasses.replace(tiny.CONFIG, tied=tied)
    made = jcl.make(
        methods.soft_mask(), decoder.apply_fn(config), losses.next_token, optax.sgd(0.1)
    )
    params = decoder.init(jax.random.key(0), config)
    state = jax.eval_shape(made.init, params, FIRST, KEY)
    names = {name for name, x in params["blocks"].items() if "kernel" in x}
    assert set(state.methods["soft_mask"].importance) == {f"blocks/{name}" for name in names}
