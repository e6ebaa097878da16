"""T5, versions 1.0 and 1.1: an encoder that reads and a decoder that writes.

Layers are stacked along a leading axis and scanned, so that compile time doesn't grow with depth.
The batch's keys decide what goes in and what comes out:

- `inputs` int32 [B, S] for the encoder and `tokens` int32 [B, L] for the decoder, which begin with
  the start token, give logits [B, L, V] of the token after each.
- `input_segments` [B, S] and `segments` [B, L], int32, pack documents, numbered from 1 in order,
  with 0 for padding; attention doesn't cross them, and document n is written from input n.
- With `targets` int32 [B, L] it gives `losses.TokenScores` and never holds logits [B, L, V].
- `embeddings` [B, P, d] is a soft prefix before the inputs.
- With `prefill` or `cache`, from `empty_cache`, it gives the logits [B, V] of the last position and
  the cache. The inputs are read with `prefill` and kept in the cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jcl.mechanisms.adapters import kernel_array
from jcl.method import Apply, Batch, Call, Params, Structure, Tap, as_call, check, with_structure
from jcl.models import attention
from jcl.models.layers import (
    ACTIVATIONS,
    Remat,
    check_ids,
    dense,
    flattened,
    rematerialise,
    rms_norm,
    token_limits,
    token_scores,
)


@dataclass(frozen=True)
class Config:
    """The architecture of a T5; the defaults are a small one of version 1.1 over bytes.

    Args:
      vocabulary: how many token ids there are; 256 for bytes.
      layers: how many blocks the encoder has.
      decoder_layers: how many blocks the decoder has.
      width: d, the width of the residual streams.
      heads: how many attention heads there are.
      head_width: the width of a head.
      hidden: the width inside the MLP.
      activation: the MLP's activation: `relu` in 1.0, `gelu_tanh` in 1.1.
      gated: whether the MLP has a gate, as in 1.1.
      buckets: into how many buckets distances between tokens fall, each with its own bias.
      reach: the distance from which on all share the last bucket.
      eps: the ε of the norms.
      tied: whether the head is the embedding.
      scaled: whether the head's input is scaled by 1 / √width, as in 1.0.
      start: the token with which the decoder starts.

    Raises:
      ValueError: if an argument is out of range.
    """

    vocabulary: int = 256
    layers: int = 4
    decoder_layers: int = 4
    width: int = 128
    heads: int = 4
    head_width: int = 32
    hidden: int = 352
    activation: str = "gelu_tanh"
    gated: bool = True
    buckets: int = 32
    reach: int = 128
    eps: float = 1e-6
    tied: bool = False
    scaled: bool = False
    start: int = 0

    def __post_init__(self) -> None:
        for name in (
            "vocabulary", "layers", "decoder_layers", "width", "heads", "head_width", "hidden",
        ):  # fmt: skip
            check(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        check(self.activation in ACTIVATIONS, "activation", self.activation, f"{[*ACTIVATIONS]}")
        ok = self.buckets >= 4 and self.buckets % 2 == 0
        check(ok, "buckets", self.buckets, "even and at least 4")
        check(self.reach > self.buckets // 2, "reach", self.reach, f"above {self.buckets // 2}")


class Cache(NamedTuple):
    """The keys and values of the tokens read so far, for generation."""

    key: jax.Array
    """The tokens' keys, [decoder_layers, B, slots, heads, head_width]."""
    value: jax.Array
    """The tokens' values, [decoder_layers, B, slots, heads, head_width]."""
    segments: jax.Array
    """int32 [B, slots]: 0 where a slot is padding or not filled yet."""
    filled: jax.Array
    """int32 []: how many slots are filled."""
    inputs: Any = None
    """The inputs' keys and values, [decoder_layers, B, S, heads, head_width] each."""
    input_segments: Any = None
    """int32 [B, S]: the inputs' segments."""


def empty_cache(config: Config, rows: int, slots: int, dtype: Any = jnp.float32) -> Cache:
    """A cache for `rows` sequences of up to `slots` written tokens, the start token included."""
    shape = (config.decoder_layers, rows, slots, config.heads, config.head_width)
    empty = jnp.zeros((rows, slots), jnp.int32)
    return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), empty, jnp.int32(0))


