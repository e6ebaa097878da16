"""Decides which rows stay in a buffer, and which of those drawn are worth replaying."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jcl import trees
from jcl.memory.buffer import Buffer, Ranks, capacity, write
from jcl.method import Batch, LossFn, Params


def row_losses(loss: LossFn, params: Params, rows: Batch) -> jax.Array:
    """Each row's own loss, float32 [B], at the price of a forward pass."""

    def one(row: Batch) -> jax.Array:
        return loss(params, jax.tree.map(lambda x: x[None], row))[0]

    return jax.vmap(one)(rows)


def hardest(loss: LossFn, params: Params, rows: Batch, count: int) -> Batch:
    """The `count` rows of highest loss, at the price of a forward pass over `rows`."""
    worst = jnp.where(rows["weight"] > 0, row_losses(loss, params, rows), -jnp.inf)
    best = lax.top_k(worst, count)[1]
    return jax.tree.map(lambda x: x[best], rows)


def reservoir(buffer: Buffer, key: jax.Array, rows: Batch) -> Buffer:
    """Algorithm R: after n rows each of them is in the buffer with probability capacity / n.

    Source: Vitter 1985, "Random sampling with a reservoir".
    """
    size = capacity(buffer)
    real = rows["weight"] > 0
    index = buffer.seen[0] + jnp.cumsum(real) - 1  # each row's number among all that were offered
    place = jax.random.randint(key, index.shape, 0, jnp.maximum(index, 0) + 1)
    slots = jnp.where(index < size, index, place)
    slots = jnp.where(real & (slots < size), slots, size)
    return write(buffer, slots, rows)._replace(seen=buffer.seen + jnp.sum(real, dtype=jnp.int32))


def ring(buffer: Buffer, rows: Batch, region: jax.Array | int = 0) -> Buffer:
    """First in, first out, within one `region`, which holds the last rows that it was offered."""
    size = capacity(buffer)
    length = size // buffer.seen.shape[0]
    real = rows["weight"] > 0
    index = buffer.seen[region] + jnp.cumsum(real) - 1
    slots = jnp.where(real, region * length + index % length, size)
    seen = buffer.seen.at[region].add(jnp.sum(real, dtype=jnp.int32))
    return write(buffer, slots, rows)._replace(seen=seen)


def ranked(buffer: Buffer, rows: Batch, group: jax.Array, score: jax.Array) -> Buffer:
    """Class-balanced insertion: a full buffer drops the row of lowest score in its largest group.

    Once a group has been the largest one of a full buffer it never grows again: its new rows
    replace the row of lowest score in their own group, or are dropped if their score is lower.
    With random scores each group's rows are a uniform sample of all that it offered, which is CBRS;
    with losses or herding ranks as scores they are those of the highest scores.

    Source: Chrysakis and Moens, ICML 2020, algorithm 1, whose draw m_c / n_c is here the chance
    that a random score is among the m_c highest of n_c. Of groups equally large the first shrinks.

    Args:
      buffer: one with ranks.
      rows: leaves [B, ...], taken one after another.
      group: int32 [B], clipped to the buffer's groups.
      score: float32 [B]; rows of high scores stay.
    """
    size = capacity(buffer)

    def place(carry: tuple[Ranks, jax.Array], row: tuple[jax.Array, ...]) -> Any:
        r, seen = carry
        real, g, s = row
        loser = jnp.where(r.full[g], g, jnp.argmax(r.held))
        filling = seen < size
        swaps = real & ~filling & (~r.full[g] | (s > r.floor[g]))

        def evict(_: None) -> tuple[jax.Array, jax.Array]:
            scores = jnp.where(r.group == loser, r.score, jnp.inf)
            slot = jnp.argmin(scores)
            return slot.astype(jnp.int32), jnp.min(scores.at[slot].set(jnp.inf))

        # finding the row that goes takes a pass over all scores, made only for rows that get in
        slot, floor = lax.cond(swaps, evict, lambda _: (jnp.int32(size), r.floor[loser]), None)
        enters = swaps | (real & filling)
        slot = jnp.where(filling & real, seen, slot)
        held = r.held.at[loser].add(-swaps.astype(jnp.int32)).at[g].add(enters.astype(jnp.int32))
        floors = r.floor.at[loser].set(floor)
        floors = floors.at[g].min(jnp.where(enters, s, jnp.inf))
        seen = seen + real.astype(jnp.int32)
        full = r.full | ((seen >= size) & (held == jnp.max(held)))
        ranks = Ranks(
            r.group.at[slot].set(g, mode="drop"),
            r.score.at[slot].set(s, mode="drop"),
            held,
            full,
            floors,
        )
        return (ranks, seen), slot

    g = jnp.clip(group, 0, buffer.ranks.held.shape[0] - 1).astype(jnp.int32)
    offered = (rows["weight"] > 0, g, score.astype(jnp.float32))
    (ranks, seen), slots = lax.scan(place, (buffer.ranks, buffer.seen[0]), offered)
    return write(buffer, slots, rows)._replace(seen=seen[None], ranks=ranks)


