"""Streams of text as windows of bytes, gathered on the device from one array of all domains."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jcl.data.bounds import range_of, with_bounds
from jcl.data.stages import Stage, each_stage, plan
from jcl.data.stream import Arrays, Stream, pack
from jcl.method import Batch, check

_TRAIN, _BOUNDARY = 2, 3  # so that different uses of a seed never share their draws


def _bytes(data: Any, name: str, length: int) -> np.ndarray:
    data = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else np.asarray(data)
    wanted = "bytes or a uint8 array of one axis"
    if data.dtype != np.uint8 or data.ndim != 1:
        raise ValueError(f"{name} is {data.dtype} {data.shape}, but must be {wanted}")
    check(
        len(data) >= length, f"number of bytes of {name}", len(data), f"at least {length}, length"
    )
    return data


def windows(data: np.ndarray, length: int, limit: int | None = None) -> np.ndarray:
    """Windows int32 [n, length] that predict every byte of `data` but the first at most once.

    Neighbours share a byte: the last of one, which is predicted there, is given as the first of the
    next.

    Args:
      data: uint8 [N].
      length: how many bytes a window has.
      limit: how many windows there are at most, evenly spread; None is all.
    """
    starts = np.arange(0, len(data) - length + 1, length - 1)
    if limit is not None and len(starts) > limit:
        starts = starts[np.arange(limit) * len(starts) // limit]
    return data[starts[:, None] + np.arange(length)].astype(np.int32)


def from_bytes(
    domains: Mapping[str, tuple[Any, Any]],
    length: int,
    batch: int,
    steps: int | Sequence[int],
    seed: int = 0,
    *,
    stages: Sequence[Stage] | None = None,
    boundary_batches: int | None = None,
    test_rows: int | None = None,
    test_batch: int = 64,
) -> Stream:
    """A stream over domains of text: batches `tokens` int32 [B, length], `weight` and `task`.

    Each step draws windows at random places, with replacement, so that any step's draw costs the
    same.

    Args:
      domains: the `(train, test)` bytes of each domain; the domains are the tasks, in this order.
      length: how many bytes a window has; all but the first are predicted.
      batch: B, how many windows a step takes.
      steps: how many steps all stages have, or each of them.
      seed: seeds the places.
      stages: what each stage trains on; None is each domain in turn. Names may recur. Shares, which
        are normalised to 1, mix domains row by row; one stage with equal shares is joint training.
      boundary_batches: how many batches a boundary has at most, drawn at random; None has all
        windows.
      test_rows: how many test windows a domain has at most, evenly spread; None is all.
      test_batch: how many test windows are scored at once at most.

    Raises:
      ValueError: if an argument is out of range or a domain is shorter than `length`.

    >>> text = np.arange(100, dtype=np.uint8)
    >>> stream = from_bytes({"a": (text, text), "b": (text, text)}, length=8, batch=4, steps=3)
    >>> stream.fetch(stream.source, stream.chunk(1, 2, 3))["tokens"].shape
    (1, 4, 8)
    """
    check(length >= 2, "length", length, "at least 2")
    check(batch >= 1, "batch", batch, "at least 1")
    check(0 <= seed < 2**32, "seed", seed, "from 0 to 2**32 - 1")
    tests = tuple(domains)
    train = [_bytes(pair[0], f"domain {n!r}", length) for n, pair in domains.items()]
    exam = [_bytes(pair[1], f"domain {n!r} (test)", length) for n, pair in domains.items()]
    sizes = np.array([len(t) for t in train])
    check(sizes.sum() < 2**31, "bytes of all domains", int(sizes.sum()), "below 2**31")
    offsets = np.cumsum([0, *sizes[:-1]])

    names, tasks, shares = plan(stages, tests)
    taken = each_stage(steps, len(names))

    def chunk(stage: int, start: int, stop: int) -> Arrays:
        if not 0 <= start < stop <= taken[stage]:
            raise ValueError(
                f"steps {start} to {stop} are asked for, but stage {stage} has {taken[stage]}"
            )
        edges = np.cumsum(shares[stage])
        u = np.stack(
            [
                np.random.default_rng((_TRAIN, seed, stage, step)).random((2, batch))
                for step in range(start, stop)
            ]
        )
        task = np.minimum(np.searchsorted(edges, u[:, 0], side="right"), len(tests) - 1)
        place = offsets[task] + (u[:, 1] * (sizes[task] - length + 1)).astype(np.int64)
        return _slices(place, task, np.ones(task.shape, np.float32))

    # a boundary's windows lie side by side and cover every domain of the stage
    passes = [
        [np.arange(0, sizes[t] - length + 1, length - 1) + offsets[t] for t in np.flatnonzero(s)]
        for s in shares
    ]
    full = math.ceil(max(sum(map(len, p)) for p in passes) / batch)
    count = full if boundary_batches is None else min(full, boundary_batches)
    check(count >= 1, "boundary_batches", boundary_batches, "at least 1")

    def boundary(stage: int) -> Arrays:
        rng = np.random.default_rng((_BOUNDARY, seed, stage, 0))
        starts = rng.permutation(np.concatenate(passes[stage]))[: count * batch]
        index = np.arange(count * batch)
        place = starts[np.minimum(index, len(starts) - 1)]
        task = np.searchsorted(offsets, place, side="right") - 1
        rows = _slices(place, task, (index < len(starts)).astype(np.float32))
        return {k: v.reshape(count, batch) for k, v in rows.items()}

    test = [
        {"tokens": (w := windows(e, length, test_rows)), "task": np.full(len(w), i, np.int32)}
        for i, e in enumerate(exam)
    ]

    def fetch(source: Any, rows: Any) -> Batch:
        index = rows["start"][..., None] + jnp.arange(length)
        tokens = jnp.asarray(source).at[index].get(mode="promise_in_bounds")
        return {
            "tokens": tokens.astype(jnp.int32),
            "weight": jnp.asarray(rows["weight"]),
            "task": jnp.asarray(rows["task"]),
        }

    source = np.concatenate(train)
    return Stream(
        names, tasks, taken, chunk, boundary, source,
        with_bounds(fetch, {"tokens": range_of(source), "positions": (0, length - 1)}.get),
        tests, pack(test, test_batch),
    )  # fmt: skip


def _slices(place: np.ndarray, task: np.ndarray, weight: np.ndarray) -> Arrays:
    return {"start": place.astype(np.int32), "task": task.astype(np.int32), "weight": weight}