def init(key: jax.Array, config: Config, dtype: Any = jnp.float32) -> Params:
    """Draws a T5's parameters: normal, scaled by fan-in, queries also by 1 / √head_width (T5).

    `{encoder,decoder}/blocks/...` leaves have a leading axis [layers].
    """
    c = config
    keys = iter(jax.random.split(key, 32))
    inner = c.heads * c.head_width

    def normal(scale: float, *shape: int) -> jax.Array:
        return scale * jax.random.normal(next(keys), shape, dtype)

    def linear(*shape: int, scale: float = 1.0) -> Params:
        return {"kernel": normal(scale * shape[-2] ** -0.5, *shape)}

    def stack(layers: int, parts: tuple[str, ...]) -> Params:
        blocks = {f"{part}_norm": {"scale": jnp.ones((layers, c.width), dtype)} for part in parts}
        for prefix in ("", "cross_") if "cross" in parts else ("",):
            blocks[f"{prefix}query"] = linear(layers, c.width, inner, scale=c.head_width**-0.5)
            blocks[f"{prefix}key"] = linear(layers, c.width, inner)
            blocks[f"{prefix}value"] = linear(layers, c.width, inner)
            blocks[f"{prefix}output"] = linear(layers, inner, c.width)
        for name in ("gate", "up") if c.gated else ("up",):
            blocks[name] = linear(layers, c.width, c.hidden)
        blocks["down"] = linear(layers, c.hidden, c.width)
        return {
            "positions": {"table": normal(c.width**-0.5, c.buckets, c.heads)},
            "blocks": blocks,
            "norm": {"scale": jnp.ones(c.width, dtype)},
        }

    params: Params = {
        "embed": {"table": normal(1.0, c.vocabulary, c.width)},
        "encoder": stack(c.layers, ("attention", "mlp")),
        "decoder": stack(c.decoder_layers, ("attention", "cross", "mlp")),
    }
    if not c.tied:
        params["head"] = {"kernel": normal(1.0, c.width, c.vocabulary)}
    return params


def bucket(ahead: np.ndarray, buckets: int, reach: int, causal: bool) -> np.ndarray:
    """The bucket of keys that are `ahead` [...] tokens ahead of the query, int32 [...].

    Half of the buckets hold one distance each; the others grow up to `reach`. Without causality one
    half of all buckets is for keys ahead, the other for keys behind.

    Source: Raffel et al., arXiv 1910.10683, section 2.1; mesh_tensorflow's transformer_layers.py.
    """
    count = buckets if causal else buckets // 2
    side = np.where(ahead > 0, 0 if causal else count, 0)
    distance = np.maximum(-ahead, 0) if causal else np.abs(ahead)
    exact = count // 2
    # in float32 as in training, for some distances lie on an edge between buckets
    far = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact))
    far = far / np.float32(np.log(reach / exact)) * np.float32(count - exact)
    far = np.minimum(exact + far.astype(np.int32), count - 1)
    return (side + np.where(distance < exact, distance, far)).astype(np.int32)


