"""What a row's commands are, that their flags are read, and that `jcl run survey:ID` runs them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from jcl import cli
from jcl.runs import experiment, expression, flags, launch, reproduce
from jcl.survey import Paper, commands, find, papers

pytestmark = pytest.mark.quick
ROOT = Path(__file__).parents[2]
ROWS = [row for row in papers() if row.status in ("ready", "recipe")]


def test_what_is_here_has_a_command_and_what_is_not_has_none() -> None:
    for row in papers():
        assert bool(commands.here(row)) == (row in ROWS), row
        assert bool(row.experiment) + bool(row.nodes) + bool(row.script) == (row in ROWS), row
        assert not row.methods or row.experiment, row


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_its_flags_and_methods_are_read(row: Paper) -> None:
    name, *rest = commands.arguments(row)
    if row.script:
        assert (ROOT / name).is_file()
        return
    module = experiment.load(experiment.find(name))
    options, config = flags.read(name, module, rest)
    assert options.method == row.methods
    for method in row.methods:
        expression.build(expression.parse(method))
    if row.nodes:
        for plan in module.plans(config.nodes):
            assert set(plan.sources) <= {*module.HERE, module.WRITTEN}
            expression.build(expression.parse(plan.method))


@pytest.mark.parametrize("row", [r for r in papers() if r.evidence], ids=lambda row: row.id)
def test_its_evidence_is_there(row: Paper) -> None:
    for place in row.evidence:
        if place.startswith("jcl reproduce "):
            assert place.removeprefix("jcl reproduce ") in reproduce.available()
        else:
            assert place.startswith(("tests/", "experiments/")) and (ROOT / place).is_file(), place


def test_commands_as_they_are_typed() -> None:
    assert commands.here(find("o-lora")) == "jcl run instructions --method 'olora(stages=4)'"
    saul = find("2403.03883")
    assert commands.arguments(saul) == [
        "recipe", "--nodes", "96 domain & 2 general & 2 instructions -> instructions",
    ]  # fmt: skip
    assert commands.on_files(saul) == (
        "jcl run survey:2403.03883 --model MODEL --files domain=DOMAIN.jsonl "
        "general=GENERAL.jsonl instructions=INSTRUCTIONS.jsonl"
    )
    assert "--order hh:FOLDER" in commands.on_files(find("dpo"))
    assert "--facts zsre" in commands.on_files(find("grace"))
    assert "run finetune --model MODEL" in commands.on_files(find("o-lora"))
    assert commands.on_files(find("rho-1")) == ""  # which needs a reference in each row


def test_a_row_is_run_with_further_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    def noted(args: list[str]) -> int:
        given.append(args)
        return 0

    monkeypatch.setattr(launch, "run", noted)
    assert cli.main(["run", "survey:2310.14152", "--seeds", "3", "--method", "naive()"]) == 0
    assert cli.main(["run", "digits"]) == 0
    assert given == [
        ["instructions", "--method", "olora(stages=4)", "--seeds", "3", "--method", "naive()"],
        ["digits"],
    ]


def test_a_script_is_run_by_python(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    class Done:
        returncode = 7

    def noted(args: list[str]) -> Done:
        given.append(args)
        return Done()

    monkeypatch.setattr(commands.subprocess, "run", noted)
    assert cli.main(["run", "survey:2403.09613", "--seeds", "1"]) == 7
    script = str(experiment.folder() / "dynamics.py")
    assert given == [[sys.executable, script, "--out", "runs/dynamics.png", "--seeds", "1"]]


def test_a_row_that_nothing_runs_says_what_it_lacks() -> None:
    missing = next(row for row in papers() if row.status == "planned")
    with pytest.raises(ValueError, match=f"so nothing runs it; it needs {missing.needs[0]}"):
        commands.run([f"survey:{missing.id}"])
