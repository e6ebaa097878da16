"""OGD: an orthonormal basis of the stored gradients, and steps orthogonal to all of them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jcl
from jcl import losses, methods, models

KEY = jax.random.key(0)
SIZES = [5, 6, 4]
START = models.mlp.init(jax.random.key(1), SIZES)


def flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.asarray(x, float).ravel() for x in jax.tree.leaves(tree)])


def rows(seed: int, count: int = 6) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.normal(size=(count, 5)), jnp.float32)
    return {"x": x, "y": jnp.asarray(rng.integers(0, 4, count)), "weight": jnp.ones(count)}


def begin(method: jcl.Method, firsts: list[Any], tx: Any) -> tuple[Any, list[jcl.State]]:
    program = jcl.make(method, models.mlp.apply, losses.cross_entropy(), tx)
    step, finish = jax.jit(program.step), jax.jit(program.consolidate)
    states = [jax.jit(program.init)(START, firsts[0], KEY)]
    for first in firsts:
        state, _ = step(states[-1], first)
        states.append(finish(state, jax.tree.map(lambda v: v[None], first)))
    return step, states


def label_slopes(params: Any, batch: Any) -> np.ndarray:
    """Gradient of each row's true logit, [B, P]."""

    def logit(p: Any, i: int) -> jax.Array:
        return models.mlp.apply(p, batch)[i, batch["y"][i]]

    slope = jax.jit(jax.grad(logit), static_argnums=1)
    return np.array([flat(slope(params, i)) for i in range(len(batch["y"]))])


def basis_of(state: jcl.State, count: int) -> np.ndarray:
    leaves = jax.tree.leaves(state.methods["ogd"].basis)
    return np.concatenate([np.asarray(v, float).reshape(count, -1) for v in leaves], axis=1)


def test_basis_is_orthonormal_and_spans_the_gradients() -> None:
    first, second = rows(0), rows(1)
    _, states = begin(methods.ogd(directions=20, per_stage=6), [first, second], optax.sgd(0.1))
    stored = np.concatenate(
        [label_slopes(states[1].params, first), label_slopes(states[2].params, second)]
    )
    basis = basis_of(states[2], 20)
    used = int(states[2].methods["ogd"].used)
    assert used == np.linalg.matrix_rank(stored, 1e-4) == 12
    np.testing.assert_allclose(basis[:used] @ basis[:used].T, np.eye(used), atol=1e-5)
    assert not basis[used:].any()
    np.testing.assert_allclose(stored @ basis.T @ basis, stored, atol=1e-4)


def test_dependent_gradients_and_padding_add_no_direction() -> None:
    first = jax.tree.map(lambda v: jnp.concatenate([v[:2], v[:2], v[2:4]]), rows(0))
    first["weight"] = jnp.array([1.0, 1, 1, 1, 0, 0])
    _, states = begin(methods.ogd(directions=20, per_stage=6), [first], optax.sgd(0.1))
    assert int(states[-1].methods["ogd"].used) == 2


@pytest.mark.quick
def test_a_full_basis_takes_no_more() -> None:
    _, states = begin(methods.ogd(directions=8, per_stage=6), [rows(0), rows(1)], optax.sgd(0.1))
    assert int(states[-1].methods["ogd"].used) == 8
    np.testing.assert_allclose(basis_of(states[1], 8)[:6], basis_of(states[2], 8)[:6], atol=1e-7)


@pytest.mark.parametrize("at, tx", [("grads", optax.sgd(0.1)), ("updates", optax.adam(0.05))])
def test_steps_are_orthogonal_to_every_stored_gradient(at: Any, tx: Any) -> None:
    first = rows(0)
    step, states = begin(methods.ogd(directions=6, per_stage=6, at=at), [first], tx)
    stored, state = label_slopes(states[-1].params, first), states[-1]
    for seed in range(5):
        before = flat(state.params)
        state, _ = step(state, rows(10 + seed))
        moved = flat(state.params) - before
        cosines = stored @ moved / np.linalg.norm(stored, axis=1) / np.linalg.norm(moved)
        assert np.abs(cosines).max() < 1e-4


