"""Merging models as arithmetic over parameter trees: interpolation, task vectors, TIES, DARE.

Thresholds are found by bisection over the bits of a float32 magnitude, never by a sort. That takes
a dozen or two passes over the data, and chooses exactly as many entries as were asked for, even
among equal ones. Sums are float32.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jcl import trees
from jcl.mechanisms import adapters
from jcl.method import Ctx, Params

Mask = Any
"""A tree of bool arrays, shaped like parameters."""
Scope = Literal["model", "leaf"]
Ratio = jax.Array | float | Callable[[str, jax.Array], Any]
"""A ratio t, or `ratio(path, leaf) -> t` that broadcasts against the leaf."""
Count = Callable[[jax.Array | int], jax.Array]
"""How many of a tensor's n entries: `count(n) -> int32 []`."""


def count_of(fraction: float | jax.Array, size: int | jax.Array) -> jax.Array:
    """How many of `size` entries a fraction is, rounded, int32 []; exactly all of them at 1."""
    # rounded from the other end, so that float32 cannot lose an entry of a large array at 1
    return size - jnp.round((1 - jnp.float32(fraction)) * size).astype(jnp.int32)


def whole_count(fraction: float | jax.Array, size: int | jax.Array) -> jax.Array:
    """How many of `size` entries a fraction is, cut off below, int32 []; exactly all of them at 1.

    A product such as 0.29 · 100 that is a whole number but for float32's rounding counts as it.
    """
    f = jnp.asarray(fraction, jnp.float32)
    return jnp.where(f >= 1, size, jnp.floor(f * size).astype(jnp.int32))


def _count(mask: jax.Array) -> jax.Array:
    # summing columns in float32, exact below 2**24 rows, takes XLA's CPU half the time of int32
    if mask.ndim > 1 and mask.shape[0] < 2**24:
        mask = jnp.sum(mask, axis=0, dtype=jnp.float32)
    return jnp.sum(mask, dtype=jnp.int32)


def mark_largest(
    scores: Params, count: Count, structure: trees.Structure, among: Mask = None
) -> Mask:
    """Marks in each layer's tensor the `count(n)` entries of largest |score|, of n that there are.

    Layers that are stacked in one leaf each have their own. Of equal entries the earliest is taken.

    Args:
      scores: a tree of arrays, ranked as float32.
      count: gives int32 [] for the number of a tensor's entries that may be marked.
      structure: the model's word about its stacks; see `trees.per_layer`.
      among: bool, shaped like `scores`: where an entry may be marked. None is everywhere.

    Returns:
      bool, shaped like `scores`.
    """

    def one(x: jax.Array, *may: jax.Array) -> Mask:
        size = jnp.sum(may[0], dtype=jnp.int32) if may else x.size
        return _largest(x, count(size), *may)

    return trees.per_layer(one, structure, scores, *(() if among is None else (among,)))


