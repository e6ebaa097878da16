"""Arithmetic over parameter pytrees. Statistics are float32 whatever the parameters' dtype."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jcl.records import record

Tree = Any
Trainable = Callable[[str], bool]
"""Static predicate over a leaf's path, such as `blocks/up/kernel`."""
Limits = Mapping[str, tuple[int, str]]
"""How many values an integer column of a batch may have, counted from 0, and what sets that number:
{"y": (10, "groups")}. `positions` stands for the tokens' places within their documents."""


@record
class Structure(NamedTuple):
    """A model's own word about itself, at `apply.structure` or given to `make(structure=)`.

    The default suits a model without stacked layers, whose head no method is told.
    """

    head: str | Callable[[Tree], str | None] | None = None
    """Path of the layer that makes the logits, whose leaves lie beneath it, such as `dense_2` or
    `embed`; or what gives it for the whole tree of parameters, where these decide. None is none."""
    stacks: Mapping[str, int] = MappingProxyType({})
    """How many leading axes of a leaf count layers, by the start of its path, the longest of which
    holds: {"blocks": 1, "blocks/experts": 2}. The first of these axes is the depth."""
    collections: tuple[str, ...] = ()
    """Names of what the model keeps beside its parameters, and changes whenever it is called in
    training, such as the running averages of batch norms; see `Call.collections`."""
    limits: Limits = MappingProxyType({})
    """For what the model has room, such as {"tokens": (32_000, "vocabulary")}; see `Limits`."""

    def head_of(self, params: Tree) -> str | None:
        """Path of the layer that makes the logits from a whole tree of parameters, if any does."""
        return self.head(params) if callable(self.head) else self.head


def every_leaf(path: str) -> bool:
    """The default `trainable`: every leaf learns."""
    return True


def match_path(pattern: str) -> Trainable:
    """A predicate for the leaves whose whole path a regular expression matches.

    Raises:
      ValueError: if `pattern` is no regular expression.

    >>> match_path(r"blocks/(up|down)/.*")("blocks/up/kernel")
    True
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"pattern is {pattern!r}, but must be a regular expression: {error}"
        ) from error
    return lambda path: compiled.fullmatch(path) is not None


def path_name(path: tuple[Any, ...]) -> str:
    """A key path of `jax.tree_util` as `a/b/c`."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def path_key(key: jax.Array, path: str) -> jax.Array:
    """A leaf's own key, by its path, so that leaves that others add or leave out change no draw."""
    return jax.random.fold_in(key, zlib.crc32(path.encode()))


def by_path(tree: Tree) -> dict[str, Any]:
    """The leaves by their paths, in order."""
    return {path_name(p): x for p, x in jax.tree_util.tree_leaves_with_path(tree)}


def kinds(tree: Tree) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Shapes and dtypes of the leaves by their paths."""
    return {path: (x.shape, x.dtype) for path, x in by_path(tree).items()}


def shapes(tree: Tree) -> dict[str, tuple[int, ...]]:
    """The shapes of the leaves by their paths, in order."""
    return {path: jnp.shape(x) for path, x in by_path(tree).items()}


def chosen(tree: Tree, predicate: Trainable, argument: str) -> list[str]:
    """Paths of the leaves that `predicate` accepts, of which there must be one.

    Raises:
      ValueError: if it accepts none; the sentence calls the predicate by the name `argument`.
    """
    paths = list(by_path(tree))
    found = [path for path in paths if predicate(path)]
    if not found:
        raise ValueError(f"{argument} is {predicate!r}, but must be true of a leaf among {paths}")
    return found


def stack_axes(path: str, structure: Structure) -> int:
    """How many leading axes of the leaf at `path` count layers, by the model's own word."""
    starts = [s for s in structure.stacks if path == s or path.startswith(f"{s}/")]
    return structure.stacks[max(starts, key=len)] if starts else 0


def per_layer(fn: Callable[..., Any], structure: Structure, *trees: Tree) -> Tree:
    """Maps `fn(*leaves)` over leaves as layers have them: a stacked leaf is one a layer, by vmap.

    So what `fn` ranks, sums or normalises is one layer's tensor, whether layers are stacked or not.
    It sees its leaves without the stack's axes, and its results get them in front.

    >>> from jcl import Structure
    >>> kernels = {"blocks": {"up": jnp.ones((3, 4, 5))}, "head": jnp.ones((5, 2))}
    >>> per_layer(jnp.sum, Structure(stacks={"blocks": 1}), kernels)["blocks"]["up"].shape
    (3,)
    """

    def one(path: tuple[Any, ...], *leaves: jax.Array) -> Any:
        mapped = fn
        for _ in range(stack_axes(path_name(path), structure)):
            mapped = jax.vmap(mapped)
        return mapped(*leaves)

    return jax.tree_util.tree_map_with_path(one, *trees)


