"""Attention against numpy, position by position, and each kernel against XLA's."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcl import mesh
from jcl.models import attention


def arrays(length: int, heads: int = 6, kv_heads: int = 2, width: int = 5) -> tuple[Any, ...]:
    """q, k and v of two rows."""
    shapes = ((2, length, n, width) for n in (heads, kv_heads, kv_heads))
    return tuple(jax.random.normal(jax.random.key(i), s) for i, s in enumerate(shapes))


def by_hand(q: Any, k: Any, v: Any, seen: np.ndarray, scale: float, **more: Any) -> np.ndarray:
    """softmax(scale q kᵀ + bias) v where `seen` [B, T, S], head by head in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros_like(q)
    for row, head in np.ndindex(len(q), q.shape[2]):
        group = head // (q.shape[2] // k.shape[2])
        scores = scale * q[row, :, head] @ k[row, :, group].T
        if "cap" in more:
            scores = more["cap"] * np.tanh(scores / more["cap"])
        if "bias" in more:
            scores = scores + np.asarray(more["bias"], np.float64)[0, head]
        shares = np.exp(scores - scores.max(-1, keepdims=True)) * seen[row]
        out[row, :, head] = shares / shares.sum(-1, keepdims=True) @ v[row, :, group]
    return out


SEGMENTS = jnp.array([[1, 1, 1, 2, 2, 2, 2, 3, 3], [1, 2, 2, 2, 2, 2, 2, 2, 0]], jnp.int32)


def looks(segments: Any, window: int | None, causal: bool, length: int) -> np.ndarray:
    """Who sees whom [B, T, S], by the rules in words."""
    rows = np.ones((2, length)) if segments is None else np.asarray(segments)
    same = rows[:, :, None] == rows[:, None]
    back = np.subtract.outer(np.arange(length), np.arange(length))
    near = np.abs(back) < (length if window is None else window)
    return same & near & (back >= 0) if causal else same & near


@pytest.mark.quick
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"window": 3},
        {"causal": False},
        {"segments": SEGMENTS},
        {"segments": SEGMENTS, "window": 2, "cap": 1.5},
        {"segments": SEGMENTS, "causal": False},
        {"segments": SEGMENTS, "causal": False, "window": 2},
        {"bias": jax.random.normal(jax.random.key(9), (1, 6, 9, 9))},
    ],
    ids=lambda options: "+".join(options) or "plain",
)
def test_it_is_the_softmax_over_what_is_seen(options: dict[str, Any]) -> None:
    q, k, v = arrays(9)
    seen = looks(options.get("segments"), options.get("window"), options.get("causal", True), 9)
    more = {name: options[name] for name in ("cap", "bias") if name in options}
    found = attention.attend(q, k, v, scale=0.7, **options)
    np.testing.assert_allclose(found, by_hand(q, k, v, seen, 0.7, **more), atol=2e-6)


@pytest.mark.parametrize("window", [None, 70])
def test_queries_in_pieces_are_those_in_one(window: int | None) -> None:
    """Of 131 positions, which are taken in two pieces of unequal length."""
    q, k, v = arrays(131, heads=2, kv_heads=1, width=3)
    segments = jnp.asarray(np.repeat([[1, 2], [1, 1]], [40, 91], axis=1), jnp.int32)
    seen = looks(segments, window, True, 131)
    found = attention.attend(q, k, v, scale=0.7, segments=segments, window=window)
    np.testing.assert_allclose(found, by_hand(q, k, v, seen, 0.7), atol=2e-6)


@pytest.mark.quick
def test_a_mask_of_one_s_own_says_who_sees_whom() -> None:
    q, k, v = arrays(7)
    k, v = k[:, :4], v[:, :4]
    mask = np.random.default_rng(0).random((2, 7, 4)) < 0.6
    mask[..., 0] = True
    found = attention.attend(q, k, v, scale=1.1, mask=jnp.asarray(mask[:, None]))
    np.testing.assert_allclose(found, by_hand(q, k, v, mask, 1.1), atol=2e-6)


@pytest.mark.quick
def test_of_a_cache_a_query_sees_the_slots_up_to_its_own() -> None:
    keys = jnp.array([[1, 1, 1, 1, 0]])  # the last slot isn't filled yet
    slots = jnp.array([2, 3])
    seen = attention.visible(jnp.ones((1, 2), jnp.int32), keys, slots, window=3)
    np.testing.assert_array_equal(seen[0, 0].astype(int), [[1, 1, 1, 0, 0], [0, 1, 1, 1, 0]])


