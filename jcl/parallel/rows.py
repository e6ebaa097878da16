"""Divides a batch's rows into equal parts: for microbatches, for replicas, for slices of a mesh."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from jcl import trees
from jcl.losses import total_weight
from jcl.method import Aux, Batch, Call, LossFn, Params
from jcl.outputs import per_row
from jcl.parallel import mesh as meshes
from jcl.records import record


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


@record
class Shares(NamedTuple):
    """How the rows of a step are divided: among replicas, and into microbatches in turn."""

    microbatches: int
    """Into how many parts a replica's rows are split, whose gradients are added up."""
    axis_name: str | None
    """The axis of the replicas, None if there is one."""
    layout: meshes.Layout | None
    """How rows lie on a mesh, None without one."""

    def gather(self, batch: Batch, axis: int = 0) -> Batch:
        """All replicas' rows, so that each method sees the whole batch."""
        if self.axis_name is None:
            return batch
        name = self.axis_name
        return jax.tree.map(lambda x: lax.all_gather(x, name, axis=axis, tiled=True), batch)

    def value_and_grad(self, loss_fn: LossFn, call: Call, before: Any = ()) -> Callable[..., Any]:
        """`(params, batch) -> ((loss, aux), grads)`, equal to those of one undivided batch.

        The model is called by `call`, with a key of its own in each part; `before` is what it keeps
        beside its parameters. Of the outputs those are given that have rows (see
        `outputs.per_row`). What the model keeps changes from the same start in each part, and the
        changes are averaged by the parts' weights: so running means are the whole batch's, while
        running variances lack what lies between the parts. Of what is no floating number, such as a
        count, the first part's is taken.
        """

        def whole(params: Params, batch: Batch, part: Any = None) -> Any:
            own = call
            if part is not None and call.key is not None:
                own = call._replace(key=jax.random.fold_in(call.key, part))

            def with_rows(params: Params) -> Any:
                value, aux = loss_fn(params, batch, own)
                return value, aux._replace(outputs=per_row(aux.outputs))

            return jax.value_and_grad(with_rows, has_aux=True)(params)

        name, count = self.axis_name, self.microbatches
        if count == 1 and name is None:
            return lambda params, batch: whole(params, meshes.constrain_batch(batch, self.layout))

        def accumulated(params: Params, batch: Batch) -> Any:
            total = total_weight(batch)
            total = jnp.where(total == 0, 1.0, total)
            parts = split_rows(batch, count) if name is None else replica_rows(batch, name, count)

            first = 0 if name is None else count * lax.axis_index(name)

            def add(carry: Any, xs: Any) -> Any:
                part, place = xs
                (value, aux), grads = whole(params, part, place)
                # each part counts by its share of the weight, so the sum is the whole batch's mean
                share = total_weight(part) / total
                sum_value, sum_grads, kept = carry
                sum_grads = jax.tree.map(lambda s, g: s + share * g, sum_grads, grads)
                kept = jax.tree.map(
                    partial(_changed, share, place == 0), before, kept, aux.collections
                )
                return (sum_value + share * value, sum_grads, kept), aux.outputs

            start = (jnp.float32(0), trees.zeros(params), before)
            parts = meshes.constrain_batch(parts, self.layout, leading=1)
            xs = (parts, first + jnp.arange(count))
            (value, grads, kept), outputs = lax.scan(add, start, xs)
            rows = batch["weight"].shape[0]
            outputs = jax.tree.map(lambda o: o.reshape(-1, *o.shape[2:]), outputs)
            if name is not None:
                value, grads = lax.psum((value, grads), name)
                kept = jax.tree.map(partial(_together, name), before, kept)
            outputs = jax.tree.map(lambda o: o[:rows], self.gather(outputs))
            return (value, Aux(outputs, kept)), trees.like(grads, params)

        return accumulated


def _changed(
    share: jax.Array, first: jax.Array, before: jax.Array, sum_: jax.Array, new: jax.Array
) -> jax.Array:
    """A collection's leaf with a part's change added, or replaced by that of the first part."""
    if jnp.issubdtype(new.dtype, jnp.floating):
        return sum_ + share.astype(new.dtype) * (new - before)
    return jnp.where(first, new, sum_)


def _together(axis_name: str, before: jax.Array, mine: jax.Array) -> jax.Array:
    """A collection's leaf with all replicas' changes, or that of the first replica."""
    if jnp.issubdtype(mine.dtype, jnp.floating):
        return before + lax.psum(mine - before, axis_name)
    return lax.all_gather(mine, axis_name)[0]
