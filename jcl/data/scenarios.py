"""Scenarios: ways in which data becomes a sequence of stages.

The first group of functions makes a `Scenario` of one data set; the second changes when a
scenario's rows come. `from_scenario` then draws batches. They compose:
`gradual(recurring(split(...), 3))`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jcl.data.arrays import Scenario, scenario
from jcl.data.stream import Arrays
from jcl.method import Batch, check

# scenarios of one data set, divided or transformed into several tasks


def _labels(data: Any, name: str) -> np.ndarray:
    check("y" in data, f"keys of {name}", sorted(data), "a dict with labels y")
    y = np.asarray(data["y"])
    check(y.ndim == 1 and y.dtype.kind in "iu", f"y of {name}", y.dtype, "integers [n]")
    check(len(y) >= 1, f"number of rows of {name}", len(y), "at least 1")
    check(y.min() >= 0, f"smallest label of {name}", int(y.min()), "at least 0")
    return y


def _groups(labels: np.ndarray, tasks: int | Sequence[Sequence[int]]) -> list[list[int]]:
    found = [int(c) for c in np.unique(labels)]
    check(len(found) >= 2, "number of classes in train", len(found), "at least 2")
    if isinstance(tasks, int):
        divides = tasks >= 1 and len(found) % tasks == 0
        wanted = f"a divisor of {len(found)}, the number of classes, or lists of classes"
        check(divides, "tasks", tasks, wanted)
        return np.array(found).reshape(tasks, -1).tolist()
    groups = [[int(c) for c in g] for g in tasks]
    used = [c for g in groups for c in g]
    check(len(set(used)) == len(used), "tasks", groups, "lists of classes that share none")
    for c in used:
        check(c in found, "class", c, f"one of {found}, the labels in train")
    check(bool(groups) and all(groups), "tasks", groups, "lists of at least 1 class")
    return groups


def split(
    train: Any, test: Any, tasks: int | Sequence[Sequence[int]] = 5, view: str = "class"
) -> Scenario:
    """Each task has classes of its own, as in Split-MNIST.

    Args:
      train: arrays [n, ...] with integer labels `y` [n] and whatever else a row has.
      test: the same for testing.
      tasks: how many tasks, which get classes in ascending order; or each task's list of classes.
      view: what the model must tell (van de Ven & Tolias, arXiv 1904.07734). `class`: which of all
        classes it is; `task`: which of the task's, so train and score with `mask="task"`; `domain`:
        the place of the class in its task's list, `y` in 0 .. k - 1, with one head for all tasks.

    Raises:
      ValueError: if there is only one class, labels are out of range, or `tasks` doesn't fit them.

    >>> data = {"x": np.zeros((8, 2)), "y": np.array([0, 1, 2, 3, 0, 1, 2, 3])}
    >>> split(data, data, tasks=2).classes.astype(int)
    array([[1, 1, 0, 0],
           [0, 0, 1, 1]])
    >>> split(data, data, tasks=2, view="domain").rows["y"]
    array([0, 1, 0, 1, 0, 1, 0, 1], dtype=int32)
    """
    check(view in ("class", "task", "domain"), "view", view, "'class', 'task' or 'domain'")
    y, test_y = _labels(train, "train"), _labels(test, "test")
    groups = _groups(y, tasks)
    unknown = sorted({int(c) for c in np.unique(test_y)} - {int(c) for c in np.unique(y)})
    check(not unknown, "labels of test", unknown, f"among those of train, {np.unique(y).tolist()}")
    sizes = {len(g) for g in groups}
    if view == "domain":
        check(len(sizes) == 1, "classes a task", sorted(sizes), "equally many for view='domain'")
    if view != "class":
        check(min(sizes) >= 2, "classes a task", min(sizes), f"at least 2 for view={view!r}")
    width = len(groups[0]) if view == "domain" else max(max(g) for g in groups) + 1
    table = np.zeros((len(groups), width), bool)
    for row, group in zip(table, groups, strict=True):
        row[np.arange(width) if view == "domain" else group] = True

    def part(data: Any, labels: np.ndarray, group: list[int]) -> Arrays:
        keep = np.isin(labels, group)
        out = {k: np.asarray(v)[keep] for k, v in data.items()}
        if view == "domain":
            place = np.zeros(max(group) + 1, np.int32)
            place[group] = np.arange(len(group))
            out["y"] = place[out["y"]]
        return out

    return scenario(
        [part(train, y, g) for g in groups],
        [part(test, test_y, g) for g in groups],
        ["/".join(map(str, g)) for g in groups],
        table,
    )


def by_domain(train: Any, test: Any, key: str = "domain") -> Scenario:
    """One task for each value of the integer array `key`, in ascending order.

    Args:
      train: arrays [n, ...], of which `key` [n] gives the domain; a row keeps the others.
      test: the same for testing, with the same values of `key`.
      key: the name of the array that gives the domain.

    Raises:
      ValueError: if the key is missing or a domain has no test rows.
    """
    for name, data in (("train", train), ("test", test)):
        check(key in data, f"keys of {name}", sorted(data), f"to have {key!r} among them")
    values = np.unique(np.asarray(train[key]))

    def part(data: Any, value: Any) -> Arrays:
        keep = np.asarray(data[key]) == value
        return {k: np.asarray(v)[keep] for k, v in data.items() if k != key}

    return scenario(
        [part(train, v) for v in values], [part(test, v) for v in values], [f"{v}" for v in values]
    )


def _resample(tables: Any, batch: Batch) -> Batch:
    """x[i] ← Σ_k weight[i, k] · x[source[i, k]], with the tables [D, K] of each row's task."""
    x, task = batch["x"], batch["task"]
    source = jnp.asarray(tables["source"])[task]  # [B, D, K]
    flat, index = x.reshape(*task.shape, -1), source.reshape(*task.shape, -1)
    taken = jnp.take_along_axis(flat, index, axis=-1, mode="promise_in_bounds")
    taken = taken.reshape(source.shape)
    if "weight" in tables:
        taken = taken * jnp.asarray(tables["weight"])[task]
    total = jnp.sum(taken, axis=-1).reshape(x.shape)
    if jnp.issubdtype(x.dtype, jnp.integer):  # a cast alone would cut fractions off
        total = jnp.round(total)
    return {**batch, "x": total.astype(x.dtype)}


