"""The command of every row that is ready or a recipe, two steps a stage; run by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from jcl import cli
from jcl.survey import Paper, commands, papers

pytestmark = pytest.mark.whole
ROWS = {
    (tuple(commands.arguments(row))): row for row in papers() if row.status in ("ready", "recipe")
}
"""Rows by what is run, each once."""
SMALL = {
    "pretraining": "--steps 2 --test-rows 4 --length 32",
    "snapshots": "--base 2 --steps 2 --test-rows 4 --length 32",
    "instructions": "--steps 2 --test-rows 4 --items 2",
    "domains": "--pretrain 2 --steps 2 --test-rows 4 --batch 8",
    "eras": "--steps 2 --test-rows 4 --items 2 --length 32",
    "adaptation": "--steps 2 --task-steps 2 --test-rows 4 --items 2",
    "topics": "--steps 2 --test-rows 8 --length 32 --order r8 spam",
    "multimodal": "--steps 2 --describe 2 --test-rows 8",
    "alignment": "--steps 2 --test-rows 8 --text-rows 2",
    "vertical": "--steps 2 --test-rows 4 --items 2",
    "digits": "--steps 2",
    "recipe": "--steps 2 --test-rows 4 --documents 50",
    "editing": "--seeds 1 --edits 2 --every 1 --tokens 2048 --rows 4",
    "recycling": "--seeds 1 --upgrade 2 --tune 2 --every 1",
    "dynamics": "--seeds 1 --steps 2 --documents 2 --rounds 2 --visits 1",
    "instructions rehearse": "--seeds 1 --writer glassllm",
}
"""Flags by which an experiment is as small as it gets."""


@pytest.mark.parametrize("row", ROWS.values(), ids=lambda row: row.id)
def test_the_command_of_a_row_runs(
    row: Paper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = row.script.split(" --")[0] if row.script else commands.arguments(row)[0]
    assert cli.main(["run", f"survey:{row.id}", *SMALL[name].split()]) == 0
    if not row.script:
        assert list(tmp_path.glob("runs/*/report.html"))
