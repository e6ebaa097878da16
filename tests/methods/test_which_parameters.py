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
from jcl import adapters, losses, merging, methods, models, trees
from jcl.methods.merges import hma
from jcl.models import decoder, t5

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


@pytest.mark.parametrize("bank", [False, True])
def test_units_of_a_pair_are_what_its_factors_put_out(bank: bool) -> None:
    """x A and x A B of the pair that learns, against numpy, in the second of two stages."""
    pairs = methods.inclora(stages=3, rank=4, targets="dense_1") if bank else None
    pairs = pairs or methods.lora(rank=4, targets="dense_1")
    made = jcl.make(
        jcl.chain(pairs, methods.migu(fraction=0.5)), models.mlp.apply, losses.squared_error,
        optax.sgd(0.1), trainable=adapters.is_adapter,
    )  # fmt: skip
    base = models.mlp.init(KEY, [5, 8, 6])
    x, y = (jax.random.normal(jax.random.key(i), (12, n)) for i, n in ((1, 5), (2, 6)))
    rows = {"x": x.at[-2:].set(50.0), "y": y, "weight": jnp.ones(12).at[-2:].set(0.0)}
    state = jax.jit(made.init)(base, rows, KEY)
    step = jax.jit(made.step)
    state, _ = step(state, rows)
    state = jax.jit(made.consolidate)(state, jax.tree.map(lambda v: v[None], rows))
    state, _ = step(state, rows)  # B of a bank's new pair is 0 before
    after, _ = step(state, rows)
    old, new = (s.params["dense_1"]["lora"] for s in (state, after))
    first = base["dense_0"]
    inner = np.maximum(np.float64(x[:-2] @ first["kernel"] + first["bias"]), 0) @ old["a"]
    for leaf, outputs in (("a", inner), ("b", inner @ old["b"])):
        loud = np.argsort(-np.abs(outputs).sum(0))[: outputs.shape[-1] // 2]
        learnt = np.flatnonzero(np.any(old[leaf] != new[leaf], axis=0))
        np.testing.assert_array_equal(learnt, np.sort(loud))


@pytest.mark.parametrize("experts", [0, 3])
def test_what_calls_no_taps_learns_whole_under_migu(experts: int) -> None:
    """An untied head and experts have no sites, so nothing is known of their units."""
    config = dataclasses.replace(tiny.CONFIG, tied=False, experts=experts, chosen_experts=2)
    params = decoder.init(KEY, config)
    apply = decoder.apply_fn(config)
    made = jcl.make(methods.migu(fraction=0.3), apply, losses.next_token, optax.sgd(0.1))
    state = jax.jit(made.init)(params, FIRST, KEY)
    after, _ = jax.jit(made.step)(state._replace(stage=jnp.int32(1)), FIRST)
    free = [("head",)] + (
        [("blocks", "experts", n) for n in ("gate", "up", "down")] * bool(experts)
    )
    for path in free:
        old, new = state.params, after.params
        for key in path:
            old, new = old[key], new[key]
        assert np.all(np.any(old["kernel"] != new["kernel"], axis=-2)), path
    moved = np.any(
        params["blocks"]["query"]["kernel"] != after.params["blocks"]["query"]["kernel"], -2
    )
    np.testing.assert_array_equal(moved.sum(axis=-1), round(0.3 * moved.shape[-1]))


def test_hma_divides_every_stack_that_the_model_names() -> None:
    config = t5.Config(
        vocabulary=16, layers=4, decoder_layers=2, width=16, heads=2, head_width=8, hidden=24
    )
    params = jax.tree.map(jnp.zeros_like, t5.init(KEY, config))
    end, structure = jax.tree.map(jnp.ones_like, params), t5.apply_fn(config).structure
    ratio = hma.by_depth(jnp.array([0.25, 0.75]), 0.5, structure)
    got = merging.interpolate(ratio, params, end)
    for stack, ratios in (("encoder", [0.25, 0.25, 0.75, 0.75]), ("decoder", [0.25, 0.75])):
        kernel = got[stack]["blocks"]["up"]["kernel"]
        np.testing.assert_array_equal(kernel[:, 0, 0], ratios)
        np.testing.assert_array_equal(got[stack]["norm"]["scale"], 0.5)


def test_seq_freezes_all_but_the_classifier_of_a_decoder() -> None:
    params = tiny.base() | {"classifier": models.init_dense(KEY, 24, 4)}
    rows = FIRST | {"y": jnp.arange(tiny.ROWS) % 4}
    made = jcl.make(methods.seq(warmup=0), tiny.APPLY, losses.cross_entropy(), optax.sgd(0.1))
    state = jax.jit(made.init)(params, rows, KEY)
    after, _ = jax.jit(made.step)(state, rows)
    moved = {p for p, x in trees.by_path(after.params).items() if np.any(x != state_at(state, p))}
    assert moved == {"classifier/kernel", "classifier/bias"}


def state_at(state: jcl.State, path: str) -> Any:
    return trees.by_path(state.params)[path]


NEVER, ALWAYS = (lambda path: False), (lambda path: True)
EMPTY: dict[str, tuple[jcl.Method, str]] = {
    "mofo": (methods.mofo(filtered=NEVER), "filtered"),
    "packnet": (methods.packnet(prunable=NEVER), "prunable"),
    "packnet of vectors": (methods.packnet(prunable=lambda path: "norm" in path), "prunable"),
    "soft_mask": (methods.soft_mask(masked=NEVER), "masked"),
    "gpm": (methods.gpm(free=ALWAYS), "free"),
    "seq": (methods.seq(head="no"), "head"),
    "seq of a tied head": (methods.seq(), "head is 'embed'"),
    "lora": (methods.lora(targets="no"), "targets"),
    "inclora": (methods.inclora(stages=2, targets="no"), "targets"),
    "moelora": (methods.moelora(targets="no"), "targets"),
    "ia3": (methods.ia3(outputs="no", inputs=None), "outputs|targets"),
    "llama_pro": (methods.llama_pro((0,), stack="no"), "layers"),
}


@pytest.mark.quick
@pytest.mark.parametrize("name", EMPTY)
def test_a_method_that_finds_nothing_to_act_on_refuses(name: str) -> None:
    method, argument = EMPTY[name]
    rows = FIRST | {"y": jnp.zeros(tiny.ROWS, int)}
    with pytest.raises(ValueError, match=rf"({argument}).* but must (be|say)"):
        jax.eval_shape(program(method).init, tiny.base(), rows, KEY)


@pytest.mark.quick
def test_without_what_it_acts_on_in_the_model_a_method_refuses() -> None:
    def flat(params: Any, batch: Any) -> jax.Array:
        return batch["x"] @ params["w"]

    rows = {"x": jnp.ones((4, 3)), "y": jnp.zeros(4, int)}
    for method, said in (
        (methods.hma(), "parts is 3, but must be 1"),
        (methods.migu(), "no dense sites"),
        (methods.soft_mask(), "no dense sites"),
        (methods.seq(), "head is None"),
    ):
        made = jcl.make(method, flat, losses.cross_entropy(), optax.sgd(0.1))
        with pytest.raises(ValueError, match=said):
            made.init({"w": jnp.ones((3, 2))}, rows, KEY)
    # pairs learn, but migu stands before the method that makes them
    made = tiny.program(jcl.chain(methods.migu(), methods.lora()))
    with pytest.raises(ValueError, match="lora adds parameters, so it must come before migu"):
        made.init(tiny.base(), FIRST, KEY)


@pytest.mark.quick
def test_soft_mask_refuses_to_guess_the_head() -> None:
    def quiet(params: Any, batch: Any, tap: Any) -> jax.Array:
        return models.mlp.apply(params, batch, tap)

    rows = {"x": jnp.ones((4, 3)), "y": jnp.zeros(4, int)}
    made = jcl.make(methods.soft_mask(), quiet, losses.cross_entropy(), optax.sgd(0.1))
    with pytest.raises(ValueError, match="masked is None, but must be given"):
        made.init(models.mlp.init(KEY, [3, 4, 2]), rows, KEY)


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
