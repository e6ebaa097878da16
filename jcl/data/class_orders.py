"""Splits whose classes are dealt to the tasks anew for each seed, still members of one function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jcl.data.arrays import Scenario, from_scenario
from jcl.data.bounds import with_bounds
from jcl.data.scenarios import joint as all_at_once
from jcl.data.scenarios import split
from jcl.data.stream import Arrays, Stream
from jcl.method import Batch, check

_ORDER = 5  # so that different uses of a seed never share their draws
_LABEL = "label_of_class"  # in a slice: int32 [C], each class's label in this seed's order


def class_order(classes: int, seed: int) -> np.ndarray:
    """A permutation int32 [classes]: the class that comes first, the second, ..."""
    return np.random.default_rng((_ORDER, seed)).permutation(classes).astype(np.int32)


class Drawn(NamedTuple):
    """What `split_by_seed` makes."""

    stream: Callable[[int], Stream]
    """`seed -> Stream`, whose tests are slices."""
    prepare: Callable[[Batch], Batch]
    """Makes a batch of a test's slice, inside the trace; `evaluator` takes it."""


def split_by_seed(
    train: Any,
    test: Any,
    batch: int,
    steps: int,
    *,
    tasks: int = 5,
    view: str = "class",
    joint: bool = False,
    test_batch: int = 512,
) -> Drawn:
    """Streams as of `split`, but for the order of the classes, which is drawn by the seed.

    A class gets its place in `class_order` as its label, so that task t has the labels t·k to
    t·k + k - 1 (with `view="domain"` 0 to k - 1) for every seed, and `split(...).classes` is every
    seed's table. So streams of several seeds share their data and one loss, and `members` joins
    them.

    Source: van de Ven's code (GMvandeVen/continual-learning, data/load.py, `get_context_set`),
    which permutes the labels once for each seed.

    Args:
      train: arrays [n, ...] with integer labels `y` [n], 0 to C - 1, and whatever else a row has.
      test: the same for testing.
      batch: B, how many rows a step takes.
      steps: how many steps every stage has, for their rows differ in number from seed to seed.
      tasks: how many tasks the classes are dealt to, a divisor of C.
      view: `class`, `task` or `domain`, see `split`.
      joint: whether one stage has the rows of all tasks, see `data.joint`.
      test_batch: how many test rows are scored at once at most.

    Raises:
      ValueError: if an argument is out of range, or the labels aren't all of 0 to C - 1.
    """
    split({"y": train["y"]}, {"y": test["y"]}, tasks, view)  # which checks the arguments
    labels, test_labels = np.asarray(train["y"]), np.asarray(test["y"])
    sizes = np.bincount(labels)
    count, each = len(sizes), len(sizes) // tasks
    found = np.unique(labels).tolist()
    check(len(found) == count, "labels of train", found, f"all of 0 to {count - 1}")
    rows = {**train, "task": np.zeros(len(labels), np.int32)}  # `fetch` fills in the tasks
    names = tuple(f"task {i}" for i in range(tasks))
    # shapes are those of the largest tasks that any seed can draw, so that all seeds have the same
    passes = -(-(len(labels) if joint else _largest(sizes, each)) // batch)
    width = _largest(np.bincount(test_labels, minlength=count), each)

    def relabel(rows: Batch, label: Any) -> Batch:
        place = jnp.take_along_axis(jnp.asarray(label), jnp.asarray(rows["y"]), axis=-1)
        own = place % each if view == "domain" else place
        return {**rows, "y": own, "task": place // each}

    def prepare(slices: Batch) -> Batch:
        index = slices["row"]
        got = {k: jnp.asarray(v).at[index].get(mode="promise_in_bounds") for k, v in test.items()}
        return relabel({**got, "weight": slices["weight"]}, slices[_LABEL])

    def stream(seed: int) -> Stream:
        label = np.empty(count, np.int32)
        label[class_order(count, seed)] = np.arange(count)

        def of_task(y: np.ndarray, task: int) -> np.ndarray:
            return np.flatnonzero(label[y] // each == task).astype(np.int32)

        def exam(task: int) -> Arrays:
            found = of_task(test_labels, task)
            short = (0, width - len(found))
            weight = np.pad(np.ones(len(found), np.float32), short)
            return {"row": np.pad(found, short, mode="edge"), "weight": weight}

        def labelled(slices: Arrays) -> Arrays:
            lead = slices["row"].shape[:-1]
            return {**slices, _LABEL: np.broadcast_to(label, (*lead, count))}

        learn = tuple(of_task(labels, t) for t in range(tasks))
        exams = tuple(map(exam, range(tasks)))
        given = Scenario(names, tuple(range(tasks)), rows, learn, names, exams)
        drawn = from_scenario(
            all_at_once(given) if joint else given,
            batch, steps=steps, seed=seed, test_batch=test_batch,
        )  # fmt: skip

        def boundary(stage: int) -> Arrays:
            slices = drawn.boundary(stage)
            short = ((0, passes - len(slices["row"])), (0, 0))
            return labelled({k: np.pad(v, short) for k, v in slices.items()})

        return drawn._replace(
            chunk=lambda stage, start, stop: labelled(drawn.chunk(stage, start, stop)),
            boundary=boundary,
            fetch=with_bounds(
                lambda source, slices: relabel(drawn.fetch(source, slices), slices[_LABEL]),
                {"y": (0, (each if view == "domain" else count) - 1), "task": (0, tasks - 1)}.get,
            ),
            test=labelled(drawn.test),
        )

    return Drawn(stream, prepare)


def _largest(sizes: np.ndarray, classes: int) -> int:
    """How many rows the largest task of so many classes can have."""
    return int(np.sort(sizes)[-classes:].sum())
