"""Every statistic counts what the loss counts: what does not yet, by letter.

A mark's letter is that of issue 14, which says what is right.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_decoder as tiny

import jcl
from jcl import losses, methods, models, trees

KEY = jax.random.key(0)
FIRST = jax.tree.map(lambda x: x[0, 0], tiny.stream())


def padded(count: int) -> dict[str, jax.Array]:
    """The first batch with `count` tokens of padding behind each row, which nothing counts."""
    tokens = FIRST["tokens"]
    wide = ((0, 0), (0, count))
    return {
        "tokens": jnp.pad(tokens, wide),
        "segments": jnp.pad(jnp.ones_like(tokens), wide),
        "mask": jnp.pad(jnp.ones((tiny.ROWS, tiny.LENGTH - 1)), wide),
        "task": FIRST["task"],
    }


def after_a_boundary(method: jcl.Method, batch: Any) -> Any:
    """The method's state when it has seen `batch` alone, at the base, in the tiny decoder."""
    program = tiny.program(method, optax.sgd(0.1), trainable=trees.every_leaf)
    state = jax.jit(program.init)(tiny.base(), batch, KEY)
    batches = jax.tree.map(lambda x: x[None], batch)
    return jax.jit(program.consolidate)(state, batches).methods[method.name]


def flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


@pytest.mark.quick
@pytest.mark.parametrize("mask", ["seen", "task"])
def test_mas_gives_no_importance_to_classes_never_trained(mask: str) -> None:
    classes = np.eye(2, dtype=bool).repeat(2, axis=1)  # two tasks of two classes each
    loss = losses.cross_entropy(classes, mask)
    program = jcl.make(methods.mas(), models.mlp.apply, loss, optax.sgd(0.1))
    x = jax.random.normal(jax.random.key(1), (8, 5))
    batch = {"x": x, "y": jnp.arange(8) % 2, "task": jnp.zeros(8, jnp.int32)}
    params = models.mlp.init(jax.random.key(0), [5, 6, 4])
    state = jax.jit(program.init)(params, batch, KEY)
    state = jax.jit(program.consolidate)(state, jax.tree.map(lambda v: v[None], batch))
    omega = np.asarray(state.methods["mas"].omega["dense_1"]["kernel"])
    assert np.all(omega[:, :2].sum(axis=0) > 0)
    np.testing.assert_array_equal(omega[:, 2:], np.zeros((6, 2)))


def test_mas_counts_no_padding() -> None:
    plain, wide = (flat(after_a_boundary(methods.mas(), padded(n)).omega) for n in (0, 20))
    np.testing.assert_allclose(np.linalg.norm(wide), np.linalg.norm(plain), rtol=1e-3)
    np.testing.assert_allclose(wide, plain, rtol=1e-2, atol=1e-4 * plain.max())


@pytest.mark.xfail(
    strict=True, raises=AssertionError, reason="issue 14, G: GPM counts the inputs of padding"
)
def test_gpm_counts_no_padding() -> None:
    method = methods.gpm(threshold=0.95)
    plain, wide = (after_a_boundary(method, padded(n)) for n in (0, 20))
    jax.tree.map(np.testing.assert_array_equal, wide.used, plain.used)
    for name, basis in plain.basis.items():
        spans = (m @ m.swapaxes(-1, -2) for m in (wide.basis[name], basis))
        np.testing.assert_allclose(*spans, atol=1e-2)


@pytest.mark.xfail(
    strict=True, raises=AssertionError, reason="issue 14, G: MIGU counts the outputs of padding"
)
def test_migu_counts_no_padding() -> None:
    program = tiny.program(methods.migu(0.3), optax.sgd(0.1), trainable=trees.every_leaf)
    learnt = []
    for count in (0, 20):
        batch = padded(count)
        state = jax.jit(program.init)(tiny.base(), batch, KEY)
        state = program.consolidate(state, jax.tree.map(lambda x: x[None], batch))
        after, _ = jax.jit(program.step)(state, batch)
        kernel, moved = (s.params["blocks"]["up"]["kernel"] for s in (state, after))
        learnt.append(np.any(kernel != moved, axis=-2))
    assert learnt[0].sum() == 2 * 12  # of 40 units in each of two layers
    np.testing.assert_array_equal(*learnt)