def gss(buffer: Buffer, key: jax.Array, rows: Batch, likeness: jax.Array) -> Buffer:
    """GSS-greedy: rows whose gradient is unlike the stored ones replace those that are like.

    Once the buffer is full a row with likeness c < 1 meets a stored one drawn with probability
    ∝ C and replaces it with probability C / (C + c).

    Source: Aljundi et al., arXiv 1903.08671, algorithm 2.

    Args:
      buffer: one with ranks of one group, whose scores C are likenesses.
      key: the draws' PRNG key.
      rows: leaves [B, ...].
      likeness: c of each row, float32 [B] in [0, 2], from `gradient_likeness`.
    """
    size, ranks = capacity(buffer), buffer.ranks
    real = rows["weight"] > 0
    index = buffer.seen[0] + jnp.cumsum(real) - 1
    stored = jnp.where(ranks.group >= 0, ranks.score, 0.0)
    ends = jnp.cumsum(stored)
    # a pair of draws a row, so that padding behind the rows changes nobody's
    meets, wins = jax.random.uniform(key, (*index.shape, 2)).T
    rival = jnp.minimum(jnp.searchsorted(ends, meets * ends[-1], side="right"), size - 1)
    beaten = (likeness < 1) & (wins * (stored[rival] + likeness) < stored[rival])
    slots = jnp.where(index < size, index, jnp.where(beaten, rival, size))
    slots = jnp.where(real, slots, size)
    # one scatter of indices, so that score and row come from the same, last, writer
    source = jnp.full(size, -1).at[slots].max(jnp.arange(slots.shape[0]), mode="drop")
    ranks = ranks._replace(
        group=jnp.where(source >= 0, 0, ranks.group),
        score=jnp.where(source >= 0, likeness[source], ranks.score),
    )
    seen = buffer.seen + jnp.sum(real, dtype=jnp.int32)
    return write(buffer, slots, rows)._replace(seen=seen, ranks=ranks)


def gradient_likeness(loss: LossFn, params: Params, rows: Batch, others: Batch) -> jax.Array:
    """1 + the largest cosine of each row's gradient with those of `others`, float32 [B].

    The rows' own gradients are taken one after another, so that only the others' n gradients and
    one more are held at once. With no others (all of weight 0) it is 1.1, as in the authors' code.
    """

    def slope(row: Batch) -> Params:
        one = jax.tree.map(lambda x: x[None], row)
        return trees.float32(jax.grad(loss, has_aux=True)(params, one)[0])

    def unit(grads: Params) -> Params:
        return trees.scale(1 / jnp.maximum(trees.norm(grads), 1e-12), grads)

    refs = jax.vmap(lambda row: unit(slope(row)))(others)

    def most(row: Batch) -> jax.Array:
        g = unit(slope(row))
        cosines = jax.vmap(lambda ref: trees.dot(ref, g))(refs)
        return jnp.max(jnp.where(others["weight"] > 0, cosines, -jnp.inf))

    cosine = lax.map(most, rows)
    return 1 + jnp.where(jnp.isfinite(cosine), cosine, 0.1)


def herding(
    features: jax.Array, group: jax.Array, real: jax.Array, groups: int, quota: jax.Array | int
) -> jax.Array:
    """iCaRL's order: rank k goes to the row that brings the mean of ranks 0 to k nearest the mean.

    Features and the group's mean are scaled to length 1. The first m ranks do not depend on how
    many follow, so a smaller memory keeps them.

    Source: Rebuffi et al., arXiv 1611.07725, algorithm 4.

    Args:
      features: [N, d], a vector for each row.
      group: int32 [N] in [0, groups); each group is ranked by itself.
      real: bool [N], False for padding.
      groups: how many groups there are.
      quota: how many ranks to give in each group; may be traced.

    Returns:
      int32 [N], each row's rank: 0 is the first, N means not chosen.
    """
    count = features.shape[0]

    def unit(x: jax.Array) -> jax.Array:
        return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)

    phi = unit(features.astype(jnp.float32)) * real[:, None]
    mean = unit(jax.ops.segment_sum(phi, group, groups))
    squares = jnp.sum(phi * phi, axis=-1)

    def choose(k: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        rank, total = carry
        wanted = (k + 1) * mean - total  # what the next row should be
        cost = squares - 2 * jnp.sum(phi * wanted[group], axis=-1)
        cost = jnp.where(real & (rank == count), cost, jnp.inf)
        best = jax.ops.segment_min(cost, group, groups)
        hit = jnp.isfinite(cost) & (cost == best[group])
        pick = jax.ops.segment_min(jnp.where(hit, jnp.arange(count), count), group, groups)
        rank = rank.at[pick].set(k, mode="drop")
        return rank, total + phi.at[pick].get(mode="fill", fill_value=0)

    start = (jnp.full(count, count), jnp.zeros_like(mean))
    return lax.fori_loop(0, jnp.minimum(quota, count), choose, start)[0]
