"""A pipeline by the command line: what it leaves behind, and how it goes on."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from own_method import MINE, write_mine

from jcl import cli
from jcl.runs import pipeline

SCRIPT = '''
"""Two teachers, one after the other, and a branch, for tests."""

from dataclasses import dataclass

import numpy as np
import optax

from jcl import data, losses
from jcl.measures.budget import Budget
from jcl.measures.evaluation import accuracy, evaluator
from jcl.runs.experiment import Experiment
from jcl.models import mlp
from jcl.runs.pipeline import Node


@dataclass(frozen=True)
class Config:
    """Settings."""

    steps: int = 6
    """Steps a task."""
    examples: int = 100
    """Most that may be stored."""


def nodes(config):
    def made(name, seed):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(2, 40, 4)).astype(np.float32)
        tasks = [{"x": a, "y": (a @ rng.normal(size=4) > 0).astype(np.int32)} for a in x]

        def stream(seed):
            return data.from_arrays(tasks, tasks, 8, steps=config.steps, seed=seed)

        return Experiment(
            name=name, scenario="domain", stream=stream, init=lambda key: mlp.init(key, (4, 8, 2)),
            apply=mlp.apply, loss=losses.cross_entropy(), optimizer=optax.adam,
            evaluate=evaluator(stream(0).test, accuracy()), learning_rate=0.05, chunk=3,
        )

    first, second = made("first", 1), made("second", 2)
    budget = Budget(examples=config.examples)
    return [
        Node("first", first, "er(capacity=20, rows=4)", budget=budget),
        Node("second", second, "ewc(strength=10.)"),
        Node("branch", second, after="first"),
    ]
'''


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "two.py"
    path.write_text(SCRIPT)
    return path


def test_what_a_run_leaves_behind(script: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    assert cli.main(["run", str(script), "--seeds", "2", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "horizontal forgetting" in shown and "lost on first" in shown
    summary = json.loads((out / "pipeline.json").read_text())
    first, second, branch = summary["nodes"]
    assert (first["after"], second["after"], branch["after"]) == ("", "first", "first")
    assert first["costs"]["examples"] == 20 and second["vertical_forgetting"]["first"]["ci95"] > 0
    assert branch["tests"] == "second" and set(branch["vertical_forgetting"]) == {"first"}
    with (out / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 3 * 3 * 4  # seeds, nodes, rows, probes
    last = [r for r in rows if r["node"] == "second" and r["row"] == "2"]
    own = [float(r["score"]) for r in last if r["probe"].startswith("second/")]
    assert second["average"]["mean"] == pytest.approx(np.mean(own), abs=1e-6)
    html = (out / "report.html").read_text()
    assert "er(capacity=20, rows=4)" in html and "second/report.html" in html
    assert (out / "pipeline.png").stat().st_size > 5000
    assert (out / "second" / "report.html").is_file()
    # a node's folder is a run's
    assert cli.main(["compare", str(out / "second"), str(out / "branch"),
                     "--out", str(tmp_path / "both.png")]) == 0  # fmt: skip
    # and what is finished is read again
    assert cli.main(["run", str(script), "--seeds", "2", "--out", str(out), "--resume"]) == 0
    again = json.loads((out / "pipeline.json").read_text())
    assert again == summary


def test_it_goes_on_after_an_interruption(
    script: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert cli.main(["run", str(script), "--out", str(whole)]) == 0
    fit = pipeline.fit

    def stopped(*args: Any, **named: Any) -> Any:
        if named["out"].name == "second":
            raise KeyboardInterrupt
        return fit(*args, **named)

    monkeypatch.setattr(pipeline, "fit", stopped)
    assert cli.main(["run", str(script), "--out", str(cut)]) == 130
    assert f"jcl run {script} --out {cut} --resume" in capsys.readouterr().err
    assert (cut / "first" / "node.json").is_file() and not (cut / "pipeline.json").exists()
    monkeypatch.setattr(pipeline, "fit", fit)
    assert cli.main(["run", str(script), "--out", str(cut), "--resume"]) == 0
    assert (cut / "scores.csv").read_text() == (whole / "scores.csv").read_text()


def test_a_users_own_methods_are_found_beside_the_pipeline(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node's `./mine.py` is beside the file that says it, wherever the command runs."""
    folder, out = tmp_path / "theirs", tmp_path / "out"
    folder.mkdir()
    script, mine = folder / "two.py", write_mine(folder)
    own = '"./mine.py:pull(0.1) + er(capacity=20, rows=4)"'
    script.write_text(SCRIPT.replace('"er(capacity=20, rows=4)"', own))
    monkeypatch.chdir(tmp_path)
    command = ["run", str(script), "--out", str(out)]
    assert cli.main(command) == 0
    shown = capsys.readouterr().out
    assert "mine.py:pull(0.1) + er(capacity=20, rows=4)" in shown and str(mine) not in shown
    summary = json.loads((out / "pipeline.json").read_text())
    assert summary["nodes"][0]["costs"]["examples"] == 20
    # a pull as strong as can be holds the model where the first stage has left it
    held = tmp_path / "held"
    script.write_text(SCRIPT.replace('"er(capacity=20, rows=4)"', own.replace("0.1", "1e6")))
    assert cli.main(["run", str(script), "--out", str(held)]) == 0
    again = json.loads((held / "pipeline.json").read_text())
    assert again["nodes"][0] != summary["nodes"][0]
    # it goes on with the file that it was begun with, and with no other
    script.write_text(SCRIPT.replace('"er(capacity=20, rows=4)"', own))
    assert cli.main([*command, "--resume"]) == 0
    assert json.loads((out / "pipeline.json").read_text()) == summary
    mine.write_text(MINE + "\n")
    capsys.readouterr()
    assert cli.main([*command, "--resume"]) == 2
    assert "mine.py, which has changed since" in capsys.readouterr().err


@pytest.mark.quick
@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--method", "ewc()"), "whose nodes have their methods"),
        (("--sweep", "steps=1,2"), "whose nodes have their methods"),
        (
            ("--examples", "10"),
            "node 'first', er(capacity=20, rows=4): it takes 20 stored examples",
        ),
    ],
)
def test_what_is_refused(
    script: Path, tmp_path: Path, capsys: Any, args: tuple[str, ...], words: str
) -> None:
    assert cli.main(["run", str(script), "--out", str(tmp_path / "out"), *args]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
