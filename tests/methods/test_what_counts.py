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


def test_rows_that_count_nothing_change_no_importance_of_mas() -> None:
    mask = jnp.ones((tiny.ROWS, tiny.LENGTH - 1)).at[2:].set(0.0)
    batch = {**FIRST, "mask": mask}
    some = jax.tree.map(lambda x: x[:2], batch)
    whole, part = (flat(after_a_boundary(methods.mas(), b).omega) for b in (batch, some))
    np.testing.assert_allclose(whole, part, rtol=1e-4, atol=1e-6 * part.max())


def test_gpm_counts_no_padding() -> None:
    method = methods.gpm(threshold=0.95)
    plain, wide = (after_a_boundary(method, padded(n)) for n in (0, 20))
    jax.tree.map(np.testing.assert_array_equal, wide.used, plain.used)
    for name, basis in plain.basis.items():
        spans = (m @ m.swapaxes(-1, -2) for m in (wide.basis[name], basis))
        np.testing.assert_allclose(*spans, atol=1e-2)


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


def test_soft_mask_counts_no_padding() -> None:
    plain, wide = (flat(after_a_boundary(methods.soft_mask(), padded(n))) for n in (0, 20))
    assert plain.max() > 0.5
    np.testing.assert_allclose(wide, plain, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", [methods.gpm(threshold=0.95), methods.soft_mask()])
def test_rows_of_padding_change_no_statistic(method: jcl.Method) -> None:
    batch = padded(3) | {"weight": jnp.ones(tiny.ROWS)}
    more = jax.tree.map(lambda x: jnp.concatenate([x, x[:2]]), batch)
    more["weight"] = more["weight"].at[tiny.ROWS :].set(0.0)
    plain, wide = (after_a_boundary(method, b) for b in (batch, more))
    if method.name == "gpm":
        jax.tree.map(np.testing.assert_array_equal, wide.used, plain.used)
        plain, wide = ([m @ m.mT for m in s.basis.values()] for s in (plain, wide))
    np.testing.assert_allclose(flat(wide), flat(plain), rtol=1e-3, atol=1e-2)


KINDS = ("token", "sequence", "row")


@pytest.mark.parametrize("per", KINDS)
def test_rows_that_count_nothing_change_no_fisher(per: Any) -> None:
    mask = jnp.ones((tiny.ROWS, tiny.LENGTH - 1)).at[2:].set(0.0)
    batch = {**FIRST, "mask": mask}
    some = jax.tree.map(lambda x: x[:2], batch)
    whole, part = (flat(after_a_boundary(methods.ewc(per=per), b).fisher) for b in (batch, some))
    np.testing.assert_allclose(whole, part, rtol=1e-4, atol=1e-7 * part.max())


def more_padded() -> dict[str, jax.Array]:
    """The first batch with padding behind each row, and as many rows of padding."""
    rows = jax.tree.map(lambda x: jnp.concatenate([x, x]), padded(5))
    return {**rows, "weight": jnp.repeat(jnp.array([1.0, 0.0]), tiny.ROWS)}


@pytest.mark.parametrize("per", KINDS)
def test_padding_changes_no_fisher(per: Any) -> None:
    """And a mask of ones is none."""
    found = [
        flat(after_a_boundary(methods.ewc(per=per), batch).fisher)
        for batch in (FIRST, padded(0), more_padded())
    ]
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=1e-4, atol=1e-6 * found[0].max())


def test_padding_changes_no_running_fisher() -> None:
    found = []
    for batch in (FIRST, more_padded()):
        made = tiny.program(methods.rwalk(interval=1), optax.sgd(0.1), trainable=trees.every_leaf)
        state = jax.jit(made.init)(tiny.base(), batch, KEY)
        state, _ = jax.jit(made.step)(state, batch)
        found.append(flat(state.methods["rwalk"].walk.fisher))
    assert found[0].max() > 0
    np.testing.assert_allclose(found[1], found[0], rtol=1e-3, atol=1e-5 * found[0].max())


