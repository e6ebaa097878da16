import numpy as np
import pytest

from jcl import metrics, report
from jcl.report import format as words
from jcl.report import page, screen


def run(folder, seeds, method="naive()"):
    facts = {
        "method": method, "experiment": "toy", "scenario": "class-incremental",
        "measure": "accuracy", "higher_is_better": True, "seeds": seeds, "stages": ["a", "b"],
        "stage_tasks": [0, 1], "tasks": ["a", "b"], "family": method, "outer": {},
        "wall_seconds": 1.0, "compile_seconds": 0.5, "examples_per_second": 10.0,
        "step_traces": 1, "peak_memory_bytes": 2**20, "pipeline": method,
    }  # fmt: skip
    folder.mkdir()
    scores = np.random.default_rng(0).random((1, seeds, 3, 2))
    return report.write(folder, facts, [{}], [method], scores)


def test_a_mean_of_one_seed_has_no_interval():
    samples = np.array([0.2, 0.4, 0.9])
    mean, half = metrics.interval(samples)
    assert words.format_samples(samples) == f"{mean:.3f} ± {half:.3f}"
    assert words.format_samples(samples[:1]) == "0.200"
    assert words.format_samples(np.array([-1e-17])) == "0.000"
    assert words.format_mean({"mean": -1e-17, "ci95": None}, 100) == "0.0"


def test_tables_say_how_many_seeds_each_run_has(tmp_path, capsys):
    one, three = run(tmp_path / "one", 1), run(tmp_path / "three", 3, "er()")
    assert words.interval_note([one]) == ""
    assert words.interval_note([three]) == "± 95 % over 3 seeds"
    screen.table([one])
    assert "±" not in capsys.readouterr().out
    screen.table([three])
    assert "mean ± 95 % over 3 seeds" in capsys.readouterr().out
    screen.table([three, one])
    shown = capsys.readouterr().out
    assert "over 3 seeds" not in shown and "± 95 % over the seeds of a row" in shown
    assert "naive() (1 seed)" in shown and "er() (3 seeds)" in shown
    (row,) = [line for line in shown.splitlines() if "naive()" in line]
    assert "±" not in row


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_page_says_how_many_seeds_there_are(tmp_path, seeds):
    run(tmp_path / "run", seeds)
    text = page.draw(tmp_path / "run").read_text()
    assert ("± 95 % over 3 seeds" in text) == (seeds == 3)
    assert ("· 1 seed<" in text) == (seeds == 1)
