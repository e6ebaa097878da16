"""Streams: sequences of stages whose every draw is a pure function of (seed, stage, step).

A stream hands out small slices, such as row numbers; the data itself stays on the device, and
`fetch` gathers a batch inside the compiled step.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jcl.data.bounds import bounds_of, with_bounds
from jcl.method import Batch, check
from jcl.records import record

Arrays = dict[str, np.ndarray]
"""Numpy arrays with a leading example axis: `x`, `y`, ..., and `task` [N] int32."""


@record
class Stream(NamedTuple):
    """A sequence of stages. Draws depend on (seed, stage, step) alone, so a run resumes exactly.

    Args:
      names: the stages' names.
      tasks: which task each stage trains on; recurring streams repeat some, -1 is all at once.
      steps: how many steps each stage has.
      chunk: `(stage, start, stop)` -> numpy leaves [stop - start, ...], one slice for each step. It
        may also take `rows`, a slice of every step's rows, so that with several processes each
        reads only its own.
      boundary: `(stage)` -> numpy leaves [n, ...], the slices that `consolidate` gets: one pass
        over the stage's data, with the same n for all stages (padding has weight 0). It may also
        take `rows`.
      source: pytree of arrays that stay on the device, such as the datasets; or ().
      fetch: `(source, slice) -> batch`, inside the trace: gathers `{"x", "y", ..., "weight",
        "task"}`. It may say what integers it gathers (see `jcl.data.bounds`).
      tests: names of the test tasks, the columns of the score matrix.
      test: numpy leaves [tasks, n, B, ...]; rows of weight 0 are padding. With members whose tests
        differ, as those of `split_by_seed` do, they are [members, tasks, n, B, ...].
      members: None, or the leading axis that chunk's and boundary's leaves have (see `members`).
    """

    names: tuple[str, ...]
    tasks: tuple[int, ...]
    steps: tuple[int, ...]
    chunk: Callable[[int, int, int], Any]
    boundary: Callable[[int], Any]
    source: Any
    fetch: Callable[[Any, Any], Batch]
    tests: tuple[str, ...]
    test: Any
    members: int | None = None

    def _facts(self) -> dict[str, Any]:
        size = sum(x.nbytes for x in jax.tree.leaves(self.source))
        return {
            "stages": len(self.names),
            "names": self.names,
            "steps": sum(self.steps),
            "tests": len(self.tests),
            "megabytes": round(size / 1e6, 1),
            "members": self.members,
        }


def takes_rows(read: Callable[..., Any]) -> bool:
    """Whether a stream's `chunk` or `boundary` can read only some rows of each step."""
    return "rows" in inspect.signature(read).parameters


def pack(tests: Sequence[Arrays], limit: int = 512) -> Arrays:
    """Test sets as leaves [tasks, n, B, ...], in which rows of `weight` 0 are padding.

    Args:
      tests: for each task a dict of arrays [rows, ...]; the number of rows may differ.
      limit: the largest B; B is chosen so that little is padding.

    Raises:
      ValueError: if `limit` is below 1.
    """
    check(limit >= 1, "test_batch", limit, "at least 1")
    sizes = [len(next(iter(t.values()))) for t in tests]
    count = math.ceil(max(sizes) / limit)
    width = math.ceil(max(sizes) / count)
    index = np.arange(count * width)

    def lay(x: np.ndarray, n: int) -> np.ndarray:
        # padded with a real row, for zeros could become NaN in a model that normalises
        return x[np.minimum(index, n - 1)].reshape(count, width, *x.shape[1:])

    out = {k: np.stack([lay(t[k], n) for t, n in zip(tests, sizes, strict=True)]) for k in tests[0]}
    real = np.stack([(index < n).astype(np.float32).reshape(count, width) for n in sizes])
    out["weight"] = real * out.get("weight", np.float32(1))
    return out


