"""One causal transformer decoder for the published families: Llama to Gemma, GPT-2 and mixtures.

Layers are stacked along a leading axis and scanned, so that compile time doesn't grow with depth.
The batch's keys decide what goes in and what comes out:

- `tokens` int32 [B, L] gives logits [B, L, V]. `segments` int32 [B, L] packs documents, numbered
  from 1 in order, with 0 for padding; attention and positions don't cross them.
- With a `classifier` among the parameters it gives logits [B, C] of the row, read at its last
  token.
- With `targets` int32 [B, L] it gives `losses.TokenScores` and never holds logits [B, L, V].
- `embeddings` [B, P, d] is a soft prefix before the tokens, which has no outputs of its own and is
  scaled as theirs are; `embedding_segments` int32 [B, P] is 0 where the prefix is padding.
- With `prefill` or `cache`, from `empty_cache`, it gives the logits [B, V] of the last position and
  the cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jcl.mechanisms.adapters import kernel_array
from jcl.method import Apply, Batch, Call, Params, Structure, Tap, as_call, check, with_structure
from jcl.models import attention, rope
from jcl.models.layers import (
    ACTIVATIONS,
    Remat,
    after_sublayer,
    dense,
    flattened,
    layer_norm,
    lookup,
    rematerialise,
    rms_norm,
    token_limits,
    token_scores,
)
from jcl.models.moe import mix
from jcl.models.rope import Rope


@dataclass(frozen=True)
class Config:
    """The architecture of a decoder; the defaults are a small Llama over bytes.

    Args:
      vocabulary: how many token ids there are; 256 for bytes.
      layers: how many blocks there are.
      width: d, the width of the residual stream.
      heads: how many query heads there are.
      kv_heads: how many key and value heads there are; must divide `heads`.
      head_width: the width of a head; None is width / heads.
      hidden: the width inside the MLP, or inside each expert.
      norm: the kind of norms, `rms` or `layer`.
      norm_bias: whether layer norms have biases.
      norm_offset: added to the scales of RMS norms; 1 in Gemma.
      pre_norm: whether a sublayer's input is normed.
      post_norm: whether a sublayer's output is normed before it is added (OLMo 2; Gemma has both).
      eps: the ε of the norms.
      parallel: whether attention and MLP read the same stream and add to it together (NeoX).
      shared_norm: whether the MLP reads it through attention's norm, without one of its own
        (Cohere, StableLM); only with `parallel` and `pre_norm`.
      residual_scale: the factor of what each sublayer adds to the stream (Granite).
      activation: the MLP's activation, one of `layers.ACTIVATIONS`.
      gated: whether the MLP has a gate.
      qkv_bias: whether query, key and value have biases.
      output_bias: whether attention's output has a bias.
      mlp_bias: whether the MLP has biases.
      qk_norm: `head` norms each query and key head (Qwen3), `full` all heads as one (OLMo 2); None
        norms none.
      rope: the rotary positions; None means learned positions.
      local_rope: the rotary positions of layers with a window, if they differ (Gemma 3).
      turned: which layers have rotary positions at all (SmolLM3, Cohere 2); None is every one.
      context: how many positions there are, if they are learned.
      causal: whether a token sees no later one; False makes it an encoder (EmbeddingGemma), which
        has no cache.
      window: how many of the latest tokens a layer with a window sees, its own included, and
        without `causal` as many of the next; None is all.
      local: which layers have the window; None is every one.
      query_scale: the factor of attention scores; None is 1 / √head_width.
      depth_scaled: whether layer n divides them by n, counted from 1 (a kind of GPT-2).
      attention_cap: the tanh cap of attention scores (Gemma 2).
      logit_cap: the tanh cap of the logits (Gemma 2).
      logit_scale: the factor of the logits (Cohere, Granite).
      embed_scale: the factor of the embeddings, √width in Gemma.
      clip_qkv: queries, keys and values are clipped to ± this (OLMoE).
      tied: whether the head is the embedding.
      experts: how many MLPs a mixture has; 0 is one plain MLP.
      chosen_experts: how many experts each token takes.
      renormalise: whether their probabilities are made to sum to 1.

    Raises:
      ValueError: if an argument is out of range.
    """

    vocabulary: int = 256
    layers: int = 4
    width: int = 128
    heads: int = 4
    kv_heads: int = 4
    head_width: int | None = None
    hidden: int = 352
    norm: Literal["rms", "layer"] = "rms"
    norm_bias: bool = True
    norm_offset: float = 0.0
    pre_norm: bool = True
    post_norm: bool = False
    eps: float = 1e-5
    parallel: bool = False
    shared_norm: bool = False
    residual_scale: float = 1.0
    activation: str = "silu"
    gated: bool = True
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: Literal["head", "full"] | None = None
    rope: Rope | None = field(default_factory=Rope)
    local_rope: Rope | None = None
    turned: tuple[bool, ...] | None = None
    context: int = 2048
    causal: bool = True
    window: int | None = None
    local: tuple[bool, ...] | None = None
    query_scale: float | None = None
    depth_scaled: bool = False
    attention_cap: float | None = None
    logit_cap: float | None = None
    logit_scale: float = 1.0
    embed_scale: float = 1.0
    clip_qkv: float | None = None
    tied: bool = True
    experts: int = 0
    chosen_experts: int = 2
    renormalise: bool = True

    def __post_init__(self) -> None:
        for name in ("vocabulary", "layers", "width", "heads", "kv_heads", "hidden"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        if self.head_width is None:
            ok = self.width % (2 * self.heads) == 0
            wanted = f"a multiple of {2 * self.heads}, twice the heads"
            check(ok, "width", self.width, wanted)
            object.__setattr__(self, "head_width", self.width // self.heads)
        ok = self.heads % self.kv_heads == 0
        check(ok, "kv_heads", self.kv_heads, f"a divisor of {self.heads}, the heads")
        check(self.activation in ACTIVATIONS, "activation", self.activation, f"{[*ACTIVATIONS]}")
        for name, marks in (("local", self.local), ("turned", self.turned)):
            ok = marks is None or len(marks) == self.layers
            check(ok, f"length of {name}", marks and len(marks), f"{self.layers}, the layers")
        ok = not self.shared_norm or (self.parallel and self.pre_norm)
        check(ok, "shared_norm", self.shared_norm, "False without `parallel` and `pre_norm`")


class Cache(NamedTuple):
    """The keys and values of the tokens read so far, for generation."""

    key: jax.Array
    """The keys, [layers, B, S, kv_heads, head_width]."""
    value: jax.Array
    """The values, [layers, B, S, kv_heads, head_width]."""
    segments: jax.Array
    """int32 [B, S]: 0 where a slot is padding or not filled yet."""
    filled: jax.Array
    """int32 []: how many slots are filled."""


def empty_cache(config: Config, rows: int, slots: int, dtype: Any = jnp.float32) -> Cache:
    """A cache for `rows` sequences of up to `slots` tokens, prompt and soft prefix included."""
    shape = (config.layers, rows, slots, config.kv_heads, config.head_width)
    empty = jnp.zeros((rows, slots), jnp.int32)
    return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), empty, jnp.int32(0))


def init(key: jax.Array, config: Config, dtype: Any = jnp.float32) -> Params:
    """Draws a decoder's parameters: normal, 0.02, residual outputs times 1/√(2·layers) (GPT-2).

    `blocks/...` leaves have a leading axis [layers].
    """
    c = config
    assert c.head_width is not None
    keys = iter(jax.random.split(key, 12))
    residual = 0.02 / (2 * c.layers) ** 0.5

    def normal(*shape: int, scale: float = 0.02) -> jax.Array:
        return scale * jax.random.normal(next(keys), shape, dtype)

    def linear(fan_in: int, fan_out: int, bias: bool, scale: float = 0.02) -> Params:
        params: Params = {"kernel": normal(c.layers, fan_in, fan_out, scale=scale)}
        return params | ({"bias": jnp.zeros((c.layers, fan_out), dtype)} if bias else {})

    def norm(*shape: int) -> Params:
        params = {"scale": jnp.full(shape, 1 - c.norm_offset, dtype)}
        biased = c.norm == "layer" and c.norm_bias
        return params | ({"bias": jnp.zeros(shape, dtype)} if biased else {})

    q, kv = c.heads * c.head_width, c.kv_heads * c.head_width
    blocks: Params = {
        "query": linear(c.width, q, c.qkv_bias),
        "key": linear(c.width, kv, c.qkv_bias),
        "value": linear(c.width, kv, c.qkv_bias),
        "output": linear(q, c.width, c.output_bias, residual),
    }
    for part in ("attention", "mlp"):
        if c.pre_norm and not (c.shared_norm and part == "mlp"):
            blocks[f"{part}_norm"] = norm(c.layers, c.width)
        if c.post_norm:
            blocks[f"{part}_post_norm"] = norm(c.layers, c.width)
    if c.qk_norm:
        full = c.qk_norm == "full"
        blocks["query_norm"] = {"scale": norm(c.layers, q if full else c.head_width)["scale"]}
        blocks["key_norm"] = {"scale": norm(c.layers, kv if full else c.head_width)["scale"]}
    if c.experts:
        stack = (c.layers, c.experts)
        blocks["router"] = linear(c.width, c.experts, False)
        blocks["experts"] = {
            "gate": {"kernel": normal(*stack, c.width, c.hidden)},
            "up": {"kernel": normal(*stack, c.width, c.hidden)},
            "down": {"kernel": normal(*stack, c.hidden, c.width, scale=residual)},
        }
    else:
        if c.gated:
            blocks["gate"] = linear(c.width, c.hidden, c.mlp_bias)
        blocks["up"] = linear(c.width, c.hidden, c.mlp_bias)
        blocks["down"] = linear(c.hidden, c.width, c.mlp_bias, residual)
    params: Params = {"embed": {"table": normal(c.vocabulary, c.width)}, "blocks": blocks}
    if c.rope is None:
        params["positions"] = {"table": normal(c.context, c.width)}
    if c.pre_norm or c.post_norm:
        params["norm"] = norm(c.width)
    if not c.tied:
        params["head"] = {"kernel": normal(c.width, c.vocabulary)}
    return params


class _Scene(NamedTuple):
    """The places of one call's tokens, which all layers share."""

    segments: jax.Array | None
    angles: tuple[jax.Array, jax.Array] | None
    local_angles: tuple[jax.Array, jax.Array] | None
    mask: jax.Array | None
    """What each token sees of a cache's slots; None without a cache."""
    local_mask: jax.Array | None
    """The same for layers with a window."""
    slot: jax.Array | int
    """The cache's slot for the first token."""


