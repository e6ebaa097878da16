"""Finished runs as a table, held against the files that they left."""

import csv
import sys

import numpy as np
import pytest
from tiny_run import R, write

import jcl

pandas = pytest.importorskip("pandas")
POINTS = [{"ewc.strength": 1.0}, {"ewc.strength": 10.0}]
LABELS = ["ewc(strength=1)", "ewc(strength=10)"]


@pytest.fixture
def runs(tmp_path):
    """A sweep of two points with two seeds, one of which diverged, and a plain run."""
    scores = np.stack(
        [np.stack([R[0], R[0] / 2]), np.stack([R[0] / 3, np.full_like(R[0], np.nan)])]
    )
    write(tmp_path / "sweep", scores, POINTS, LABELS, seeds=2)
    write(tmp_path / "plain", labels=("naive()",), outer={"scenario": "class", "steps": 3})
    return tmp_path


@pytest.mark.quick
def test_every_score_is_a_row_with_its_point_seed_stage_and_task(runs):
    table = jcl.results.load(runs / "sweep")
    assert len(table) == 2 * 2 * 4 * 3
    with (runs / "sweep" / "scores.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    for (_, found), row in zip(table.iterrows(), written, strict=True):
        assert f"{found['score']:.7g}" == row["score"] and found["after"] == row["after"]
        assert (found["task"], str(found["seed"]), str(found["row"])) == (
            row["task"], row["seed"], row["row"]
        )  # fmt: skip
        assert found["ewc.strength"] == float(row["ewc.strength"])
    assert set(table[table["best"]]["method"]) == {"ewc(strength=1)"}
    last = table[(table["row"] == 3) & (table["seed"] == 0) & table["best"]]
    assert last["score"].mean() == pytest.approx(1.7 / 3) and last["seen"].all()
    assert not table[table["after"] == "before"]["seen"].any()
    assert table[(table["after"] == "b") & table["seen"]]["task"].unique().tolist() == ["a", "b"]


@pytest.mark.quick
def test_a_pattern_takes_all_finished_runs_and_says_what_it_left_out(runs):
    (runs / "begun").mkdir()
    (runs / "figure.png").write_text("")
    with pytest.warns(UserWarning, match=r"left out: \S*begun$"):
        table = jcl.results.load(str(runs / "*"))
    assert table.groupby("run").size().tolist() == [12, 48]
    assert table["steps"].isna().sum() == 48 and set(table["steps"].dropna()) == {3}
    assert set(table["scenario"]) == {"class-incremental"}  # which a swept setting doesn't hide
    assert set(table["scenario (swept)"].dropna()) == {"class"}


@pytest.mark.quick
def test_without_pandas_one_sentence_says_what_to_install(runs, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"needs pandas, .* pip install 'jcl-kit\[pandas\]'"):
        jcl.results.load(runs / "plain")
