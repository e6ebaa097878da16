"""States in and out of folders, and scores item by item."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_life import SMALL, month

from jcl import losses, trees
from jcl.data.stream import pack
from jcl.measures.evaluation import evaluator, token_nll
from jcl.runs.life.settings import Settings
from jcl.runs.life.tasks import stage_of
from jcl.runs.life.work import Work, example, load_model, mean_of, shapes_of, zeros_of


def work(stored: Path, method: str) -> Work:
    given = Settings(str(stored), "text", method, SMALL["lr"], SMALL["length"], batch=4)
    return Work(given, load_model(given), method, ())


def test_what_does_not_learn_is_not_written(stored: Path, tmp_path: Path) -> None:
    made = work(stored, "lora(rank=2) + er(capacity=4, rows=2)")
    batch = example(made.task, month("jan", 4), 4)
    assert zeros_of(shapes_of(batch))["tokens"].shape == batch["tokens"].shape
    state = made.first(batch)
    moved = state._replace(params=jax.tree.map(lambda x: x + 1, state.params))
    made.save(tmp_path, moved)
    again, whole = made.load(tmp_path, batch)
    assert whole
    base, back = trees.by_path(state.params), trees.by_path(again.params)
    for path, leaf in back.items():
        wanted = base[path] + 1 if "lora" in path else base[path]
        np.testing.assert_array_equal(leaf, wanted, err_msg=path)
    with pytest.raises(ValueError, match="has no whole state"):
        made.load(tmp_path / "nothing", batch)
    made.save(tmp_path / "old", moved, whole=False)
    slim, whole = made.load(tmp_path / "old", batch)
    assert not whole and len(jax.tree.leaves(slim.optimizer)) == len(
        jax.tree.leaves(state.optimizer)
    )


def test_scores_of_items_are_those_of_the_evaluator(stored: Path) -> None:
    made = work(stored, "naive()")
    rows = [*month("jan", 40), {"text": "the cat " * 40}]  # the last is several rows
    exam = made.exam(rows)
    assert exam.item.max() == 40 and (exam.item == 40).sum() > 1
    state = made.first(example(made.task, rows, 4))
    items = made.score(state, exam, 0)
    assert items.shape == (41, 2)
    test = pack([{**exam.arrays, "task": np.zeros(len(exam.item), np.int32)}], 16)
    wanted = evaluator(test, token_nll(), losses.with_targets)(made.program, state)
    assert mean_of(items) == pytest.approx(float(wanted[0]), rel=1e-5)


def test_the_next_month_compiles_nothing(stored: Path) -> None:
    made = work(stored, "naive()")
    shapes = set()
    for name, count in (("jan", 9), ("feb", 31)):
        stream = stage_of(name, 1, made.task.train(month(name, count)), 4, 10, 0)
        parts = stream.chunk(0, 0, 10), stream.boundary(0)
        shapes.add(str(jax.tree.map(lambda x: (x.shape, x.dtype), parts)))
    assert len(shapes) == 1


@pytest.mark.quick
def test_a_model_of_another_kind_is_refused(stored: Path) -> None:
    given = Settings(str(stored.parent), "text", "naive()", 1e-3, 16)
    with pytest.raises(ValueError, match=r"config\.json"):
        load_model(given)
