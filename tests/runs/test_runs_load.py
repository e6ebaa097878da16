"""A run's folder is loaded as it was begun: by its state alone, or whole."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_life

import jcl
from jcl import cli, report
from jcl.runs import launch
from jcl.runs.life.life import Life

stored, lived = tiny_life.stored, tiny_life.lived
FLAGS = ["--steps", "4", "--tasks", "2", "--scenario", "domain"]
BEST = ["--evaluate-every", "2", "--keep", "best", "--patience", "9"]
NODES = """
from dataclasses import dataclass
from jcl.runs import experiment
from jcl.runs.pipeline import Node


@dataclass(frozen=True)
class Config:
    pass


def nodes(config):
    digits = experiment.load(experiment.find("digits"))
    built = digits.build(digits.Config(steps=4, tasks=2, scenario="domain"))
    return [Node("one", built, "naive()"), Node("two", built, "er(capacity=20, rows=4)")]
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch, "split_cpu", lambda: None)  # devices are there already


def identical(a: jcl.State, b: jcl.State) -> bool:
    """Bit for bit; keys by their data."""
    a, b = (s._replace(key=jax.random.key_data(s.key)) for s in (a, b))
    return all(bool((x == y).all()) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


def again(folder: str) -> np.ndarray:
    """The scores of the state that is loaded, by the program that is loaded."""
    found = jcl.load_run(folder)
    judge = found.experiment.evaluate
    return np.asarray(jax.jit(lambda state: judge(found.program, state))(found.state))


def test_a_run_is_loaded_by_its_folder_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    methods = ["--method", "naive()", "--method", "er(capacity=20, rows=4)"]
    flags = ["run", "digits", *methods, *FLAGS, *BEST, "--seeds", "2", "--out", "runs"]
    assert cli.main(flags) == 0
    saved = {run.summary["method"].partition("(")[0]: run for run in report.load(Path("runs"))}
    for name, run in saved.items():
        assert name in ("naive", "er")
        np.testing.assert_allclose(again(f"runs/{name}"), run.scores[0, :, -1], atol=1e-6)
    with pytest.raises(
        ValueError, match="runs holds 2 runs, so name one of them: runs/naive, runs"
    ):
        jcl.load_state("runs")
    monkeypatch.chdir("runs/er")
    assert identical(jcl.load_state("."), jcl.load_run(Path.cwd()).state)


def test_a_node_of_a_pipeline_is_loaded_too() -> None:
    Path("nodes.py").write_text(NODES)
    assert cli.main(["run", "nodes.py", "--out", "runs"]) == 0
    assert again("runs/two").shape == (2,)
    assert int(jcl.load_state("runs/one").step) == 8
    with pytest.raises(ValueError, match="holds a pipeline's nodes, so name one of them: runs/one"):
        jcl.load_state("runs")


def test_of_a_life_it_is_the_current_state(lived: Path) -> None:
    assert identical(jcl.load_state(lived), Life(lived).state)
    assert jcl.load_run(lived).experiment.model.config.layers == 1


@pytest.mark.quick
def test_what_no_command_began_needs_its_program(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no config.json, so no command began it; give load_"):
        jcl.load_state(tmp_path / "of-nobody")
