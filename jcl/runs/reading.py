"""Rows on which it is told what a trained model reads, and how far two readings are apart."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jcl.data import Stream
from jcl.method import Batch
from jcl.program import fill_batch


def first_batches(stream: Stream) -> list[Batch]:
    """The first batch of each stage, of one member if there are several."""
    found = []
    for stage in range(len(stream.names)):
        axes = 1 if stream.members is None else 2
        rows = jax.tree.map(lambda x, a=axes: x[(0,) * a], stream.chunk(stage, 0, 1))
        found.append(fill_batch(stream.fetch(stream.source, rows)))
    return found


def of_task(batch: Batch, task: int | jax.Array) -> Batch:
    """The batch as if all its rows were of a task."""
    return {**batch, "task": jnp.full_like(batch["task"], task)}


def largest_difference(wanted: Any, found: Any) -> jax.Array:
    """The largest difference between leaves over the largest value of each, float32 []."""
    return jnp.stack(jax.tree.leaves(jax.tree.map(_apart, wanted, found))).max()


def _apart(wanted: jax.Array, found: jax.Array) -> jax.Array:
    """The largest difference over the largest value, float32 []."""
    wanted, found = wanted.astype(jnp.float32), found.astype(jnp.float32)
    return jnp.max(jnp.abs(wanted - found)) / (jnp.max(jnp.abs(wanted)) + 1e-6)
