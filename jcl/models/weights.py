"""A family's leaves from stored tensors, each read once, and back; what nobody reads is refused."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcl import trees
from jcl.method import Params
from jcl.models.layout import Family, Layout, Source
from jcl.models.tensors import Tensors
from jcl.parallel import mesh as meshes

_BUFFERS = (
    r".*rotary_emb\.inv_freq|.*\.attn\.(bias|masked_bias)|.*\.attention\.(bias|masked_bias)"
    r"|.*\.attention\.rotary_emb\..*|.*position_ids"
)
"""Tensors that some versions of transformers stored, and that follow from the configuration."""


def _tensor_name(tensors: Tensors, family: Family, name: str) -> str:
    """A tensor's name in these files.

    They may lack the body's prefix, have BERT's old names, or hold a text part beside a vision one.
    """
    short = name.removeprefix(family.prefix)
    for full in (name, short, f"language_model.{name}", f"model.language_model.{short}"):
        old = full.replace("LayerNorm.weight", "LayerNorm.gamma")
        for candidate in (full, old.replace("LayerNorm.bias", "LayerNorm.beta")):
            if candidate in tensors.names:
                return candidate
    raise ValueError(f"the weights have no tensor {name!r}, which the configuration calls for")


def untie(config: Any, family: Family, tensors: Tensors) -> Any:
    """The configuration without `tied`, if the files have a head that isn't the embedding.

    Source: transformers 5, which then uses the head whatever `tie_word_embeddings` says.
    """
    if not getattr(config, "tied", False):
        return config
    own = replace(config, tied=False)
    layout = family.layout(own)
    head = layout["head/kernel"].name
    if head not in tensors.names:
        return config
    same = _is_copy(tensors, family, head, layout["embed/table"].name)
    return config if same else own


def _is_copy(tensors: Tensors, family: Family, name: str, other: str) -> bool:
    return np.array_equal(tensors.read(name), tensors.read(_tensor_name(tensors, family, other)))


def refuse_unread(config: Any, family: Family, tensors: Tensors, wanted: Params) -> None:
    """Refuses stored tensors that are no leaf of the model, no copy of one and nothing known.

    Args:
      config: our configuration.
      family: what says where each leaf is stored.
      tensors: the stored tensors.
      wanted: the shapes of the leaves.

    Raises:
      ValueError: if there are any; the message names them.
    """
    layout = family.layout(config)
    copies = dict(family.copies)
    if getattr(config, "tied", False):  # `untie` has seen that they are the same
        copies[family.layout(replace(config, tied=False))["head/kernel"].name] = ""
    read = set()
    for path, leaf in jax.tree_util.tree_leaves_with_path(wanted):
        source = layout[trees.path_name(path)]
        for index in np.ndindex(leaf.shape[: _stack_axes(source)]):
            read.add(_tensor_name(tensors, family, _name(source, index)))
    known = re.compile(f"{_BUFFERS}|{family.unread}" if family.unread else _BUFFERS)
    left = [name for name in sorted(tensors.names - read) if not known.fullmatch(name)]
    for name in left:
        other = copies.get(name)
        if other is None or (other and not _is_copy(tensors, family, name, other)):
            more = f" and {len(left) - 1} more" if len(left) > 1 else ""
            raise ValueError(
                f"tensor {name!r}{more} in {tensors.file(name)} is no part of the model by its "
                "configuration, but must be: what isn't read isn't ignored"
            )


def _stack_axes(source: Source) -> int:
    """How many leading axes of the leaf are indices in the tensor's name: layers, experts."""
    return ("{layer}" in source.name) + ("{expert}" in source.name)


def _name(source: Source, index: tuple[int, ...]) -> str:
    return source.name.format(**dict(zip(("layer", "expert"), index, strict=False)))


def _aligned(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """An uninitialised array, aligned so that JAX's CPU backend can take it without a copy."""
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def widened(dtype: np.dtype) -> np.dtype:
    """float32 for floats of 16 bits, in which small steps of training would be lost."""
    short = jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize == 2
    return np.dtype(np.float32) if short else dtype


def read_params(
    config: Any,
    family: Family,
    tensors: Tensors,
    wanted: Params,
    dtype: Any,
    mesh: jax.sharding.Mesh,
) -> tuple[Params, np.dtype]:
    """The model's parameters, and in what dtype its embedding, or else a first leaf, is stored.

    Args:
      config: our configuration.
      family: what says where each leaf is stored.
      tensors: the stored tensors.
      wanted: the shapes of the leaves.
      dtype: the parameters' dtype; None keeps each tensor's own, but float32 for 16 bits.
      mesh: the mesh over which they are laid out; an empty one is the default device.

    Raises:
      ValueError: if a tensor is missing or has another shape than the configuration says.
    """
    own: dict[str, np.dtype] = {}
    layout = family.layout(config)

    def stored(source: Source, index: tuple[int, ...]) -> np.ndarray:
        name = _tensor_name(tensors, family, _name(source, index))
        found = tensors.read(name)
        if found.shape != source.shape:
            raise ValueError(
                f"tensor {name!r} in {tensors.file(name)} has shape {found.shape}, but must have "
                f"{source.shape} by the configuration"
            )
        return found

    def leaf(path: Any, shape: jax.ShapeDtypeStruct, sharding: Any = None) -> jax.Array:
        source = layout[trees.path_name(path)]
        depth = _stack_axes(source)
        # the first layer's dtype is taken for all
        first = own[trees.path_name(path)] = stored(source, (0,) * depth).dtype
        kept = np.dtype(dtype or widened(first))

        def part(index: Any) -> np.ndarray:
            spans = [range(n)[i] for i, n in zip(index, shape.shape, strict=True)]
            out = _aligned([len(s) for s in spans], kept)
            for place in np.ndindex(*out.shape[:depth]):
                at = tuple(spans[axis][i] for axis, i in enumerate(place))
                view = source.view(stored(source, at)).reshape(shape.shape[depth:])
                out[place] = view[tuple(index[depth:])]
            return out

        if sharding is None:  # on the default device, but free to go where a program wants it
            return jax.device_put(part([slice(None)] * len(shape.shape)))
        return jax.make_array_from_callback(shape.shape, sharding, part)

    laid = () if mesh.empty else (meshes.of_params(wanted, meshes.Layout(mesh)),)
    params = jax.tree_util.tree_map_with_path(leaf, wanted, *laid)
    return params, own.get("embed/table", next(iter(own.values())))


def stored_tensors(
    layout: Layout, leaves: dict[str, Any], dtype: Any
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the tensors to store; those that hold several leaves are filled through views."""
    fused: dict[str, list[str]] = {}
    for path, source in layout.items():
        fused.setdefault(source.name, []).append(path)
    for paths in fused.values():
        first = layout[paths[0]]
        for index in np.ndindex(leaves[paths[0]].shape[: _stack_axes(first)]):
            kept = np.dtype(dtype or leaves[paths[0]].dtype)
            tensor = np.empty(first.shape, kept)
            for path in paths:
                view = layout[path].view(tensor)
                view[...] = np.asarray(leaves[path][index]).astype(kept).reshape(view.shape)
            yield _name(first, index), tensor
