"""Streams from arrays in memory: the rows of each task, and which rows each stage draws."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jcl.data.bounds import Range, bounds_of, with_bounds
from jcl.data.stream import Arrays, Stream, pack
from jcl.method import Batch, check
from jcl.records import record

_SHUFFLE, _BOUNDARY = 0, 1  # so that different uses of a seed never share their draws


@record
class Scenario(NamedTuple):
    """Data, and which rows of it each stage sees; `from_scenario` makes it a `Stream`.

    Args:
      names: the stages' names.
      tasks: which task each stage trains on; -1 is all of them at once.
      rows: arrays [N, ...] with `task` int32 [N], where each row comes from. Other arrays may be
        shorter if their length divides N; row i then reads theirs at i modulo that length, so that
        tasks which differ by `transform` alone share one copy.
      stages: for each stage int32 [n], the rows that it draws from.
      tests: the tasks' names.
      test: the test arrays of each task.
      classes: bool [tasks, C], which classes each task has, for `losses.cross_entropy`; or None.
      times: None shuffles each stage; else for each stage numbers [n], the time at which each of
        its rows comes, in units of a task's length.
      drift: how long the transition from one time to the next takes, in the same units; within it
        the mixture shifts linearly.
      tables: arrays [tasks, ...] that `transform` reads.
      transform: `(tables, batch) -> batch`, inside the trace; or None.
    """

    names: tuple[str, ...]
    tasks: tuple[int, ...]
    rows: Arrays
    stages: tuple[np.ndarray, ...]
    tests: tuple[str, ...]
    test: tuple[Arrays, ...]
    classes: np.ndarray | None = None
    times: tuple[np.ndarray, ...] | None = None
    drift: float = 0.0
    tables: Any = ()
    transform: Callable[[Any, Batch], Batch] | None = None

    def _facts(self) -> dict[str, Any]:
        arrays = (f"{key} {x.dtype} {list(x.shape[1:])}" for key, x in self.rows.items())
        return {
            "stages": len(self.names),
            "names": self.names,
            "rows": tuple(map(len, self.stages)),
            "arrays": ", ".join(arrays),
            "tests": len(self.tests),
            "classes": None if self.classes is None else self.classes.shape[1],
        }


Reordered = TypeVar("Reordered", Stream, Scenario)


def _narrow(given: Any, key: str, name: str) -> np.ndarray:
    """The array with 64-bit numbers made 32-bit, as the device would make them.

    Raises:
      ValueError: if it holds no numbers, or integers that 32 bits can't hold.
    """
    try:
        x = np.asarray(given)
    except ValueError as error:  # lists of unequal length
        raise ValueError(f"{key} of task {name!r} can't be an array: {error}") from error
    if not jnp.issubdtype(x.dtype, jnp.number):
        if x.dtype != bool:
            hint = "; of texts as labels take np.unique(labels, return_inverse=True)"
            raise ValueError(
                f"{key} of task {name!r} is {x.dtype} {list(x.shape)}, but must be numbers"
                + (hint if key == "y" else "")
            )
        return x.astype(np.int32) if key == "y" else x
    kinds: dict[str, Any] = {"f": np.float32, "i": np.int32, "u": np.uint32}
    if x.dtype.itemsize != 8 or x.dtype.kind not in kinds:
        return x
    kind = kinds[x.dtype.kind]
    if x.dtype.kind in "iu" and x.size:
        low, high = int(x.min()), int(x.max())
        fits = np.iinfo(kind).min <= low and high <= np.iinfo(kind).max
        check(fits, f"{key} of task {name!r}", (low, high), f"within {np.dtype(kind)}")
    return x.astype(kind)


def _task(data: Any, name: str, classes: int | None) -> Arrays:
    """A task's arrays, checked: of equal length, finite, with labels in range."""
    try:
        given = dict(data)
    except (TypeError, ValueError):
        given = {}
    if not given:
        shown = "empty" if isinstance(data, Mapping) else f"a {type(data).__name__}"
        raise ValueError(f"task {name!r} is {shown}, but must be a dict of arrays such as x and y")
    arrays = {k: _narrow(v, k, name) for k, v in given.items()}
    sizes = {k: len(v) if v.ndim else -1 for k, v in arrays.items()}
    if len(set(sizes.values())) > 1 or -1 in sizes.values():
        raise ValueError(
            f"the arrays of task {name!r} have {sizes} rows, but must all have the same number"
        )
    rows = next(iter(sizes.values()))
    if rows == 0:
        raise ValueError(f"task {name!r} has 0 rows, but must have at least 1")
    for key, value in arrays.items():
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            bad = ~np.isfinite(value).reshape(rows, -1).all(axis=1)
            raise ValueError(
                f"{key} of task {name!r} is NaN or infinite in {int(bad.sum())} of its rows, first "
                f"in row {int(bad.argmax())}, but must be finite"
            )
    labels = arrays.get("y")
    if labels is not None and labels.dtype.kind in "iu":
        top = "" if classes is None else f" and below {classes}, the number of classes"
        if labels.min() < 0 or (classes is not None and labels.max() >= classes):
            raise ValueError(
                f"y of task {name!r} goes from {labels.min()} to {labels.max()}, but labels must "
                f"be at least 0{top}"
            )
    return arrays