def _resampled(train: Any, test: Any, tables: Any, names: Sequence[str]) -> Scenario:
    """A scenario whose tasks share their rows and differ in the tables; tests are made here."""
    one = scenario([train], [test])
    count, size = len(names), len(one.rows["task"])
    task = np.repeat(np.arange(count, dtype=np.int32), size)
    exam = []
    for i in range(count):
        own = {**one.test[0], "task": np.full_like(one.test[0]["task"], i)}
        x = np.asarray(own["x"])
        taken = x.reshape(len(x), -1)[:, tables["source"][i]]
        if "weight" in tables:
            taken = taken * tables["weight"][i]
        total = taken.sum(-1).reshape(x.shape)
        total = np.round(total) if x.dtype.kind in "iu" else total
        exam.append({**own, "x": total.astype(x.dtype)})
    stages = tuple(np.arange(i * size, (i + 1) * size, dtype=np.int32) for i in range(count))
    rows = {**one.rows, "task": task}
    return Scenario(
        tuple(names), tuple(range(count)), rows, stages, tuple(names), tuple(exam),
        tables=tables, transform=_resample,
    )  # fmt: skip


def permuted(train: Any, test: Any, tasks: int = 10, seed: int = 0) -> Scenario:
    """Each task permutes the features of `x` in its own way; the first leaves them as they are.

    All tasks share one copy of the data, permuted as it is fetched, so hundreds of tasks fit.

    Args:
      train: arrays `x` [n, ...] and whatever else a row has.
      test: the same for testing.
      tasks: how many tasks there are.
      seed: seeds the permutations.

    Raises:
      ValueError: if the data is empty or not finite, or `tasks` is below 1.
    """
    check(tasks >= 1, "tasks", tasks, "at least 1")
    check("x" in train, "keys of train", sorted(train), "a dict with x")
    features = int(np.prod(np.shape(train["x"])[1:]))
    rng = np.random.default_rng((5, seed))
    order = [np.arange(features), *(rng.permutation(features) for _ in range(tasks - 1))]
    source = np.stack(order)[..., None].astype(np.int32)
    return _resampled(train, test, {"source": source}, [f"permutation {i}" for i in range(tasks)])


