"""A causal transformer decoder: scanned layers, RMS norm, rotary positions, gated MLP.

Layers are stacked along a leading axis and scanned, so that compile time doesn't grow with depth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jcl import taps
from jcl.method import Apply, Batch, Params, Tap, check
from jcl.models.layers import dense


@dataclass(frozen=True)
class Config:
    """A decoder's shape.

    Args:
      vocabulary: number of token ids; 256 for bytes.
      layers: blocks.
      width: of the residual stream.
      heads: query heads, each of width / heads.
      kv_heads: key and value heads; must divide `heads`.
      hidden: width inside the gated MLP.
      theta: base of the rotary frequencies.
      eps: of the RMS norms.
      remat: whether the backward pass recomputes each block instead of keeping it.
    """

    vocabulary: int = 256
    layers: int = 4
    width: int = 128
    heads: int = 4
    kv_heads: int = 4
    hidden: int = 352
    theta: float = 10_000.0
    eps: float = 1e-5
    remat: bool = False

    def __post_init__(self) -> None:
        for name in ("vocabulary", "layers", "width", "heads", "kv_heads", "hidden"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        check(
            self.width % (2 * self.heads) == 0,
            "width",
            self.width,
            f"a multiple of {2 * self.heads}, twice the heads",
        )
        check(
            self.heads % self.kv_heads == 0,
            "kv_heads",
            self.kv_heads,
            f"a divisor of {self.heads}, the heads",
        )

    @property
    def head_width(self) -> int:
        """Width of a head."""
        return self.width // self.heads


def init(key: jax.Array, config: Config, dtype: Any = jnp.float32) -> Params:
    """Parameters of a decoder: normal, 0.02, residual outputs scaled by 1/√(2·layers) (GPT-2).

    `blocks/...` leaves have a leading axis [layers]; the output head is the embedding, tied.
    """
    c = config
    keys = iter(jax.random.split(key, 8))

    def kernel(fan_in: int, fan_out: int, scale: float = 0.02) -> Params:
        shape = (c.layers, fan_in, fan_out)
        return {"kernel": scale * jax.random.normal(next(keys), shape, dtype)}

    residual = 0.02 / (2 * c.layers) ** 0.5
    kv = c.kv_heads * c.head_width
    return {
        "embed": {"table": 0.02 * jax.random.normal(next(keys), (c.vocabulary, c.width), dtype)},
        "blocks": {
            "attention_norm": {"scale": jnp.ones((c.layers, c.width), dtype)},
            "query": kernel(c.width, c.width),
            "key": kernel(c.width, kv),
            "value": kernel(c.width, kv),
            "output": kernel(c.width, c.width, residual),
            "mlp_norm": {"scale": jnp.ones((c.layers, c.width), dtype)},
            "gate": kernel(c.width, c.hidden),
            "up": kernel(c.width, c.hidden),
            "down": kernel(c.hidden, c.width, residual),
        },
        "norm": {"scale": jnp.ones((c.width,), dtype)},
    }


def rms_norm(params: Params, x: jax.Array, eps: float) -> jax.Array:
    """x / rms(x) · scale over the last axis, in float32, back in x's dtype."""
    wide = x.astype(jnp.float32)
    wide = wide * lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + eps)
    return (wide * params["scale"]).astype(x.dtype)


def rotary(x: jax.Array, positions: jax.Array, theta: float) -> jax.Array:
    """Rotates halves of each head [B, L, H, D] by position; source: Su et al., arXiv 2104.09864."""
    half = x.shape[-1] // 2
    rates = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = positions[..., None, None].astype(jnp.float32) * rates
    sin, cos = jnp.sin(angle).astype(x.dtype), jnp.cos(angle).astype(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def apply_fn(config: Config) -> Apply:
    """`apply(params, batch, tap) -> logits [B, L, V]` of `batch["tokens"]` int32 [B, L].

    Sites: `blocks/{query,key,value,output,gate,up,down}` with `:in` and `:out`, and
    `blocks:attention`, `blocks:mlp` (what each adds to the residual stream), `blocks:out`.
    """
    c = config

    def block(h: jax.Array, params: Params, layer: jax.Array, tap: Tap) -> jax.Array:
        batch, length, _ = h.shape
        positions = jnp.arange(length)[None]

        def linear(name: str, x: jax.Array) -> jax.Array:
            return dense(params[name], x, f"blocks/{name}", tap, layer)

        x = rms_norm(params["attention_norm"], h, c.eps)
        q = linear("query", x).reshape(batch, length, c.heads, c.head_width)
        k = linear("key", x).reshape(batch, length, c.kv_heads, c.head_width)
        v = linear("value", x).reshape(batch, length, c.kv_heads, c.head_width)
        q, k = rotary(q, positions, c.theta), rotary(k, positions, c.theta)
        mixed = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        attended = linear("output", mixed.reshape(batch, length, c.width))
        h = h + tap("blocks:attention", layer, attended)
        x = rms_norm(params["mlp_norm"], h, c.eps)
        gated = jax.nn.silu(linear("gate", x)) * linear("up", x)
        h = h + tap("blocks:mlp", layer, linear("down", gated))
        return tap("blocks:out", layer, h)

    def apply(params: Params, batch: Batch, tap: Tap = taps.identity) -> jax.Array:
        table = params["embed"]["table"]
        h = table[batch["tokens"]]

        def scanned(h: jax.Array, xs: tuple[Params, jax.Array]) -> tuple[jax.Array, None]:
            return block(h, xs[0], xs[1], tap), None

        body = jax.checkpoint(scanned) if c.remat else scanned
        h, _ = lax.scan(body, h, (params["blocks"], jnp.arange(c.layers)))
        h = rms_norm(params["norm"], h, c.eps)
        return (h.reshape(-1, c.width) @ table.T).reshape(*h.shape[:-1], c.vocabulary)

    return apply