def scenario(
    train: Sequence[Any],
    test: Sequence[Any],
    names: Sequence[str] | None = None,
    classes: np.ndarray | None = None,
) -> Scenario:
    """A scenario of one stage for each task, from arrays.

    Args:
      train: for each task a dict of arrays [n, ...], such as `x` and integer labels `y`; n may
        differ. 64-bit numbers become 32-bit.
      test: the same for testing, one dict for each task of `train`.
      names: the tasks' names; `task 0`, ... by default.
      classes: bool [tasks, C], see `Scenario`.

    Raises:
      ValueError: if a task is empty, has NaN or labels out of range, or the tasks don't match.
    """
    names = tuple(names) if names is not None else tuple(f"task {i}" for i in range(len(train)))
    check(len(train) >= 1, "number of tasks", len(train), "at least 1")
    check(len(test) == len(train), "number of test sets", len(test), f"{len(train)}, one a task")
    check(len(names) == len(train), "number of names", len(names), f"{len(train)}, one a task")
    count = None if classes is None else np.asarray(classes).shape[1]
    learn = [_task(d, n, count) for d, n in zip(train, names, strict=True)]
    exam = [_task(d, f"{n} (test)", count) for d, n in zip(test, names, strict=True)]
    for name, arrays in zip(names + names, learn + exam, strict=True):
        if sorted(arrays) != sorted(learn[0]):
            raise ValueError(
                f"task {name!r} has arrays {sorted(arrays)}, but must have {sorted(learn[0])}, "
                f"as task {names[0]!r} has"
            )
    sizes = [len(next(iter(d.values()))) for d in learn]
    rows = {k: np.concatenate([d[k] for d in learn]) for k in learn[0]}
    rows.setdefault("task", np.repeat(np.arange(len(learn)), sizes).astype(np.int32))
    for i, arrays in enumerate(exam):
        arrays.setdefault("task", np.full(len(next(iter(arrays.values()))), i, np.int32))
    ends = np.cumsum([0, *sizes])
    stages = tuple(np.arange(a, b, dtype=np.int32) for a, b in pairwise(ends))
    tasks = tuple(range(len(learn)))
    return Scenario(names, tasks, rows, stages, names, tuple(exam), classes)


def from_arrays(
    train: Sequence[Any],
    test: Sequence[Any],
    batch: int,
    *,
    epochs: int | None = None,
    steps: int | None = None,
    seed: int = 0,
    names: Sequence[str] | None = None,
    boundary_batches: int | None = None,
    test_batch: int = 512,
) -> Stream:
    """A stream of one stage for each task, from arrays.

    It is `from_scenario(scenario(train, test, names), ...)`; see both for the arguments.

    >>> task = {"x": np.zeros((10, 3)), "y": np.arange(10) % 2}
    >>> stream = from_arrays([task, task], [task, task], batch=4, epochs=1)
    >>> stream.steps
    (3, 3)
    >>> stream.chunk(1, 2, 3)["weight"]  # two rows were left for the third batch
    array([[1., 1., 0., 0.]], dtype=float32)
    """
    return from_scenario(
        scenario(train, test, names), batch, epochs=epochs, steps=steps, seed=seed,
        boundary_batches=boundary_batches, test_batch=test_batch,
    )  # fmt: skip


