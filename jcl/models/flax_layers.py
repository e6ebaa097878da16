"""Flax's layers as dense layers, whose kernels are seen as matrices [in, out].

linen's and nnx's layers have the same arithmetic and nearly the same attributes, so that one view
serves both; so does what a model of either needs of a call. Nothing here imports flax.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
from jax import lax

from jcl import trees
from jcl.mechanisms.adapters import FOLDED
from jcl.method import Batch, Call, Params, Structure, Tap
from jcl.models.layers import dense


class View(NamedTuple):
    """How a layer multiplies what flows into it by its kernel, as a matrix."""

    inside: jax.Array
    """[..., in]: what is multiplied by `kernel.reshape(in, out)`."""
    restore: Callable[[jax.Array], jax.Array] | None
    """The layer's own input from another [..., in]; None if there is none, as for patches."""
    features: int
    """How many of the last axes of the layer's output are features."""


def _dense(layer: Any, x: jax.Array) -> View:
    return View(x, lambda h: h, 1)


def _general(layer: Any, x: jax.Array) -> View | None:
    batched = layer.batch_dims if hasattr(layer, "batch_dims") else layer.batch_axis
    if _as_tuple(batched):  # a kernel for each of these, so not one matrix
        return None
    axes = sorted(axis % x.ndim for axis in _as_tuple(layer.axis))  # as flax itself does
    last = tuple(range(-len(axes), 0))
    moved = jnp.moveaxis(x, axes, last)
    shape = moved.shape
    features = layer.features if hasattr(layer, "features") else layer.out_features
    return View(
        moved.reshape(*shape[: -len(axes)], -1),
        lambda h: jnp.moveaxis(h.reshape(shape), last, axes),
        len(_as_tuple(features)),
    )


def _einsum(layer: Any, x: jax.Array) -> View | None:
    """Of an equation such as `...ab,abcd->...cd`, whose kernel has what it sums over in front."""
    inputs, _, rest = (layer.einsum_str or "").replace(" ", "").partition(",")
    kernel, _, out = rest.partition("->")
    summed = "".join(c for c in kernel if c in inputs)
    features = kernel[len(summed) :]
    rows = inputs.removesuffix(summed)
    matrix = kernel == summed + features and inputs == rows + summed and out == rows + features
    if not (summed and features and matrix) or "." in kernel or set(rows) & set(kernel):
        return None
    shape = x.shape
    inside = x.reshape(*shape[: x.ndim - len(summed)], -1)
    return View(inside, lambda h: h.reshape(shape), len(features))


def _conv(layer: Any, x: jax.Array) -> View | None:
    size = _as_tuple(layer.kernel_size)
    spread = _each(layer.input_dilation, size)
    if layer.feature_group_count != 1 or layer.mask is not None or set(spread) != {1}:
        return None
    strides, dilation = _each(layer.strides, size), _each(layer.kernel_dilation, size)
    return View(patches(x, size, strides, dilation, layer.padding), None, 1)


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return (value,) if isinstance(value, int) else tuple(value)


def _each(value: int | Sequence[int] | None, size: tuple[int, ...]) -> tuple[int, ...]:
    """A setting of a convolution for each of its axes; None is 1."""
    one = 1 if value is None else value
    return (one,) * len(size) if isinstance(one, int) else tuple(one)


