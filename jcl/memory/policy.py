"""Memory policies by name: which rows are kept of each step, and of each finished stage."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jcl.memory.buffer import Buffer, empty, sample
from jcl.memory.selection import (
    gradient_likeness,
    gss,
    herding,
    ranked,
    reservoir,
    ring,
    row_losses,
)
from jcl.method import Batch, Ctx, Info, Params, check
from jcl.outputs import Logits, Values, flat
from jcl.trees import Limits

Insert = Callable[[Buffer, Ctx, Batch], Buffer]


class Policy(NamedTuple):
    """How a memory is made and filled."""

    empty: Callable[[Batch], Buffer]
    """`(example) -> buffer`: an empty buffer for rows like those of an example batch."""
    insert: Insert
    """`(buffer, ctx, rows) -> buffer`, called after a step with its `finite_rows`."""
    finish: Callable[[Buffer, Ctx, Params, Batch], Buffer]
    """`(buffer, ctx, params, batches) -> buffer`, at the end of a stage; leaves [n, B, ...]."""
    wants: tuple[type, ...] = ()
    """The kinds of outputs that it reads, as in `Method.wants`."""
    limits: Limits = MappingProxyType({})
    """For which values of the column that it balances it has groups, as in `Method.limits`."""


def _column(rows: Batch, name: str) -> jax.Array:
    if name not in rows or rows[name].ndim != 1:
        raise ValueError(
            f"the batch's columns are {sorted(rows)}, but must include {name!r} [B], which the "
            "memory policy balances"
        )
    return rows[name]


def _balanced(column: str) -> Insert:
    def insert(buffer: Buffer, ctx: Ctx, rows: Batch) -> Buffer:
        score = jax.random.uniform(ctx.key, rows["weight"].shape)
        return ranked(buffer, rows, _column(rows, column), score)

    return insert


def _highest_loss(buffer: Buffer, ctx: Ctx, rows: Batch) -> Buffer:
    score = row_losses(ctx.loss, ctx.params, rows)
    return ranked(buffer, rows, jnp.zeros(score.shape, jnp.int32), score)


def _insert_gss(buffer: Buffer, ctx: Ctx, rows: Batch) -> Buffer:
    pick, swap = jax.random.split(ctx.key)
    others = sample(buffer, pick, rows["weight"].shape[0])
    # as many as there are real rows, whatever the padding
    there = jnp.arange(rows["weight"].shape[0]) < jnp.sum(rows["weight"] > 0)
    others["weight"] = jnp.where(there, others["weight"], 0)
    return gss(buffer, swap, rows, gradient_likeness(ctx.loss, ctx.params, rows, others))


def _exemplars(buffer: Buffer, ctx: Ctx, params: Params, batches: Batch) -> Buffer:
    groups, slots = buffer.ranks.held.shape[0], buffer.ranks.group.shape[0]
    features = lax.map(lambda rows: flat(ctx.loss(params, rows)[1].outputs), batches)
    rows = {k: batches[k].reshape(-1, *batches[k].shape[2:]) for k in buffer.rows}
    group, real = jnp.clip(_column(rows, "y"), 0, groups - 1), rows["weight"] > 0
    present = jax.ops.segment_max(real.astype(jnp.int32), group, groups) > 0
    classes = jnp.sum(present | (buffer.ranks.held > 0))
    quota = -(-slots // jnp.maximum(classes, 1))
    rank = herding(features.reshape(len(real), -1), group, real, groups, quota)
    rows["weight"] = jnp.where(rank < len(rank), rows["weight"], 0)
    order = jnp.argsort(rank)
    rows = jax.tree.map(lambda x: x[order], rows)
    return ranked(buffer, rows, group[order], -rank[order].astype(jnp.float32))


_INSERT: dict[str, Insert] = {
    "reservoir": lambda buffer, ctx, rows: reservoir(buffer, ctx.key, rows),
    "ring": lambda buffer, ctx, rows: ring(buffer, rows, ctx.stage % buffer.seen.shape[0]),
    "class": _balanced("y"),
    "task": _balanced("task"),
    "loss": _highest_loss,
    "gss": _insert_gss,
    "herding": lambda buffer, ctx, rows: buffer,
}
_BALANCED = {"class": "y", "task": "task", "herding": "y"}

POLICIES = tuple(_INSERT)
"""The names that `policy` knows."""


def policy(name: str, capacity: int, groups: int | None = None) -> Policy:
    """The memory policy of that name.

    - `reservoir`: a uniform sample of all rows offered.
    - `ring`: the last rows, first in first out; with `groups` one ring a stage, taken in turn.
    - `class`, `task`: equally many rows of each `y`, or `task`, each a uniform sample (CBRS).
    - `loss`: the rows whose loss was highest when they came.
    - `gss`: rows whose gradients differ most, at the price of two gradients a row.
    - `herding`: iCaRL's exemplars, chosen for each class at the end of a stage, by the outputs: of
      the classes that the loss allows, and the tokens that it counts.

    Args:
      name: one of `POLICIES`.
      capacity: how many slots there are.
      groups: how many classes for `class` and `herding`, tasks for `task`, rings for `ring`. Labels
        and tasks count from 0 and must stay below it, which `fit` looks after.

    Raises:
      ValueError: if there is no such policy, capacity is below 1, or `groups` is missing or out of
        range; later also if a batch lacks the column that the policy balances.
    """
    check(name in POLICIES, "policy", name, f"one of {', '.join(POLICIES)}")
    check(capacity >= 1, "capacity", capacity, "at least 1")
    if name in _BALANCED:
        check(groups is not None, "groups", groups, f"how many groups policy {name!r} balances")
    check(groups is None or 1 <= groups <= capacity, "groups", groups, "in [1, capacity]")

    def start(example: Batch) -> Buffer:
        if name in _BALANCED:
            _column(example, _BALANCED[name])
        ranks = (groups or 1) if name in _BALANCED else 1 if name in ("loss", "gss") else 0
        return empty(example, capacity, (groups or 1) if name == "ring" else 1, ranks)

    def nothing(buffer: Buffer, ctx: Ctx, params: Params, batches: Batch) -> Buffer:
        return buffer

    # beyond them a row would count among the last group's
    limits = {_BALANCED[name]: (groups or 1, "groups")} if name in _BALANCED else {}
    if name == "herding":
        return Policy(start, _INSERT[name], _exemplars, (Logits, Values), limits)
    return Policy(start, _INSERT[name], nothing, limits=limits)


def finite_rows(info: Info) -> Batch:
    """The fresh rows of a step, with weight 0 if it ended in parameters that are not finite.

    This also makes the rows depend on the finished step, so that XLA need not copy the buffer.
    Without it the whole buffer is copied in every step (measured: 6 times a plain step at 60 MB).
    """
    smallest = min(jax.tree.leaves(info.params), key=lambda x: x.size)
    sound = jnp.isfinite(jnp.sum(smallest) + info.loss)
    return {**info.batch, "weight": jnp.where(sound, info.batch["weight"], 0)}


def insert_batches(
    keep: Policy, buffer: Buffer, ctx: Ctx, params: Params, batches: Batch
) -> Buffer:
    """The buffer after a finished stage's batches, leaves [n, B, ...], were offered one by one."""

    def add(buffer: Buffer, xs: tuple[jax.Array, Batch]) -> tuple[Buffer, None]:
        key, rows = xs
        return keep.insert(buffer, ctx._replace(key=key, params=params), rows), None

    keys = jax.random.split(ctx.key, batches["weight"].shape[0])
    buffer, _ = lax.scan(add, buffer, (keys, {k: batches[k] for k in buffer.rows}))
    return keep.finish(buffer, ctx, params, batches)