def from_scenario(
    given: Scenario,
    batch: int,
    *,
    epochs: int | None = None,
    steps: int | None = None,
    seed: int = 0,
    boundary_batches: int | None = None,
    test_batch: int = 512,
) -> Stream:
    """A stream of batches over a scenario's rows, drawn without replacement.

    A stage's epochs, each shuffled anew, are laid end to end and cut into batches. All batches are
    full but a stage's last, which is filled up with rows of weight 0. A call of `chunk` needs
    memory for its slices and one permutation of the stage's row numbers. A batch has the gathered
    `rows`, `weight` float32 [B] and `task` int32 [B].

    Args:
      given: from `scenario`, or from `jcl.data.split` and the other scenarios.
      batch: B, how many rows a step takes.
      epochs: how often each stage passes over its rows; give this or `steps`.
      steps: how many steps every stage has, however many rows it has.
      seed: seeds the order of the rows.
      boundary_batches: how many batches a boundary has at most; None is a full pass.
      test_batch: how many test rows are scored at once at most.

    Raises:
      ValueError: if an argument is out of range, or `batch` is larger than a stage.
    """
    check(batch >= 1, "batch", batch, "at least 1")
    check(
        (epochs is None) != (steps is None), "epochs and steps", (epochs, steps), "one of the two"
    )
    check(epochs is None or epochs >= 1, "epochs", epochs, "at least 1")
    check(steps is None or steps >= 1, "steps", steps, "at least 1")
    check(0 <= seed < 2**32, "seed", seed, "from 0 to 2**32 - 1")
    for name, stage in zip(given.names, given.stages, strict=True):
        check(len(stage) >= 1, f"number of rows of stage {name!r}", len(stage), "at least 1")
        check(batch <= len(stage), "batch", batch, f"at most {len(stage)}, the rows of {name!r}")
    sizes = [len(s) for s in given.stages]
    drawn = [epochs * n if epochs is not None else (steps or 0) * batch for n in sizes]
    taken = tuple(math.ceil(n / batch) for n in drawn)
    times = given.times

    @lru_cache(maxsize=2)  # chunks of one epoch share its permutation
    def order(stage: int, epoch: int) -> np.ndarray:
        rng = np.random.default_rng((_SHUFFLE, seed, stage, epoch))
        rows = given.stages[stage]
        if times is None:
            return rows[rng.permutation(len(rows))]
        # a row's time is spread uniformly over a task's length and over the transition's; the sum
        # of two uniforms has a trapezoid as density, so that mixtures shift linearly
        passes = math.ceil(drawn[stage] / len(rows))
        rows, time = np.tile(rows, passes), np.tile(times[stage], passes)
        spread = rng.uniform(-0.5, 0.5, (2, len(rows)))
        when = np.argsort(time + spread[0] + given.drift * spread[1])
        return rows[when[np.arange(drawn[stage]) * len(rows) // drawn[stage]]]

    def positions(stage: int, start: int, stop: int) -> np.ndarray:
        per = sizes[stage] if times is None else drawn[stage]
        parts = [
            order(stage, e)[max(start - e * per, 0) : stop - e * per]
            for e in range(start // per, -(-stop // per))
        ]
        return np.concatenate(parts) if parts else np.zeros(0, np.int32)

    def batches(rows: np.ndarray, count: int) -> Arrays:
        """Row numbers [n] as slices [count, batch]; the last row fills up, with weight 0."""
        index = np.arange(count * batch)
        padded = rows[np.minimum(index, len(rows) - 1)].astype(np.int32)
        weight = (index < len(rows)).astype(np.float32)
        return {"row": padded.reshape(count, batch), "weight": weight.reshape(count, batch)}

    def chunk(stage: int, start: int, stop: int) -> Arrays:
        if not 0 <= start < stop <= taken[stage]:
            raise ValueError(
                f"steps {start} to {stop} are asked for, but stage {stage} has {taken[stage]}"
            )
        rows = positions(stage, start * batch, min(stop * batch, drawn[stage]))
        return batches(rows, stop - start)

    full = math.ceil(max(sizes) / batch)
    count = full if boundary_batches is None else min(full, boundary_batches)
    check(count >= 1, "boundary_batches", boundary_batches, "at least 1")

    def boundary(stage: int) -> Arrays:
        rng = np.random.default_rng((_BOUNDARY, seed, stage, 0))
        return batches(rng.permutation(given.stages[stage])[: count * batch], count)

    transform = given.transform

    def fetch(source: Any, rows: Any) -> Batch:
        index = rows["row"]
        count = len(source["rows"]["task"])
        got = {}
        for key, array in source["rows"].items():
            own = index if len(array) == count else index % len(array)
            got[key] = jnp.asarray(array).at[own].get(mode="promise_in_bounds")
        got["weight"] = rows["weight"] * got.get("weight", jnp.float32(1))
        return got if transform is None else transform(source["tables"], got)

    return Stream(
        given.names, given.tasks, taken, chunk, boundary,
        {"rows": given.rows, "tables": given.tables},
        with_bounds(fetch, bounds_of(_untouched(given))), given.tests, pack(given.test, test_batch),
    )  # fmt: skip


def _untouched(given: Scenario) -> Arrays:
    """The arrays that a scenario's transformation leaves as they are."""
    kept: list[str] = []

    def look(tables: Any, batch: Batch) -> Any:
        changed = given.transform(tables, batch) if given.transform else batch
        kept.extend(k for k, x in batch.items() if changed.get(k) is x)
        return changed

    row = {k: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype) for k, x in given.rows.items()}
    jax.eval_shape(look, given.tables, {**row, "weight": jax.ShapeDtypeStruct((1,), np.float32)})
    return {k: given.rows[k] for k in kept if k in given.rows}


def reorder(given: Reordered, order: Sequence[int]) -> Reordered:
    """The same stages in another order.

    A scenario is as if its stages had been given in this order. A stream's stages keep what they
    draw: the rows and the steps of each are those that it had at its old place, so that orders
    differ in nothing else.

    Tasks are numbered anew by their first appearance, in batches, tests and columns, so that task t
    is the t-th to arrive. A table of classes beside a stream must be reordered by
    `classes[order]` too; a scenario's own is.

    Args:
      given: a `Stream` or a `Scenario`.
      order: a permutation of the stages.

    Raises:
      ValueError: if it isn't a permutation.
    """
    order = tuple(int(i) for i in order)
    wanted = f"a permutation of 0 to {len(given.names) - 1}"
    check(sorted(order) == list(range(len(given.names))), "order", order, wanted)
    moved: list[int] = [given.tasks[i] for i in order]
    old = list(dict.fromkeys([*(t for t in moved if t >= 0), *range(len(given.tests))]))
    new = np.argsort(old).astype(np.int32)  # new[old task] = its new number
    names = tuple(given.names[i] for i in order)
    tasks = tuple(int(new[t]) if t >= 0 else t for t in moved)
    tests = tuple(given.tests[t] for t in old)
    if isinstance(given, Scenario):
        return given._replace(
            names=names, tasks=tasks, tests=tests,
            rows={**given.rows, "task": new[given.rows["task"]]},
            stages=tuple(given.stages[i] for i in order),
            test=tuple({**given.test[t], "task": new[given.test[t]["task"]]} for t in old),
            classes=None if given.classes is None else given.classes[old],
            tables=jax.tree.map(lambda x: x[np.asarray(old)], given.tables),
        )  # fmt: skip

    def fetch(source: Any, rows: Any) -> Batch:
        got = given.fetch(source, rows)
        return {**got, "task": jnp.asarray(new)[got["task"]]}

    def bounds(column: str) -> Range | None:
        if column == "task":
            return 0, max(tasks) if min(tasks) >= 0 else len(tests) - 1
        return given.fetch.bounds(column) if hasattr(given.fetch, "bounds") else None

    axis = int(bool(given.test) and np.ndim(given.test["weight"]) == 4)  # after members, if any
    test = jax.tree.map(lambda x: np.take(x, old, axis), given.test)
    return given._replace(
        names=names, tasks=tasks, tests=tests, fetch=with_bounds(fetch, bounds),
        steps=tuple(given.steps[i] for i in order),
        chunk=lambda stage, start, stop: given.chunk(order[stage], start, stop),
        boundary=lambda stage: given.boundary(order[stage]),
        test={**test, "task": new[test["task"]]} if test else test,
    )  # fmt: skip