def rotation(size: int, degrees: float) -> tuple[np.ndarray, np.ndarray]:
    """Bilinear rotation of a square image about its centre, counter-clockwise, zeros around it.

    Args:
      size: how many pixels a side has.
      degrees: the angle.

    Returns:
      `(source, weight)`, int32 and float32 [size², 4]: pixel i is Σ_k weight[i, k] ·
      x[source[i, k]].
    """
    angle = np.deg2rad(degrees)
    centre = (size - 1) / 2
    row, column = np.divmod(np.arange(size * size), size)
    down, right = row - centre, column - centre
    # the place that each pixel comes from; rows count downwards
    from_row = np.cos(angle) * down + np.sin(angle) * right + centre
    from_column = -np.sin(angle) * down + np.cos(angle) * right + centre
    # rounded so that multiples of 90 degrees land exactly on pixels
    from_row, from_column = np.round(from_row, 9), np.round(from_column, 9)
    top, left = np.floor(from_row).astype(int), np.floor(from_column).astype(int)
    source, weight = [], []
    for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
        r, c = top + i, left + j
        inside = (r >= 0) & (r < size) & (c >= 0) & (c < size)
        share = (1 - np.abs(from_row - r)) * (1 - np.abs(from_column - c))
        source.append(np.where(inside, r * size + c, 0))
        weight.append(np.where(inside, share, 0))
    return np.stack(source, -1).astype(np.int32), np.stack(weight, -1).astype(np.float32)


def rotated(train: Any, test: Any, angles: Sequence[float] = (0, 45, 90, 135, 180)) -> Scenario:
    """Each task turns the images by an angle of its own, in degrees.

    All tasks share one copy of the data, turned as it is fetched.

    Args:
      train: arrays with square grey images `x` [n, H·H], [n, H, H] or [n, H, H, 1].
      test: the same for testing.
      angles: the angle of each task.

    Raises:
      ValueError: if images aren't square or the data is empty or not finite.
    """
    check(len(angles) >= 1, "number of angles", len(angles), "at least 1")
    check("x" in train, "keys of train", sorted(train), "a dict with x")
    pixels = int(np.prod(np.shape(train["x"])[1:]))
    size = round(pixels**0.5)
    check(size * size == pixels, "pixels of x", pixels, "a square number")
    source, weight = zip(*(rotation(size, a) for a in angles), strict=True)
    tables = {"source": np.stack(source), "weight": np.stack(weight)}
    return _resampled(train, test, tables, [f"{a:g}°" for a in angles])


# scenarios of a scenario, whose rows come at other times


def blurry(given: Scenario, share: float = 0.1, seed: int = 0) -> Scenario:
    """Blurs the boundaries: a share of each stage's rows is dealt out evenly to the other stages.

    Every row still comes in exactly one stage, and keeps its `task`.

    Args:
      given: a scenario.
      share: the share of its rows that a stage gives away; 0 changes nothing, and (T - 1) / T makes
        T stages alike.
      seed: seeds the choice of rows.

    Source: the Blurry-M split of Bang et al., arXiv 2103.17230.

    Raises:
      ValueError: if `share` is not from 0 to 1, or there is only one stage.
    """
    check(0 <= share <= 1, "share", share, "from 0 to 1")
    count = len(given.stages)
    check(count >= 2, "number of stages", count, "at least 2")
    rng = np.random.default_rng((6, seed))
    stages: list[list[np.ndarray]] = [[] for _ in range(count)]
    for i, rows in enumerate(given.stages):
        rows = rng.permutation(rows)
        away = round(share * len(rows))
        stages[i].append(rows[away:])
        others = [j for j in range(count) if j != i]
        # the starting stage rotates, so that no stage always gets the larger parts
        for j, part in enumerate(np.array_split(rows[:away], count - 1)):
            stages[others[(i + j) % (count - 1)]].append(part)
    return given._replace(stages=tuple(np.concatenate(s) for s in stages))


