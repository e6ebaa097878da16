"""Replay memory: fixed-shape buffers on the device, as pure functions.

A buffer is allocated once for an example batch, so that it lives in the compiled step; an empty
slot weighs 0. Rows are dicts of arrays [B, ...] with `weight` [B]; padding is never stored.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jcl.method import Batch


class Buffer(NamedTuple):
    """`capacity` slots of rows."""

    rows: Batch
    """Leaves [capacity, ...]; `weight` is 0 where a slot is empty."""
    seen: jax.Array
    """int32 []: how many rows have been offered."""


def empty(example: Batch, capacity: int) -> Buffer:
    """A buffer with the shapes and dtypes of an example batch [B, ...].

    Raises:
      ValueError: if capacity is below 1.
    """
    if capacity < 1:
        raise ValueError(f"capacity is {capacity!r}, but must be at least 1")
    rows = jax.tree.map(lambda x: jnp.zeros((capacity, *x.shape[1:]), x.dtype), example)
    return Buffer(rows, jnp.int32(0))


def capacity(buffer: Buffer) -> int:
    """Number of slots."""
    return buffer.rows["weight"].shape[0]


def filled(buffer: Buffer) -> jax.Array:
    """Number of occupied slots, int32 []."""
    return jnp.sum(buffer.rows["weight"] > 0).astype(jnp.int32)


def write(buffer: Buffer, slots: jax.Array, rows: Batch, offered: jax.Array) -> Buffer:
    """Puts row i in slot `slots[i]`; out of range drops it, and of several the last row wins.

    Args:
      buffer: what to write to.
      slots: int32 [B].
      rows: leaves [B, ...], with the buffer's keys.
      offered: int32 [], added to `seen`.
    """
    size = capacity(buffer)
    order = jnp.arange(slots.shape[0])
    # scatters with duplicates have no defined order: keep only each slot's last row
    last = jnp.full(size, -1).at[slots].max(order, mode="drop")
    wins = last.at[slots].get(mode="fill", fill_value=-1) == order
    slots = jnp.where(wins, slots, size)
    stored = jax.tree.map(
        lambda old, new: old.at[slots].set(new.astype(old.dtype), mode="drop"),
        buffer.rows,
        {k: rows[k] for k in buffer.rows},
    )
    return Buffer(stored, buffer.seen + offered)


def reservoir(buffer: Buffer, key: jax.Array, rows: Batch) -> Buffer:
    """Algorithm R: after n rows each of them is in the buffer with probability capacity / n.

    Source: Vitter 1985, "Random sampling with a reservoir".
    """
    size = capacity(buffer)
    real = rows["weight"] > 0
    index = buffer.seen + jnp.cumsum(real) - 1  # a row's place in the stream
    draw = jax.random.randint(key, index.shape, 0, jnp.maximum(index, 0) + 1)
    slots = jnp.where(index < size, index, draw)
    slots = jnp.where(real & (slots < size), slots, size)
    return write(buffer, slots, rows, jnp.sum(real).astype(jnp.int32))


def sample(buffer: Buffer, key: jax.Array, count: int) -> Batch:
    """`count` rows drawn uniformly, with replacement, from the occupied slots.

    From an empty buffer they have weight 0. Occupied slots need not be contiguous.
    """
    occupied = buffer.rows["weight"] > 0
    ranks = jnp.cumsum(occupied)
    total = ranks[-1]
    draw = jax.random.randint(key, (count,), 0, jnp.maximum(total, 1))
    slots = jnp.searchsorted(ranks, draw + 1)  # the slot that holds the draw-th occupied one
    return jax.tree.map(lambda x: x[jnp.minimum(slots, x.shape[0] - 1)], buffer.rows)
