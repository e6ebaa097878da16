"""GPM: which directions are kept, and that layers no longer change along them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import jcl
from jcl import losses, methods, models, taps

KEY = jax.random.key(0)
FEATURES = 8


def stage(seed: int, rank: int, count: int = 4) -> dict[str, jax.Array]:
    """Batches [count, 16, ...] whose inputs span `rank` dimensions, in decreasing strength."""
    rng = np.random.default_rng(seed)
    span = np.linalg.qr(rng.normal(size=(FEATURES, rank)))[0]
    x = rng.normal(size=(count, 16, rank)) * 2.0 ** -np.arange(rank) @ span.T
    y = rng.integers(0, 4, (count, 16))
    return {
        "x": jnp.asarray(x, jnp.float32),
        "y": jnp.asarray(y),
        "weight": jnp.ones((count, 16)),
    }


def begin(method: jcl.Method, sizes: list[int], tx: Any) -> tuple[Any, Any, jcl.State]:
    program = jcl.make(method, models.mlp.apply, losses.cross_entropy(), tx)
    params = models.mlp.init(jax.random.key(1), sizes)
    example = jax.tree.map(lambda v: v[0], stage(0, 3))
    state = jax.jit(program.init)(params, example, KEY)
    train = jax.jit(lambda s, chunk: jcl.advance(program, s, chunk)[0])
    return train, jax.jit(program.consolidate), state


@pytest.mark.parametrize("at, tx", [("grads", optax.sgd(0.5)), ("updates", optax.adam(0.05))])
def test_a_linear_layer_keeps_its_outputs_for_old_inputs(at: Any, tx: Any) -> None:
    train, finish, state = begin(methods.gpm(threshold=0.99999, at=at), [FEATURES, 4], tx)
    plain, _, same = begin(methods.naive(), [FEATURES, 4], tx)
    old, new = stage(0, 3), stage(1, 7)
    state, same = finish(train(state, old), old), plain(same, old)
    x = old["x"].reshape(-1, FEATURES)
    before = models.mlp.apply(state.params, {"x": x})
    fresh = new["x"].reshape(-1, FEATURES)
    learnt = models.mlp.apply(state.params, {"x": fresh})
    for _ in range(5):
        state, same = train(state, new), plain(same, new)
    apart = jnp.abs(models.mlp.apply(state.params, {"x": x}) - before).max()
    forgotten = jnp.abs(models.mlp.apply(same.params, {"x": x}) - before).max()
    assert apart < 1e-4 < 0.1 < forgotten
    assert jnp.abs(models.mlp.apply(state.params, {"x": fresh}) - learnt).max() > 0.1


def test_a_deep_network_keeps_its_outputs_for_old_inputs() -> None:
    """Two old examples span two directions in every layer, so all that they do is protected."""
    train, finish, state = begin(
        methods.gpm(threshold=0.999999), [FEATURES, 16, 16, 4], optax.sgd(0.5)
    )
    old = jax.tree.map(lambda v: jnp.broadcast_to(v[:, :2], (4, 2, *v.shape[2:])), stage(0, 2, 1))
    state = finish(train(state, old), old)
    assert int(sum(state.methods["gpm"].used.values())) == 6
    before = models.mlp.apply(state.params, {"x": old["x"][0]})
    start = state.params
    for _ in range(5):
        state = train(state, stage(1, 7))
    after = models.mlp.apply(state.params, {"x": old["x"][0]})
    np.testing.assert_allclose(after, before, atol=1e-3)
    moved = jcl.trees.subtract(state.params, start)
    assert all(jnp.abs(moved[f"dense_{i}"]["kernel"]).max() > 0.05 for i in range(3))
    assert not any(moved[f"dense_{i}"]["bias"].any() for i in range(3))


def kept_by_hand(batches: list[Any], thresholds: list[float]) -> tuple[np.ndarray, list[int]]:
    """Equations 5, 8 and 9 by SVD in float64: the basis, and its size after each stage."""
    basis, sizes = np.zeros((FEATURES, 0)), []
    for data, threshold in zip(batches, thresholds, strict=True):
        r = np.asarray(data["x"], float).reshape(-1, FEATURES).T
        rest = r - basis @ basis.T @ r
        u, s, _ = np.linalg.svd(rest, full_matrices=False)
        total = np.sum(r**2)
        share, count = (total - np.sum(rest**2)) / total, 0
        while share < threshold:
            share += s[count] ** 2 / total
            count += 1
        basis = np.concatenate([basis, u[:, :count]], axis=1)
        sizes.append(basis.shape[1])
    return basis, sizes


@pytest.mark.parametrize("threshold, growth", [(0.5, 0.0), (0.9, 0.03), (0.97, 0.01), (0.999, 0)])
def test_directions_are_the_fewest_that_hold_the_threshold(threshold: float, growth: float) -> None:
    data = [stage(s, r) for s, r in ((0, 4), (1, 3), (2, 5))]
    method = methods.gpm(threshold=threshold, growth=growth)
    _, finish, state = begin(method, [FEATURES, 4], optax.sgd(0.1))
    expected, sizes = kept_by_hand(data, [threshold + growth * t for t in range(3)])
    for batches, size in zip(data, sizes, strict=True):
        state = finish(state, batches)
        found = np.asarray(state.methods["gpm"].basis["dense_0"], float)
        assert int(state.methods["gpm"].used["dense_0"]) == size
        np.testing.assert_allclose(found.T @ found, np.diag(np.arange(FEATURES) < size), atol=1e-5)
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-3)


@pytest.mark.quick
def test_padding_is_no_input() -> None:
    data = stage(0, 3)
    padded = jax.tree.map(lambda v: v, data)
    padded["x"] = padded["x"].at[:, 8:].set(100.0)
    padded["weight"] = padded["weight"].at[:, 8:].set(0.0)
    short = jax.tree.map(lambda v: v[:, :8], data)
    found = []
    for batches in (padded, short):
        _, finish, state = begin(methods.gpm(threshold=0.999), [FEATURES, 4], optax.sgd(0.1))
        basis = np.asarray(finish(state, batches).methods["gpm"].basis["dense_0"])
        found.append(basis @ basis.T)
    np.testing.assert_allclose(*found, atol=1e-4)


@pytest.mark.quick
def test_rank_bounds_the_directions() -> None:
    method = methods.gpm(threshold=1.0, rank=2)
    _, finish, state = begin(method, [FEATURES, 16, 4], optax.sgd(0.1))
    state = finish(state, stage(0, 5))
    assert {s: b.shape for s, b in state.methods["gpm"].basis.items()} == {
        "dense_0": (FEATURES, 2),
        "dense_1": (16, 2),
    }
    assert all(int(u) == 2 for u in state.methods["gpm"].used.values())


def test_what_is_free_learns_as_it_would() -> None:
    method = methods.gpm(threshold=0.99, free=lambda path: path.startswith("dense_1"))
    train, finish, state = begin(method, [FEATURES, 16, 4], optax.sgd(0.1))
    plain, _, _ = begin(methods.naive(), [FEATURES, 16, 4], optax.sgd(0.1))
    state = finish(train(state, stage(0, 3)), stage(0, 3))
    assert set(state.methods["gpm"].basis) == {"dense_0"}
    one = jax.tree.map(lambda v: v[:1], stage(1, 6))
    same = plain(state._replace(methods={}), one).params
    after = train(state, one).params
    np.testing.assert_array_equal(after["dense_1"]["kernel"], same["dense_1"]["kernel"])
    np.testing.assert_array_equal(after["dense_1"]["bias"], same["dense_1"]["bias"])
    assert jnp.abs(after["dense_0"]["kernel"] - same["dense_0"]["kernel"]).max() > 3e-4


def test_layers_stacked_in_a_scan_each_get_their_own_directions() -> None:
    depth = 3
    kernels = jax.random.normal(KEY, (depth, FEATURES, FEATURES)) / FEATURES**0.5

    def scanned(params: Any, batch: Any, tap: Any = taps.identity) -> jax.Array:
        def block(h: jax.Array, xs: Any) -> Any:
            layer, kernel = xs
            return jnp.tanh(models.dense({"kernel": kernel}, h, "blocks/up", tap, layer)), None

        stack = (jnp.arange(depth), params["blocks"]["up"]["kernel"])
        return jax.lax.scan(block, batch["x"], stack)[0]

    program = jcl.make(
        methods.gpm(threshold=0.95), scanned, losses.cross_entropy(), optax.sgd(0.1),
        structure=jcl.Structure(stacks={"blocks": 1}),
    )  # fmt: skip
    data = stage(0, 4)
    example = jax.tree.map(lambda v: v[0], data)
    state = jax.jit(program.init)({"blocks": {"up": {"kernel": kernels}}}, example, KEY)
    state = jax.jit(program.consolidate)(state, data)
    basis, used = (d["blocks/up"] for d in state.methods["gpm"])
    h = np.asarray(data["x"], float).reshape(-1, FEATURES)
    for layer in range(depth):
        expected, (size,) = kept_by_hand([{"x": h}], [0.95])
        assert int(used[layer]) == size
        found = np.asarray(basis[layer], float)
        np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-3)
        h = np.tanh(h @ np.asarray(kernels[layer], float))
    # and the step projects each layer on its own
    after, _ = jax.jit(program.step)(state, example)
    moved = after.params["blocks"]["up"]["kernel"] - kernels
    along = jnp.einsum("lik,lio->lko", basis, moved)
    assert jnp.abs(along).max() < 1e-6 < 3e-4 < jnp.abs(moved).max()


def test_a_model_without_taps_is_refused() -> None:
    program = jcl.make(
        methods.gpm(), lambda p, b: b["x"] @ p["w"], losses.cross_entropy(), optax.sgd(0.1)
    )
    with pytest.raises(ValueError, match="no dense sites"):
        program.init(
            {"w": jnp.zeros((FEATURES, 4))}, jax.tree.map(lambda v: v[0], stage(0, 3)), KEY
        )


class Seeing(nn.Module):
    """A convolution and what reads it."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(4)(nn.relu(nn.Conv(5, (3, 3), padding="VALID")(x)).mean((1, 2)))


