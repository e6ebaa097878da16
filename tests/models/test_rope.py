"""Rotary positions: complex numbers, and transformers' own frequencies of every kind."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcl.models.rope import KINDS, Rope, angles, frequencies, rotate

pytestmark = pytest.mark.quick

HEAD = 22
HALF = HEAD // 2
DRAW = np.random.default_rng(0)


def test_a_position_turns_complex_numbers() -> None:
    """Dimension i is the real part of a number and i + half the imaginary one."""
    rope = Rope(theta=500.0)
    x = DRAW.normal(size=(2, 5, 3, HEAD)).astype(np.float32)
    places = np.array([[0, 1, 2, 3, 4], [7, 8, 0, 1, 31]])
    cos, sin = angles(rope, HEAD, jnp.asarray(places), 40)
    turned = np.exp(1j * places[..., None] * 500.0 ** (-np.arange(HALF) / HALF))[:, :, None]
    wanted = (x[..., :HALF] + 1j * x[..., HALF:]) * turned
    found = rotate(jnp.asarray(x), cos, sin)
    np.testing.assert_allclose(found, np.concatenate([wanted.real, wanted.imag], -1), atol=1e-4)


def test_of_part_of_a_head_the_rest_stays() -> None:
    x = jnp.asarray(DRAW.normal(size=(1, 3, 2, HEAD)), jnp.float32)
    cos, sin = angles(Rope(width=6), HEAD, jnp.arange(3)[None], 3)
    found = rotate(x, cos, sin)
    np.testing.assert_array_equal(found[..., 6:], x[..., 6:])
    np.testing.assert_allclose(
        jnp.linalg.norm(found[..., :6], axis=-1), jnp.linalg.norm(x[..., :6], axis=-1), rtol=1e-5
    )
    assert float(jnp.abs(found[:, 1:, :, :6] - x[:, 1:, :, :6]).min()) > 0


def test_scores_depend_on_the_distance_alone() -> None:
    q, k = (jnp.asarray(DRAW.normal(size=(1, 1, 1, HEAD)), jnp.float32) for _ in range(2))

    def score(query: int, key: int) -> jax.Array:
        both = ((q, query), (k, key))
        turned = [rotate(x, *angles(Rope(), HEAD, jnp.array([[at]]), 99)) for x, at in both]
        return jnp.sum(turned[0] * turned[1])

    np.testing.assert_allclose(score(13, 5), score(90, 82), rtol=1e-4)
    assert abs(float(score(13, 5) - score(13, 6))) > 1e-3


def theirs(rope: Rope, length: int) -> tuple[np.ndarray, float]:
    """What transformers computes from the same numbers."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rotary = {
        "rope_type": rope.kind, "rope_theta": rope.theta, "factor": rope.factor,
        "original_max_position_embeddings": rope.original, **dict(rope.options),
    }  # fmt: skip
    config: Any = SimpleNamespace(
        rope_parameters=rotary, head_dim=HEAD, hidden_size=HEAD, num_attention_heads=1,
        max_position_embeddings=rope.original, standardize_rope_params=lambda: None,
    )  # fmt: skip
    rates, scale = ROPE_INIT_FUNCTIONS[rope.kind](config, "cpu", seq_len=length)
    return rates.numpy(), float(scale)


SHORT = tuple(1 + 0.1 * i for i in range(HALF))
LONG = tuple(1 + 0.7 * i for i in range(HALF))
WAVES = (("low_freq_factor", 1.0), ("high_freq_factor", 4.0))
STRETCHED = [
    Rope(500.0, kind="linear", factor=3.5),
    Rope(500.0, kind="dynamic", factor=3.5, original=48),
    Rope(500.0, kind="yarn", factor=6.0, original=48),
    Rope(500.0, kind="yarn", factor=6.0, original=48, options=(("attention_factor", 0.8),)),
    Rope(
        500.0, kind="yarn", factor=6.0, original=48,
        options=(("beta_fast", 16), ("beta_slow", 2), ("mscale", 0.7), ("mscale_all_dim", 0.4)),
    ),
    Rope(500.0, kind="yarn", factor=6.0, original=48, options=(("truncate", False),)),
    Rope(
        500.0, kind="longrope", factor=4.0, original=48,
        options=(("short_factor", SHORT), ("long_factor", LONG)),
    ),
    Rope(500.0, kind="llama3", factor=8.0, original=48, options=WAVES),
]  # fmt: skip


@pytest.mark.parametrize("length", [17, 48, 131])
@pytest.mark.parametrize("rope", STRETCHED, ids=lambda r: f"{r.kind}-{len(r.options)}")
def test_stretched_it_is_transformers_own(rope: Rope, length: int) -> None:
    rates, scale = theirs(rope, length)
    found, ours = frequencies(rope, HEAD, length)
    np.testing.assert_allclose(found, rates, rtol=1e-5)
    np.testing.assert_allclose(ours, scale, rtol=1e-6)


def test_every_kind_is_compared() -> None:
    assert {rope.kind for rope in STRETCHED} | {"default"} == set(KINDS)


def test_what_can_not_be_is_refused() -> None:
    with pytest.raises(ValueError, match="rope kind is 'ntk', but must be one of"):
        Rope(kind="ntk")
    with pytest.raises(ValueError, match="rope width is 5, but must be even"):
        Rope(width=5)
