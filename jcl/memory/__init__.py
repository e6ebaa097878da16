"""Replay memory: fixed-shape buffers on the device, as pure functions.

A buffer is allocated once for an example batch, so that it lives in the compiled step; an empty
slot weighs 0. Rows are dicts of arrays [B, ...] with `weight` [B]; padding is never stored. An
insert writes B rows, whatever the capacity.

What to keep is a `policy`; what to replay is `sample` or, of more rows, the `hardest`.
"""

from jcl.memory.buffer import (
    Buffer,
    Ranks,
    append,
    buffer_of,
    capacity,
    count_filled,
    draw,
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