def recurring(given: Scenario, cycles: int = 2) -> Scenario:
    """Repeats the whole sequence of stages.

    Args:
      given: a scenario.
      cycles: how often the sequence comes, at least once.

    Raises:
      ValueError: if `cycles` is below 1.
    """
    check(cycles >= 1, "cycles", cycles, "at least 1")
    names = tuple(f"{n} ({c + 1})" for c in range(cycles) for n in given.names)
    return given._replace(names=names, tasks=given.tasks * cycles, stages=given.stages * cycles)


def gradual(given: Scenario, width: float = 1.0) -> Scenario:
    """Makes all stages one without boundaries, in which the mixture of tasks shifts linearly.

    A method that waits for a finished stage does nothing here; `er(start=0)` replays at once.

    Args:
      given: a scenario.
      width: how long the transition from one task to the next takes, as a share of a task's time.
        At 0 tasks follow one another abruptly, at 1 the mixture shifts all the time. Within a
        transition the share of the next task grows linearly from 0 to 1, if tasks have equally
        many rows.

    Raises:
      ValueError: if `width` is not from 0 to 1.
    """
    check(0 <= width <= 1, "width", width, "from 0 to 1")
    rows = np.concatenate(given.stages)
    times = np.repeat(np.arange(len(given.stages)), [len(s) for s in given.stages])
    return given._replace(
        names=("drift",), tasks=(-1,), stages=(rows,), times=(times,), drift=float(width)
    )


def online(given: Scenario) -> Scenario:
    """Makes all stages one without boundaries, in which the tasks follow one another abruptly.

    Use `epochs=1` for one pass. Only the data itself shows where a task begins: see `jcl.drift`.
    A method that waits for a finished stage does nothing here; `er(start=0)` replays at once.
    """
    return gradual(given, 0.0)._replace(names=("online",))


def joint(given: Scenario, cumulative: bool = False) -> Scenario:
    """Trains on all data at once, the reference for continual learning.

    Args:
      given: a scenario.
      cumulative: whether the stages stay, each with the rows of all stages up to it, in place of
        one stage with all rows.
    """
    if not cumulative:
        rows = np.concatenate(given.stages)
        return given._replace(names=("joint",), tasks=(-1,), stages=(rows,))
    stages = tuple(np.concatenate(given.stages[: i + 1]) for i in range(len(given.stages)))
    return given._replace(stages=stages)


def hold_out(given: Scenario, share: float = 0.1, seed: int = 0) -> tuple[Scenario, Scenario]:
    """Takes a share of each task's training rows away, to choose hyper-parameters by them.

    Args:
      given: a scenario.
      share: of each task's rows, rounded, at least one.
      seed: seeds the choice of rows.

    Returns:
      The scenario without these rows, and the same with them as tests in place of its own.

    Raises:
      ValueError: if `share` isn't above 0 and below 1, or a stage has no row left.

    >>> data = {"x": np.zeros((40, 2)), "y": np.arange(40) % 4}
    >>> train, validate = hold_out(split(data, data, tasks=2), 0.2)
    >>> [len(rows) for rows in train.stages], [len(rows["y"]) for rows in validate.test]
    ([16, 16], [4, 4])
    """
    check(0 < share < 1, "share", share, "above 0 and below 1")
    rng = np.random.default_rng((7, seed))
    used = np.unique(np.concatenate(given.stages))
    held = []
    for task in range(len(given.tests)):
        rows = rng.permutation(used[given.rows["task"][used] == task])
        held.append(np.sort(rows[: max(1, round(share * len(rows)))]))
    stays = [~np.isin(rows, np.concatenate(held)) for rows in given.stages]
    for name, keep in zip(given.names, stays, strict=True):
        check(bool(keep.any()), f"rows that are left of stage {name!r}", 0, "at least 1")
    stages = tuple(rows[keep] for rows, keep in zip(given.stages, stays, strict=True))
    times = given.times and tuple(t[keep] for t, keep in zip(given.times, stays, strict=True))
    train = given._replace(stages=stages, times=times)
    return train, train._replace(test=tuple(_fetched(given, rows) for rows in held))


def _fetched(given: Scenario, rows: np.ndarray) -> Arrays:
    """The rows of these numbers as a batch would have them."""
    got = {key: x[rows % len(x)] for key, x in given.rows.items()}
    made = got if given.transform is None else given.transform(given.tables, got)
    return {key: np.asarray(x) for key, x in made.items()}
