"""A batch's rows in equal parts: for microbatches one after another, for replicas, for slices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from jcl.method import Batch


def split_rows(batch: Batch, parts: int) -> Batch:
    """[B, ...] -> [parts, ceil(B / parts), ...], with rows of weight 0 at the end."""
    rows = batch["weight"].shape[0]
    pad = -rows % parts

    def reshape(x: jax.Array) -> jax.Array:
        if pad:
            x = jnp.concatenate([x, jnp.zeros((pad, *x.shape[1:]), x.dtype)])
        return x.reshape(parts, -1, *x.shape[1:])

    return jax.tree.map(reshape, batch)


def replica_rows(batch: Batch, axis_name: str, parts: int = 1) -> Batch:
    """This replica's `parts` of rows [B, ...] that all replicas of a named axis have."""
    first = parts * lax.axis_index(axis_name)
    pieces = split_rows(batch, parts * lax.axis_size(axis_name))
    return jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, first, parts), pieces)


def by_slices(fn: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """`fn` with a mesh's `data` as a named axis, whose slices then share out the rows themselves.

    All slices have all of what `fn` is given, and must return the same. The mesh's other axes stay
    the compiler's.
    """
    whole = PartitionSpec()
    return jax.shard_map(
        fn, mesh=mesh, in_specs=whole, out_specs=whole, axis_names={"data"}, check_vma=False
    )