def stack(stream: Stream) -> Any:
    """A whole stream of equally long stages, leaves [stages, steps, ...], for `jcl.run`.

    A stream with members gives [members, stages, steps, ...]. The slices are small; `run` gets the
    data itself by `fetch=partial(stream.fetch, stream.source)`.

    Raises:
      ValueError: if the stages' steps differ.
    """
    if len(set(stream.steps)) > 1:
        raise ValueError(
            f"steps is {stream.steps}, but must be equal over stages to be scanned; "
            "give steps= instead of epochs=, or use jcl.fit"
        )
    parts = [stream.chunk(i, 0, n) for i, n in enumerate(stream.steps)]
    axis = 0 if stream.members is None else 1
    return jax.tree.map(lambda *x: np.stack(x, axis), *parts)


def from_leaves(leaves: Any) -> Stream:
    """A stream of leaves [stages, steps, B, ...] that hold the batches themselves, as `run` takes.

    A boundary gets all of its stage's batches; there are no test sets.

    Raises:
      ValueError: if they are no dict of arrays, or the arrays differ in stages, steps or rows.
    """
    wanted = "a jcl.data.Stream, or a dict of arrays [stages, steps, rows, ...]"
    if not isinstance(leaves, dict) or not jax.tree.leaves(leaves):
        kind = type(leaves).__name__
        hint = "; from_scenario makes one" if kind == "Scenario" else ""
        if not hint and hasattr(leaves, "__iter__"):
            hint = "; from_arrays makes one of each task's rows"
        raise ValueError(f"stream is a {kind}, but must be {wanted}{hint}")
    host = jax.tree.map(np.asarray, leaves)
    shapes = {key: np.shape(x)[:3] for key, x in jax.tree_util.tree_leaves_with_path(host)}
    first = next(iter(shapes.values()))
    for path, shape in shapes.items():
        name = jax.tree_util.keystr(path)
        check(len(shape) == 3, f"shape of stream{name}", shape, "[stages, steps, rows, ...]")
        check(shape == first, f"stages, steps and rows of stream{name}", shape,
              f"{first}, as another's")  # fmt: skip
    stages, steps = first[:2]
    names = tuple(f"task {i}" for i in range(stages))
    return Stream(
        names, tuple(range(stages)), (steps,) * stages,
        lambda stage, start, stop: jax.tree.map(lambda x: x[stage, start:stop], host),
        lambda stage: jax.tree.map(lambda x: x[stage], host),
        (), with_bounds(lambda source, batch: batch, bounds_of(host)), names, (),
    )  # fmt: skip


def members(streams: Sequence[Stream]) -> Stream:
    """One stream for many members, whose `chunk` and `boundary` have a leading [members] axis.

    Args:
      streams: streams that differ only in their seed, over the same data and stages. If their tests
        differ, in values but not in shape, `test` has a leading [members] axis too.

    Raises:
      ValueError: if they differ in more than that.
    """
    check(len(streams) >= 1, "number of streams", len(streams), "at least 1")
    first = streams[0]

    def same(a: Any, b: Any) -> bool:
        left, right = (jax.tree.flatten_with_path(t)[0] for t in (a, b))
        return [p for p, _ in left] == [p for p, _ in right] and all(
            x is y or np.array_equal(x, y) for (_, x), (_, y) in zip(left, right, strict=True)
        )

    def shapes(tree: Any) -> Any:
        return jax.tree.map(lambda x: np.array(np.shape(x)), tree)

    for i, other in enumerate(streams[1:], 1):
        for field in ("names", "tasks", "steps", "tests", "members", "source", "test"):
            a, b = getattr(first, field), getattr(other, field)
            if not (same(*map(shapes, (a, b))) if field == "test" else same(a, b)):
                raise ValueError(
                    f"stream {i} has other {field} than stream 0, but members must differ in "
                    "their seed only"
                )

    def join(parts: list[Any]) -> Any:
        return jax.tree.map(lambda *x: np.stack(x), *parts)

    alike = all(same(first.test, other.test) for other in streams[1:])
    return first._replace(
        test=first.test if alike else join([s.test for s in streams]),
        chunk=lambda stage, start, stop: join([s.chunk(stage, start, stop) for s in streams]),
        boundary=lambda stage: join([s.boundary(stage) for s in streams]),
        members=len(streams),
    )
