"""A run's folder: what is written, and read back."""

import csv
import json

import numpy as np
import pytest
from tiny_run import R, write

from jcl import metrics, report
from jcl.report import page
from jcl.report.format import measures_of

pytestmark = pytest.mark.quick


def test_summary_has_the_measures_of_the_mean_and_their_definitions(tmp_path):
    write(tmp_path)
    saved = json.loads((tmp_path / "summary.json").read_text())
    assert saved["matrix"] == R[0].tolist()
    assert saved["backward_transfer"]["mean"] == pytest.approx(-0.35)
    assert saved["forgetting"]["mean"] == pytest.approx(0.35)
    assert saved["average"]["mean"] == pytest.approx(1.7 / 3)
    for measure in ("average", "backward_transfer", "forward_transfer", "forgetting",
                    "learning_accuracy"):  # fmt: skip
        assert set(saved[measure]) == {"mean", "ci95", "definition"}
        assert saved[measure]["ci95"] is None  # one seed says nothing of its spread
    for key in (
        "method", "experiment", "scenario", "seeds", "tasks", "wall_seconds", "compile_seconds",
        "examples_per_second", "step_traces", "peak_memory_bytes",
    ):  # fmt: skip
        assert key in saved


def test_matrix_csv_is_the_mean_and_scores_csv_is_everything(tmp_path):
    scores = np.stack([R[0], R[0] / 2])
    write(tmp_path, scores, seeds=2, tasks=("a", "b, with a comma", "c"))
    with (tmp_path / "matrix.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["after", "a", "b, with a comma", "c"]
    assert [row[0] for row in rows[1:]] == ["before", "a", "b", "c"]
    np.testing.assert_allclose(np.array(rows)[1:, 1:].astype(float), 0.75 * R[0])
    (run,) = report.load(tmp_path)
    np.testing.assert_allclose(run.scores, scores[None], rtol=1e-6)


def test_a_sweep_reports_its_best_point_and_all_others(tmp_path):
    points = [{"ewc.strength": 0.0}, {"ewc.strength": 10.0}, {"ewc.strength": 100.0}]
    scores = np.stack([0.5 * R, R, 0.7 * R])
    labels = ["ewc(strength=0)", "ewc(strength=10)", "ewc(strength=100)"]
    write(tmp_path, scores, points, labels)
    saved = json.loads((tmp_path / "summary.json").read_text())
    assert saved["selected"] == {"ewc.strength": 10.0}
    assert saved["matrix"] == R[0].tolist()
    assert [p["values"] for p in saved["sweep"]] == points
    assert saved["sweep"][0]["average"]["mean"] == pytest.approx(0.85 / 3)
    (run,) = report.load(tmp_path)
    assert (run.best, run.labels, run.points) == (1, labels, points)
    assert run.shown().label == "ewc(strength=10)"


def test_the_best_point_of_a_loss_is_the_lowest(tmp_path):
    points, labels = [{"lr": 0.1}, {"lr": 0.2}], ["a", "b"]
    run = write(tmp_path, np.stack([R, 0.5 * R]), points, labels, higher_is_better=False)
    assert run.best == 1


@pytest.mark.parametrize("higher", [True, False])
@pytest.mark.parametrize("tasks", [(0, 1, 2, 3), (0, 1, 0, 2), (1, -1, 0), (0,), (-1,)])
def test_forgetting_by_task_has_the_mean_that_metrics_has(tasks, higher):
    scores = np.random.default_rng(0).random((5, len(tasks) + 1, 4))
    signed = scores if higher else -scores
    by_task = report.forgetting(scores, tasks, higher)
    defined = np.isfinite(by_task).all(axis=0)
    expected = metrics.forgetting(signed, tasks)
    if not defined.any():
        assert np.isnan(expected).all()
    else:
        np.testing.assert_allclose(by_task[:, defined].mean(axis=1), expected)


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has no summary"):
        report.load(tmp_path)
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(ValueError, match="can't be read"):
        report.load(tmp_path)
    write(tmp_path)
    (tmp_path / "scores.csv").unlink()
    with pytest.raises(ValueError, match="can't be read"):
        report.load(tmp_path)


def test_where_tests_differ_in_size_all_rows_have_a_mean_and_each_class_its_score(tmp_path):
    seeds = np.stack([R[0], R[0] / 2])
    sizes = {"test_rows": [10, 30, 60], "class_rows": [90, 10]}
    classes = [[0.7, 0.2], [0.3, 0.4]]
    write(tmp_path, seeds, seeds=2, **sizes, class_scores=classes)
    saved = json.loads((tmp_path / "summary.json").read_text())
    wanted = [(0.4 * 10 + 0.6 * 30 + 0.7 * 60) / 100 * share for share in (1, 0.5)]
    assert saved["micro_average"]["mean"] == pytest.approx(np.mean(wanted))
    assert saved["micro_average"]["mean"] != pytest.approx(saved["average"]["mean"])
    assert "all 100 test rows" in saved["micro_average"]["definition"]
    assert saved["class_rows"] == [90, 10]
    assert saved["class_scores"] == pytest.approx([0.5, 0.3])
    with (tmp_path / "classes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["score"]) for row in rows] == [0.7, 0.2, 0.3, 0.4]
    assert rows[3] == {"seed": "1", "class": "1", "test_rows": "10", "score": "0.4"}
    with (tmp_path / "scores.csv").open() as file:
        assert [row["test_rows"] for row in csv.DictReader(file)][:4] == ["10", "30", "60", "10"]
    (run,) = report.load(tmp_path)
    np.testing.assert_allclose(run.scores[0], seeds)
    assert measures_of([run])[:3] == ("average", "micro_average", "backward_transfer")
    html = page.draw(tmp_path).read_text()
    assert (
        "micro average" in html and "Each class in the end" in html and "<td class=n>30.0" in html
    )
    # beside one that was written before, the table has what both have
    write(tmp_path / "old", seeds, seeds=2)
    (old,) = report.load(tmp_path / "old")
    assert "micro_average" not in measures_of([run, old])
    assert "Each class" not in page.draw(tmp_path / "old").read_text()


def test_the_classes_of_a_sweep_are_those_of_its_best_point(tmp_path):
    points = [{"lr": 0.1}, {"lr": 0.2}]
    scores = np.stack([R / 2, R])
    write(
        tmp_path, scores, points, ("a", "b"), class_rows=[9, 1], class_scores=[[1, 0], [0.5, 0.25]]
    )
    saved = json.loads((tmp_path / "summary.json").read_text())
    assert saved["selected"] == {"lr": 0.2} and saved["class_scores"] == [0.5, 0.25]
