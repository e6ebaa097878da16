"""Attention by the platform's fastest kernel, and masks of which token sees which."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from jcl.method import Params, check
from jcl.parallel import mesh as meshes

Backend = Literal["auto", "xla", "cudnn", "splash"]
"""`auto` takes cuDNN on GPUs for half precision, splash attention on TPUs, and XLA elsewhere, for
biases, or where a mesh cuts rows along their length."""
BACKENDS = ("auto", "xla", "cudnn", "splash")


def visible(
    query: jax.Array,
    key: jax.Array,
    query_slots: jax.Array,
    window: int | None = None,
    causal: bool = True,
) -> jax.Array:
    """Which keys each query sees, bool [B, 1, T, S]: those of its segment, not later, not too old.

    Args:
      query: the segments of the queries, int32 [B, T].
      key: the segments of the keys, int32 [B, S].
      query_slots: the place of each query among the S keys, int32 [T].
      window: how many of the latest keys a query sees, its own included; None is all.
      causal: False lets a query see later keys too, as many as earlier ones.
    """
    same = query[:, :, None] == key[:, None]
    if not causal and window is None:
        return same[:, None]
    back = query_slots[:, None] - jnp.arange(key.shape[1])[None]
    near = back >= 0 if causal else jnp.ones_like(back, bool)
    near = near if window is None else near & (jnp.abs(back) < window)
    return (near[None] & same)[:, None]


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    scale: float,
    segments: jax.Array | None = None,
    window: int | None = None,
    mask: jax.Array | None = None,
    cap: float | None = None,
    causal: bool = True,
    bias: jax.Array | None = None,
    backend: Backend = "auto",
) -> jax.Array:
    """softmax(scale · q kᵀ + bias) v over the visible keys, scores and softmax in float32.

    Args:
      q: queries [B, T, H, D].
      k: keys [B, S, K, D]; each serves H / K query heads.
      v: values [B, S, K, D].
      scale: the factor of the scores.
      segments: int32 [B, T], with T = S, which attention doesn't cross; None is one segment.
      window: how many of the latest keys a query sees, its own included; None is all.
      mask: bool [B or 1, 1, T, S], True where seen; it replaces causality, segments and window.
      cap: scores s become cap · tanh(s / cap) (Gemma 2).
      causal: False lets a query see later tokens too, within the window as many as earlier ones.
      bias: float32 [B or 1, H, T, S], added to the scores; not with `cap`.
      backend: the kernel; see `Backend`.

    Returns:
      [B, T, H, D] in q's dtype.
    """
    kernel = _pick_kernel(backend, q, mask is None, bias is not None)
    if kernel == "splash":
        if segments is None:
            segments = jnp.ones(q.shape[:2], jnp.int32)
        splash: Any = partial(_splash, scale=scale, window=window, cap=cap, causal=causal)
        cuts = _cuts(q, k)
        if any(cuts):  # the compiler can't cut a kernel, so each device runs it on its part
            specs = (cuts, cuts, cuts, PartitionSpec(*cuts[:2]))
            splash = meshes.by_parts(splash, specs, cuts, meshes.AXES)
        return splash(q, k, v, segments)
    if kernel == "cudnn" and mask is None and segments is None and cap is None:
        reach = None if window is None else (window - 1, 0 if causal else window - 1)
        return jax.nn.dot_product_attention(
            q, k, v, bias, is_causal=causal, local_window_size=reach, scale=scale,
            implementation=kernel,
        )  # fmt: skip

    def look(q: jax.Array, k: jax.Array, v: jax.Array, bias: Any, mask: jax.Array) -> jax.Array:
        if cap is not None:
            return _capped(q, k, v, mask, scale, cap)
        return jax.nn.dot_product_attention(q, k, v, bias, mask, scale=scale, implementation=kernel)

    if mask is not None:
        return look(q, k, v, bias, mask)
    rows = jnp.ones((1, q.shape[1]), jnp.int32) if segments is None else segments
    mask = visible(rows, rows, jnp.arange(q.shape[1]), window, causal)
    if not causal or kernel == "cudnn":
        return look(q, k, v, bias, mask)
    # queries go in a few pieces, each with the keys up to its end, for half the scores are masked
    count = max(1, min(4, q.shape[1] // 64))
    edges = [i * q.shape[1] // count for i in range(count + 1)]
    parts = [
        look(q[:, a:b], k[:, :b], v[:, :b], _slice_bias(bias, a, b), mask[..., a:b, :b])
        for a, b in pairwise(edges)
    ]
    return parts[0] if count == 1 else jnp.concatenate(parts, axis=1)


def _slice_bias(bias: jax.Array | None, start: int, stop: int) -> jax.Array | None:
    return None if bias is None else bias[..., start:stop, :stop]


def _pick_kernel(
    backend: Backend, q: jax.Array, own: bool, biased: bool
) -> Literal["xla", "cudnn", "splash"]:
    check(backend in BACKENDS, "attention backend", backend, f"one of {list(BACKENDS)}")
    whole = _cuts(q, q)[1] is None  # a kernel must see the whole length on one device
    if backend == "splash":  # which makes its own mask
        return "splash" if own and whole and not biased else "xla"
    if backend != "auto":
        return backend
    if biased:
        return "xla"
    if platform() == "gpu" and q.dtype in (jnp.bfloat16, jnp.float16):
        return "cudnn"
    tiled = q.shape[1] % 128 == 0 and q.shape[-1] % 64 == 0
    return "splash" if platform() == "tpu" and own and whole and tiled else "xla"


def platform() -> str:
    """The platform that is compiled for: that of the context's mesh, or else this machine's."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def _cuts(q: jax.Array, k: jax.Array) -> PartitionSpec:
    """How the context's mesh cuts [B, T, H, D]: by rows, their length and heads."""
    mesh = jax.sharding.get_abstract_mesh()
    rows = (*meshes.row_spec(mesh, q.shape), None)[:2]
    heads = meshes.dividing_axes(mesh, ("tensor",), math.gcd(q.shape[2], k.shape[2])) or None
    return PartitionSpec(*rows, heads, None)


