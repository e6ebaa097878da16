"""Replay memory: fixed-shape buffers on the device, as pure functions.

A buffer is allocated once in the shapes of an example batch, so that it lives in the compiled
step; an empty slot has weight 0. Rows are dicts of arrays [B, ...] with `weight` [B]; padding is
never stored. An insert costs the writing of B rows, whatever the capacity.

A `policy` decides which rows are kept. `sample` draws rows to replay, and `hardest` picks those of
the highest loss among them.
"""

from jcl.memory.buffer import (
    Buffer,
    Ranks,
    append,
    buffer_of,
    capacity,
    count_filled,
    draw,
    drop,
    empty,
    sample,
    take,
    write,
)
from jcl.memory.policy import POLICIES, Policy, finite_rows, insert_batches, policy
from jcl.memory.selection import (
    gradient_likeness,
    gss,
    hardest,
    herding,
    ranked,
    reservoir,
    ring,
    row_losses,
)

__all__ = [
    "POLICIES",
    "Buffer",
    "Policy",
    "Ranks",
    "append",
    "buffer_of",
    "capacity",
    "count_filled",
    "draw",
    "drop",
    "empty",
    "finite_rows",
    "gradient_likeness",
    "gss",
    "hardest",
    "herding",
    "insert_batches",
    "policy",
    "ranked",
    "reservoir",
    "ring",
    "row_losses",
    "sample",
    "take",
    "write",
]
