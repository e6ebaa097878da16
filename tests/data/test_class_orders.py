"""Class orders drawn by the seed: right labels and rows, one shape, members of one function."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import numpy as np
import optax
import pytest

from jcl import data, fit, losses, make, methods, replicate
from jcl.data.class_orders import class_order, split_by_seed
from jcl.measures.evaluation import accuracy, evaluator

SIZES = (5, 9, 7, 11, 6, 8)


def rows(scale: int) -> dict[str, np.ndarray]:
    """Rows whose `x` names their class, with as many of each as no other class has."""
    y = np.repeat(np.arange(6, dtype=np.int32), [scale * n for n in SIZES])
    return {"x": np.eye(6, dtype=np.float32)[y], "y": y}


TRAIN, TEST = rows(2), rows(1)


def seen(batch: Any) -> set[tuple[int, int, int]]:
    """(class, label, task) of the rows that count."""
    real = np.asarray(batch["weight"]).ravel() > 0
    named = np.asarray(batch["x"]).reshape(-1, 6).argmax(-1)
    columns = (named, np.asarray(batch["y"]).ravel(), np.asarray(batch["task"]).ravel())
    return set(zip(*(c[real].tolist() for c in columns), strict=True))


@pytest.mark.quick
@pytest.mark.parametrize("view", ["class", "task", "domain"])
@pytest.mark.parametrize("seed", [0, 3])
def test_each_stage_and_its_test_have_the_next_classes_of_the_order(view: str, seed: int) -> None:
    drawn = split_by_seed(TRAIN, TEST, 4, 9, tasks=3, view=view)
    stream, order = drawn.stream(seed), class_order(6, seed)
    assert sorted(order.tolist()) == list(range(6)) and order.tolist() != list(range(6))
    for stage in range(3):
        wanted = {
            (int(order[2 * stage + i]), i if view == "domain" else 2 * stage + i, stage)
            for i in range(2)
        }
        slices = stream.chunk(stage, 0, 9)  # more rows than any stage has
        assert seen(stream.fetch(stream.source, slices)) == wanted
        boundary = stream.fetch(stream.source, stream.boundary(stage))
        assert seen(boundary) == wanted
        own = order[2 * stage : 2 * stage + 2]
        assert np.asarray(boundary["weight"]).sum() == sum(2 * SIZES[c] for c in own)
        exam = drawn.prepare(jax.tree.map(lambda x, s=stage: x[s], stream.test))
        assert seen(exam) == wanted
        assert np.asarray(exam["weight"]).sum() == sum(SIZES[c] for c in own)


@pytest.mark.quick
def test_joint_training_has_all_classes_in_its_one_stage() -> None:
    stream = split_by_seed(TRAIN, TEST, 4, 30, tasks=3, joint=True).stream(1)
    assert stream.tasks == (-1,)
    found = seen(stream.fetch(stream.source, stream.boundary(0)))
    assert found == {(int(c), i, i // 2) for i, c in enumerate(class_order(6, 1))}


def test_members_score_what_each_seed_scores_alone() -> None:
    drawn = split_by_seed(TRAIN, TEST, 4, 5, tasks=3)
    classes = data.split(TRAIN, TEST, 3).classes

    def program(strength: Any) -> Any:
        return make(
            methods.lwf(strength),
            lambda params, batch: batch["x"] @ params["w"],
            losses.cross_entropy(classes, "seen"),
            optax.sgd(0.5),
        )

    def scores(stream: data.Stream, made: Any, params: Any, key: Any) -> np.ndarray:
        evaluate = evaluator(stream.test, accuracy(classes, "seen"), drawn.prepare)
        return np.asarray(fit(made, params, key, stream, evaluate=evaluate).scores)

    starts = [{"w": jax.random.normal(jax.random.key(s), (6, 6))} for s in range(3)]
    keys = [jax.random.key(10 + s) for s in range(3)]
    alone = [scores(drawn.stream(s), program(1.0), starts[s], keys[s]) for s in range(3)]
    assert not np.array_equal(alone[0], alone[1])
    stream = data.members([drawn.stream(s) for s in range(3)])
    assert stream.test["row"].shape[0] == 3
    stack = partial(jax.tree.map, lambda *x: jax.numpy.stack(x))
    for how in ("map", "vmap"):
        made = replicate(program, jax.numpy.ones(3), how)
        together = scores(stream, made, stack(*starts), stack(*keys))
        np.testing.assert_allclose(together, np.stack(alone), atol=1e-6)


@pytest.mark.quick
def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="tasks is 4, but must be a divisor of 6"):
        split_by_seed(TRAIN, TEST, 4, 5, tasks=4)
    holes = {**TRAIN, "y": TRAIN["y"] * 2}
    with pytest.raises(ValueError, match=r"labels of train is \[0, 2, .*all of 0 to 10"):
        split_by_seed(holes, {**TEST, "y": TEST["y"] * 2}, 4, 5, tasks=3)
    first = split_by_seed(TRAIN, TEST, 4, 5, tasks=3).stream(0)
    longer = split_by_seed(TRAIN, TRAIN, 4, 5, tasks=3).stream(1)
    with pytest.raises(ValueError, match="stream 1 has other test than stream 0"):
        data.members([first, longer._replace(source=first.source)])