def test_a_loss_of_ones_own_says_how_many_predictions_a_row_has() -> None:
    """`next_token` by another name is one example a row, until it says what its predictions are."""

    def by_row(apply: Any, params: Any, batch: Any) -> Any:
        return losses.next_token(apply, params, batch)

    def by_token(apply: Any, params: Any, batch: Any) -> Any:
        return losses.next_token(apply, params, batch)

    by_token.predictions = losses.predictions  # type: ignore[attr-defined]
    batch = {k: v for k, v in FIRST.items() if k != "mask"}
    batches, found = jax.tree.map(lambda x: x[None], batch), []
    for loss in (losses.next_token, by_token, by_row):
        program = jcl.make(methods.ewc(), tiny.APPLY, loss, optax.sgd(0.1))
        state = jax.jit(program.init)(tiny.base(), batch, KEY)
        found.append(flat(jax.jit(program.consolidate)(state, batches).methods["ewc"].fisher))
    np.testing.assert_array_equal(found[1], found[0])
    # the square of a row's mean gradient is smaller than the mean of its tokens' squares
    assert found[2].sum() < 0.5 * found[0].sum()


@pytest.mark.parametrize("per", KINDS)
def test_a_fused_loss_has_the_same_fisher(per: Any) -> None:
    found = []
    for loss in (losses.next_token, losses.fused_next_token()):
        program = jcl.make(methods.ewc(per=per), tiny.APPLY, loss, optax.sgd(0.1))
        state = program.init(tiny.base(), FIRST, KEY)
        batches = jax.tree.map(lambda x: x[None], FIRST)
        found.append(flat(jax.jit(program.consolidate)(state, batches).methods["ewc"].fisher))
    np.testing.assert_allclose(found[1], found[0], rtol=1e-3, atol=1e-5 * found[0].max())


@pytest.mark.parametrize("per", KINDS)
def test_rows_spread_over_devices_have_the_same_fisher(per: Any) -> None:
    batches = jax.tree.map(lambda x: x[None], padded(2))
    plain = flat(after_a_boundary(methods.ewc(per=per), padded(2)).fisher)
    mesh = jcl.mesh.make(data=2, fsdp=2, tensor=2)
    program = tiny.program(
        methods.ewc(per=per), optax.sgd(0.1), trainable=trees.every_leaf, mesh=mesh
    )
    state = jax.jit(program.init)(tiny.base(), padded(2), KEY)
    spread = flat(jax.jit(program.consolidate)(state, batches).methods["ewc"].fisher)
    np.testing.assert_allclose(spread, plain, rtol=1e-3, atol=1e-5 * plain.max())


def apart_and_packed() -> list[dict[str, jax.Array]]:
    """Two documents of six tokens, in a row each and in one row: the loss is the same."""
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
    return [apart, packed]


def draws(method: jcl.Method, batch: Any, count: int) -> np.ndarray:
    """The sum over all parameters of each of `count` Fishers, which differ in their signs."""
    program = tiny.program(method, optax.sgd(0.1), trainable=trees.every_leaf)
    state = jax.jit(program.init)(tiny.base(), batch, KEY)
    batches = jax.tree.map(lambda x: x[None], batch)

    def total(key: jax.Array) -> jax.Array:
        after = program.consolidate(state._replace(key=key), batches)
        return sum(jnp.sum(x) for x in jax.tree.leaves(after.methods[method.name].fisher))

    return np.asarray(jax.jit(lambda keys: jax.lax.map(total, keys))(jax.random.split(KEY, count)))


def token_fisher(batch: Any) -> float:
    """Σ_t g_t² / N, the sum over all parameters, from a gradient for each counted token."""

    def nll(params: Any) -> jax.Array:
        return losses.next_token_nll(tiny.APPLY(params, batch), batch["tokens"])

    slopes = jax.jit(jax.jacrev(nll))(tiny.base())
    squares = sum(
        np.sum(np.asarray(g, np.float64) ** 2, axis=tuple(range(2, g.ndim)))
        for g in jax.tree.leaves(slopes)
    )
    return float(np.sum(squares * batch["mask"]) / np.sum(batch["mask"]))