@pytest.mark.quick
def test_all_see_a_prefix_of_keys_and_values() -> None:
    _, k, v = arrays(4)
    prefix = {"key": jnp.arange(30.0).reshape(3, 10), "value": -jnp.arange(30.0).reshape(3, 10)}
    mask = jnp.tril(jnp.ones((1, 1, 4, 4), bool))
    keys, values, seen = attention.with_prefix({"prefix": prefix}, k, v, mask=mask)
    assert keys.shape == values.shape == (2, 7, 2, 5)
    for row in range(2):
        np.testing.assert_array_equal(keys[row, :3].reshape(3, 10), prefix["key"])
        np.testing.assert_array_equal(values[row, :3].reshape(3, 10), prefix["value"])
    np.testing.assert_array_equal(keys[:, 3:], k)
    assert seen[..., :3].all() and (seen[..., 3:] == mask).all()
    _, _, made = attention.with_prefix({"prefix": prefix}, k, v)  # a causal mask is the default
    np.testing.assert_array_equal(made, seen)
    segments = jnp.array([[1, 1, 2, 0], [1, 2, 2, 2]])
    _, _, made = attention.with_prefix({"prefix": prefix}, k, v, segments, window=2, causal=False)
    near = np.abs(np.subtract.outer(np.arange(4), np.arange(4))) < 2
    wanted = (segments[:, :, None] == segments[:, None]) & near
    np.testing.assert_array_equal(made[:, 0, :, 3:], wanted)
    same = attention.with_prefix({}, k, v, segments)
    assert same[0] is k and same[1] is v and same[2] is None


@pytest.mark.quick
def test_an_unknown_backend_is_refused() -> None:
    q, k, v = arrays(3)
    with pytest.raises(ValueError, match="attention backend is 'flash', but must be one of"):
        attention.attend(q, k, v, scale=1.0, backend="flash")


@pytest.mark.quick
def test_positions_begin_anew_in_each_segment() -> None:
    segments = jnp.array([[0, 0, 1, 1, 1, 2, 2, 3], [1, 2, 2, 2, 3, 0, 0, 0]])
    places = attention.positions(segments)
    np.testing.assert_array_equal(places[0, 2:], [0, 1, 2, 0, 1, 0])
    np.testing.assert_array_equal(places[1, :5], [0, 0, 1, 2, 0])


def close(a: Any, b: Any, tolerance: float) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=tolerance, rtol=1e-4), a, b)


@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("cap", [None, 5.0])
def test_splash_attention_gives_xla_s_numbers(window: Any, cap: Any) -> None:
    q, k, v = (
        jax.random.normal(jax.random.key(i), (2, 128, heads, 64))
        for i, heads in enumerate((4, 2, 2))
    )
    segments = jnp.repeat(jnp.array([[1, 2, 0], [1, 1, 2]], jnp.int32), 43, axis=1)[:, :128]

    def mix(backend: Any, segments: Any) -> Any:
        def scalar(q: jax.Array, k: jax.Array, v: jax.Array) -> Any:
            out = attention.attend(
                q, k, v, scale=0.1, segments=segments, window=window, cap=cap, backend=backend
            )
            return jnp.sum(jnp.sin(out)), out

        return jax.jit(jax.value_and_grad(scalar, argnums=(0, 1, 2), has_aux=True))(q, k, v)

    for ids in (None, segments):
        close(mix("splash", ids), mix("xla", ids), 2e-5)


@pytest.mark.parametrize("axes", [{"fsdp": 2, "tensor": 2}, {"data": 2, "sequence": 2}])
def test_on_a_mesh_each_device_runs_splash_attention_on_its_part(axes: dict[str, int]) -> None:
    q, k, v = (
        jax.random.normal(jax.random.key(i), (4, 128, heads, 64))
        for i, heads in enumerate((4, 2, 2))
    )
    there = mesh.make(**axes)
    everywhere = jax.NamedSharding(there, jax.P())

    def mix(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        with jax.sharding.use_abstract_mesh(there.abstract_mesh):
            return attention.attend(q, k, v, scale=0.1, backend="splash")

    cut = "shard_map" in str(jax.make_jaxpr(mix)(q, k, v))
    assert cut == ("tensor" in axes)  # XLA's own attention takes a length that is cut
    wanted = attention.attend(q, k, v, scale=0.1, backend="xla")
    close(jax.jit(mix, in_shardings=everywhere)(q, k, v), wanted, 2e-5)
