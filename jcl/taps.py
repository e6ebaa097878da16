"""Taps: a method reads or changes what flows through a model, without a second model.

A model calls `h = tap(site, layer, h)` at named places. Around the dense layer whose weights live
at `blocks/up` in the parameter tree the sites are `blocks/up:in` and `blocks/up:out` (before the
activation), so that a site names its kernel. It may have any shape: as a matrix it multiplies what
flows at `:in`, such as a convolution's patches (see `matrix_shape`). Where layers are stacked and
scanned, `layer` is the index along their leading axis, int32 [], else 0. Each model's docstring
lists its other sites, such as `blocks:out`.

Two kinds say what of a sequence is real: before the first site beneath `blocks` a model calls
`tap("blocks:segments", 0, segments)` with int32 [B, T], 0 where what flows there is padding; or
`blocks:input_segments` with [B, T] or [B, 1] where no tokens flow that a loss scores, but an image,
or what a T5 reads. Statistics of what flows are summed by `moments` alone, which leaves that out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jcl import trees
from jcl.method import Apply, Batch, Call, Params, Structure, Tap, check
from jcl.method import identity as identity

Moment = Callable[[jax.Array, jax.Array, Any], Any]
"""`(h float32 [..., d], weight float32 [...], layer) -> Σ weight · a statistic of h`, arrays."""


def compose(first: Tap, second: Tap) -> Tap:
    """A tap that applies `first`, then `second`."""
    return lambda site, layer, h: second(site, layer, first(site, layer, h))


def sites(apply: Apply, params: Params, batch: Batch) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and dtype at each site that `apply` visits, in order; nothing is computed.

    A site inside a scan over stacked layers is listed once, with the shape of one layer.
    """
    seen: dict[str, jax.ShapeDtypeStruct] = {}

    def note(site: str, layer: Any, h: jax.Array) -> jax.Array:
        seen[site] = jax.ShapeDtypeStruct(h.shape, h.dtype)
        return h

    jax.eval_shape(lambda p, b: apply(p, b, Call(note)), params, batch)
    return seen


class Width(NamedTuple):
    """How wide what flows into and out of a dense layer is."""

    inputs: int
    """The last axis at `:in`."""
    outputs: int
    """The last axis at `:out`."""


def dense_sites(
    apply: Apply, params: Params, batch: Batch, targets: str | None = None
) -> dict[str, Width]:
    """Paths of the dense layers that `apply` visits, in order, and how wide they are.

    Args:
      apply: the model.
      params: its parameters.
      batch: an example.
      targets: regular expression for the whole paths of the layers that are meant; None is all.

    Raises:
      ValueError: if it visits none, for then a method that works on layers can do nothing; or if
        `targets` is no regular expression, or matches none of them.
    """
    seen = {site: h.shape[-1:] for site, h in sites(apply, params, batch).items()}
    paths = [site.removesuffix(":in") for site in seen if site.endswith(":in")]
    found = {p: Width(*seen[f"{p}:in"], *seen[f"{p}:out"]) for p in paths if f"{p}:out" in seen}
    if not found:
        raise ValueError(
            "apply visits no dense sites, but must call tap(site, layer, h) around its dense "
            "layers (jcl.models.dense does)"
        )
    if targets is None:
        return found
    matches = trees.match_path(targets)
    meant = {path: width for path, width in found.items() if matches(path)}
    wanted = f"a regular expression that matches one of {list(found)}"
    check(bool(meant), "targets", targets, wanted)
    return meant


def matrix_shape(
    path: str, kernel: tuple[int, ...], width: Width, structure: Structure
) -> tuple[int, ...]:
    """The shape of a dense layer's kernel seen as a matrix, (in, out), or (layers, in, out).

    A kernel may have several axes for what flows in and out, as a convolution's [height, width,
    in, out] over its patches has, or an attention's [in, heads, out]. Reshaped, a kernel and all
    that is shaped like it, such as its gradient, is the matrix that multiplies what flows at `:in`.

    Args:
      path: the layer's path, such as `blocks/up`.
      kernel: the kernel's own shape.
      width: the layer's, from `dense_sites`.
      structure: what the model says of itself.

    Raises:
      ValueError: if the kernel has other axes than the model says of itself.
    """
    axes = trees.stack_axes(path, structure)
    own = kernel[axes:]
    splits = [(math.prod(own[:i]), math.prod(own[i:])) for i in range(1, len(own))]
    if axes > 1 or width not in splits:
        raise ValueError(
            f"structure.stacks is {dict(structure.stacks)}, but must say how many leading axes of "
            f"{path}/kernel {kernel} stack layers, none or one, as {{'blocks': 1}} does"
        )
    return (*kernel[:axes], *width)


