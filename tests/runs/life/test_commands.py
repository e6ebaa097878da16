"""The commands as they are typed: months in files, exit codes, one sentence for what is wrong."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_life import month

from jcl import cli
from jcl.runs.life.commands import REJECTED
from jcl.runs.life.life import Life


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("jan", "feb", "march"):
        lines = [json.dumps(row) + "\n" for row in month(name)]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    return tmp_path


def test_three_months_on_three_days(files: Path, stored: Path, capfd: Any) -> None:
    tuned = ["run", "finetune", "--model", str(stored), "--data", "jan=jan.jsonl", "--data",
             "feb.jsonl", "--out", "run", "--steps", "10", "--length", "16", "--lr", "0.01",
             "--method", "er(capacity=8, rows=2)"]  # fmt: skip
    assert cli.main(tuned) == 0
    made = shlex.split(Life("run").saved["command"])
    assert set(tuned[4:]) - {"--out", "run", "feb.jsonl", "0.01"} <= {
        *made,
        "jan=jan.jsonl",
        "--data",
    }
    assert cli.main(["continue", "run", "--data", "march.jsonl"]) == 0
    assert Life("run").stages == ["jan", "feb", "march"]
    assert cli.main(["log", "run"]) == 0 and cli.main(["diff", "run", "jan", "feb"]) == 0
    assert cli.main(["rollback", "run", "--to", "jan"]) == 0
    again = ["continue", "run", "--data", "more=march.jsonl", "--accept", "average<0"]
    assert cli.main(again) == REJECTED
    said = capfd.readouterr().out
    for part in ("after march: jan", "* march: ", "items", "the current state is that after jan",
                 "more is rejected, and the state before it stays: average is"):  # fmt: skip
        assert part in said
    assert Life("run").stages == ["jan"]


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
def test_two_processes_live_as_one(files: Path, stored: Path, lived: Path) -> None:
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
    tuned = ["run", "finetune", "--model", str(stored), "--data", "jan.jsonl", "--data",
             "feb.jsonl", "--out", "run", "--steps", "10", "--length", "16", "--batch", "4", "--lr",
             "0.01", "--held-out", "0.2", "--method", "er(capacity=8, rows=2)"]  # fmt: skip
    flags = re.sub(r"(device_count)=\d+", r"\1=1", os.environ["XLA_FLAGS"])
    both = [
        subprocess.Popen(
            [sys.executable, "-c", "import sys; from jcl.cli import main; sys.exit(main())", *tuned,
             "--distributed", f"localhost:{port},2,{i}"],
            env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        ) for i in range(2)
    ]  # fmt: skip
    said = [p.communicate(timeout=300) for p in both]
    assert [p.returncode for p in both] == [0, 0], said
    assert "after feb: jan" in said[0][0] and "after feb" not in said[1][0]
    life = Life("run")  # which one process reads
    np.testing.assert_allclose(life.scores, Life(lived).scores, rtol=1e-3)
    mine, theirs = (x.state.methods["er"].buffer.rows for x in (life, Life(lived)))
    assert all(np.array_equal(mine[name], theirs[name]) for name in mine)
    assert life.stage("march", month("march")).accepted  # and goes on with


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["run", "finetune", "--model", "MODEL"], "data is '', but must be given, such as --data"),
        (["run", "finetune", "--model", "MODEL", "--data", "x=no.csv"], "data is 'no.csv', but"),
        (["run", "finetune", "--model", "MODEL", "--data", "jan.jsonl", "--test", "feb.jsonl"],
         "test is 'feb', but must be of a stage that --data names"),
        (["run", "finetune", "--model", "MODEL", "--data", "jan.jsonl", "--task", "prefer"],
         "row 1 of jan.jsonl can't be used: its columns are ['text']"),
        (["run", "finetune", "--model", "MODEL", "--data", "jan.jsonl", "--batch", "0"],
         "batch is 0, but must be at least 1"),
        (["continue", "nowhere"], "nowhere is no run to which data can be added"),
        (["log", "jan.jsonl"], "jan.jsonl is no run to which data can be added"),
    ],
)  # fmt: skip
@pytest.mark.quick
def test_wrong_words_get_one_sentence(
    files: Path, stored: Path, capsys: Any, args: list[str], sentence: str
) -> None:
    given = [str(stored) if a == "MODEL" else a for a in args]
    assert cli.main(given) == 2
    said = capsys.readouterr().err
    assert said.startswith("jcl: ") and sentence in " ".join(said.split()) and said.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["continue", "RUN"], "RUN has nothing to go on with; give --data name=file"),
        (["continue", "RUN", "--data", "jan=jan.jsonl"], "name of the stage is 'jan', but must be"),
        (["forget", "RUN"], "rows is 'not given', but must be given, or a stage in their place"),
        (["forget", "RUN", "--stage", "x"], "stage is 'x', but must be one of those learned"),
        (["rollback", "RUN", "--to", "x"], "stage is 'x', but must be one of those learned"),
        (["diff", "RUN", "jan", "x"], "stage is 'x', but must be one of those learned: jan, feb"),
    ],
)  # fmt: skip
def test_a_run_stays_as_it_is_after_wrong_words(
    files: Path, lived: Path, capsys: Any, args: list[str], sentence: str
) -> None:
    run = shutil.copytree(lived, files / "RUN")
    assert cli.main(args) == 2
    said = capsys.readouterr().err
    assert sentence in " ".join(said.split()) and said.count("\n") == 1
    assert Life(run).stages == ["jan", "feb"]
