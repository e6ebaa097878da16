"""One vision transformer for the published towers, CLIP's and SigLIP's, and for small ones.

Layers are stacked along a leading axis and scanned, so that compile time doesn't grow with depth.
A batch's `image` [B, H, W, C] is float and normalised as the tower needs it, or of an integer type,
which is read as 0 to 255 and scaled to 0 to 1. The parameters decide what comes out:

- With a `classifier` it is logits [B, classes] of the image, read at the mean of its patches.
- Else it is features [B, N, d] of the N = (H / patch) · (W / patch) patches, row by row.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jcl.method import Apply, Batch, Call, Params, Structure, Tap, as_call, check, with_structure
from jcl.models import attention
from jcl.models.layers import ACTIVATIONS, Remat, after_sublayer, dense, layer_norm, rematerialise


@dataclass(frozen=True)
class Config:
    """The architecture of a vision tower; the defaults are a small one for images of 28 × 28.

    Args:
      image: how many pixels a side of the image has.
      channels: how many channels an image has, 3 for colours.
      patch: how many pixels a side of a patch has; must divide `image`.
      layers: how many blocks there are.
      width: d, the width of the residual stream.
      heads: how many attention heads there are; must divide `width`.
      hidden: the width inside the MLP.
      eps: the ε of the norms.
      activation: the MLP's activation; `quick_gelu` in CLIP, `gelu_tanh` in SigLIP.
      class_token: whether a learned token comes before the patches (CLIP).
      embed_norm: whether the first block's input is normed (CLIP).
      patch_bias: whether the patches' projection has a bias (SigLIP).
      norm_features: whether the last norm is applied to all features (SigLIP), or by `pool` to the
        class token alone (CLIP).
      probe: whether `pool` is attention from a learned probe (SigLIP).
      classes: how many classes the classifier has; 0 is no classifier.

    Raises:
      ValueError: if an argument is out of range.
    """

    image: int = 28
    channels: int = 1
    patch: int = 7
    layers: int = 2
    width: int = 64
    heads: int = 4
    hidden: int = 128
    eps: float = 1e-6
    activation: str = "gelu_tanh"
    class_token: bool = False
    embed_norm: bool = False
    patch_bias: bool = True
    norm_features: bool = True
    probe: bool = False
    classes: int = 0

    def __post_init__(self) -> None:
        for name in ("image", "channels", "patch", "layers", "width", "heads", "hidden"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        ok = self.image % self.patch == 0
        check(ok, "patch", self.patch, f"a divisor of {self.image}, the image")
        ok = self.width % self.heads == 0
        check(ok, "width", self.width, f"a multiple of {self.heads}, the heads")
        check(self.activation in ACTIVATIONS, "activation", self.activation, f"{[*ACTIVATIONS]}")
        ok = self.class_token or self.norm_features or self.probe
        check(ok, "norm_features", self.norm_features, "True where nothing is pooled")

    @property
    def patches(self) -> int:
        """N, how many patches an image has."""
        return (self.image // self.patch) ** 2


def init(key: jax.Array, config: Config, dtype: Any = jnp.float32) -> Params:
    """Draws a tower's parameters: kernels normal with 1/√in, others normal with 0.02, biases 0.

    `blocks/...` leaves have a leading axis [layers].
    """
    c = config
    keys = iter(jax.random.split(key, 16))

    def normal(*shape: int, scale: float = 0.02) -> jax.Array:
        return scale * jax.random.normal(next(keys), shape, dtype)

    def linear(*shape: int, bias: bool = True) -> Params:
        params: Params = {"kernel": normal(*shape, scale=shape[-2] ** -0.5)}
        return params | ({"bias": jnp.zeros((*shape[:-2], shape[-1]), dtype)} if bias else {})

    def norm(*shape: int) -> Params:
        return {"scale": jnp.ones(shape, dtype), "bias": jnp.zeros(shape, dtype)}

    square = (c.layers, c.width, c.width)
    params: Params = {
        "patches": linear(c.patch**2 * c.channels, c.width, bias=c.patch_bias),
        "positions": {"table": normal(c.patches + c.class_token, c.width)},
        "blocks": {
            **{name: linear(*square) for name in ("query", "key", "value", "output")},
            "up": linear(c.layers, c.width, c.hidden),
            "down": linear(c.layers, c.hidden, c.width),
            "attention_norm": norm(c.layers, c.width),
            "mlp_norm": norm(c.layers, c.width),
        },
        "norm": norm(c.width),
    }
    if c.class_token:
        params["class_token"] = {"table": normal(c.width)}
    if c.embed_norm:
        params["embed_norm"] = norm(c.width)
    if c.probe:
        params["pool"] = {
            "probe": {"table": normal(c.width)},
            **{k: linear(c.width, c.width) for k in ("query", "key", "value", "output")},
            "norm": norm(c.width),
            "up": linear(c.width, c.hidden),
            "down": linear(c.hidden, c.width),
        }
    if c.classes:
        params["classifier"] = linear(c.width, c.classes)
    return params


def apply_fn(
    config: Config,
    *,
    select: int = -1,
    keep_class: bool = False,
    remat: Remat = "none",
    compute: Any = None,
    backend: attention.Backend = "auto",
) -> Apply:
    """`apply(params, batch, call)`; see the module for what comes out.

    Sites: `patches`, `blocks/{query,key,value,output,up,down}` and `classifier` with `:in` and
    `:out`, and `blocks:attention`, `blocks:mlp` (what each adds to the residual stream),
    `blocks:out`.

    Args:
      config: the architecture.
      select: which block's output the features are: -1 is the last block's, with the norm after it
        if there is one; -2 is the last but one's, without a norm, which LLaVA reads of CLIP.
      keep_class: whether the class token's feature comes first, [B, 1 + N, d], as `pool` needs it.
      remat: as in `decoder.apply_fn`.
      compute: the dtype of activations and products; None is the parameters'.
      backend: the attention kernel.

    Raises:
      ValueError: if `select` or `remat` is out of range; from `apply`, if an image has another
        shape than the configuration says.
    """
    c = config
    check(-c.layers <= select <= -1, "select", select, f"from {-c.layers} to -1")
    depth = c.layers + 1 + select
    rematerialised = rematerialise(remat)
    activation = ACTIVATIONS[c.activation]
    scale = (c.width // c.heads) ** -0.5
    normed = partial(layer_norm, eps=c.eps)

    def block(h: jax.Array, p: Params, layer: jax.Array, tap: Tap) -> jax.Array:
        def add(part: str, h: jax.Array, x: jax.Array) -> jax.Array:
            return h + tap(f"blocks:{part}", layer, after_sublayer(p, part, x))

        x = normed(p["attention_norm"], h)
        q, k, v = (
            dense(p[n], x, f"blocks/{n}", tap, layer).reshape(*x.shape[:2], c.heads, -1)
            for n in ("query", "key", "value")
        )
        k, v, mask = attention.with_prefix(p, k, v, causal=False)
        mixed = attention.attend(q, k, v, scale=scale, mask=mask, causal=False, backend=backend)
        h = add(
            "attention", h, dense(p["output"], mixed.reshape(x.shape), "blocks/output", tap, layer)
        )
        inner = activation(dense(p["up"], normed(p["mlp_norm"], h), "blocks/up", tap, layer))
        h = add("mlp", h, dense(p["down"], inner, "blocks/down", tap, layer))
        return tap("blocks:out", layer, h)

    def embed(params: Params, image: jax.Array, tap: Tap) -> jax.Array:
        """The residual stream at the first block."""
        wanted = (c.image, c.image, c.channels)
        check(image.shape[1:] == wanted, "shape of an image", image.shape[1:], repr(wanted))
        dtype = compute or params["positions"]["table"].dtype
        whole = jnp.issubdtype(image.dtype, jnp.integer)
        image = image.astype(dtype) / 255 if whole else image.astype(dtype)
        side = c.image // c.patch
        cut = image.reshape(len(image), side, c.patch, side, c.patch, c.channels)
        cut = cut.transpose(0, 1, 3, 2, 4, 5).reshape(len(image), side**2, -1)
        h = dense(params["patches"], cut, "patches", tap)
        if c.class_token:
            first = params["class_token"]["table"].astype(dtype)
            h = jnp.concatenate([jnp.broadcast_to(first, (len(h), 1, c.width)), h], axis=1)
        h = h + params["positions"]["table"].astype(dtype)
        return normed(params["embed_norm"], h) if c.embed_norm else h

    def apply(params: Params, batch: Batch, call: Call = Call()) -> jax.Array:
        tap = as_call(call).tap
        h = embed(params, batch["image"], tap)

        def scanned(h: jax.Array, xs: Any) -> tuple[jax.Array, None]:
            p, layer = xs
            return block(h, p, layer, tap), None

        blocks = jax.tree.map(lambda x: x[:depth], params["blocks"])
        h, _ = lax.scan(rematerialised(scanned), h, (blocks, jnp.arange(depth)))
        if c.norm_features and select == -1:
            h = normed(params["norm"], h)
        patches = h[:, 1:] if c.class_token else h
        if "classifier" in params:
            mean = jnp.mean(patches.astype(jnp.float32), axis=1).astype(h.dtype)
            return dense(params["classifier"], mean, "classifier", tap).astype(jnp.float32)
        return h if keep_class else patches

    def head_of(params: Params) -> str | None:
        return "classifier" if "classifier" in params else None

    return with_structure(apply, Structure(head_of, {"blocks": 1}))


def pool(config: Config, params: Params, features: jax.Array) -> jax.Array:
    """Pools features [B, N or 1 + N, d] of the last block to those of the image, [B, d].

    It is CLIP's class token, normed, or SigLIP's probe, which attends to all patches and goes
    through an MLP. The features include the class token's if there is one (`keep_class`).

    Raises:
      ValueError: if the tower has neither.
    """
    c = config
    check(c.class_token or c.probe, "class_token", c.class_token, "True, or probe")
    if not c.probe:
        first = features[:, 0]
        return first if c.norm_features else layer_norm(params["norm"], first, c.eps)
    p = params["pool"]
    start = jnp.broadcast_to(
        p["probe"]["table"].astype(features.dtype), (len(features), 1, c.width)
    )
    q, k, v = (
        dense(p[n], x, "").reshape(len(x), -1, c.heads, c.width // c.heads)
        for n, x in (("query", start), ("key", features), ("value", features))
    )
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * (c.width // c.heads) ** -0.5
    mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores, axis=-1), v)
    h = dense(p["output"], mixed.reshape(len(features), c.width), "")
    inner = ACTIVATIONS[c.activation](dense(p["up"], layer_norm(p["norm"], h, c.eps), ""))
    return h + dense(p["down"], inner, "")
