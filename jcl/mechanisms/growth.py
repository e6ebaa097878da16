"""Grows a model in blocks, width or vocabulary, so that it computes the same outputs as before.

These are pure functions from parameters and config to larger ones. Make a new program of the grown
model's `apply`; its optimizer and methods start anew.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jcl import trees
from jcl.mechanisms import adapters
from jcl.method import Params, check


class Grown(NamedTuple):
    """A grown model."""

    params: Params
    config: Any
    """A `models.decoder.Config`, or of a vocabulary that of any model."""
    layers: tuple[int, ...]
    """Which of its blocks are new, as `methods.llama_pro(layers=...)` takes them."""


def _plain(params: Params) -> None:
    held = adapters.paths_with(params, adapters.NAMES)
    check(not held, "adapters", held, "merged or stripped before a model grows")
    stored = adapters.paths_with(params, {"int8"})
    check(not stored, "kernels", stored, "of floats, for int8 doesn't grow")


def expand_blocks(params: Params, config: Any, every: int) -> Grown:
    """Inserts after every `every` blocks a copy of the last of them, which adds nothing yet.

    The copy's output projections, of attention and of the MLP, are zero, so that it is the
    identity and outputs stay exactly. In a model that norms what a sublayer adds (`post_norm`), the
    scale of that norm is zeroed instead, because a norm's slope at an input of zero is steep.

    Source: Wu et al., arXiv 2401.02415 (LLaMA Pro), section 3.2 and the authors'
    scripts/block_expansion.py, where P = 1 copy follows each group. It serves as the growth in
    depth of ELLE (Qin et al., arXiv 2203.06311) too, whose copied layers are not the identity and
    need a warm-up to recover the function.

    Args:
      params: a decoder's, without adapters; `blocks/...` leaves have a leading axis [layers].
      config: its `models.decoder.Config`.
      every: blocks in a group; a last group that is shorter gets no copy.

    Raises:
      ValueError: if `every` is out of range, layers know their depth, or there are adapters among
        the parameters.
    """
    check(1 <= every <= config.layers, "every", every, f"from 1 to {config.layers}, the layers")
    check(not config.depth_scaled, "depth_scaled", True, "False where layers change their places")
    _plain(params)
    source: list[int] = []
    new: list[int] = []
    for layer in range(config.layers):
        source.append(layer)
        if (layer + 1) % every == 0:
            new.append(len(source))
            source.append(layer)
    silenced = ("_post_norm",) if config.post_norm else ("output", "down")
    origin, at = jnp.asarray(source), jnp.asarray(new)

    def one(path: tuple[Any, ...], x: jax.Array) -> jax.Array:
        names = trees.path_name(path).split("/")
        grown = x[origin]
        if not any(name.endswith(silenced) for name in names):
            return grown
        # a norm's scale is stored less what is added to it
        nothing = -config.norm_offset if config.post_norm and names[-1] == "scale" else 0
        return grown.at[at].set(jnp.asarray(nothing, x.dtype))

    blocks = jax.tree_util.tree_map_with_path(one, params["blocks"])
    local, turned = (m and tuple(m[i] for i in source) for m in (config.local, config.turned))
    config = dataclasses.replace(config, layers=len(source), local=local, turned=turned)
    return Grown({**params, "blocks": blocks}, config, tuple(new))


_BY_TOKEN = {"embed/table": -2, "head/kernel": -1, "head/bias": -1, "masked/bias": -1}
"""The leaves with a part for each token, and the axis along which the tokens are."""


def expand_vocabulary(params: Params, config: Any, vocabulary: int) -> Grown:
    """Gives a model rows for more token ids, each the mean of those that there are.

    The outputs of the ids that there were stay exactly. A new row so starts as a usual token and
    not as an unlikely one, nor as one that takes all the probability, as a row of noise may.

    Source: Hewitt, "Initializing New Word Embeddings for Pretrained Language Models" (2021), which
    transformers' `resize_token_embeddings` draws around; without noise, for new tokens learn apart
    where they stand in different places.

    Args:
      params: a model's, without adapters.
      config: its configuration, of any model with a `vocabulary`.
      vocabulary: how many token ids there are to be, at least as many as now.

    Raises:
      ValueError: if there would be fewer ids, or there are adapters or int8 kernels.
    """
    old = config.vocabulary
    check(vocabulary >= old, "vocabulary", vocabulary, f"at least {old}, for it only grows")
    _plain(params)

    def one(path: tuple[Any, ...], x: jax.Array) -> jax.Array:
        axis = _BY_TOKEN.get(trees.path_name(path))
        if axis is None:
            return x
        mean = jnp.mean(x.astype(jnp.float32), axis=axis, keepdims=True).astype(x.dtype)
        more = jnp.repeat(mean, vocabulary - old, axis=axis)
        return jnp.concatenate([x, more], axis=axis)

    grown = jax.tree_util.tree_map_with_path(one, params)
    return Grown(grown, dataclasses.replace(config, vocabulary=vocabulary), ())


def _split(key: jax.Array, x: jax.Array, source: jax.Array, noise: float | jax.Array) -> jax.Array:
    """A kernel [..., old, out] for repeated inputs: [..., new, out], copies' rows sum to the old.

    Each of c copies gets a c-th of the row, and noise that adds up to 0 over the copies. `source`
    int32 [new] says which old input each new one copies.
    """
    copies = jnp.bincount(source, length=x.shape[-2])[source][:, None]
    wide = jnp.take(x, source, axis=-2).astype(jnp.float32)
    spread = jnp.std(x.astype(jnp.float32), axis=(-2, -1), keepdims=True)
    stray = noise * spread * jax.random.normal(key, wide.shape)
    sums = jax.ops.segment_sum(jnp.moveaxis(stray, -2, 0), source, x.shape[-2])
    stray = stray - jnp.moveaxis(sums[source], 0, -2) / copies
    return (wide / copies + jnp.where(copies > 1, stray, 0)).astype(x.dtype)


def widen(
    key: jax.Array,
    params: Params,
    config: Any,
    *,
    width: int | None = None,
    hidden: int | None = None,
    kv_heads: int | None = None,
    noise: float | jax.Array = 0.1,
) -> Grown:
    """A wider decoder with the same outputs: its new units are copies of old ones.

    New unit j copies unit j mod n with the weights that lead into it; of the weights that lead out
    of a unit each of its c copies gets a c-th. Equal copies would learn alike for ever, so these
    parts differ by noise, which sums to 0 over the copies and so keeps the function (to rounding).

    Source: Net2Net (Chen et al., arXiv 1511.05641), on transformers bert2BERT (arXiv 2110.07143),
    as ELLE has it (Qin et al., arXiv 2203.06311, section 4.1). ELLE's noise is on all new copies
    and is not made to cancel, so that its function is kept only roughly.

    Args:
      key: the PRNG key of the noise.
      params: a decoder's, without adapters.
      config: its `models.decoder.Config`.
      width: new width of the residual stream, a multiple of the present one, lest norms change.
      hidden: new width inside the MLP or each expert, at least the present one.
      kv_heads: how many key heads, at least the present number; query heads grow in proportion.
      noise: its standard deviation as a share of that of the layer's kernel; 0 splits evenly.

    Raises:
      ValueError: if an argument is out of range, there are adapters or int8 kernels, or a tied head
        has no norm before it to take up the factor by which its logits grow.
    """
    c = config
    width, hidden = width or c.width, hidden or c.hidden
    kv_heads = kv_heads or c.kv_heads
    times = width // c.width
    check(width >= 1 and width % c.width == 0, "width", width, f"a multiple of {c.width}")
    check(hidden >= c.hidden, "hidden", hidden, f"at least {c.hidden}")
    check(kv_heads >= c.kv_heads, "kv_heads", kv_heads, f"at least {c.kv_heads}")
    whole = c.qk_norm != "full" or kv_heads % c.kv_heads == 0
    check(whole, "kv_heads", kv_heads, f"a multiple of {c.kv_heads}, for all are normed as one")
    normed = times == 1 or not c.tied or "norm" in params
    check(normed, "width", width, f"{c.width} where the head is tied and has no norm before it")
    _plain(params)
    group = c.heads // c.kv_heads * c.head_width  # query units of a key's head

    def repeated(old: int, new: int, size: int = 1) -> jax.Array:
        blocks = jnp.arange(new) % old
        return (blocks[:, None] * size + jnp.arange(size)).reshape(-1)

    stream, inner = repeated(c.width, width), repeated(c.hidden, hidden)
    queries = repeated(c.kv_heads, kv_heads, group)
    keys = repeated(c.kv_heads, kv_heads, c.head_width)
    every = jnp.arange  # what stays as it is
    # of each dense layer: which units it reads, which it makes
    sides = {
        "query": (stream, queries),
        "key": (stream, keys),
        "value": (stream, keys),
        "output": (queries, stream),
        "gate": (stream, inner),
        "up": (stream, inner),
        "down": (inner, stream),
        "router": (stream, every(c.experts)),
        "head": (stream, every(c.vocabulary)),
    }
    norms = {"query_norm": queries, "key_norm": keys}

    def one(path: tuple[Any, ...], x: jax.Array) -> jax.Array:
        name = trees.path_name(path)
        *_, owner, leaf = name.split("/")
        if owner in norms:
            return jnp.take(x, norms[owner], axis=-1) if c.qk_norm == "full" else x
        if leaf in ("table", "scale") or owner.endswith("norm"):
            grown = jnp.take(x, stream, axis=-1)
            # copies of a tied embedding add up in the logits
            if owner == "norm" and c.tied and times > 1:
                offset = c.norm_offset if leaf == "scale" else 0
                grown = (grown + offset) / times - offset
            return grown.astype(x.dtype)
        reads, makes = sides.get(owner, (stream, every(x.shape[-1])))
        if leaf == "kernel":
            own = trees.path_key(key, name)
            x = _split(own, x, reads, noise) if len(reads) > x.shape[-2] else x
        return jnp.take(x, makes, axis=-1)

    grown = jax.tree_util.tree_map_with_path(one, params)
    config = dataclasses.replace(
        c, width=width, hidden=hidden, kv_heads=kv_heads, heads=c.heads // c.kv_heads * kv_heads
    )
    return Grown(grown, config, ())