def test_gradients_projected_before_adam_are_not_orthogonal_behind_it() -> None:
    first = rows(0)
    step, states = begin(methods.ogd(directions=6, per_stage=6), [first], optax.adam(0.05))
    stored, before = label_slopes(states[-1].params, first), flat(states[-1].params)
    moved = flat(step(states[-1], rows(10))[0].params) - before
    cosines = stored @ moved / np.linalg.norm(stored, axis=1) / np.linalg.norm(moved)
    assert np.abs(cosines).max() > 1e-2


def test_old_logits_change_in_second_order_only() -> None:
    """A tenth of the rate gives a hundredth of the change, where plain descent gives a tenth."""
    first, changes = rows(0), {}
    for name, method in (("ogd", methods.ogd(6, 6)), ("naive", methods.naive())):
        _, states = begin(method, [first], optax.sgd(0.1))
        for rate in (0.1, 0.01):
            program = jcl.make(method, models.mlp.apply, losses.cross_entropy(), optax.sgd(rate))
            after, _ = jax.jit(program.step)(states[-1], rows(10))
            logits = [models.mlp.apply(s.params, first) for s in (states[-1], after)]
            gap = jnp.take_along_axis(logits[1] - logits[0], first["y"][:, None], axis=1)
            changes[name, rate] = float(jnp.abs(gap).max())
    assert changes["ogd", 0.01] < 0.03 * changes["ogd", 0.1]
    assert changes["naive", 0.01] > 0.05 * changes["naive", 0.1]


def test_of_loss_stores_gradients_of_the_loss() -> None:
    first = rows(0)
    method = methods.ogd(directions=6, per_stage=6, of="loss")
    _, states = begin(method, [first], optax.sgd(0.1))

    def one(p: Any, row: Any) -> jax.Array:
        row = jax.tree.map(lambda v: v[None], row)
        return losses.cross_entropy()(models.mlp.apply, p, row)[0]

    slopes = jax.vmap(jax.grad(one), (None, 0))(states[-1].params, first)
    stored = np.concatenate([np.asarray(v).reshape(6, -1) for v in jax.tree.leaves(slopes)], 1)
    basis = basis_of(states[-1], 6)
    np.testing.assert_allclose(stored @ basis.T @ basis, stored, atol=1e-4)


def test_labels_are_asked_for_where_there_are_none() -> None:
    def decoder(params: Any, batch: Any) -> jax.Array:
        return params["w"][batch["tokens"]]

    program = jcl.make(methods.ogd(), decoder, losses.next_token, optax.sgd(0.1))
    batch = {"tokens": jnp.zeros((2, 5), jnp.int32)}
    with pytest.raises(ValueError, match="of is 'label', but must be 'loss'"):
        program.init({"w": jnp.zeros((3, 3))}, batch, KEY)


def test_padding_doesn_t_change_which_examples_are_drawn() -> None:
    first, kept = rows(0), []
    pad = jax.tree.map(lambda v: jnp.concatenate([jnp.zeros_like(v[:2]), v, v[:3]]), first)
    pad["weight"] = jnp.zeros(11).at[2:8].set(1)
    for data in (first, pad):
        program = jcl.make(
            methods.ogd(directions=6, per_stage=2), models.mlp.apply, losses.cross_entropy(),
            optax.sgd(0.1),
        )  # fmt: skip
        state = program.init(START, data, KEY)
        state = jax.jit(program.consolidate)(state, jax.tree.map(lambda v: v[None], data))
        kept.append(basis_of(state, 6)[:2])
    assert np.linalg.matrix_rank(kept[0]) == 2
    np.testing.assert_allclose(kept[1], kept[0], atol=1e-5)
