"""Images before text, in the manner of LLaVA: a vision tower, a projector and a decoder.

They are one parameter tree: `vision/...`, `projector/...`, and beside them the decoder's own
leaves, so that whatever works on a decoder's tree works on this one. The tower turns a batch's
`image` [B, H, W, C] into features of patches, the projector brings these to the decoder's width,
and the decoder reads them as `embeddings` [B, N, d] before the tokens. Everything else is as in
`decoder`: `segments`, `targets`, `prefill` and `cache`, a `classifier`. Without `image` the model
is the decoder alone.

- `has_image` int32 [B] is 0 for rows of text whose `image` only fills the batch.
- `embeddings` and `embedding_segments`, if given, come before the image.

Source: Liu et al., arXiv 2304.08485, section 4.1 (linear projector), and arXiv 2310.03744,
LLaVA-1.5 (two layers with GELU between); `multimodal_projector/builder.py` of their code, as in
zackschen/CoIN.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jcl import taps
from jcl.mechanisms import adapters
from jcl.method import Apply, Batch, Call, Params, Structure, Tap, as_call, check, with_structure
from jcl.models import decoder, vision
from jcl.models.layers import dense, init_dense


@dataclass(frozen=True)
class Config:
    """The architecture of a model of images and text.

    Args:
      vision: the tower's configuration.
      language: the decoder's configuration.
      projector: `linear`, or `mlp`, two layers with an exact GELU between (LLaVA-1.5).
      select: which block's output the projector reads, see `vision.apply_fn`; -2 in LLaVA.

    Raises:
      ValueError: if `projector` is neither.
    """

    vision: vision.Config = field(default_factory=vision.Config)
    language: decoder.Config = field(default_factory=decoder.Config)
    projector: Literal["linear", "mlp"] = "mlp"
    select: int = -1

    def __post_init__(self) -> None:
        kinds = ("linear", "mlp")
        check(self.projector in kinds, "projector", self.projector, "'linear' or 'mlp'")


def projector(key: jax.Array, config: Config) -> Params:
    """Draws the projector's parameters as torch.nn.Linear: `first`, and `second` of an MLP.

    `{"vision": tower, "projector": projector(key, config), **decoder}` is the tree of a model whose
    two halves were trained apart.
    """
    keys = jax.random.split(key)
    width = config.language.width
    params = {"first": init_dense(keys[0], config.vision.width, width)}
    if config.projector == "mlp":
        params["second"] = init_dense(keys[1], width, width)
    return params


def init(key: jax.Array, config: Config, dtype: Any = jnp.float32) -> Params:
    """Draws the parameters of all three parts."""
    keys = jax.random.split(key, 3)
    return {
        "vision": vision.init(keys[0], config.vision, dtype),
        "projector": projector(keys[1], config),
        **decoder.init(keys[2], config.language, dtype),
    }


def projector_and_adapters(path: str) -> bool:
    """Whether a leaf is the projector's or an adapter's, for `jcl.make(trainable=...)`.

    Without adapters the projector alone learns, which is LLaVA's first stage; with LoRA it is how
    CoIN trains. Tower and decoder are frozen.
    """
    return path.startswith("projector/") or adapters.is_adapter(path)


def all_but_vision(path: str) -> bool:
    """Whether a leaf is the projector's, the decoder's or an adapter's: LLaVA's second stage."""
    return not path.startswith("vision/") or adapters.is_adapter(path)


def project(params: Params, features: jax.Array, tap: Tap = taps.identity) -> jax.Array:
    """Projects features [B, N, width of the tower] to [B, N, width of the decoder].

    With `second` it is an MLP. Kernels [B, in, out] and biases [B, out] give each row its own
    projector.
    """
    h = _layer(params["first"], features, "projector/first", tap)
    if "second" not in params:
        return h
    return _layer(params["second"], jax.nn.gelu(h, approximate=False), "projector/second", tap)


def _layer(params: Params, x: jax.Array, site: str, tap: Tap) -> jax.Array:
    if adapters.shape(params["kernel"])[:-2] == ():
        return dense(params, x, site, tap)
    more = sorted(set(params) - {"kernel", "bias"})
    check(not more, f"{site} of each row's own", more, "a kernel and a bias alone")
    x = tap(f"{site}:in", 0, x)
    y = jnp.einsum("bni,bio->bno", x, params["kernel"].astype(x.dtype))
    return tap(f"{site}:out", 0, y + params["bias"].astype(x.dtype)[:, None])


def apply_fn(config: Config, **options: Any) -> Apply:
    """`apply(params, batch, call)`; see the module for what a batch may hold.

    Sites: the decoder's; the tower's behind `vision/`, such as `vision/blocks/query:in`;
    `projector/first` and `projector/second` with `:in` and `:out`; and `image`, the features that
    the projector reads; and whether rows have one, `vision:input_segments` and
    `projector:input_segments`, [B, 1].

    Args:
      config: the architecture.
      options: further arguments of `decoder.apply_fn`; `remat`, `compute` and `backend` also hold
        for the tower.

    Raises:
      ValueError: as `vision.apply_fn` and `decoder.apply_fn` do.
    """
    shared = {k: v for k, v in options.items() if k in ("remat", "compute", "backend")}
    tower = vision.apply_fn(config.vision, select=config.select, **shared)
    language = decoder.apply_fn(config.language, **options)

    def soft(params: Params, batch: Batch, tap: Tap) -> tuple[jax.Array, jax.Array]:
        """The soft prefix [B, P, d], and its segments."""

        def inside(site: str, layer: Any, h: jax.Array) -> jax.Array:
            return tap(f"vision/{site}", layer, h)

        here = batch.get("has_image", jnp.ones(len(batch["image"]), jnp.int32))
        for part in ("vision", "projector"):
            tap(f"{part}:input_segments", 0, here[:, None])
        features = tap("image", 0, tower(params["vision"], {"image": batch["image"]}, inside))
        # the decoder scales what stands before the tokens as it scales them, but images are not
        image = project(params["projector"], features, tap) / config.language.embed_scale
        marks = jnp.broadcast_to(here[:, None], image.shape[:2]).astype(jnp.int32)
        if "embeddings" not in batch:
            return image, marks
        before = batch["embeddings"].astype(image.dtype)
        theirs = batch.get("embedding_segments", jnp.ones(before.shape[:2], jnp.int32))
        joined = (jnp.concatenate([a, b], axis=1) for a, b in ((before, image), (theirs, marks)))
        return tuple(joined)  # type: ignore[return-value]

    def apply(params: Params, batch: Batch, call: Call = Call()) -> Any:
        tap = as_call(call).tap
        own = {k: v for k, v in params.items() if k not in ("vision", "projector")}
        if "image" not in batch:
            return language(own, batch, tap)
        rest = {k: v for k, v in batch.items() if k not in ("image", "has_image")}
        embeddings, marks = soft(params, batch, tap)
        rest["embeddings"] = embeddings
        if "segments" in batch or "has_image" in batch or "embedding_segments" in batch:
            rest["embedding_segments"] = marks
        return language(own, rest, tap)

    of_language: Structure = language.structure  # type: ignore[attr-defined]
    stacks = {"vision/blocks": 1, **of_language.stacks}
    return with_structure(apply, Structure(of_language.head, stacks, limits=of_language.limits))
