"""The log, and what two states differ in."""

from __future__ import annotations

import json

import pytest
from tiny_life import month

from jcl import report
from jcl.runs.life import shown
from jcl.runs.life.life import Life
from jcl.runs.life.plan import read_items


def test_the_log_says_what_came_and_what_became_of_it(life: Life) -> None:
    life.stage("march", month("march"), accept="march<0", source={
        "files": [{"path": "x/march.csv", "sha256": "0123456789ab", "bytes": 3}]})  # fmt: skip
    life.rollback("jan")
    lines = shown.log_lines(life)
    assert len(lines) == 4
    assert " * jan: " in lines[0] and " - feb: " in lines[1]
    assert "march: rejected, for march is" in lines[2] and lines[3].endswith("rolled back to jan")
    assert "MB" in lines[0] and "10 steps of er(capacity=8, rows=2)" in lines[0]
    steps = [json.loads(line) for line in (life.folder / "metrics.jsonl").read_text().splitlines()]
    assert [(e["stage"], e["step"]) for e in steps] == [(0, 10)]


def test_a_difference_is_told_item_by_item(life: Life) -> None:
    lines = shown.diff(life, "jan", "feb")
    assert lines[0].startswith("jan: ") and "items" in lines[0]
    old, new = (read_items(life.book.place(stage.number))[0] for stage in life.book.lineage())
    mean = [{h: total / weight for h, (total, weight) in of.items()} for of in (old, new)]
    better = sum(mean[1][h] < mean[0][h] - 1e-6 for h in old)
    assert f"{better} got better" in lines[0]
    assert all("the cat sat" in line for line in lines[1:])
    with pytest.raises(
        ValueError, match="stage is 'x', but must be one of those learned: jan, feb"
    ):
        shown.diff(life, "jan", "x")


@pytest.mark.quick
def test_the_report_has_what_was_scored(life: Life) -> None:
    run = report.load(life.folder)[0]
    assert run.summary["stages"] == ["jan", "feb"] and run.summary["measure"] == "log perplexity"
    assert run.scores.shape == (1, 1, 3, 2)
    assert report.finished(life.folder) is not None