@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="issue 14, H: rows without any counted token dilute the Fisher of a language model",
)
def test_rows_that_count_nothing_change_no_fisher() -> None:
    mask = jnp.ones((tiny.ROWS, tiny.LENGTH - 1)).at[2:].set(0.0)
    batch = {**FIRST, "mask": mask}
    some = jax.tree.map(lambda x: x[:2], batch)
    whole, part = (flat(after_a_boundary(methods.ewc(), b).fisher) for b in (batch, some))
    np.testing.assert_allclose(whole.sum(), part.sum(), rtol=1e-3)


@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="issue 14, H: the Fisher squares a row's mean-token gradient, however rows are packed",
)
def test_packing_changes_no_fisher() -> None:
    """Two documents of six tokens, in a row each or in one: the loss is the same."""
    tokens, half = FIRST["tokens"][0], tiny.LENGTH // 2
    task = jnp.zeros(2, jnp.int32)
    behind = jnp.arange(tiny.LENGTH) < half
    apart = {
        "tokens": jnp.where(behind, jnp.stack([tokens, jnp.roll(tokens, half)]), 0),
        "segments": jnp.stack([behind.astype(jnp.int32)] * 2),
        "mask": jnp.stack([(behind[1:]).astype(jnp.float32)] * 2),
        "task": task,
    }
    packed = {
        "tokens": tokens[None],
        "segments": jnp.where(behind, 1, 2)[None],
        "mask": jnp.ones((1, tiny.LENGTH - 1)).at[:, half - 1].set(0.0),
        "task": task[:1],
    }
    weight = jnp.ones(2)
    values = [
        losses.next_token(tiny.CALL, tiny.base(), {**b, "weight": weight[: len(b["tokens"])]})[0]
        for b in (apart, packed)
    ]
    if not np.allclose(*values, rtol=1e-5):
        pytest.fail(f"the losses are {values}, so the two batches are not the same")
    one, two = (flat(after_a_boundary(methods.ewc(), b).fisher) for b in (apart, packed))
    np.testing.assert_allclose(two.sum(), one.sum(), rtol=1e-3)


@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="issue 14, I: paths in bfloat16 count steps that rounding discards",
)
@pytest.mark.parametrize("method", [methods.si(), methods.rwalk(interval=5)], ids=lambda m: m.name)
def test_a_step_that_rounding_discards_is_no_path(method: jcl.Method) -> None:
    def apply(params: Any, batch: Any) -> jax.Array:
        return batch["x"] @ params["w"]

    def loss(apply: Any, params: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
        outputs = apply(params, batch)
        return jnp.mean((outputs - batch["y"]) ** 2), outputs

    program = jcl.make(method, apply, loss, optax.sgd(1e-4))
    params = {"w": jnp.ones(4, jnp.bfloat16)}
    batch = {"x": jnp.ones((2, 4), jnp.bfloat16), "y": jnp.zeros(2, jnp.bfloat16)}
    state = jax.jit(program.init)(params, batch, KEY)
    step = jax.jit(program.step)
    for _ in range(20):
        state, _ = step(state, batch)
    if not np.array_equal(state.params["w"], params["w"]):
        pytest.fail("the steps are so large that bfloat16 holds them")
    state = jax.jit(program.consolidate)(state, jax.tree.map(lambda v: v[None], batch))
    mine = state.methods[method.name]
    scored = mine.omega if method.name == "si" else mine.scores
    np.testing.assert_array_equal(scored["w"], np.zeros(4))
