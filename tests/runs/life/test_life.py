"""Stages one by one: on the last state, judged, rolled back, cut short and gone on with."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from tiny_life import SMALL, month

import jcl
from jcl import cli, report
from jcl.measures import probes
from jcl.measures.probes import Item, Probe
from jcl.runs.life import life as living
from jcl.runs.life.book import Book
from jcl.runs.life.life import Life
from jcl.runs.life.states import has_optimizer
from jcl.runs.life.tasks import stage_of
from jcl.training.folder import hold


def bits(folder: Path) -> dict[str, bytes]:
    """All files of the states and the stages' rows, by name."""
    files = [p for p in (folder / "stages").rglob("*") if p.is_file()]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def same(one: Any, other: Any) -> bool:
    one, other = (s._replace(key=jax.random.key_data(s.key)) for s in (one, other))
    return all(
        np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (one, other)), strict=True)
    )


def test_a_life_is_the_run_that_had_known_all_stages(life: Life, lived: Path) -> None:
    work = life.work()
    kept = [stage.facts for stage in life.book.lineage()]
    streams = []
    for facts in kept:
        place = life.book.place(facts["number"])
        rows = work.task.train(living.load_rows(place / "train.jsonl"))
        streams.append(stage_of(facts["name"], facts["number"], rows, 4, 10, 0))
    first, second = streams
    both = first._replace(
        names=("jan", "feb"), tasks=(0, 1), steps=(10, 10), tests=("jan", "feb"),
        chunk=lambda stage, start, stop: streams[stage].chunk(0, start, stop),
        boundary=lambda stage: streams[stage].boundary(0),
    )  # fmt: skip
    whole = jcl.fit(work.program, work.params, work.key, both, chunk=10)
    assert same(life.state, whole.state)
    assert life.stages == ["jan", "feb"]
    # rows of a month have its number as their task, not 0
    assert set(np.asarray(life.state.methods["er"].buffer.rows["task"]).tolist()) == {0, 1}
    assert second.chunk(0, 0, 1)["task"].tolist() == [[1] * 4]


def test_the_matrix_grows_by_a_row_and_a_column(life: Life) -> None:
    R = life.scores
    assert R.shape == (3, 2) and np.isfinite(R).all()
    others = ({"content": row["text"], "id": i} for i, row in enumerate(month("march")))
    done = life.stage("march", others)  # as a file may have them
    assert living.load_rows(life.book.place(2) / "train.jsonl")[0].keys() == {"text"}
    grown = life.scores
    assert grown.shape == (4, 3)
    np.testing.assert_array_equal(grown[:3, :2], R)
    assert np.isnan(grown[1, 2]) and grown[2, 2] == done.before
    assert grown[3].tolist() == [done.scores[name] for name in life.stages]
    summary = (life.folder / "summary.json").read_text()
    assert '"march"' in summary and (life.folder / "report.html").is_file()


def test_a_rejected_stage_leaves_bits_unchanged(life: Life) -> None:
    before, state = bits(life.folder), life.state
    done = life.stage("march", month("march"), accept="march<0.001, forgetting<100")
    assert not done.accepted and "and not <0.001" in done.why and "forgetting" not in done.why
    assert bits(life.folder) == before and same(Life(life.folder).state, state)
    assert life.stages == ["jan", "feb"]
    assert (
        "march was learned and rejected, for march is" in (life.folder / "report.html").read_text()
    )
    assert life.book.stages[-1].facts["scores"].keys() == {"jan", "feb", "march"}
    assert life.stage("march", month("march"), accept="march<100").accepted


def test_general_ability_is_asked_and_judged(
    born: Callable[..., Life], monkeypatch: pytest.MonkeyPatch
) -> None:
    items = (
        Item("the cat sat on the", (" mat", " f"), 0),
        Item("def f(x): return", (" x", " on"), 0),
    )
    monkeypatch.setattr(probes, "read", lambda name, limit: Probe(name, items[:limit]))
    given = {**SMALL, "method": "naive()", "probe": ("tiny",), "items": 2}
    life = born(month("jan"), **given)
    assert life.stage("jan", month("jan"), accept="probe.tiny>-101").accepted
    told = life.book.stages[0].facts["probes"]
    assert told["before"]["tiny"] in (0.0, 0.5, 1.0)
    done = life.stage("feb", month("feb"), accept="probe.tiny>100")
    assert not done.accepted and "probe.tiny is" in done.why
    summary = report.load(life.folder)[0].summary
    assert summary["probes"]["names"] == ["tiny"]
    assert summary["probes"]["matrix"] == [[told["before"]["tiny"]], [told["after"]["tiny"]]]
    with pytest.raises(ValueError, match=r"accept asks for 'probe\.boolq', which isn't measured"):
        life.stage("feb", month("feb"), accept="probe.boolq>0")


def test_a_rollback_makes_another_future(life: Life) -> None:
    old = life.state
    life.rollback("jan")
    assert life.stages == ["jan"] and not same(life.state, old)
    assert life.scores.shape == (2, 1)
    life.stage("feb", month("feb"))  # the same month again, on the same state
    assert same(life.state, old)
    assert life.stages == ["jan", "feb"] and len(life.book.stages) == 3
    with pytest.raises(ValueError, match="stage is 'may', but must be one of those learned"):
        life.rollback("may")


