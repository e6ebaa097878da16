"""Divides a batch's rows into equal parts: for microbatches, for replicas, for slices of a mesh."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from jcl.method import Batch


def split_rows(batch: Batch, parts: int) -> Batch:
    """Splits rows [B, ...] into [parts, ceil(B / parts), ...]; rows of weight 0 fill up the end."""
    rows = batch["weight"].shape[0]
    pad = -rows % parts

    def reshape(x: jax.Array) -> jax.Array:
        if pad:
            x = jnp.concatenate([x, jnp.zeros((pad, *x.shape[1:]), x.dtype)])
        return x.reshape(parts, -1, *x.shape[1:])

    return jax.tree.map(reshape, batch)


def replica_rows(batch: Batch, axis_name: str, parts: int = 1) -> Batch:
    """This replica's own rows, in `parts` parts, of rows [B, ...] that all replicas hold.

    The result is [parts, rows, ...]; `axis_name` is the axis of the replicas.
    """
    first = parts * lax.axis_index(axis_name)
    pieces = split_rows(batch, parts * lax.axis_size(axis_name))
    return jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, first, parts), pieces)


def by_slices(fn: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """`fn` run on each slice of a mesh along its named axis `data`, so that it divides the rows.

    Every slice gets all of the arguments, and all must return the same. The mesh's other axes are
    left to the compiler.
    """
    whole = PartitionSpec()
    return jax.shard_map(
        fn, mesh=mesh, in_specs=whole, out_specs=whole, axis_names={"data"}, check_vma=False
    )