def _scene(
    config: Config, segments: jax.Array | None, shape: tuple[int, int]
) -> tuple[_Scene, Any]:
    """The scene of a batch [B, L] without a cache, and each token's position."""
    places = jnp.arange(shape[1])[None]
    if segments is not None:
        places = attention.positions(segments)
    angles = _angles(config, places, shape[1])
    return _Scene(segments, angles[0], angles[1], None, None, 0), places


def _cached_scene(
    config: Config, segments: jax.Array | None, shape: tuple[int, ...], cache: Cache
) -> tuple[_Scene, jax.Array, jax.Array]:
    """The scene with a cache, each token's position, and the cache's segments after this call."""
    new = jnp.ones(shape, jnp.int32) if segments is None else segments
    read = jnp.sum(cache.segments > 0, axis=1, keepdims=True)
    places = read + jnp.maximum(jnp.cumsum(new > 0, axis=1) - 1, 0)
    kept = lax.dynamic_update_slice(cache.segments, new, (0, cache.filled))
    slots = cache.filled + jnp.arange(shape[1])
    full, local = (attention.visible(new, kept, slots, w) for w in (None, config.window))
    angles = _angles(config, places, cache.segments.shape[1])
    return _Scene(new, angles[0], angles[1], full, local, cache.filled), places, kept


