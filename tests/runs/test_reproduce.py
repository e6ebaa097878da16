"""Published protocols: verdicts, what is kept and gone on with, and the page's table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jcl import cli
from jcl.runs import experiment, reproduce
from jcl.runs.reproduce import Cell, Outcome, Protocol, judge

MADE = '''
"""A coin, after nobody.

It is thrown.
"""

from jcl.runs.reproduce import Cell

SOURCE = "nobody, 1900"


def throw(folder):
    tried = folder / "tried"
    if not tried.exists():
        tried.touch()
        raise KeyboardInterrupt
    return {3: 0.5, 4: 0.7}


CELLS = (Cell("heads, fair", throw, 0.6), Cell("tails", lambda folder: {0: 0.1}, 0.4))
QUICK = (Cell("fair", lambda folder: {0: 0.5}, 0.5, tolerance=0.01),)
'''


def ran(*values: float) -> Outcome:
    return Outcome(dict(enumerate(values)), {"seconds": 1.0})


def cell(name: str = "ours", **given: object) -> Cell:
    return Cell(name, lambda folder: {}, **given)  # type: ignore[arg-type]


@pytest.mark.quick
@pytest.mark.parametrize(
    ("given", "values", "verdict"),
    [
        ({"published": 2.0}, (1.0, 2.0, 3.0), "reproduced"),  # 2 ± 2.48
        ({"published": 4.6}, (1.0, 2.0, 3.0), "differs"),
        ({"published": 4.6, "half": 0.2}, (1.0, 2.0, 3.0), "reproduced"),
        ({"published": 4.6, "half": 0.1}, (1.0, 2.0, 3.0), "differs"),
        ({"published": -2.0, "tolerance": 0.01}, (-2.019,), "reproduced"),
        ({"published": -2.0, "tolerance": 0.01}, (-2.021,), "differs"),
        # a tolerance stands in the place of wide intervals
        ({"published": 2.5, "tolerance": 0.01}, (1.0, 2.0, 3.0), "differs"),
        ({"published": 2.0}, (2.0,), "reproduced"),
        ({}, (2.0,), "nothing published"),
        ({"below": "other"}, (1.0, 1.1, 1.2), "direction only"),
        ({"below": "other"}, (1.0, 4.0, 9.0), "differs"),
        ({"below": "other"}, (9.0, 9.1, 9.2), "differs"),
    ],
)
def test_a_verdict_is_of_intervals_or_of_the_stated_tolerance(given, values, verdict):
    assert judge(cell(**given), {"ours": ran(*values), "other": ran(5.0, 5.1, 5.2)}) == verdict


@pytest.mark.quick
def test_what_has_not_run_has_no_verdict():
    assert judge(cell(published=1.0), {"ours": None}) == "not run yet"
    assert judge(cell(below="other"), {"ours": ran(1.0), "other": None}) == "not run yet"


@pytest.fixture
def coin(tmp_path, monkeypatch):
    """A folder of protocols that has only the coin."""
    (tmp_path / "experiments/published").mkdir(parents=True)
    (tmp_path / "experiments/published/coin.py").write_text(MADE)
    page = f"before\n{reproduce.BEGIN}\nold\n{reproduce.END}\nafter\n"
    (tmp_path / "experiments/README.md").write_text(page)
    monkeypatch.setattr(experiment, "folder", lambda: tmp_path / "experiments")
    return tmp_path / "experiments/published"


@pytest.mark.quick
def test_a_cell_that_was_cut_goes_on_and_is_then_kept(coin, capsys):
    kept = coin / "results/coin"
    assert cli.main(["reproduce", "coin"]) == 130
    assert [p.name for p in kept.iterdir()] == ["heads-fair.work"]  # no JSON that isn't whole
    assert cli.main(["reproduce", "coin", "--cells", "heads, fair"]) == 0
    assert [p.name for p in kept.iterdir()] == ["heads-fair.json"]
    facts = json.loads((kept / "heads-fair.json").read_text())
    assert facts["seeds"] == [3, 4] and facts["values"] == [0.5, 0.7]
    assert {"seconds", "commit", "machine", "versions"} <= facts.keys()
    before = (kept / "heads-fair.json").stat().st_mtime_ns
    capsys.readouterr()
    assert cli.main(["reproduce", "coin"]) == 0  # runs only the other
    assert (kept / "heads-fair.json").stat().st_mtime_ns == before
    shown = capsys.readouterr().out
    assert "It is thrown." in shown and "nobody, 1900" in shown
    assert "0.6000 ± 1.2706" in shown and "reproduced" in shown and "differs" in shown
    assert cli.main(["reproduce"]) == 0
    assert "1 reproduced, 1 differs" in capsys.readouterr().out
    assert cli.main(["reproduce", "--table"]) == 0
    page = (coin.parent / "README.md").read_text()
    assert page.startswith(f"before\n{reproduce.BEGIN}\n") and page.endswith("after\n")
    assert "| tails | 0.4000 | 0.1000 | 1 |" in page and "old" not in page


@pytest.mark.quick
def test_a_short_form_that_is_not_as_expected_fails(coin, capsys):
    assert cli.main(["reproduce", "coin", "--quick"]) == 0
    (coin / "coin.py").write_text(MADE.replace("{0: 0.5}, 0.5", "{0: 0.6}, 0.5"))
    assert cli.main(["reproduce", "--quick"]) == 1
    assert "not as expected" in capsys.readouterr().out
    assert not (coin / "results").exists()


def _protocols() -> list[Protocol]:
    return [reproduce.read(path) for path in reproduce.available().values()]


@pytest.mark.quick
def test_the_page_has_the_table_of_what_is_kept():
    page = (experiment.folder() / "README.md").read_text()
    table = reproduce.markdown(reproduce.folder() / "results")
    assert reproduce.with_table(page, table) == page, "run jcl reproduce --table"


@pytest.mark.quick
def test_what_is_kept_is_of_cells_that_are_there():
    results = reproduce.folder() / "results"
    cells = {f"{p.name}/{reproduce.slug(c.name)}.json" for p in _protocols() for c in p.cells}
    found = {p.relative_to(results).as_posix() for p in results.glob("*/*.json")}
    assert found and found <= cells
    assert all(p.source for p in _protocols())


@pytest.mark.slow
def test_every_short_form_is_as_expected():
    """As a user runs them: in a process without the flags that the tests set for compiling."""
    without = ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS")
    env = {k: v for k, v in os.environ.items() if k not in without}
    run = "import sys; from jcl.cli import main; sys.exit(main(['reproduce', '--quick']))"
    where = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", run], env=env, cwd=where, capture_output=True)
    assert done.returncode == 0, (done.stdout + done.stderr).decode()
