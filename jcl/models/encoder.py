"""One bidirectional transformer encoder for the published families: BERT, RoBERTa and MiniLM.

Layers are stacked along a leading axis and scanned, so that compile time doesn't grow with depth.
The parameters decide what comes out for `tokens` int32 [B, L]:

- With a `classifier` it is logits [B, C] of the row.
- Else with `masked`, the head of a masked language model, it is logits [B, L, V], or
  `losses.TokenScores` of `targets` int32 [B, L], which never hold [B, L, V].
- Else it is features [B, L, d], which `mean` pools to features of the row.

`segments` int32 [B, L] packs documents, numbered from 1 in order, with 0 for padding; attention and
positions don't cross them. `types` int32 [B, L] are BERT's token types, 0 if they are left out.
`embeddings` [B, P, d] is a soft prefix before the tokens, which has no outputs of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from jcl.mechanisms.adapters import kernel_array
from jcl.method import Apply, Batch, Call, Params, Structure, Tap, as_call, check, with_structure
from jcl.models import attention
from jcl.models.layers import (
    ACTIVATIONS,
    Remat,
    after_sublayer,
    check_ids,
    dense,
    flattened,
    layer_norm,
    rematerialise,
    token_limits,
    token_scores,
)

Pooling = Literal["mean", "first"]


@dataclass(frozen=True)
class Config:
    """The architecture of an encoder; the defaults are a small BERT over bytes.

    Args:
      vocabulary: how many token ids there are; 256 for bytes.
      layers: how many blocks there are.
      width: d, the width of the residual stream.
      heads: how many attention heads there are; must divide `width`.
      hidden: the width inside the MLP.
      eps: the ε of the norms.
      activation: the MLP's activation, one of `layers.ACTIVATIONS`.
      masked_activation: that of the masked head, if it is another: RoBERTa's is always `gelu`.
      context: how many positions there are.
      offset: how many rows of the table of positions come before the first position; 2 in RoBERTa.
      types: how many token types there are.
      pooler: whether there is a dense layer with tanh for the first token.
      masked: whether there is the head of a masked language model, tied to the embedding.
      classes: how many classes the classifier has; 0 is no classifier.
      pooling: what a classifier reads: the `mean` over the tokens, or the `first` one through the
        pooler, as in BERT.

    Raises:
      ValueError: if an argument is out of range.
    """

    vocabulary: int = 256
    layers: int = 4
    width: int = 128
    heads: int = 4
    hidden: int = 512
    eps: float = 1e-12
    activation: str = "gelu"
    masked_activation: str | None = None
    context: int = 512
    offset: int = 0
    types: int = 2
    pooler: bool = False
    masked: bool = False
    classes: int = 0
    pooling: Pooling = "mean"

    def __post_init__(self) -> None:
        for name in ("vocabulary", "layers", "width", "heads", "hidden", "context", "types"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        ok = self.width % self.heads == 0
        check(ok, "width", self.width, f"a multiple of {self.heads}, the heads")
        for activation in (self.activation, self.masked_activation or self.activation):
            check(activation in ACTIVATIONS, "activation", activation, f"{[*ACTIVATIONS]}")
        check(self.pooling in ("mean", "first"), "pooling", self.pooling, "'mean' or 'first'")
        ok = self.pooler or not self.classes or self.pooling == "mean"
        check(ok, "pooler", self.pooler, "True where a classifier reads the first token")


def _normal(key: jax.Array, dtype: Any, *shape: int) -> jax.Array:
    return 0.02 * jax.random.normal(key, shape, dtype)


def _linear(key: jax.Array, dtype: Any, *shape: int) -> Params:
    bias = jnp.zeros((*shape[:-2], shape[-1]), dtype)
    return {"kernel": _normal(key, dtype, *shape), "bias": bias}


def _norm(dtype: Any, *shape: int) -> Params:
    return {"scale": jnp.ones(shape, dtype), "bias": jnp.zeros(shape, dtype)}


def init(key: jax.Array, config: Config, dtype: Any = jnp.float32) -> Params:
    """Draws an encoder's parameters: normal, 0.02, with biases 0 (BERT).

    `blocks/...` leaves have a leading axis [layers].
    """
    c = config
    keys = iter(jax.random.split(key, 10))
    shapes = {
        "query": (c.width, c.width),
        "key": (c.width, c.width),
        "value": (c.width, c.width),
        "output": (c.width, c.width),
        "up": (c.width, c.hidden),
        "down": (c.hidden, c.width),
    }
    blocks = {name: _linear(next(keys), dtype, c.layers, *shape) for name, shape in shapes.items()}
    return {
        "embed": {"table": _normal(next(keys), dtype, c.vocabulary, c.width)},
        "positions": {"table": _normal(next(keys), dtype, c.offset + c.context, c.width)},
        "types": {"table": _normal(next(keys), dtype, c.types, c.width)},
        "embed_norm": _norm(dtype, c.width),
        "blocks": {
            **blocks,
            "attention_norm": _norm(dtype, c.layers, c.width),
            "mlp_norm": _norm(dtype, c.layers, c.width),
        },
        **heads(next(keys), config, dtype),
    }


def heads(key: jax.Array, config: Config, dtype: Any = jnp.float32) -> Params:
    """Draws the parameters above the blocks: pooler, masked head and classifier."""
    c = config
    keys = jax.random.split(key, 3)
    params: Params = {}
    if c.pooler:
        params["pooler"] = _linear(keys[0], dtype, c.width, c.width)
    if c.masked:
        params["masked"] = {
            "transform": _linear(keys[1], dtype, c.width, c.width),
            "norm": _norm(dtype, c.width),
            "bias": jnp.zeros(c.vocabulary, dtype),
        }
    if c.classes:
        params["classifier"] = _linear(keys[2], dtype, c.width, c.classes)
    return params


def mean(features: jax.Array, segments: jax.Array | None = None) -> jax.Array:
    """The mean over tokens that aren't padding, float32 [B, d], from features [B, L, d].

    It is a sentence's embedding as in sentence-transformers, before it is scaled to length 1.
    """
    wide = features.astype(jnp.float32)
    if segments is None:
        return jnp.mean(wide, axis=1)
    real = (segments > 0).astype(jnp.float32)[..., None]
    return jnp.sum(real * wide, axis=1) / jnp.maximum(jnp.sum(real, axis=1), 1.0)


def apply_fn(
    config: Config,
    *,
    remat: Remat = "none",
    compute: Any = None,
    backend: attention.Backend = "auto",
    logits_limit: int = 2**25,
) -> Apply:
    """`apply(params, batch, call)`; see the module for what a batch may hold.

    Sites: `blocks/{query,key,value,output,up,down}`, `pooler`, `masked/transform` and `classifier`
    with `:in` and `:out`, and `blocks:attention`, `blocks:mlp` (what each adds to the residual
    stream), `blocks:out`; and `blocks:segments`.

    Args:
      config: the architecture.
      remat: as in `decoder.apply_fn`.
      compute: as in `decoder.apply_fn`.
      backend: the attention kernel.
      logits_limit: with `targets`, how many logits are held at once at most.

    Raises:
      ValueError: if `remat` is unknown; from `apply`, if a row without segments is longer than the
        context.
    """
    c = config
    rematerialised = rematerialise(remat)
    activation = ACTIVATIONS[c.activation]
    scale = (c.width // c.heads) ** -0.5
    normed = partial(layer_norm, eps=c.eps)

    def attend(
        p: Params, x: jax.Array, layer: jax.Array, segments: jax.Array | None, tap: Tap
    ) -> jax.Array:
        batch, length, _ = x.shape

        def split(name: str) -> jax.Array:
            h = dense(p[name], x, f"blocks/{name}", tap, layer)
            return h.reshape(batch, length, c.heads, -1)

        q, k, v = split("query"), split("key"), split("value")
        k, v, mask = attention.with_prefix(p, k, v, segments, causal=False)
        mixed = attention.attend(
            q, k, v, scale=scale, segments=segments, mask=mask, causal=False, backend=backend
        )
        return dense(p["output"], mixed.reshape(x.shape), "blocks/output", tap, layer)

    def block(
        h: jax.Array, p: Params, layer: jax.Array, segments: jax.Array | None, tap: Tap
    ) -> jax.Array:
        def add(part: str, h: jax.Array, x: jax.Array) -> jax.Array:
            x = tap(f"blocks:{part}", layer, after_sublayer(p, part, x))
            return normed(p[f"{part}_norm"], h + x)

        h = add("attention", h, attend(p, h, layer, segments, tap))
        inner = activation(dense(p["up"], h, "blocks/up", tap, layer))
        h = add("mlp", h, dense(p["down"], inner, "blocks/down", tap, layer))
        return tap("blocks:out", layer, h)

    def embed(params: Params, batch: Batch, tap: Tap) -> tuple[jax.Array, jax.Array | None]:
        """The residual stream at the first block, and its segments."""
        table = params["embed"]["table"]
        dtype = compute or table.dtype
        check_ids(batch["tokens"], len(table))
        h = table[batch["tokens"]].astype(dtype)
        types = batch.get("types", jnp.zeros((1, h.shape[1]), jnp.int32))
        segments, soft = batch.get("segments"), batch.get("embeddings")
        if soft is not None:
            before = ((0, 0), (soft.shape[1], 0))
            h = jnp.concatenate([soft.astype(dtype), h], axis=1)
            types = jnp.pad(types, before)
            segments = None if segments is None else jnp.pad(segments, before, constant_values=1)
        if segments is None:
            check(
                h.shape[1] <= c.context, "length", h.shape[1], f"at most {c.context}, the context"
            )
            places = jnp.arange(h.shape[1])[None]
        else:
            places = attention.positions(segments)
        # a row with a document longer than the context becomes NaN
        at = params["positions"]["table"].at[places + c.offset].get(mode="fill")
        h = h + params["types"]["table"][types].astype(dtype) + at.astype(dtype)
        tap(
            "blocks:segments", 0, jnp.ones(h.shape[:2], jnp.int32) if segments is None else segments
        )
        return normed(params["embed_norm"], h), segments

    def classify(params: Params, h: jax.Array, segments: jax.Array | None, tap: Tap) -> jax.Array:
        if c.pooling == "mean":
            pooled = mean(h, segments).astype(h.dtype)
        else:
            first = jnp.zeros(len(h), int) if segments is None else jnp.argmax(segments > 0, axis=1)
            pooled = jnp.take_along_axis(h, first[:, None, None], axis=1)[:, 0]
            pooled = jnp.tanh(dense(params["pooler"], pooled, "pooler", tap))
        return dense(params["classifier"], pooled, "classifier", tap).astype(jnp.float32)

    def project(head: Params, rows: jax.Array) -> jax.Array:
        kernel = kernel_array(head["kernel"], rows.dtype)
        return jnp.matmul(rows, kernel, preferred_element_type=jnp.float32) + head["bias"]

    def apply(params: Params, batch: Batch, call: Call = Call()) -> Any:
        tap = as_call(call).tap
        h, segments = embed(params, batch, tap)

        def scanned(h: jax.Array, xs: Any) -> tuple[jax.Array, None]:
            p, layer = xs
            return block(h, p, layer, segments, tap), None

        body = rematerialised(scanned)
        h, _ = lax.scan(body, h, (params["blocks"], jnp.arange(c.layers)))
        if "embeddings" in batch:
            soft = batch["embeddings"].shape[1]
            h, segments = h[:, soft:], batch.get("segments")
        if "classifier" in params:
            return classify(params, h, segments, tap)
        if "masked" not in params:
            return h
        masked = params["masked"]
        transform = ACTIVATIONS[c.masked_activation or c.activation]
        h = transform(dense(masked["transform"], h, "masked/transform", tap))
        h = normed(masked["norm"], h)
        head = {"kernel": params["embed"]["table"].T, "bias": masked["bias"]}

        if "targets" in batch:
            return token_scores(project, head, h, batch, logits_limit)
        return project(head, flattened(h)).reshape(*h.shape[:-1], c.vocabulary)

    def head_of(params: Params) -> str | None:
        unembedding = "embed" if "masked" in params else None
        return "classifier" if "classifier" in params else unembedding

    limits = token_limits(c.vocabulary) | {"positions": (c.context, "context")}
    return with_structure(apply, Structure(head_of, {"blocks": 1}, limits=limits))