def patches(
    x: jax.Array,
    size: tuple[int, ...],
    strides: tuple[int, ...],
    dilation: tuple[int, ...],
    padding: Any,
) -> jax.Array:
    """What a convolution's kernel [*size, in, out] multiplies, [..., *places, Π size · in].

    The last axis has the order of the kernel's own flattening, channels fastest, so that the
    convolution is `patches @ kernel.reshape(-1, out)`.

    Args:
      x: [..., *space, in].
      size: the kernel's width along each axis of space.
      strides: the step between places along each.
      dilation: the step within the kernel along each.
      padding: as flax has it: 'SAME', 'VALID', 'CIRCULAR', 'REFLECT', 'CAUSAL', a number, or
        numbers or pairs for each axis.
    """
    axes = len(size)
    rows = x.shape[: x.ndim - axes - 1]
    x = x.reshape(-1, *x.shape[len(rows) :])
    reach = [(k - 1) * d + 1 for k, d in zip(size, dilation, strict=True)]
    if padding in ("CIRCULAR", "REFLECT"):
        around = [((r - 1) // 2, r // 2) for r in reach]
        mode = {"CIRCULAR": "wrap", "REFLECT": "reflect"}[padding]
        x = jnp.pad(x, [(0, 0), *around, (0, 0)], mode=mode)
        around = [(0, 0)] * axes
    elif padding == "CAUSAL":
        around = [(reach[0] - 1, 0)]
    elif isinstance(padding, str):
        around = list(lax.padtype_to_pads(x.shape[1:-1], reach, strides, padding))
    else:
        around = [_as_tuple(p) * (3 - len(_as_tuple(p))) for p in _each(padding, size)]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((*p, 0) for p in around), (0, 0, 0)])
    counts = [(n - r) // s + 1 for n, r, s in zip(x.shape[1:-1], reach, strides, strict=True)]
    parts = []
    for place in np.ndindex(*size):
        start = [i * d for i, d in zip(place, dilation, strict=True)]
        stop = [a + (n - 1) * s + 1 for a, n, s in zip(start, counts, strides, strict=True)]
        whole = (0, *start, 0), (len(x), *stop, x.shape[-1]), (1, *strides, 1)
        parts.append(lax.slice(x, *whole))
    return jnp.concatenate(parts, axis=-1).reshape(*rows, *counts, -1)


_VIEWS: dict[str, Callable[[Any, jax.Array], View | None]] = {
    "Dense": _dense,
    "Linear": _dense,
    "DenseGeneral": _general,
    "LinearGeneral": _general,
    "Einsum": _einsum,
    "Conv": _conv,
}
_NORMS = ("BatchNorm", "LayerNorm", "RMSNorm", "GroupNorm", "InstanceNorm")
_OUTPUT_ALONE = ("ConvLocal", "ConvTranspose", "Embed", *_NORMS)


def kind_of(layer: type, library: ModuleType) -> str | None:
    """The name of the layer of `flax.linen` or `flax.nnx` that a class is, if it has sites.

    A subclass is one too, unless it has a `__call__` of its own.
    """
    for base in layer.__mro__:
        name = base.__name__
        if getattr(library, name, None) is base and (name in _VIEWS or name in _OUTPUT_ALONE):
            return name if layer.__call__ is base.__call__ else None
    return None


LAYER = "jcl/layer"
"""The leaf beside a stacked layer's own that brings its index through a scan over layers."""


class Site(NamedTuple):
    """Where a layer stands, and what is called there."""

    path: str
    """The path of its leaves in the parameter tree."""
    layer: Any
    """Its index among stacked layers, else 0 (see `index_of`)."""
    tap: Tap
    """What is called."""


def index_of(outside: Any) -> Any:
    """The index of a layer that no stack numbers: the int 0, or an array 0 where calls may repeat.

    They may inside a transformation such as a scan over time. `outside` is the trace state, as of
    `trace_state`, of the surrounding model.
    """
    return 0 if trace_state() == outside else jnp.int32(0)


def trace_state() -> Any:
    """Within which of JAX's transformations this is called; equal for the same ones."""
    return jax.extend.core.get_opaque_trace_state(convention="flax")


def visit(
    kind: str,
    layer: Any,
    site: Site,
    own: Params,
    args: tuple[Any, ...],
    run: Callable[..., Any],
    promote: Callable[..., Any],
) -> Any:
    """Calls a layer between its two sites, with the adapters that stand beside its kernel.

    Args:
      kind: its name in flax.
      layer: the layer.
      site: where it stands.
      own: its leaves, with `kernel`, and perhaps `bias` and adapters (see `jcl.models.dense`).
      args: what it is called with; a layer that takes more than its input shows its output alone.
      run: calls the layer itself.
      promote: `(h, kernel, bias)` in the dtype in which the layer computes.
    """
    view = _VIEWS[kind](layer, args[0]) if kind in _VIEWS and len(args) == 1 else None
    if view is None:
        return _tap_out(site, run(*args), 1)
    h = site.tap(f"{site.path}:in", site.layer, view.inside)
    adapters = {name: own[name] for name in FOLDED if name in own}
    if not adapters and h is view.inside:
        y = run(*args)
    elif not adapters and view.restore is not None:
        y = run(view.restore(h))
    else:
        h, kernel, bias = promote(h, own["kernel"], own.get("bias"))
        matrix = {"kernel": kernel.reshape(h.shape[-1], -1), **adapters}
        matrix |= {} if bias is None else {"bias": bias.reshape(-1)}
        y = dense(matrix, h, site.path).reshape(*h.shape[:-1], *kernel.shape[-view.features :])
    return _tap_out(site, y, view.features)


def _tap_out(site: Site, y: jax.Array, features: int) -> jax.Array:
    flat = y if features == 1 else y.reshape(*y.shape[: y.ndim - features], -1)
    seen = site.tap(f"{site.path}:out", site.layer, flat)
    return y if seen is flat else seen.reshape(y.shape)


def real_rows(batch: Batch) -> jax.Array | None:
    """Which rows aren't padding, bool [B]; all of them if none is real, so that means are finite.

    None if the batch has no weights.
    """
    if "weight" not in batch:
        return None
    real = batch["weight"] > 0
    return real | ~jnp.any(real)


def row_mask(path: str, x: jax.Array, batch: Batch) -> jax.Array | None:
    """Which entries of x [B, ...] a batch norm at `path` counts, bool [B, 1, ...]: no padding.

    Where x has a place for each of the batch's tokens, padding tokens don't count either.

    Raises:
      ValueError: if the first axis of x isn't the batch's rows.
    """
    real = real_rows(batch)
    if real is None:
        return None
    if x.shape[0] != len(real):
        raise ValueError(
            f"the batch norm {path!r} is given x {x.shape}, but must be given the batch's "
            f"{len(real)} rows along its first axis, or else a mask that leaves out padding"
        )
    mask = real.reshape(-1, *[1] * (x.ndim - 1))
    segments = batch.get("segments")
    if segments is not None and x.ndim > 2 and x.shape[:2] == segments.shape:
        there = real[:, None] & (segments > 0)
        there = there | ~jnp.any(there)
        mask = there.reshape(*segments.shape, *[1] * (x.ndim - 2))
    return mask


def positional(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same with a layer's input in front, which may have been given by its name."""
    rest = dict(kwargs)
    for name in ("inputs", "x"):
        if not args and name in rest:
            args = (rest.pop(name),)
    return args, rest


def keep_if_padding(batch: Batch, new: dict[str, Any], old: dict[str, Any]) -> dict[str, Any]:
    """The new collections, or the old ones if no row of the batch is real."""
    if "weight" not in batch:
        return new
    return trees.select(jnp.any(batch["weight"] > 0), new, old)


def with_index(params: Params, structure: Structure, at: str = "") -> Params:
    """The tree with its index beside each stacked layer's leaves, which a scan brings along."""
    tree = {
        k: with_index(v, structure, f"{at}/{k}" if at else k) if isinstance(v, dict) else v
        for k, v in params.items()
    }
    own = [v for v in params.values() if not isinstance(v, dict)]
    if own and trees.stack_axes(at, structure) == 1:
        tree[LAYER] = jnp.arange(len(own[0]))
    return tree


def as_dict(tree: Any) -> Any:
    """Nested mappings, such as flax's FrozenDict, as plain dicts."""
    return {k: as_dict(v) for k, v in tree.items()} if isinstance(tree, Mapping) else tree


def put(tree: Params, path: str, value: Any) -> None:
    """Sets a leaf of nested dicts, making those that aren't there yet."""
    *above, last = path.split("/")
    for key in above:
        tree = tree.setdefault(key, {})
    tree[last] = value


def collections_of(call: Call, names: tuple[str, ...]) -> dict[str, Any]:
    """The collections of these names with which a model is called.

    Raises:
      ValueError: if one isn't given.
    """
    given = call.collections or {}
    if not set(names) <= set(given):
        raise ValueError(
            f"call.collections has {sorted(given)}, but must have {list(names)}, which the module "
            "keeps beside its parameters, such as the model's own collections or a state's"
        )
    return {name: given[name] for name in names}


def streams_of(call: Call, streams: Sequence[str]) -> dict[str, jax.Array] | None:
    """Keys of linen's random streams: the first has the call's, others their own."""
    if not call.training or call.key is None:
        return None
    first, *others = streams
    keys = {name: jax.random.fold_in(call.key, i + 1) for i, name in enumerate([*others, "params"])}
    return {first: call.key, **keys}  # streams without a key draw from `params`
