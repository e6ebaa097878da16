import csv
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from jcl import metrics, report
from jcl.report import page

R = np.array([[[0.0, 0, 0], [0.9, 0.1, 0.1], [0.5, 0.8, 0.1], [0.4, 0.6, 0.7]]])


def facts(stages=("a", "b", "c"), tasks=("a", "b", "c"), stage_tasks=(0, 1, 2), **more):
    return {
        "method": "ewc(strength=1.0)", "experiment": "toy", "scenario": "class-incremental",
        "measure": "accuracy", "higher_is_better": True, "seeds": 1, "stages": list(stages),
        "stage_tasks": list(stage_tasks), "tasks": list(tasks), "family": "ewc()", "outer": {},
        "wall_seconds": 1.0, "compile_seconds": 0.5, "examples_per_second": 10.0,
        "step_traces": 1, "peak_memory_bytes": 2**20, "pipeline": "ewc", **more,
    }  # fmt: skip


def write(folder, scores=R, points=({},), labels=("ewc(strength=1.0)",), **more):
    folder.mkdir(parents=True, exist_ok=True)
    scores = np.asarray(scores)
    scores = scores if scores.ndim == 4 else scores[None]
    return report.write(folder, facts(**more), points, labels, scores)


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


def test_numbers_are_shown_with_their_interval():
    assert report.format_mean({"mean": 0.12345, "ci95": 0.01}, 100) == "12.3 ± 1.0"
    assert report.format_mean({"mean": 2.12345, "ci95": None}) == "2.123"
    assert report.format_mean({"mean": None, "ci95": None}) == "–"


def test_per_cent_is_only_for_shares(tmp_path):
    share, bits = write(tmp_path / "a"), write(tmp_path / "b", 3 * R, higher_is_better=False)
    assert report.scale([share]) == 100
    assert report.scale([bits]) == 1
    assert report.scale([share, bits]) == 1


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


class _Page(HTMLParser):
    """What a page links to, and its text."""

    def __init__(self, text):
        super().__init__()
        self.links, self.words, self.opened = [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.opened.append((tag, dict(attrs)))
        self.links += [v for k, v in attrs if k in ("src", "href", "srcset")]

    def handle_data(self, data):
        self.words += data


def _png_size(path):
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")


def test_the_page_needs_no_other_file_and_fits_a_phone_and_the_dark(tmp_path):
    write(tmp_path, tasks=("a<b", "b", "c"), method="er(labels='<x>')")
    with (tmp_path / "metrics.jsonl").open("w") as log:
        for step in range(5):
            log.write(json.dumps({"stage": step // 2, "step": step, "loss": 1.0}) + "\n")
    report.save_json(tmp_path / "config.json", {"command": "jcl run toy --set a='<b>'"})
    text = page.draw(tmp_path).read_text()
    seen = _Page(text)
    assert seen.links and all(link.startswith("data:image/png;base64,") for link in seen.links)
    assert not re.search(r"https?://|@import|url\(", text)
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in (
        seen.opened
    )
    assert "prefers-color-scheme: dark" in text
    for words in ("56.7", "35.0", "toy", "jcl run toy --set a='<b>'", "class-incremental"):
        assert words in seen.words
    for name in ("curves", "forgetting", "matrix", "loss"):
        assert min(_png_size(tmp_path / f"{name}.png")) > 200


def test_several_runs_are_drawn_side_by_side(tmp_path):
    runs = [
        write(tmp_path / "a", R, method="naive()", labels=["naive()"]),
        write(tmp_path / "b", 0.5 * R, method="er()", labels=["er()"]),
    ]
    report.group(tmp_path, runs)
    seen = _Page(page.draw(tmp_path).read_text())
    assert "naive()" in seen.words and "er()" in seen.words and "17.5" in seen.words
    assert (tmp_path / "comparison.png").exists()
    assert (tmp_path / "a" / "report.html").exists()
    assert [run.labels for run in report.load(tmp_path)] == [["naive()"], ["er()"]]


def test_a_sweep_over_shapes_is_drawn_as_a_curve_too(tmp_path):
    runs = [
        write(tmp_path / str(n), R * n / 30, method=f"er({n})", labels=[f"er({n})"],
              family="er()", outer={"er.capacity": n})
        for n in (10, 20, 30)
    ]  # fmt: skip
    report.group(tmp_path, [*runs, write(tmp_path / "n", R, method="naive()", labels=["naive()"])])
    page.draw(tmp_path)
    assert (tmp_path / "sweep.png").exists()


def test_compare_labels_equal_methods_by_folder_and_refuses_other_measures(tmp_path):
    runs = [write(tmp_path / "x"), write(tmp_path / "y")]
    assert [s.label for s in report.labelled(runs)] == [
        "ewc(strength=1.0) (x)",
        "ewc(strength=1.0) (y)",
    ]
    page.compare(runs, tmp_path / "c.png")
    assert min(_png_size(tmp_path / "c.png")) > 200
    other = write(tmp_path / "z", measure="bits per byte", higher_is_better=False)
    with pytest.raises(ValueError, match="different things"):
        page.compare([runs[0], other], tmp_path / "c.png")