def _largest(scores: Any, count: jax.Array | int, among: Mask = None) -> Mask:
    """Marks exactly `count` entries, those of the largest |score|; ties go to the earliest entry.

    Args:
      scores: an array or a tree of arrays, ranked together, as float32.
      count: int32 []; a count above the number of entries marks all, one below 1 none.
      among: bool, shaped like `scores`: where an entry may be marked. None is everywhere.

    Returns:
      bool, shaped like `scores`.

    Raises:
      ValueError: if there are 2³¹ entries or more, which int32 cannot count.
    """
    size = trees.size(scores)
    if size >= 2**31:
        raise ValueError(f"scores have {size} entries, but must have fewer than 2**31 to be ranked")
    # the bits of a float that is not negative are ordered as the float is
    bits = jax.tree.map(
        lambda x: lax.bitcast_convert_type(jnp.abs(x).astype(jnp.float32), jnp.int32), scores
    )
    if among is not None:
        bits = jax.tree.map(lambda b, a: jnp.where(a, b, -1), bits, among)

    def total(marks: Mask) -> jax.Array:
        return reduce(jnp.add, [_count(m) for m in jax.tree.leaves(marks)])

    def at_least(bound: jax.Array) -> jax.Array:
        return total(jax.tree.map(lambda b: b >= bound, bits))

    def open_(bounds: tuple[jax.Array, jax.Array]) -> jax.Array:
        return bounds[1] - bounds[0] > 1

    def narrow(bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = low + (high - low) // 2
        found = at_least(middle)
        # a bound that separates exactly `count` entries ends the search
        high = jnp.where(found == count, middle + 1, jnp.where(found > count, high, middle))
        return jnp.where(found >= count, middle, low), high

    bound, _ = lax.while_loop(open_, narrow, (jnp.int32(0), jnp.int32(2**31 - 1)))
    tied = at_least(bound) > count
    needed = count - at_least(bound + 1)

    offset, places = 0, []
    for leaf in jax.tree.leaves(bits):
        places.append(offset + jnp.arange(leaf.size, dtype=jnp.int32).reshape(leaf.shape))
        offset += leaf.size
    place = jax.tree.unflatten(jax.tree.structure(bits), places)

    def early(end: jax.Array) -> Mask:
        return jax.tree.map(lambda b, p: (b == bound) & (p < end), bits, place)

    def split_ties(ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = ends
        middle = low + (high - low) // 2
        enough = total(early(middle)) >= needed
        return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

    # only if more entries are tied at the bound than are needed, the earliest have to be found
    _, end = lax.while_loop(open_, split_ties, (jnp.where(tied, 0, size - 1), jnp.int32(size)))
    return jax.tree.map(lambda b, e: (b > bound) | e, bits, early(end))


def interpolate(t: Ratio, a: Params, b: Params, wide: bool = False) -> Params:
    """`lerp`, but of low-rank pairs the product is interpolated.

    The mean of factors isn't the factors of the mean: it has cross terms.

    Args:
      t: the ratio, or a function that gives it for a leaf.
      a: where t is 0.
      b: where t is 1.
      wide: whether pairs become twice as wide, which is exact and can be differentiated; else they
        keep their rank (see `adapters.mix_pairs`).
    """
    ratio = t if callable(t) else lambda path, leaf: t

    def one(path: tuple[Any, ...], x: jax.Array, y: jax.Array) -> jax.Array:
        return lerp(ratio(trees.path_name(path), y), x, y)

    mixed = jax.tree_util.tree_map_with_path(one, a, b)
    for path in adapters.paths_with(b):
        before, after = (adapters.subtree(tree, path)["lora"] for tree in (a, b))
        # where one factor is frozen, the mean of the other is the mean of the products
        if before["a"] is not None and before["b"] is not None:
            mix = adapters.join_mixed if wide else adapters.mix_pairs
            pair = mix(ratio(f"{path}/lora/b", after["b"]), before, after)
            lora = {**adapters.subtree(mixed, path)["lora"], **pair}
            mixed = adapters.with_subtree(mixed, path, {"lora": lora})
    return mixed


def refuse_pairs(
    name: str,
    ctx: Ctx,
    params: Params,
    instead: str = "inclora(), whose bank adds up its pairs' products",
) -> None:
    """Refuses a method that works on entries where low-rank pairs learn.

    Pairs that another method renews at each boundary don't count, for nobody merges these.

    Raises:
      ValueError: if `params` hold pairs of `lora`, whose factors have no entries of the product.
    """
    pairs = [path for path in adapters.paths_with(params) if not ctx.renewed(f"{path}/lora/a")]
    if pairs:
        by = ctx.added(f"{pairs[0]}/lora/a") or "lora"
        raise ValueError(
            f"{name} can't merge the factors of low-rank pairs, such as {by}'s at {pairs[0]}, one "
            f"by one; chain {instead}, or train all parameters"
        )


def lerp(t: jax.Array | float, a: Params, b: Params) -> Params:
    """(1 - t) a + t b in float32, exact at both ends, each leaf in `a`'s dtype."""

    def one(x: jax.Array, y: jax.Array) -> jax.Array:
        mixed = (1 - t) * x.astype(jnp.float32) + t * y.astype(jnp.float32)
        return mixed.astype(x.dtype)

    return jax.tree.map(one, a, b)


def blend(t: jax.Array | float, a: Any, b: Any) -> Any:
    """`lerp` of what models keep beside their parameters; b where they count."""

    def one(x: jax.Array, y: jax.Array) -> jax.Array:
        return lerp(t, x, y) if jnp.issubdtype(x.dtype, jnp.floating) else y

    return jax.tree.map(one, a, b)


def slerp(t: jax.Array | float, a: Params, b: Params, structure: trees.Structure) -> Params:
    """sin((1-t)φ)/sin φ · a + sin(tφ)/sin φ · b, φ the angle between the two tensors of a layer.

    Exact at both ends; tensors that are parallel, or zero, are interpolated linearly. Each leaf
    comes in `a`'s dtype; `structure` says which are stacks of layers (see `trees.per_layer`).
    Source: Shoemake 1985, "Animating rotation with quaternion curves".
    """

    def one(x: jax.Array, y: jax.Array) -> jax.Array:
        u, v = x.astype(jnp.float32), y.astype(jnp.float32)
        lengths = jnp.sqrt(jnp.sum(u * u) * jnp.sum(v * v))
        cosine = jnp.sum(u * v) / jnp.where(lengths == 0, 1.0, lengths)
        curved = (lengths > 0) & (jnp.abs(cosine) < 0.9995)
        angle = jnp.arccos(jnp.where(curved, cosine, 0.0))
        of_a = jnp.where(curved, jnp.sin((1 - t) * angle) / jnp.sin(angle), 1 - t)
        of_b = jnp.where(curved, jnp.sin(t * angle) / jnp.sin(angle), t)
        return (of_a * u + of_b * v).astype(x.dtype)

    return trees.per_layer(one, structure, a, b)


def task_vector(params: Params, base: Params) -> Params:
    """τ = θ - θ₀, float32. Source: Ilharco et al., arXiv 2212.04089, section 2."""
    return jax.tree.map(lambda p, b: p.astype(jnp.float32) - b.astype(jnp.float32), params, base)


def step_along(base: Params, params: Params, vector: Params, scale: jax.Array | float) -> Params:
    """θ₀ + λ v in the dtypes of `params`, θ. v is the task vector τ = θ - θ₀, or made of it.

    It is computed as lerp(θ₀, θ, λ) + λ (v - τ), so that it is θ₀ exactly at λ = 0, and θ exactly
    at λ = 1 while v is τ alone.
    """

    def one(b: jax.Array, p: jax.Array, v: jax.Array) -> jax.Array:
        start, end = b.astype(jnp.float32), p.astype(jnp.float32)
        mixed = (1 - scale) * start + scale * end + scale * (v - (end - start))
        return mixed.astype(p.dtype)

    return jax.tree.map(one, base, params, vector)


def dare(key: jax.Array, vector: Params, drop: jax.Array | float) -> Params:
    """Zeros each entry with probability `drop` in [0, 1) and divides the others by 1 - drop.

    Source: Yu et al., arXiv 2311.03099, equation 2 and algorithm 1.
    """

    def one(path: tuple[Any, ...], x: jax.Array) -> jax.Array:
        own = trees.path_key(key, trees.path_name(path))
        return jnp.where(jax.random.bernoulli(own, 1 - drop, x.shape), x / (1 - drop), 0)

    return trees.like(jax.tree_util.tree_map_with_path(one, vector), vector)


def trim(vector: Params, density: jax.Array | float) -> Params:
    """Keeps the share `density` of a task vector's entries that has the largest magnitudes.

    The others become 0. Entries are ranked over the whole vector, as in the authors' code of TIES;
    `trim_layers` ranks those of each layer's tensor by themselves.

    Args:
      vector: a task vector.
      density: in [0, 1]; the share is cut off to a whole number of entries.
    """
    kept = _largest(vector, whole_count(density, trees.size(vector)))
    return jax.tree.map(lambda v, k: jnp.where(k, v, 0), vector, kept)


def trim_layers(
    vector: Params,
    density: jax.Array | float,
    structure: trees.Structure,
    spare_small: bool = False,
) -> Params:
    """Keeps in each layer's tensor the share `density` of entries with the largest magnitudes.

    Args:
      vector: a task vector.
      density: in [0, 1]; the share is cut off to a whole number of entries.
      structure: the model's word about its stacks; see `trees.per_layer`.
      spare_small: whether a tensor keeps all where its share is less than one entry.
    """

    def count(size: jax.Array | int) -> jax.Array:
        some = whole_count(density, size)
        return jnp.where(some < 1, size, some) if spare_small else some

    kept = mark_largest(vector, count, structure)
    return jax.tree.map(lambda v, k: jnp.where(k, v, 0), vector, kept)


class Votes(NamedTuple):
    """All that TIES needs of any number of trimmed task vectors: four trees, shaped like one."""

    positive: Params
    """Sum of the values above zero at each entry, float32."""
    negative: Params
    """Sum of the values below zero, float32."""
    for_positive: Params
    """How many values are above zero, int16."""
    for_negative: Params
    """How many values are below zero, int16."""


def no_votes(params: Params) -> Votes:
    """The votes before the first task vector: zeros, shaped like `params`."""
    return Votes(
        trees.zeros(params), trees.zeros(params),
        trees.zeros(params, jnp.int16), trees.zeros(params, jnp.int16),
    )  # fmt: skip


def vote(votes: Votes, vector: Params) -> Votes:
    """The votes with one more task vector, which is trimmed already."""
    return Votes(
        jax.tree.map(lambda s, v: s + jnp.maximum(v, 0), votes.positive, vector),
        jax.tree.map(lambda s, v: s + jnp.minimum(v, 0), votes.negative, vector),
        jax.tree.map(lambda n, v: n + (v > 0), votes.for_positive, vector),
        jax.tree.map(lambda n, v: n + (v < 0), votes.for_negative, vector),
    )


def elect(votes: Votes) -> Params:
    """The merged task vector, float32: at each entry the mean of the values of the sum's sign.

    An entry whose sum is 0 takes the sign that most of the entries have, as in the authors' code,
    and where that is a tie too the entry is 0.
    Source: Yadav et al., arXiv 2306.01708, section 4.2 and algorithm 1.
    """
    total = trees.add(votes.positive, votes.negative)
    most = jnp.sign(jax.tree.reduce(jnp.add, jax.tree.map(lambda s: jnp.sum(jnp.sign(s)), total)))

    def one(s: jax.Array, p: jax.Array, n: jax.Array, ps: jax.Array, ns: jax.Array) -> jax.Array:
        sign = jnp.where(s == 0, most, jnp.sign(s))
        agreeing = jnp.where(sign > 0, p / jnp.maximum(ps, 1), n / jnp.maximum(ns, 1))
        return jnp.where(sign == 0, 0.0, agreeing)

    return jax.tree.map(one, total, *votes)


def larger(first: Params, second: Params) -> Params:
    """At each entry that of two task vectors with the larger magnitude, of equal ones the second.

    Source: Marczak et al., arXiv 2407.06322, and the authors' `merge_max_abs`.
    """
    return jax.tree.map(lambda a, b: jnp.where(jnp.abs(b) >= jnp.abs(a), b, a), first, second)