def _unturned(scene: _Scene, turns: jax.Array) -> _Scene:
    """The scene of one layer, whose angles are 0 unless it `turns`, bool []."""
    still = [
        angles and (jnp.where(turns, angles[0], 1), jnp.where(turns, angles[1], 0))
        for angles in (scene.angles, scene.local_angles)
    ]
    return scene._replace(angles=still[0], local_angles=still[1])


def _angles(config: Config, places: jax.Array, length: int) -> tuple[Any, Any]:
    if config.rope is None:
        return None, None
    assert config.head_width is not None
    full = rope.angles(config.rope, config.head_width, places, length)
    if config.local_rope is None:
        return full, full
    return full, rope.angles(config.local_rope, config.head_width, places, length)


def apply_fn(
    config: Config,
    *,
    remat: Remat = "none",
    compute: Any = None,
    backend: attention.Backend = "auto",
    logits_limit: int = 2**25,
) -> Apply:
    """`apply(params, batch, call)`; see the module for what a batch may hold.

    Sites: `blocks/{query,key,value,output,gate,up,down,router}` with `:in` and `:out`, and
    `blocks:attention`, `blocks:mlp` (what each adds to the residual stream), `blocks:out`; and
    `blocks:segments`. The head is the `classifier`, if there is one, else `head` or, if it is tied,
    `embed`.

    Args:
      config: the architecture.
      remat: what the backward pass computes again: nothing, each `block`, or all in it but the
        matrix products (`dots`).
      compute: the dtype of activations and products, such as bfloat16 over float32 parameters; None
        is the embedding's.
      backend: the attention kernel.
      logits_limit: with `targets`, how many logits are held at once at most.

    Raises:
      ValueError: if `remat` is unknown.
    """
    c = config
    rematerialised = rematerialise(remat)
    assert c.head_width is not None
    head_width, activation = c.head_width, ACTIVATIONS[c.activation]
    scale = head_width**-0.5 if c.query_scale is None else c.query_scale
    rms = partial(rms_norm, eps=c.eps, offset=c.norm_offset)
    normed = rms if c.norm == "rms" else partial(layer_norm, eps=c.eps)

    def attend(
        p: Params, x: jax.Array, layer: jax.Array, local: Any, scene: _Scene, kept: Any, tap: Tap
    ) -> tuple[jax.Array, Any]:
        batch, length, _ = x.shape

        def heads(name: str, count: int) -> jax.Array:
            h = dense(p[name], x, f"blocks/{name}", tap, layer)
            if c.qk_norm == "full" and name != "value":
                h = rms(p[f"{name}_norm"], h)
            if c.clip_qkv is not None:
                h = jnp.clip(h, -c.clip_qkv, c.clip_qkv)
            h = h.reshape(batch, length, count, head_width)
            if c.qk_norm == "head" and name != "value":
                h = rms(p[f"{name}_norm"], h)
            return h

        q, k, v = heads("query", c.heads), heads("key", c.kv_heads), heads("value", c.kv_heads)
        if scene.angles is not None:
            turned = _select_layer(local, scene.local_angles, scene.angles)
            q, k = rope.rotate(q, *turned), rope.rotate(k, *turned)
        if c.depth_scaled:
            q = q / (layer + 1).astype(q.dtype)
        if kept is not None:
            at = (layer, 0, scene.slot, 0, 0)
            kept = tuple(
                lax.dynamic_update_slice(old, new[None].astype(old.dtype), at)
                for old, new in zip(kept, (k, v), strict=True)
            )
            k, v = (old[layer].astype(q.dtype) for old in kept)

        def look(window: int | None, mask: jax.Array | None) -> jax.Array:
            rows = scene.segments
            keys, values, mask = attention.with_prefix(p, k, v, rows, mask, window, c.causal)
            return attention.attend(
                q, keys, values, scale=scale, segments=rows, window=window, mask=mask,
                cap=c.attention_cap, causal=c.causal, backend=backend,
            )  # fmt: skip

        mixed = _cond_layer(
            local, partial(look, c.window, scene.local_mask), partial(look, None, scene.mask)
        )
        mixed = mixed.reshape(batch, length, -1)
        return dense(p["output"], mixed, "blocks/output", tap, layer), kept

    def feed(p: Params, x: jax.Array, layer: jax.Array, tap: Tap) -> jax.Array:
        if c.experts:
            scores = dense(p["router"], x, "blocks/router", tap, layer)
            return mix(p["experts"], x, scores, c.chosen_experts, c.renormalise, activation)
        up = dense(p["up"], x, "blocks/up", tap, layer)
        if c.gated:
            inner = activation(dense(p["gate"], x, "blocks/gate", tap, layer)) * up
        else:
            inner = activation(up)
        return dense(p["down"], inner, "blocks/down", tap, layer)

    def block(
        h: jax.Array, p: Params, layer: jax.Array, local: Any, scene: _Scene, kept: Any, tap: Tap
    ) -> tuple[jax.Array, Any]:
        def before(part: str, x: jax.Array) -> jax.Array:
            return normed(p[f"{part}_norm"], x) if c.pre_norm else x

        def after(part: str, x: jax.Array) -> jax.Array:
            x = normed(p[f"{part}_post_norm"], x) if c.post_norm else x
            x = after_sublayer(p, part, x)
            x = x if c.residual_scale == 1 else x * jnp.asarray(c.residual_scale, x.dtype)
            return tap(f"blocks:{part}", layer, x)

        first = before("attention", h)
        attended, kept = attend(p, first, layer, local, scene, kept, tap)
        middle = h + after("attention", attended)
        read = first if c.shared_norm else before("mlp", h if c.parallel else middle)
        h = middle + after("mlp", feed(p, read, layer, tap))
        return tap("blocks:out", layer, h), kept

    def project(head: Params, rows: jax.Array) -> jax.Array:
        kernel = kernel_array(head["kernel"], rows.dtype)
        logits = jnp.matmul(rows, kernel, preferred_element_type=jnp.float32)
        if "bias" in head:
            logits = logits + head["bias"]
        logits = logits if c.logit_scale == 1 else c.logit_scale * logits
        return logits if c.logit_cap is None else c.logit_cap * jnp.tanh(logits / c.logit_cap)

    # if all layers are alike, whether they have the window is a Python bool, and so static
    windowed = c.window is not None
    alike = None if windowed and c.local is not None else windowed

    def apply(params: Params, batch: Batch, call: Call = Call()) -> Any:
        tap = as_call(call).tap
        table = params["embed"]["table"]
        dtype = compute or table.dtype
        h: Any = lookup(table, batch["tokens"], dtype)
        segments, soft = batch.get("segments"), batch.get("embeddings")
        if soft is not None:
            h = jnp.concatenate([soft.astype(dtype), h], axis=1)
            marks = batch.get("embedding_segments")
            if segments is not None or marks is not None:
                ones = partial(jnp.ones, dtype=jnp.int32)
                marks = ones(soft.shape[:2]) if marks is None else marks
                segments = ones(batch["tokens"].shape) if segments is None else segments
                segments = jnp.concatenate([marks, segments], axis=1)
        h = h * jnp.asarray(c.embed_scale, dtype)
        tap(
            "blocks:segments", 0, jnp.ones(h.shape[:2], jnp.int32) if segments is None else segments
        )
        cache: Any = batch.get("prefill", batch.get("cache"))
        length = h.shape[1]
        kept: Any = None
        if c.rope is None and segments is None and cache is None:
            check(length <= c.context, "length", length, f"at most {c.context}, the context")
        if cache is None:
            scene, places = _scene(c, segments, h.shape[:2])
        else:
            check(
                c.causal, "batch", sorted(batch), "without a cache, for this model reads both ways"
            )
            scene, places, filled = _cached_scene(c, segments, h.shape[:2], cache)
            kept = (cache.key, cache.value)
        if c.rope is None:
            # a row with a document longer than the context becomes NaN
            h = h + params["positions"]["table"].at[places].get(mode="fill").astype(dtype)

        def scanned(carry: Any, xs: Any) -> tuple[Any, None]:
            p, layer, mark, turns = xs
            local = mark if alike is None else alike
            here = scene if turns is None else _unturned(scene, turns)
            return block(carry[0], p, layer, local, here, carry[1], tap), None

        marks = jnp.asarray(c.local) if alike is None else None
        turns = None if c.turned is None else jnp.asarray(c.turned)
        stacked = (params["blocks"], jnp.arange(c.layers), marks, turns)
        (h, kept), _ = lax.scan(rematerialised(scanned), (h, kept), stacked)
        if soft is not None:
            h = h[:, soft.shape[1] :]
        if "norm" in params:
            h = normed(params["norm"], h)

        if "classifier" in params:
            real = batch.get("segments", jnp.ones_like(batch["tokens"])) > 0
            last = jnp.argmax(jnp.where(real, jnp.arange(h.shape[1]), -1), axis=1)
            read = jnp.take_along_axis(h, last[:, None, None], axis=1)[:, 0]
            return dense(params["classifier"], read, "classifier", tap).astype(jnp.float32)

        head: Params = {"kernel": table.T} if c.tied else params["head"]

        if cache is not None:
            after = Cache(kept[0], kept[1], filled, scene.slot + length)
            return project(head, h[:, -1]), after
        if "targets" in batch:
            return token_scores(project, head, h, batch, logits_limit)
        return project(head, flattened(h)).reshape(*h.shape[:-1], c.vocabulary)

    def head_of(params: Params) -> str:
        unembedding = "embed" if c.tied else "head"
        return "classifier" if "classifier" in params else unembedding

    stacks = {"blocks": 1} | ({"blocks/experts": 2} if c.experts else {})
    places = {} if c.rope else {"positions": (c.context, "context")}
    limits = token_limits(c.vocabulary) | places
    return with_structure(apply, Structure(head_of, stacks, limits=limits))


def _select_layer(local: Any, yes: Any, no: Any) -> Any:
    """`yes` in a layer with a window, else `no`; `local` is a bool, or bool [] if layers differ."""
    if isinstance(local, bool):
        return yes if local else no
    return yes if yes is no else jax.tree.map(partial(jnp.where, local), yes, no)


def _cond_layer(local: Any, yes: Callable[[], jax.Array], no: Callable[[], jax.Array]) -> jax.Array:
    """`yes()` in a layer with a window, else `no()`; only one of the two is computed."""
    if isinstance(local, bool):
        return yes() if local else no()
    return lax.cond(local, yes, no)
