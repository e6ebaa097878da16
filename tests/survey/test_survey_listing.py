"""`jcl survey` as it is typed, and the counts that the page has."""

from __future__ import annotations

import json
from typing import Any

import pytest

from jcl import cli
from jcl.report.format import replace_between
from jcl.runs import experiment
from jcl.survey import listing

pytestmark = pytest.mark.quick


def test_one_paper_and_some(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["survey", "2310.14152"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("O-LoRA (CIT), https://arxiv.org/abs/2310.14152")
    assert "`olora(stages)`" in said and "tests/methods/adapters/test_olora.py" in said
    assert "jcl run instructions --method 'olora(stages=4)'" in said and "theirs are 5 and" in said
    assert cli.main(["survey", "2502.11895"]) == 0
    assert "needs:  fake_quant: kernels rounded" in capsys.readouterr().out
    assert cli.main(["survey", "--section", "CMA", "--json"]) == 0
    rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    assert len(rows) == 9 and rows[0].keys() >= {"id", "section", "title", "status", "recipe"}
    assert rows[0].keys() >= {"family", "command", "evidence"}
    assert cli.main(["survey", "--status", "outside"]) == 0
    assert "9 systems: 9 outside" in capsys.readouterr().out
    assert cli.main(["survey", "--mechanism", "orthogonalised at noon"]) == 0
    assert "no system is like that" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["2310.14152", "--section", "CIT"], "'2310.14152' is one paper, so it takes no filter"),
        (["--table", "--json"], "--table is of all papers, so it takes no other argument"),
        (["--draw", "--table"], "--table is of all papers, so it takes no other argument"),
        (["olor"], "no paper of the survey is 'olor'; did you mean oplora, o-lora"),
    ],
)
def test_wrong_arguments(args: list[str], sentence: str, capsys: Any) -> None:
    assert cli.main(["survey", *args]) == 2
    assert sentence in capsys.readouterr().err


def test_the_page_has_the_counts_of_the_table() -> None:
    page = (experiment.folder() / "README.md").read_text()
    counted = replace_between(page, listing.BEGIN, listing.END, listing.as_markdown())
    assert counted == page, "run jcl survey --table"
    assert "| **the survey** | 33 | 71 | 89 | 9 | 202 |" in page