def images(seed: int) -> dict[str, jax.Array]:
    """A batch [1, 4, ...] of images, the last two rows of which are padding."""
    x = jax.random.normal(jax.random.key(seed), (1, 4, 4, 4, 2)).at[0, 2:].set(50.0)
    return {"x": x, "y": jnp.arange(4)[None], "weight": jnp.array([[1.0, 2.0, 0.0, 0.0]])}


@pytest.mark.parametrize("at, tx", [("grads", optax.sgd(0.5)), ("updates", optax.adam(0.05))])
def test_a_convolution_no_longer_changes_on_old_patches(at: Any, tx: Any) -> None:
    """Two images have eight patches, which span 8 of the kernel's 18 inputs."""
    old, new = images(0), images(1)
    model = models.flax.linen(Seeing(), old | {"x": old["x"][0]}, KEY)
    method = methods.gpm(threshold=0.999999, at=at)
    program = jcl.make(method, model.apply, losses.cross_entropy(), tx)
    state = program.init(model.params, jax.tree.map(lambda v: v[0], old), KEY)
    train = jax.jit(lambda s, chunk: jcl.advance(program, s, chunk)[0])
    state = jax.jit(program.consolidate)(train(state, old), old)
    assert int(state.methods["gpm"].used["Conv_0"]) == 8
    before, after = state, state
    for _ in range(3):
        after = train(after, new)
    x = np.asarray(old["x"][0], float)
    patches = [
        x[row, i : i + 3, j : j + 3].reshape(-1) for row in (0, 1) for i in (0, 1) for j in (0, 1)
    ]
    moved = jcl.trees.subtract(after.params, before.params)["Conv_0"]["kernel"]
    assert jnp.abs(moved).max() > 0.01
    np.testing.assert_allclose(patches @ np.asarray(moved, float).reshape(18, 5), 0, atol=1e-4)
    answers = [model.apply(s.params, {"x": old["x"][0, :2]}) for s in (before, after)]
    np.testing.assert_allclose(*answers, atol=1e-3)
