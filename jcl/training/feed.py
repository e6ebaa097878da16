"""Feeds a stream to the compiled loop: chunks of equal shape, placed on the devices.

On a mesh a batch's rows lie where `mesh.of_batch` says. With several processes each reads only the
rows that its own devices hold, if the stream can read some rows without the others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from jcl.data.stream import Stream, takes_rows
from jcl.parallel import mesh as meshes
from jcl.parallel.mesh import Layout


def place(tree: Any, where: Any) -> Any:
    """Lays out a tree of arrays, which every process has whole, over the devices of all processes.

    Args:
      tree: numpy or jax arrays, typed keys too. Arrays that span processes already are moved.
      where: their shardings, a tree of the same structure.
    """
    return jax.tree.map(_put, tree, where)


def _put(x: Any, where: Sharding) -> jax.Array:
    if where.is_fully_addressable or (isinstance(x, jax.Array) and not x.is_fully_addressable):
        return jax.device_put(x, where)
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        data = _put(jax.random.key_data(x), where)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    host = np.asarray(x)
    return jax.make_array_from_callback(host.shape, where, lambda index: host[index])


def everywhere(tree: Any, layout: Layout) -> Any:
    """The shardings by which each device holds the whole tree."""
    return jax.tree.map(lambda x: NamedSharding(layout.mesh, PartitionSpec()), tree)


def own_rows(layout: Layout, rows: int) -> slice:
    """The span of a batch's `rows` rows that lie on this process's devices."""
    where = NamedSharding(layout.mesh, meshes.row_spec(layout.mesh, (rows,)))
    held = where.addressable_devices_indices_map((rows,)).values()
    found = [index[0].indices(rows) for index in held if index is not None]
    return slice(min(i[0] for i in found), max(i[1] for i in found))


class Feed:
    """Reads a stream's chunks and boundaries, all of one shape, onto the program's mesh."""

    def __init__(self, stream: Stream, layout: Layout | None, size: int) -> None:
        """`size` is how many steps a chunk has; a shorter one is filled up, which is never run."""
        self.stream, self.layout, self.size = stream, layout, size
        if layout is None:
            self.source = jax.tree.map(jnp.asarray, stream.source)
            return
        self.source = place(stream.source, everywhere(stream.source, layout))
        self.rows = jax.tree.leaves(stream.chunk(0, 0, 1))[0].shape[1]
        self.own = own_rows(layout, self.rows)

    def chunk(self, stage: int, start: int, stop: int) -> Any:
        """The slices of a stage's steps from `start` to below `stop`, leaves [size, B, ...]."""
        axis = 0 if self.stream.members is None else 1
        short = self.size - (stop - start)

        def fill(x: np.ndarray) -> np.ndarray:
            if short == 0:
                return x
            last = np.take(x, [-1], axis=axis)
            return np.concatenate([x, np.repeat(last, short, axis=axis)], axis=axis)

        return self._read(self.stream.chunk, (stage, start, stop), fill)

    def boundary(self, stage: int) -> Any:
        """The slices that `consolidate` gets after a stage, leaves [n, B, ...]."""
        return self._read(self.stream.boundary, (stage,), lambda x: x)

    def _read(
        self, read: Callable[..., Any], which: tuple[int, ...], fill: Callable[..., np.ndarray]
    ) -> Any:
        layout = self.layout
        if layout is None:
            return jax.tree.map(fill, read(*which))
        partly = jax.process_count() > 1 and takes_rows(read)

        def place(x: np.ndarray) -> jax.Array:
            shape = (x.shape[0], self.rows, *x.shape[2:]) if partly else x.shape
            where = NamedSharding(layout.mesh, meshes.row_spec(layout.mesh, shape, 1))
            if not partly:
                return jax.make_array_from_callback(shape, where, lambda index: x[index])

            def held(index: Any) -> np.ndarray:
                first, last, _ = index[1].indices(self.rows)
                mine = slice(first - self.own.start, last - self.own.start)
                return x[(index[0], mine, *index[2:])]

            return jax.make_array_from_callback(shape, where, held)

        found = read(*which, rows=self.own) if partly else read(*which)
        return jax.tree.map(lambda x: place(fill(x)), found)