def test_packing_changes_no_fisher_per_token() -> None:
    """In expectation over the signs it is the one that costs a gradient a token."""
    exact = [token_fisher(batch) for batch in apart_and_packed()]
    np.testing.assert_allclose(*exact, rtol=1e-4)
    for batch in apart_and_packed():
        sample = draws(methods.ewc(), batch, 300)
        error = sample.std(ddof=1) / np.sqrt(len(sample))
        assert 0 < error < 0.07 * exact[0]  # the draws differ, but tell the kinds apart
        assert abs(sample.mean() - exact[0]) < 4 * error
        other = draws(methods.ewc(per="row"), batch, 2)
        assert other[0] == other[1] and abs(other[0] - exact[0]) > 8 * error


def test_packing_changes_no_fisher_per_sequence() -> None:
    """Of two documents in a row the sum or the difference is squared: the mean is that of each."""
    apart, packed = apart_and_packed()
    alone = draws(methods.ewc(per="sequence"), apart, 2)
    assert alone[0] == alone[1]
    both = draws(methods.ewc(per="sequence"), packed, 12)
    assert both.max() > 1.01 * both.min()
    np.testing.assert_allclose((both.max() + both.min()) / 2, alone[0], rtol=1e-4)


def test_cutting_a_document_in_two_changes_no_fisher_per_token() -> None:
    """Where the model sees no context, so that a token's gradient stays: the length is nothing."""

    def apply(params: Any, batch: Any) -> jax.Array:
        return params["table"][batch["tokens"]]

    tokens = FIRST["tokens"]
    half = tiny.LENGTH // 2
    whole = {"tokens": tokens, "mask": jnp.ones((tiny.ROWS, tiny.LENGTH - 1))}
    whole["mask"] = whole["mask"].at[:, half - 1].set(0.0)
    cut = {"tokens": tokens.reshape(-1, half), "mask": jnp.ones((2 * tiny.ROWS, half - 1))}
    params = {"table": 0.1 * jax.random.normal(KEY, (16, 16))}
    keys = jax.random.split(KEY, 400)

    def mean(per: Any, batch: Any) -> jax.Array:
        program = jcl.make(methods.ewc(per=per), apply, losses.next_token, optax.sgd(0.1))
        state = program.init(params, batch, KEY)
        batches = jax.tree.map(lambda x: x[None], batch)

        def total(key: jax.Array) -> jax.Array:
            after = program.consolidate(state._replace(key=key), batches)
            return jnp.sum(after.methods["ewc"].fisher["table"])

        return jax.jit(jax.vmap(total))(keys).mean()

    found = {per: [mean(per, batch) for batch in (whole, cut)] for per in KINDS}
    np.testing.assert_allclose(*found["token"], rtol=0.03)
    assert found["sequence"][0] > 1.2 * found["sequence"][1]
    assert found["row"][0] < 0.9 * found["row"][1]


def test_a_loss_over_rows_is_the_same_per_anything() -> None:
    loss, batch = losses.cross_entropy(), {"x": jnp.ones((3, 5)), "y": jnp.arange(3)}
    params = models.mlp.init(KEY, [5, 6, 4])
    found = []
    for per in KINDS:
        program = jcl.make(methods.ewc(per=per), models.mlp.apply, loss, optax.sgd(0.1))
        state = program.init(params, batch, KEY)
        state = jax.jit(program.consolidate)(state, jax.tree.map(lambda v: v[None], batch))
        found.append(flat(state.methods["ewc"].fisher))
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_outputs_that_are_not_of_tokens_are_refused_by_name() -> None:
    def pooled(apply: Any, params: Any, batch: Any) -> jax.Array:
        return jnp.mean(apply(params, batch) ** 2)

    def apply(params: Any, batch: Any) -> jax.Array:
        return params["table"][batch["tokens"]].mean(axis=1)

    batch = {"tokens": FIRST["tokens"], "mask": jnp.ones((tiny.ROWS, tiny.LENGTH - 1))}
    for per in KINDS:
        program = jcl.make(methods.ewc(per=per), apply, pooled, optax.sgd(0.1))
        state = program.init({"table": jnp.ones((16, 3))}, batch, KEY)
        batches = jax.tree.map(lambda v: v[None], batch)
        if per == "row":
            program.consolidate(state, batches)
        else:
            with pytest.raises(ValueError, match=r"outputs are \(1, 3\).*per='row'"):
                program.consolidate(state, batches)


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