def _capped(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, scale: float, cap: float
) -> jax.Array:
    batch, length, heads, width = q.shape
    grouped = q.reshape(batch, length, k.shape[2], -1, width)
    scores = jnp.einsum("btkgd,bskd->bkgts", grouped, k, preferred_element_type=jnp.float32)
    scores = cap * jnp.tanh(scale * scores / cap)
    scores = jnp.where(mask[:, :, None], scores, jnp.finfo(jnp.float32).min)
    shares = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bkgts,bskd->btkgd", shares, v).reshape(batch, length, heads, width)


def _splash(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segments: jax.Array,
    *,
    scale: float,
    window: int | None,
    cap: float | None,
    causal: bool,
) -> jax.Array:
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel as kernels,
    )
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    shape = (q.shape[1], q.shape[1])
    seen: Any = masks.CausalMask(shape) if causal else masks.FullMask(shape)
    if window is not None:
        seen = masks.LocalMask(shape, (window - 1, 0 if causal else window - 1), 0)
    kernel = kernels.make_splash_mha(
        masks.MultiHeadMask([seen] * q.shape[2]),
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=cap,
        interpret=platform() == "cpu",
    )
    heads_first = (jnp.swapaxes(x, 1, 2) for x in (scale * q, k, v))
    ids = kernels.SegmentIds(q=segments, kv=segments)
    return jnp.swapaxes(jax.vmap(kernel)(*heads_first, ids), 1, 2).astype(q.dtype)


def positions(segments: jax.Array) -> jax.Array:
    """The place of each token within its segment, int32 [B, L], from `segments` [B, L].

    Segments are numbered from 1 in order; padding, 0, takes no place.
    """
    real = segments > 0
    count = jnp.cumsum(real, axis=1) - 1
    before = jnp.concatenate([jnp.zeros_like(segments[:, :1]), segments[:, :-1]], axis=1)
    first = real & (segments > lax.cummax(before, axis=1))
    return jnp.maximum(count - lax.cummax(jnp.where(first, count, 0), axis=1), 0)


def with_prefix(
    block: Params,
    k: jax.Array,
    v: jax.Array,
    segments: jax.Array | None = None,
    mask: jax.Array | None = None,
    window: int | None = None,
    causal: bool = True,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Keys, values and mask, with a block's learned keys and values in front if it has any.

    All queries see these, whatever their segment and place. They are the adapter `prefix`
    `{"key", "value"}`, [P, K · D] each (see `jcl.mechanisms.adapters`).

    Args:
      block: the block's parameters.
      k: keys [B, S, K, D].
      v: values [B, S, K, D].
      segments: int32 [B, S], as in `attend`; None is one segment.
      mask: bool [B or 1, 1, T, S], as in `attend`; None is what `segments`, `window` and `causal`
        let S queries see.
      window: as in `attend`.
      causal: as in `attend`.

    Returns:
      Keys and values [B, P + S, K, D] and a mask, or what was given where there is no prefix.
    """
    if "prefix" not in block:
        return k, v, mask
    prefix = block["prefix"]
    if mask is None:
        rows = jnp.ones((1, k.shape[1]), jnp.int32) if segments is None else segments
        mask = visible(rows, rows, jnp.arange(k.shape[1]), window, causal)

    def join(new: jax.Array, old: jax.Array) -> jax.Array:
        new = new.astype(old.dtype).reshape(1, -1, *old.shape[2:])
        return jnp.concatenate([jnp.broadcast_to(new, (len(old), *new.shape[1:])), old], axis=1)

    seen = jnp.ones((*mask.shape[:3], prefix["key"].shape[0]), bool)
    mask = jnp.concatenate([seen, mask], axis=-1)
    return join(prefix["key"], k), join(prefix["value"], v), mask