@jax.custom_vjp
def probe(h: jax.Array, slot: Any, value: Any) -> jax.Array:
    """`h` itself, with a gradient of `slot` that is `value`.

    Differentiating by `slot` thus brings `value` out of a scan over layers, which would not let it
    out otherwise. Both may be trees of arrays.
    """
    return h


def _probe_forward(h: jax.Array, slot: Any, value: Any) -> tuple[jax.Array, Any]:
    return h, value


def _probe_backward(value: Any, g: jax.Array) -> tuple[jax.Array, Any, Any]:
    return g, value, jax.tree.map(jnp.zeros_like, value)


probe.defvjp(_probe_forward, _probe_backward)


def read(
    apply: Apply,
    params: Params,
    batch: Batch,
    wanted: Mapping[str, tuple[Any, Callable[[jax.Array], jax.Array]]],
) -> tuple[dict[str, jax.Array], Any]:
    """The values that pass some layers' sites, and the outputs, at the price of a forward pass.

    Args:
      apply: the model.
      params: its parameters.
      batch: its input.
      wanted: `(layers, pick)` by site. `layers` are indices, an integer or an array of distinct
        ones, which may be traced (a site outside a stack is layer 0); `pick` takes what is wanted
        of the value there, such as `lambda h: h[:, -1]`.

    Returns:
      float32 [*shape of layers, *shape of what was picked] by site; and the outputs.
    """
    shapes = sites(apply, params, batch)
    picked = {s: jax.eval_shape(pick, shapes[s]).shape for s, (_, pick) in wanted.items()}
    layers = {site: jnp.asarray(at) for site, (at, _) in wanted.items()}

    def run(slots: dict[str, jax.Array]) -> tuple[jax.Array, Any]:
        def tap(site: str, layer: Any, h: jax.Array) -> jax.Array:
            if site not in slots:
                return h
            # a slot for each of the layers, and one for all others
            slot = jnp.argmax(jnp.append(layers[site].reshape(-1) == layer, True))
            return probe(h, slots[site][slot], wanted[site][1](h).astype(jnp.float32))

        outputs = apply(params, batch, Call(tap))
        parts = [jnp.sum(o.astype(jnp.float32)) for o in jax.tree.leaves(outputs)]
        return sum(parts, jnp.float32(0)), outputs

    blank = {site: jnp.zeros((at.size + 1, *picked[site])) for site, at in layers.items()}
    found, outputs = jax.grad(run, has_aux=True)(blank)
    kept = {s: x[:-1].reshape(*layers[s].shape, *picked[s]) for s, x in found.items()}
    return kept, outputs


def magnitude(h: jax.Array, weight: jax.Array, layer: Any = 0) -> jax.Array:
    """Σ weight · |h|, float32 [d]: a `Moment`."""
    return jnp.tensordot(weight, jnp.abs(h), weight.ndim)


def second(h: jax.Array, weight: jax.Array, layer: Any = 0) -> jax.Array:
    """Σ weight · h hᵀ, float32 [d, d], in full float32 on every platform: a `Moment`."""
    axes = (list(range(weight.ndim)),) * 2
    return jnp.tensordot(weight[..., None] * h, h, axes, precision=lax.Precision.HIGHEST)


def moments(
    apply: Apply, params: Params, batch: Batch, wanted: Mapping[str, tuple[int | None, Moment]]
) -> dict[str, Any]:
    """Sums over what passes some sites, at the price of a forward pass, without what is padding.

    A row counts by its `weight`. Of its tokens those count that aren't padding, where `segments` is
    0; if the batch has a `mask`, those alone that a counted token of the same segment is, or can
    look at. So neither padding rows nor padding tokens nor documents that nothing is learned
    of change a sum, and neither do images that only fill a batch.

    Args:
      apply: the model.
      params: its parameters.
      batch: its input.
      wanted: by site how many layers are stacked there, None if none are, and what to sum.

    Returns:
      What the moments gave, by site; with a leading axis [layers] where layers are stacked.
    """
    shapes = sites(apply, params, batch)

    def blank(site: str) -> Any:
        layers, moment = wanted[site]
        h = jax.ShapeDtypeStruct(shapes[site].shape, jnp.float32)
        weight = jax.ShapeDtypeStruct(h.shape[:-1], jnp.float32)
        one = jax.eval_shape(lambda h, w: moment(h, w, 0), h, weight)
        stack = () if layers is None else (layers,)
        return jax.tree.map(lambda x: jnp.zeros((*stack, *x.shape), jnp.float32), one)

    def run(slots: dict[str, Any]) -> jax.Array:
        marks: dict[str, jax.Array] = {}

        def tap(site: str, layer: Any, h: jax.Array) -> jax.Array:
            if site.endswith(_MARKS):
                marks[site] = h
            if site not in wanted:
                return h
            layers, moment = wanted[site]
            value = moment(h.astype(jnp.float32), _weight(site, h, batch, marks), layer)
            slot = slots[site]
            if layers is not None:
                slot = jax.tree.map(lambda s: s[layer], slot)
            return probe(h, slot, value)

        outputs = apply(params, batch, Call(tap))
        parts = [jnp.sum(o.astype(jnp.float32)) for o in jax.tree.leaves(outputs)]
        return sum(parts, jnp.float32(0))

    return jax.grad(run)({site: blank(site) for site in wanted})


