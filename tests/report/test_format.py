"""Numbers and names as text."""

import numpy as np
import pytest
from tiny_run import R, write

from jcl import metrics, report
from jcl.report import format as text
from jcl.report import page, screen

pytestmark = pytest.mark.quick


def test_numbers_are_shown_with_their_interval():
    assert report.format_mean({"mean": 0.12345, "ci95": 0.01}, 100) == "12.3 ± 1.0"
    assert report.format_mean({"mean": 2.12345, "ci95": None}) == "2.123"
    assert report.format_mean({"mean": None, "ci95": None}) == "–"


def test_per_cent_is_only_for_shares(tmp_path):
    share, bits = write(tmp_path / "a"), write(tmp_path / "b", 3 * R, higher_is_better=False)
    assert report.scale([share]) == 100
    assert report.scale([bits]) == 1
    assert report.scale([share, bits]) == 1


def test_what_is_below_0_or_above_1_is_no_share(tmp_path):
    undefined = np.where(R > 0.8, np.nan, R)
    for scores, factor in ((R, 100), (R - 0.5, 1), (1.2 * R, 1), (undefined, 100)):
        assert text.scale_of(write(tmp_path / "a", scores).shown()) == factor


def test_runs_are_told_apart_by_folder_where_the_method_is_the_same(tmp_path):
    runs = [write(tmp_path / name, labels=[label]) for name, label in
            (("x", "er()"), ("y", "er()"), ("z", "ewc()"))]  # fmt: skip
    assert [s.label for s in text.labelled(runs)] == ["er() (x)", "er() (y)", "ewc()"]


def test_the_unit_says_which_scores_are_good(tmp_path):
    share = write(tmp_path / "a")
    bits = write(tmp_path / "b", 3 * R, measure="bits per byte", higher_is_better=False)
    assert text.unit([share]) == "accuracy in %, higher is better"
    assert text.unit([bits]) == "bits per byte, lower is better"


def test_every_measure_has_a_title():
    assert tuple(metrics.definitions) == text.MEASURES
    assert text.title("backward_transfer") == "backward transfer"


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
    assert text.format_samples(samples) == f"{mean:.3f} ± {half:.3f}"
    assert text.format_samples(samples[:1]) == "0.200"
    assert text.format_samples(np.array([-1e-17])) == "0.000"
    assert text.format_mean({"mean": -1e-17, "ci95": None}, 100) == "0.0"


def test_tables_say_how_many_seeds_each_run_has(tmp_path, capsys):
    one, three = run(tmp_path / "one", 1), run(tmp_path / "three", 3, "er()")
    assert text.interval_note([one]) == ""
    assert text.interval_note([three]) == "± 95 % over 3 seeds"
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
    shown = page.draw(tmp_path / "run").read_text()
    assert ("± 95 % over 3 seeds" in shown) == (seeds == 3)
    assert ("· 1 seed<" in shown) == (seeds == 1)
