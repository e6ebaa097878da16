"""Slots of rows on the device, and how they are drawn, read and written."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jcl.method import Batch, Ctx, check


class Ranks(NamedTuple):
    """Decides which stored row goes: that of the lowest score in the largest group."""

    group: jax.Array
    """int32 [capacity]: the group of each slot's row, -1 where the slot is empty."""
    score: jax.Array
    """float32 [capacity]: the score of each slot's row."""
    held: jax.Array
    """int32 [groups]: how many slots a group occupies."""
    full: jax.Array
    """bool [groups]: whether a group has been a largest one since the buffer filled."""
    floor: jax.Array
    """float32 [groups]: a group's lowest score, inf where it has no row."""


class Buffer(NamedTuple):
    """Slots of rows, in one region or several of equal size, each of which fills from its start."""

    rows: Batch
    """Leaves [capacity, ...]; `weight` is 0 where a slot is empty."""
    seen: jax.Array
    """int32 [regions]: how many rows have been offered to each."""
    ranks: Any = ()
    """`Ranks` where the policy compares rows, else ()."""

    @property
    def row_fields(self) -> tuple[str, ...]:
        """Which fields are divided as a batch's rows are: see `jcl.method.KeepsRows`."""
        return ("rows",)


def empty(example: Batch, capacity: int, regions: int = 1, groups: int = 0) -> Buffer:
    """A buffer with the shapes and dtypes of an example batch [B, ...].

    Args:
      example: read for shapes and dtypes only.
      capacity: how many slots there are.
      regions: into how many parts of `capacity // regions` slots they are divided.
      groups: how many groups `ranked` tells apart; 0 where rows aren't ranked.

    Raises:
      ValueError: if `capacity` is below 1, or `regions` isn't in [1, capacity].
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
    """How many slots a buffer has."""
    return buffer.rows["weight"].shape[0]


def buffer_of(ctx: Ctx, name: str) -> Buffer:
    """The buffer in the state of another method of the chain, found by its `name`.

    Raises:
      ValueError: if that method's state has no buffer.
    """
    buffer = getattr(ctx.states[name], "buffer", None)
    if not isinstance(buffer, Buffer):
        raise ValueError(f"share is {name!r}, but must be a method that has a memory of its own")
    return buffer


def _occupied(buffer: Buffer) -> jax.Array:
    return jnp.minimum(buffer.seen, capacity(buffer) // buffer.seen.shape[0])


def count_filled(buffer: Buffer) -> jax.Array:
    """How many slots are occupied, int32 []."""
    return jnp.sum(_occupied(buffer)).astype(jnp.int32)


def draw(buffer: Buffer, key: jax.Array, count: int, regions: jax.Array | None = None) -> jax.Array:
    """Draws `count` occupied slots, uniformly and with replacement, int32 [count].

    From an empty buffer it draws the number `capacity`, which `take` reads as rows of weight 0.

    Args:
      buffer: what to draw from.
      key: the draw's PRNG key.
      count: how many slots to draw.
      regions: bool [regions], which regions to draw from; None is all.
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
    """The rows in `slots` int32 [n], leaves [n, ...]; a slot out of range gives weight 0."""
    size = capacity(buffer)
    inside = jnp.clip(slots, 0, size - 1)
    rows = jax.tree.map(lambda x: x[inside], buffer.rows)
    return {**rows, "weight": jnp.where(slots == inside, rows["weight"], 0)}


def sample(buffer: Buffer, key: jax.Array, count: int) -> Batch:
    """`count` rows drawn uniformly, with replacement; from an empty buffer they have weight 0."""
    return take(buffer, draw(buffer, key, count))


def append(batch: Batch, rows: Batch) -> Batch:
    """The rows of `batch` [B, ...] and after them `rows` [n, ...], leaves [B + n, ...].

    Columns that only `batch` has are 0 in the new rows; those that only `rows` has are left out.
    """
    count = rows["weight"].shape[0]

    def column(name: str, x: jax.Array) -> jax.Array:
        new = rows.get(name)
        new = jnp.zeros((count, *x.shape[1:]), x.dtype) if new is None else new.astype(x.dtype)
        return jnp.concatenate([x, new])

    return {name: column(name, x) for name, x in batch.items()}


def write(buffer: Buffer, slots: jax.Array, rows: Batch) -> Buffer:
    """Puts row i in slot `slots[i]`.

    A row whose slot is out of range is dropped; of several rows for one slot the last one stays.

    Args:
      buffer: what to write to.
      slots: int32 [B], a slot for each row.
      rows: leaves [B, ...], with the buffer's keys.
    """
    size, count = capacity(buffer), slots.shape[0]
    order = jnp.arange(count)
    # XLA doesn't define which of several writes to one slot wins, so only the last is left
    if count * count < 4 * size:  # comparing all pairs is cheaper than a pass over all slots
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


def drop(buffer: Buffer, gone: np.ndarray) -> Buffer:
    """The buffer without some of its rows, of which no byte is left; not for use in a trace.

    In a region that was full, rows that stay take the places of those that go, in turn: it stays
    full, and what it has seen still says how new rows compete for a place. In one that wasn't, and
    where rows are ranked, those that stay move together, and new rows find room.

    Args:
      buffer: any.
      gone: bool [capacity], which slots' rows go.
    """
    size, seen = capacity(buffer), np.array(buffer.seen)
    width = size // len(seen)
    source, there = np.arange(size), np.zeros(size, bool)
    for region in range(len(seen)):
        held = region * width + np.arange(min(int(seen[region]), width))
        stay = held[~gone[held]]
        there[held] = True
        if len(stay) == len(held):
            continue
        if len(held) == width and len(stay) and not buffer.ranks:
            source[held[gone[held]]] = np.resize(stay, len(held) - len(stay))
            continue
        source[held[: len(stay)]] = stay
        there[held[len(stay) :]] = False
        seen[region] = len(stay)

    def column(x: jax.Array) -> jax.Array:
        filled = there.reshape(-1, *[1] * (x.ndim - 1))
        return jnp.where(filled, x[source], jnp.zeros_like(x))

    left = buffer._replace(rows=jax.tree.map(column, buffer.rows), seen=jnp.asarray(seen))
    if not buffer.ranks or not gone.any():
        return left
    group = jnp.where(there, buffer.ranks.group[source], -1)
    score = column(buffer.ranks.score)
    own = group[:, None] == jnp.arange(buffer.ranks.held.shape[0])
    held_by = jnp.sum(own, axis=0, dtype=jnp.int32)
    floor = jnp.min(jnp.where(own, score[:, None], jnp.inf), axis=0)
    return left._replace(ranks=Ranks(group, score, held_by, buffer.ranks.full, floor))