def moments_of(
    apply: Apply,
    params: Params,
    batches: Batch,
    wanted: Mapping[str, tuple[int | None, Moment]],
) -> dict[str, Any]:
    """The sums of `moments` over batches, leaves [n, B, ...], in one scan."""

    def sums(batch: Batch) -> dict[str, Any]:
        return moments(apply, params, batch, wanted)

    def add(total: dict[str, Any], batch: Batch) -> tuple[dict[str, Any], None]:
        return trees.add(total, sums(batch)), None

    first = jax.eval_shape(lambda: sums(jax.tree.map(lambda x: x[0], batches)))
    return lax.scan(add, trees.zeros(first), batches)[0]


def row_weight(batch: Batch) -> jax.Array:
    """How much each row counts, float32 [B]: its `weight`, or 0 if its `mask` counts no token."""
    weight = batch["weight"].astype(jnp.float32)
    return weight * jnp.any(batch["mask"] > 0, axis=-1) if "mask" in batch else weight


_MARKS = (":segments", ":input_segments")


def _weight(site: str, h: jax.Array, batch: Batch, marks: Mapping[str, jax.Array]) -> jax.Array:
    """How much each vector of h [B, ..., d] counts, float32 [B, ...].

    Raises:
      ValueError: if h doesn't have the batch's rows along its first axis.
    """
    weight = row_weight(batch)
    shape = h.shape[:-1]
    if shape[:1] != weight.shape:
        raise ValueError(
            f"what flows at {site} has shape {h.shape}, but must have the batch's {len(weight)} "
            "rows along its first axis, for each counts by its weight"
        )
    weight = jnp.broadcast_to(weight.reshape(-1, *[1] * (len(shape) - 1)), shape)
    path = site.partition(":")[0]
    near = [m for m in marks if path == m.partition(":")[0] or path.startswith(_folder(m))]
    mark = max(near, key=len, default="")
    if len(shape) != 2:
        return weight
    if mark.endswith(":input_segments"):
        return weight * (marks[mark] > 0)
    if "tokens" not in batch or (not mark and shape[1] != batch["tokens"].shape[1]):
        return weight  # no sequence of the batch's tokens
    tokens = batch["tokens"].shape
    segments = batch.get("segments", jnp.ones(tokens, jnp.int32))
    real = (marks[mark] if mark else segments) > 0
    if "mask" in batch:
        before = ((0, 0), (shape[1] - tokens[1], 0))  # a soft prefix, which every token looks at
        real = real & jnp.pad(_is_read(batch["mask"], segments), before, constant_values=True)
    return weight * real


def _folder(mark: str) -> str:
    return mark.partition(":")[0] + "/"


def _is_read(mask: jax.Array, segments: jax.Array) -> jax.Array:
    """Whether a token [B, L] is counted by `mask`, or one that looks at it in its segment is.

    `mask` [B, L - 1] is of the tokens but the first, each predicted from those before it; or
    [B, L] of hidden ones, which are predicted from those on both sides.
    """
    length = segments.shape[1]
    counted = jnp.pad(mask > 0, ((0, 0), (length - mask.shape[1], 0)))
    nearest = lax.cummin(jnp.where(counted, jnp.arange(length), length), axis=1, reverse=True)
    there = jnp.take_along_axis(segments, jnp.minimum(nearest, length - 1), axis=1)
    behind = (nearest < length) & (there == segments)
    if mask.shape[1] < length:
        return behind
    last = lax.cummax(jnp.where(counted, jnp.arange(length), -1), axis=1)
    there = jnp.take_along_axis(segments, jnp.maximum(last, 0), axis=1)
    return behind | ((last >= 0) & (there == segments))