def partition(tree: Tree, keep: Trainable) -> tuple[Tree, Tree]:
    """Splits a tree in two of its structure: the leaves whose path `keep` accepts, and the others.

    Each half has `None` where a leaf went to the other.
    """
    kept = jax.tree_util.tree_map_with_path(lambda p, x: x if keep(path_name(p)) else None, tree)
    rest = jax.tree_util.tree_map_with_path(lambda p, x: None if keep(path_name(p)) else x, tree)
    return kept, rest


def merge(first: Tree, second: Tree) -> Tree:
    """Undoes `partition`, over nested dicts; either half may have keys that the other lacks."""
    if first is None or second is None:
        return second if first is None else first
    if isinstance(first, dict):
        keys = [*first, *(k for k in second if k not in first)]
        return {k: merge(first.get(k), second.get(k)) for k in keys}
    return first


def zeros(tree: Tree, dtype: Any = jnp.float32) -> Tree:
    """Zeros of a tree's shapes; `dtype=None` keeps each leaf's own."""
    return jax.tree.map(lambda x: jnp.zeros_like(x, dtype=dtype), tree)


def copy(tree: Tree) -> Tree:
    """The same values in buffers of their own, so that the copy outlives a donated `tree`."""
    return jax.tree.map(lambda x: jnp.array(x, copy=True), tree)


def float32(tree: Tree) -> Tree:
    """Every leaf as float32."""
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def like(tree: Tree, model: Tree) -> Tree:
    """Every leaf in the dtype that its counterpart in `model` has."""
    return jax.tree.map(lambda x, m: x.astype(m.dtype), tree, model)


def add(a: Tree, b: Tree) -> Tree:
    """a + b."""
    return jax.tree.map(jnp.add, a, b)


def subtract(a: Tree, b: Tree) -> Tree:
    """a - b."""
    return jax.tree.map(jnp.subtract, a, b)


def scale(c: jax.Array | float, tree: Tree) -> Tree:
    """c · tree, each leaf keeping its dtype."""
    return jax.tree.map(lambda x: (c * x).astype(x.dtype), tree)


def axpy(c: jax.Array | float, x: Tree, y: Tree) -> Tree:
    """c · x + y, each leaf in its dtype in `y`."""
    return jax.tree.map(lambda a, b: (c * a + b).astype(b.dtype), x, y)


def dot(a: Tree, b: Tree) -> jax.Array:
    """Inner product over all leaves, float32 []."""
    parts = jax.tree.map(lambda x, y: jnp.sum(x.astype(jnp.float32) * y.astype(jnp.float32)), a, b)
    return jax.tree.reduce(jnp.add, parts, jnp.float32(0))


def norm(tree: Tree) -> jax.Array:
    """Euclidean norm over all leaves, float32 []."""
    return jnp.sqrt(dot(tree, tree))


def select(condition: jax.Array, yes: Tree, no: Tree) -> Tree:
    """`yes` where a condition bool [] holds, else `no`, leaf by leaf."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)


def choose(accepts: Callable[[str], Any], yes: Tree, no: Tree) -> Tree:
    """`yes` for the leaves whose path a static predicate accepts, else `no`, leaf by leaf."""
    return jax.tree_util.tree_map_with_path(
        lambda path, a, b: a if accepts(path_name(path)) else b, yes, no
    )


def size(tree: Tree) -> int:
    """Number of elements in all leaves."""
    return sum(x.size for x in jax.tree.leaves(tree))


def nbytes(tree: Tree) -> int:
    """Bytes held by all leaves."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def applied(old: jax.Array, new: jax.Array) -> jax.Array:
    """How far a leaf moved, float32, as its dtype has it."""
    kind = jnp.finfo(new.dtype)
    # the compiler may keep more digits than the dtype has, but never than this says
    kept = lax.reduce_precision(new.astype(jnp.float32), kind.nexp, kind.nmant)
    return kept - old.astype(jnp.float32)