def apply_fn(
    config: Config,
    *,
    remat: Remat = "none",
    compute: Any = None,
    backend: attention.Backend = "auto",
    logits_limit: int = 2**25,
) -> Apply:
    """`apply(params, batch, call)`; see the module for what a batch may hold.

    Sites: `{encoder,decoder}/blocks/{query,key,value,output,gate,up,down}` and
    `decoder/blocks/cross_{query,key,value,output}` with `:in` and `:out`, and
    `{encoder,decoder}/blocks:attention`, `decoder/blocks:cross`, `{encoder,decoder}/blocks:mlp`
    (what each adds to the residual stream), `{encoder,decoder}/blocks:out`; and whose segments
    the sites see: `encoder/blocks:input_segments`, `decoder/blocks:segments` and, for what the
    decoder reads of the encoder, `decoder/blocks/cross_{key,value}:input_segments`.

    Args:
      config: the architecture.
      remat: as in `decoder.apply_fn`.
      compute: as in `decoder.apply_fn`.
      backend: the kernel of attention without a bias, which is the decoder's to the inputs.
      logits_limit: with `targets`, how many logits are held at once at most.

    Raises:
      ValueError: if `remat` is unknown; from `apply`, if there are no inputs.
    """
    c = config
    rematerialised = rematerialise(remat)
    activation = ACTIVATIONS[c.activation]
    normed = partial(rms_norm, eps=c.eps)

    def distances(table: jax.Array, slots: jax.Array, keys: int, causal: bool) -> jax.Array:
        """The bias for queries at `slots` [T] and all keys, float32 [1, H, T, S]."""
        ahead = np.arange(1 - keys, keys)
        by_distance = table.astype(jnp.float32)[bucket(ahead, c.buckets, c.reach, causal)]
        places = jnp.arange(keys)[None] - slots[:, None] + keys - 1
        return jnp.moveaxis(by_distance[places], -1, 0)[None]

    def split(p: Params, at: str, name: str, x: jax.Array, layer: jax.Array, tap: Tap) -> jax.Array:
        h = dense(p[name], x, f"{at}/{name}", tap, layer)
        return h.reshape(*x.shape[:2], c.heads, c.head_width)

    def pair(
        p: Params, at: str, prefix: str, x: jax.Array, layer: jax.Array, tap: Tap
    ) -> tuple[jax.Array, ...]:
        """The keys and values of x [B, S, d]."""
        return tuple(split(p, at, f"{prefix}{name}", x, layer, tap) for name in ("key", "value"))

    def attend(
        p: Params, at: str, prefix: str, x: jax.Array, seen: Any, layer: jax.Array, tap: Tap,
        **how: Any,
    ) -> jax.Array:  # fmt: skip
        q = split(p, at, f"{prefix}query", x, layer, tap)
        k, v = (y.astype(q.dtype) for y in seen)
        # T5 doesn't scale the scores
        mixed = attention.attend(q, k, v, scale=1.0, backend=backend, **how)
        mixed = mixed.reshape(*x.shape[:2], -1)
        return dense(p[f"{prefix}output"], mixed, f"{at}/{prefix}output", tap, layer)

    def feed(p: Params, at: str, h: jax.Array, layer: jax.Array, tap: Tap) -> jax.Array:
        x = normed(p["mlp_norm"], h)
        inner = dense(p["up"], x, f"{at}/up", tap, layer)
        if c.gated:
            inner = activation(dense(p["gate"], x, f"{at}/gate", tap, layer)) * inner
        else:
            inner = activation(inner)
        x = dense(p["down"], inner, f"{at}/down", tap, layer)
        return tap(f"{at}:out", layer, h + tap(f"{at}:mlp", layer, x))

    def scan(body: Any, start: Any, xs: Any) -> Any:
        return lax.scan(rematerialised(body), start, xs)

    def encode(params: Params, batch: Batch, dtype: Any, tap: Tap) -> tuple[jax.Array, jax.Array]:
        """The encoder's output for the inputs, [B, S, d], and their segments."""
        check_ids(batch["inputs"], len(params["embed"]["table"]))
        h = params["embed"]["table"][batch["inputs"]].astype(dtype)
        segments = batch.get("input_segments", jnp.ones(h.shape[:2], jnp.int32))
        if "embeddings" in batch:
            soft = batch["embeddings"].astype(dtype)
            h = jnp.concatenate([soft, h], axis=1)
            segments = jnp.pad(segments, ((0, 0), (soft.shape[1], 0)), constant_values=1)
        p, length, at = params["encoder"], h.shape[1], "encoder/blocks"
        tap(f"{at}:input_segments", 0, segments)
        bias = distances(p["positions"]["table"], jnp.arange(length), length, causal=False)

        def block(h: jax.Array, xs: Any) -> tuple[jax.Array, None]:
            p, layer = xs
            x = normed(p["attention_norm"], h)
            own = pair(p, at, "", x, layer, tap)
            x = attend(p, at, "", x, own, layer, tap, segments=segments, bias=bias, causal=False)
            return feed(p, at, h + tap(f"{at}:attention", layer, x), layer, tap), None

        h, _ = scan(block, h, (p["blocks"], jnp.arange(c.layers)))
        return normed(p["norm"], h), segments

    def decode(
        params: Params, batch: Batch, read: jax.Array | None, input_segments: jax.Array, tap: Tap
    ) -> tuple[jax.Array, Cache | None]:
        """The residual stream after the last norm, [B, L, d], and the cache if there is one."""
        tokens, at, p = batch["tokens"], "decoder/blocks", params["decoder"]
        cache: Any = batch.get("prefill", batch.get("cache"))
        check_ids(tokens, len(params["embed"]["table"]))
        h = params["embed"]["table"][tokens].astype(compute or params["embed"]["table"].dtype)
        segments = batch.get("segments", jnp.ones(tokens.shape, jnp.int32))
        tap(f"{at}:segments", 0, segments)
        for name in ("cross_key", "cross_value"):
            tap(f"{at}/{name}:input_segments", 0, input_segments)
        slots, keys, mask, kept = jnp.arange(tokens.shape[1]), segments, None, None
        if cache is not None:
            slots = slots + cache.filled
            keys = lax.dynamic_update_slice(cache.segments, segments, (0, cache.filled))
            mask = attention.visible(segments, keys, slots)
            kept = (cache.key, cache.value)
        bias = distances(p["positions"]["table"], slots, keys.shape[1], causal=True)
        shared = attention.visible(segments, input_segments, slots, causal=False)

        def block(carry: Any, xs: Any) -> Any:
            (h, kept), (p, layer, seen) = carry, xs
            x = normed(p["attention_norm"], h)
            own = pair(p, at, "", x, layer, tap)
            if kept is not None:
                place = (layer, 0, cache.filled, 0, 0)
                kept = tuple(
                    lax.dynamic_update_slice(old, new[None].astype(old.dtype), place)
                    for old, new in zip(kept, own, strict=True)
                )
                own = tuple(old[layer] for old in kept)
            x = attend(p, at, "", x, own, layer, tap, segments=segments, bias=bias, mask=mask)
            h = h + tap(f"{at}:attention", layer, x)
            if read is not None:
                seen = pair(p, at, "cross_", read, layer, tap)
            x = attend(p, at, "cross_", normed(p["cross_norm"], h), seen, layer, tap, mask=shared)
            h = feed(p, at, h + tap(f"{at}:cross", layer, x), layer, tap)
            return (h, kept), seen if kept is not None and read is not None else None

        known = None if read is not None else cache.inputs
        xs = (p["blocks"], jnp.arange(c.decoder_layers), known)
        (h, kept), made = scan(block, (h, kept), xs)
        h = normed(p["norm"], h)
        if cache is None:
            return h, None
        if known is None:
            known = jax.tree.map(lambda x: x.astype(cache.key.dtype), made)
        filled = cache.filled + tokens.shape[1]
        return h, Cache(kept[0], kept[1], keys, filled, known, input_segments)

    def project(head: Params, rows: jax.Array) -> jax.Array:
        kernel = kernel_array(head["kernel"], rows.dtype)
        return jnp.matmul(rows, kernel, preferred_element_type=jnp.float32)

    def apply(params: Params, batch: Batch, call: Call = Call()) -> Any:
        tap = as_call(call).tap
        table = params["embed"]["table"]
        dtype = compute or table.dtype
        cache: Any = batch.get("cache")
        if "inputs" in batch:
            read, input_segments = encode(params, batch, dtype, tap)
        else:
            ok = cache is not None and cache.inputs is not None
            check(ok, "batch", sorted(batch), "one with `inputs`, which the encoder reads")
            read, input_segments = None, cache.input_segments
        h, after = decode(params, batch, read, input_segments, tap)
        if c.scaled:
            h = h * jnp.asarray(c.width**-0.5, h.dtype)

        head: Params = {"kernel": table.T} if c.tied else params["head"]

        if after is not None:
            return project(head, h[:, -1]), after
        if "targets" in batch:
            return token_scores(project, head, h, batch, logits_limit)
        return project(head, flattened(h)).reshape(*h.shape[:-1], c.vocabulary)

    stacks = {"encoder/blocks": 1, "decoder/blocks": 1}
    limits = token_limits(c.vocabulary)
    return with_structure(apply, Structure("embed" if c.tied else "head", stacks, limits=limits))
