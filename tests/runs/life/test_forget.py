"""A forgotten row is in no file of the folder and no memory of any state, killed or not."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from tiny_life import SMALL, month

from jcl import report, trees
from jcl.runs.life import forget
from jcl.runs.life.book import load_rows
from jcl.runs.life.life import Life
from jcl.runs.life.work import zeros_of

ROW = {"text": "hello there, this is private"}


def remembered(life: Life) -> int:
    """How many slots of all memories of all states that are kept hold ROW's tokens."""
    found = 0
    for stage in life.book.stages:
        if not stage.accepted:
            continue
        work = life.work(stage)
        gone = forget.documents_of(work.task, [ROW])
        state, _ = work.load(life.book.place(stage.number), zeros_of(stage.facts["example"]))
        rows = state.methods["er"].buffer.rows
        found += sum(bool(keys & gone) for keys in forget.keys_of(rows))
    return found


def in_files(life: Life, text: str) -> list[str]:
    files = [p for p in life.folder.rglob("*") if p.is_file()]
    return [str(p) for p in files if text.encode() in p.read_bytes()]


@pytest.fixture
def told(born: Callable[..., Life]) -> Life:
    """A life with ROW in its memory, in two states."""
    given = {**SMALL, "steps": 20, "length": 24}
    life = born(month("jan"), method="er(capacity=64, rows=2)", **given)
    life.stage("jan", [*month("jan", 8), ROW], [{"text": "the cat sat"}])
    life.stage("feb", month("feb", 8), [{"text": "def f"}])
    assert remembered(life) >= 2 and len(in_files(life, "this is private")) == 1
    return life


def test_a_row_leaves_every_file_and_memory(told: Life) -> None:
    other = {k: v for k, v in told.state.methods["er"].buffer.rows.items()}
    done = told.forget([ROW, {"text": "never seen"}])
    assert done.rows == 1 and done.stages == ["jan"] and done.slots >= 2
    assert "training jan, feb again without it takes 40 steps" in done.said
    assert remembered(told) == 0 and in_files(told, "this is private") == []
    assert in_files(told, "never seen") == []  # neither is what was asked for
    rows = told.state.methods["er"].buffer.rows
    held = {row.tobytes() for row in np.asarray(rows["tokens"])}
    assert held <= {row.tobytes() for row in np.asarray(other["tokens"])} | {bytes(24 * 4)}
    assert len([p for p in told.folder.rglob("step_*.json")]) == 2  # no older checkpoint is left
    told.stage("march", [*month("march"), ROW])
    assert told.book.stages[-1].facts["counts"]["forgotten"] == 1
    told.rollback("jan")
    assert remembered(told) == 0 and in_files(told, "this is private") == []


def test_cut_short_it_is_finished_by_the_next_command(
    told: Life, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = os.replace
    for moment in (3, 4, 6):  # of the files that are replaced
        cut, calls = Life(shutil.copytree(told.folder, tmp_path / str(moment))), [0]

        def stop(*args: Any, calls: list[int] = calls, moment: int = moment) -> None:
            calls[0] += 1
            if calls[0] == moment:
                raise KeyboardInterrupt
            real(*args)

        monkeypatch.setattr(os, "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            cut.forget([ROW])
        monkeypatch.undo()
        assert forget.pending(cut.book) is not None
        assert np.isfinite(np.asarray(jax.tree.leaves(cut.state.params)[0])).all()
        again = Life(cut.folder)
        again.rollback("feb")
        assert forget.pending(again.book) is None and remembered(again) == 0
        assert in_files(again, "this is private") == []
        assert [e["kind"] for e in again.book.entries].count("purge") == 1


@pytest.mark.quick
def test_what_a_row_is_known_by() -> None:
    tokens, segments = np.array([[1, 2, 3, 4]]), np.array([[1, 1, 2, 0]])
    assert forget.keys_of({"tokens": tokens, "segments": segments}) == [
        {tokens[0, :2].tobytes(), tokens[0, 2:3].tobytes()}
    ]
    pair = {"tokens": tokens, "segments": segments, "rejected_tokens": tokens + 1}
    assert forget.keys_of(pair) == [{tokens.tobytes() + (tokens + 1).tobytes()}]


def test_a_test_row_leaves_what_it_scored(life: Life) -> None:
    row = load_rows(life.book.place(0) / "test.jsonl")[0]
    before = life.scores
    life.forget([row])
    assert in_files(life, row["text"]) == []
    np.testing.assert_array_equal(life.scores, before)  # what was measured then stays so
    with pytest.raises(ValueError, match="rows is 'not given', but must be given, or a stage"):
        life.forget()
    life.forget(load_rows(life.book.place(0) / "test.jsonl"))  # all that are left
    life.stage("march", month("march"))
    assert life.stages == ["jan", "feb", "march"] and life.scores.shape == (3, 2)
    assert report.load(life.folder)[0].summary["tasks"] == ["feb", "march"]
    assert Path(life.folder / forget.NOTE).exists() is False


def test_a_bank_by_task_forgets_a_stage_exactly(born: Callable[..., Life]) -> None:
    bank = "inclora(stages=4, rank=2, predict='task')"
    life = born(month("jan"), method=bank, **SMALL)
    for name in ("jan", "feb", "march"):
        life.stage(name, month(name))
    before = life.state.methods["inclora"]
    done = life.forget(stage="feb")
    assert done.said.endswith("inclora has nothing of feb any more") and done.stages == ["feb"]
    after = life.state.methods["inclora"]
    assert before.last.tolist() == [0, 1, 2, -1] and after.last.tolist() == [0, -1, 2, -1]
    for path, x in trees.by_path(after.bank).items():
        axis = -2 if path.endswith("/a") else -3
        old, new = (
            np.moveaxis(np.asarray(y), axis, 0) for y in (trees.by_path(before.bank)[path], x)
        )
        np.testing.assert_array_equal(new[[0, 2]], old[[0, 2]])
        assert not new[1].any() and old[1].any()
    assert in_files(life, "def f(x)") == []
    line = life.book.lineage()
    with_head = forget.said(life.book, 3, line[1:2], 0, ["inclora"], head=True)
    assert "inclora has nothing of feb any more; the weights of the head were trained with it" in (
        with_head
    )
    life.rollback("jan")  # of which February is no part
    assert life.state.methods["inclora"].last.tolist() == [0, -1, -1, -1]