def test_rows_that_came_before_are_left_out(life: Life) -> None:
    rows = [*month("jan"), *month("march", 10)]
    said: list[str] = []
    life.stage("march", rows, say=said.append)
    counts = life.book.stages[-1].facts["counts"]
    tests = len(living.load_rows(life.book.place(0) / "test.jsonl"))
    assert counts["known"] == 30 - tests and counts["tested"] == tests
    assert f"{30 - tests} trained on before" in said[0] and f"{tests} in a test" in said[0]


def test_what_cannot_be_is_refused_before_anything_is_written(life: Life) -> None:
    before = bits(life.folder)
    for give, sentence in (
        (lambda: life.stage("jan", month("march")), "name of the stage is 'jan', but must"),
        (lambda: life.stage("x", month("march"), accept="boolq>1"), "accept asks for 'boolq'"),
        (lambda: life.stage("x", []), "number of rows is 0, but must be at least 1"),
        (lambda: life.stage("x", [{"words": "a"}]), r"row 1 can't be used: its columns are \['wor"),
        (lambda: life.stage("x", month("feb")), "number of new rows to train on is 0"),
        (lambda: life.stage("x", month("march"), method="er(rows=0)"), "rows is 0"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=sentence):
            give()
    assert bits(life.folder) == before and life.book.pending() is None


def test_a_method_comes_and_goes(life: Life) -> None:
    life.stage("march", month("march"), method="er(capacity=8, rows=2) + l2sp(strength=0.1)")
    assert set(life.state.methods) == {"er", "l2sp"}
    with pytest.raises(ValueError, match="er keeps other arrays than before"):
        life.stage("x", [{"text": "another one"}, {"text": "two"}], method="er(capacity=9, rows=2)")
    life.stage("april", [{"text": "another one"}, {"text": "two"}], method="lora(rank=2)")
    assert set(life.state.methods) == {"lora"}
    batch = {"tokens": np.arange(32, dtype=np.int32).reshape(2, 16)}
    predicted = life.work().program.predict(life.state, batch)
    np.testing.assert_allclose(life.model.apply(life.model.params, batch), predicted, atol=1e-5)
    life.stage("may", [{"text": "a third"}, {"text": "three"}])  # the method of the stage before
    with pytest.raises(ValueError, match=r"method is 'naive.*', but must keep what made .*lora"):
        life.stage("june", [{"text": "fourth"}, {"text": "four"}], method="naive()")


def test_a_report_that_a_kill_has_left_behind_is_made_up_for(
    life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self: Life) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Life, "report", stop)
    with pytest.raises(KeyboardInterrupt):
        life.rollback("jan")
    monkeypatch.undo()
    assert Life(life.folder).stages == ["jan"]
    assert report.load(life.folder)[0].summary["stages"] == ["jan", "feb"]
    assert cli.main(["report", str(life.folder)]) == 0
    assert report.load(life.folder)[0].summary["stages"] == ["jan"]


def test_old_stages_keep_all_but_the_optimizer(life: Life) -> None:
    kept = life.state
    life.stage("march", month("march"))
    jan, feb, _ = life.book.lineage()
    assert not has_optimizer(life.book, jan) and has_optimizer(life.book, feb)
    life.rollback("feb")
    assert same(life.state, kept)
    life.rollback("jan")
    count = [x for x in jax.tree.leaves(life.state.optimizer) if x.ndim == 0]
    assert int(life.state.step) == 10 and int(count[0]) == 0  # which begins anew
    assert life.book.sizes()[0] < life.book.sizes()[1]


def test_cut_short_before_the_book_has_it_a_stage_goes_on(
    lived: Path, life: Life, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = Life(shutil.copytree(lived, tmp_path / "whole"))
    expected.stage("march", month("march"))
    kept = life.state

    def stop(self: Book) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Book, "write", stop)
    with pytest.raises(KeyboardInterrupt):
        life.stage("march", month("march"))
    monkeypatch.undo()
    again = Life(life.folder)
    assert again.stages == ["jan", "feb"] and same(again.state, kept)
    with pytest.raises(ValueError, match="has the stage 'march', which was cut short; go on with"):
        again.rollback("jan")
    with pytest.raises(ValueError, match="has the stage 'march', which was cut short; go on with"):
        again.stage("april", [{"text": "a"}, {"text": "b"}])
    assert again.stage("march", []).accepted  # what was trained isn't trained again
    assert same(again.state, expected.state)
    np.testing.assert_array_equal(again.scores, expected.scores)


@pytest.mark.quick
def test_a_folder_belongs_to_one_process(lived: Path, born: Callable[..., Life]) -> None:
    life = Life(lived)
    with hold(lived):
        pass  # in one process it may be held once more
    assert Book(lived).current == 1 and life.stages == ["jan", "feb"]
    new = born(month("jan"), method="naive()", **SMALL)
    assert new.stages == [] and new.book.current == -1
    with pytest.raises(ValueError, match="has learned nothing yet"):
        new.state  # noqa: B018
    with pytest.raises(ValueError, match=r"folder is .*, but must be new or empty"):
        born(month("jan"), method="naive()", **SMALL)


def test_it_lives_on_a_mesh_as_on_one_device(lived: Path, born: Callable[..., Life]) -> None:
    given = {**SMALL, "method": "er(capacity=8, rows=2)"}
    life = born(month("jan"), mesh="fsdp=2,data=-1", **given)
    for name in ("jan", "feb"):
        life.stage(name, month(name))
    np.testing.assert_allclose(Life(life.folder).scores, Life(lived).scores, rtol=1e-3)
    assert len(life.state.params["embed"]["table"].sharding.device_set) > 1
