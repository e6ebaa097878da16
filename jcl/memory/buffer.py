"""Slots of rows on the device: reading, drawing and writing them."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jcl.method import Batch, Ctx, check


class Ranks(NamedTuple):
    """Why a stored row stays: those of the largest group go first, lowest score first."""

    group: jax.Array
    """int32 [capacity], -1 where a slot is empty."""
    score: jax.Array
    """float32 [capacity]."""
    held: jax.Array
    """int32 [groups]: slots that a group occupies."""
    full: jax.Array
    """bool [groups]: whether a group has been a largest one since the buffer filled."""
    floor: jax.Array
    """float32 [groups]: a group's lowest score, inf where it has no row."""


class Buffer(NamedTuple):
    """Slots of rows, in one region or several of equal size that fill from their start."""

    rows: Batch
    """Leaves [capacity, ...]; `weight` is 0 where a slot is empty."""
    seen: jax.Array
    """int32 [regions]: how many rows have been offered to each."""
    ranks: Any = ()
    """`Ranks` where the policy compares rows."""


def empty(example: Batch, capacity: int, regions: int = 1, groups: int = 0) -> Buffer:
    """A buffer with the shapes and dtypes of an example batch [B, ...].

    Args:
      example: read for shapes and dtypes only.
      capacity: slots.
      regions: parts of `capacity // regions` slots each.
      groups: of which `ranked` keeps account; 0 for none.

    Raises:
      ValueError: if there is less than one slot, or a region.
    """
    check(capacity >= 1, "capacity", capacity, "at least 1")
    check(1 <= regions <= capacity, "regions", regions, f"in [1, capacity], capacity {capacity}")
    rows = jax.tree.map(lambda x: jnp.zeros((capacity, *x.shape[1:]), x.dtype), dict(example))
    ranks = Ranks(
        jnp.full(capacity, -1, jnp.int32),
        jnp.zeros(capacity, jnp.float32),
        jnp.zeros(groups, jnp.int32),
        jnp.zeros(groups, bool),
        jnp.full(groups, jnp.inf, jnp.float32),
    )
    return Buffer(rows, jnp.zeros(regions, jnp.int32), ranks if groups else ())


def capacity(buffer: Buffer) -> int:
    """Number of slots."""
    return buffer.rows["weight"].shape[0]


def buffer_of(ctx: Ctx, name: str) -> Buffer:
    """The buffer of another method in the chain.

    Raises:
      ValueError: if that method has none.
    """
    buffer = getattr(ctx.states[name], "buffer", None)
    if not isinstance(buffer, Buffer):
        raise ValueError(f"share is {name!r}, but must be a method that has a memory of its own")
    return buffer


def _occupied(buffer: Buffer) -> jax.Array:
    return jnp.minimum(buffer.seen, capacity(buffer) // buffer.seen.shape[0])


def count_filled(buffer: Buffer) -> jax.Array:
    """Number of occupied slots, int32 []."""
    return jnp.sum(_occupied(buffer)).astype(jnp.int32)


def draw(buffer: Buffer, key: jax.Array, count: int, regions: jax.Array | None = None) -> jax.Array:
    """`count` occupied slots, uniformly and with replacement, int32 [count].

    From an empty buffer they are `capacity`, which `take` reads as rows of weight 0.

    Args:
      buffer: where to draw.
      key: of the draw.
      count: how many.
      regions: bool [regions], which ones to draw from; None is all.
    """
    held = _occupied(buffer)
    held = held if regions is None else jnp.where(regions, held, 0)
    ends = jnp.cumsum(held)
    place = jax.random.randint(key, (count,), 0, jnp.maximum(ends[-1], 1))
    if held.shape[0] == 1:
        slots = place
    else:
        region = jnp.searchsorted(ends, place, side="right")
        first = region * (capacity(buffer) // held.shape[0])
        slots = first + place - (ends - held)[region]
    return jnp.where(ends[-1] > 0, slots, capacity(buffer)).astype(jnp.int32)


def take(buffer: Buffer, slots: jax.Array) -> Batch:
    """The rows in `slots` int32 [n]; those out of range have weight 0."""
    size = capacity(buffer)
    inside = jnp.clip(slots, 0, size - 1)
    rows = jax.tree.map(lambda x: x[inside], buffer.rows)
    return {**rows, "weight": jnp.where(slots == inside, rows["weight"], 0)}


def sample(buffer: Buffer, key: jax.Array, count: int) -> Batch:
    """`count` rows drawn uniformly, with replacement; from an empty buffer they have weight 0."""
    return take(buffer, draw(buffer, key, count))


def append(batch: Batch, rows: Batch) -> Batch:
    """`rows` [n, ...] after those of `batch` [B, ...].

    Columns that only `batch` has are 0 in the new rows; those that only `rows` have are left out.
    """
    count = rows["weight"].shape[0]

    def column(name: str, x: jax.Array) -> jax.Array:
        new = rows.get(name)
        new = jnp.zeros((count, *x.shape[1:]), x.dtype) if new is None else new.astype(x.dtype)
        return jnp.concatenate([x, new])

    return {name: column(name, x) for name, x in batch.items()}


def write(buffer: Buffer, slots: jax.Array, rows: Batch) -> Buffer:
    """Puts row i in slot `slots[i]`; out of range drops it, and of several the last row wins.

    Args:
      buffer: what to write to.
      slots: int32 [B].
      rows: leaves [B, ...], with the buffer's keys.
    """
    size, count = capacity(buffer), slots.shape[0]
    order = jnp.arange(count)
    # scatters with duplicates have no defined order: keep only each slot's last row
    if count * count < 4 * size:  # pairs are fewer than slots: no pass over the buffer
        later = (slots[:, None] == slots[None, :]) & (order[:, None] < order[None, :])
        wins = ~jnp.any(later, axis=1)
    else:
        last = jnp.full(size, -1).at[slots].max(order, mode="drop")
        wins = last.at[slots].get(mode="fill", fill_value=-1) == order
    slots = jnp.where(wins, slots, size)
    stored = jax.tree.map(
        lambda old, new: old.at[slots].set(new.astype(old.dtype), mode="drop"),
        buffer.rows,
        {k: rows[k] for k in buffer.rows},
    )
    return buffer._replace(rows=stored)
