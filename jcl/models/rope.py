"""Rotary positions, and the ways in which published models stretch them to longer contexts.

Source: Su et al., arXiv 2104.09864; the ways to stretch them as transformers 5 computes them
(`modeling_rope_utils.py`): linear, NTK (`dynamic`), YaRN (arXiv 2309.00071), LongRoPE
(arXiv 2402.13753) and that of Llama 3.1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcl.method import check

KINDS = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")


@dataclass(frozen=True)
class Rope:
    """How positions turn the heads' dimensions.

    Args:
      theta: the base of the frequencies.
      width: how many of a head's dimensions are turned, from the first on; even. None is all.
      kind: one of `KINDS`.
      factor: how far the context is stretched; unused by `default`.
      original: the context in training, in tokens; `dynamic` stretches beyond this context.
      options: what else `kind` needs, under the names of transformers' `rope_parameters`.

    Raises:
      ValueError: if `kind` is unknown or `width` is odd.
    """

    theta: float = 10_000.0
    width: int | None = None
    kind: str = "default"
    factor: float = 1.0
    original: int = 2048
    options: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        check(self.kind in KINDS, "rope kind", self.kind, f"one of {list(KINDS)}")
        check((self.width or 0) % 2 == 0, "rope width", self.width, "even")


def frequencies(rope: Rope, head: int, length: int) -> tuple[np.ndarray, float]:
    """The radians by which a position turns each pair, float32 [width / 2], and a scale.

    The scale is a factor of sin and cos.

    Args:
      rope: the kind and its parameters.
      head: the width of a head.
      length: how many tokens the context may hold, prompt and generation together; `dynamic` and
        `longrope` depend on it.
    """
    width = rope.width or head
    half = width // 2
    options: Mapping[str, Any] = dict(rope.options)
    exponent = np.arange(half, dtype=np.float32) / np.float32(half)
    plain = (1 / rope.theta**exponent).astype(np.float32)
    if rope.kind == "default":
        return plain, 1.0
    if rope.kind == "linear":
        return plain / np.float32(rope.factor), 1.0
    if rope.kind == "dynamic":
        over = rope.factor * max(length, rope.original) / rope.original - (rope.factor - 1)
        base = rope.theta * over ** (width / (width - 2))
        return (1 / base**exponent).astype(np.float32), 1.0
    if rope.kind == "longrope":
        stretch = options["long_factor" if length > rope.original else "short_factor"]
        return (plain / np.asarray(stretch, np.float32)), _longrope_scale(rope, options)
    if rope.kind == "yarn":
        return _yarn(rope, width, plain, options)
    return _llama3(rope, plain, options), 1.0


def _longrope_scale(rope: Rope, options: Mapping[str, Any]) -> float:
    given = options.get("attention_factor")
    if given is not None:
        return float(given)
    if rope.factor <= 1:
        return 1.0
    return math.sqrt(1 + math.log(rope.factor) / math.log(rope.original))


def _llama3(rope: Rope, plain: np.ndarray, options: Mapping[str, Any]) -> np.ndarray:
    """Stretches long waves, keeps short ones and interpolates those between."""
    low, high = options["low_freq_factor"], options["high_freq_factor"]
    turns = rope.original * plain / (2 * np.pi)  # by each pair over the original context
    keep = np.clip((turns - low) / (high - low), 0, 1)
    return (keep * plain + (1 - keep) * plain / rope.factor).astype(np.float32)


def _yarn(
    rope: Rope, width: int, plain: np.ndarray, options: Mapping[str, Any]
) -> tuple[np.ndarray, float]:
    def pair(turns: float) -> float:
        """The pair that makes this many turns over the original context."""
        span = math.log(rope.original / (turns * 2 * math.pi))
        return width * span / (2 * math.log(rope.theta))

    low, high = pair(options.get("beta_fast") or 32), pair(options.get("beta_slow") or 1)
    if options.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    ramp = (np.arange(len(plain), dtype=np.float32) - low) / max(high - low, 1e-3)
    stretched = np.clip(ramp, 0, 1)
    rates = stretched * plain / rope.factor + (1 - stretched) * plain

    def scale(m: float) -> float:
        return 1.0 if rope.factor <= 1 else 0.1 * m * math.log(rope.factor) + 1

    given, m, m_all = (options.get(k) for k in ("attention_factor", "mscale", "mscale_all_dim"))
    if given is None:
        given = scale(m) / scale(m_all) if m and m_all else scale(1)
    return rates.astype(np.float32), float(given)


def angles(rope: Rope, head: int, positions: jax.Array, length: int) -> tuple[jax.Array, jax.Array]:
    """cos and sin, float32 [..., width / 2], of `positions` [...] in a context of `length`."""
    rates, scale = frequencies(rope, head, length)
    turned = positions[..., None].astype(jnp.float32) * rates
    return jnp.cos(turned) * scale, jnp.sin(turned) * scale


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Turns the first 2 · half dimensions of heads x [B, L, H, D] by cos and sin [B, L, half].

    Dimension i is paired with i + half, as in the weights that Hugging Face stores.
    """
    half = cos.shape[-1]
    cos, sin = cos[..., None, :].astype(x.dtype), sin[..., None, :].astype(x.dtype)
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)
