"""Which differences between runs are called one: held against tests made here by scipy alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from tiny_run import R, write

from jcl import metrics, report
from jcl.report.comparison import compare

pytestmark = pytest.mark.quick


def noisy(seed: int, gain: float, spread: float, seeds: int = 5) -> np.ndarray:
    """Score matrices [seeds, 4, 3] that share noise over seeds, and have some of their own."""
    shared = np.random.default_rng(0).normal(0, 0.05, (seeds, 1, 1))
    own = np.random.default_rng(seed).normal(0, spread, (seeds, *R.shape[1:]))
    return np.clip(0.5 * R + 0.2 + gain + shared + own, 0, 1)


def saved(folder: Path, name: str, scores: np.ndarray, **more: Any) -> report.Run:
    labels = more.pop("labels", [name])
    points = more.pop("points", [{}])
    return write(folder / name, scores, points, labels, seeds=scores.shape[-3], method=name, **more)


def test_the_best_is_bold_only_where_scipy_s_tests_say_so(tmp_path: Path) -> None:
    scores = [noisy(1, 0.0, 0.01), noisy(2, 0.1, 0.01), noisy(3, 0.11, 0.05)]
    names = ("naive()", "er(rows=8)", "ewc()")
    runs = [saved(tmp_path, n, s) for n, s in zip(names, scores, strict=True)]
    found = compare(runs, "naive")
    assert found.labels == list(names)
    assert found.measures == tuple(metrics.definitions)
    assert found.rising == (True, True, True, False, True)
    average = [s[:, -1].mean(axis=1) for s in scores]
    p = {
        (a, b): stats.ttest_rel(average[a], average[b]).pvalue for a, b in [(0, 1), (0, 2), (1, 2)]
    }
    assert p[0, 1] < 0.05 / 3 and p[1, 2] > 0.05  # er beats naive, and nothing tells er from ewc
    column = [row[0] for row in found.cells]
    assert not any(cell.best for cell in column)
    smaller, larger = sorted([p[0, 1], p[0, 2]])
    expected = {(0, 1): None, (0, 2): None}
    for pair in expected:
        expected[pair] = 2 * smaller if p[pair] == smaller else max(2 * smaller, larger)
    assert [c.apart for c in column] == [False, expected[0, 1] < 0.05, expected[0, 2] < 0.05]
    two = compare(runs[:2], "naive")
    assert [row[0].best for row in two.cells] == [False, True]  # ewc gone, er is the best


def test_a_lower_forgetting_is_the_better_one(tmp_path: Path) -> None:
    worse = noisy(1, 0.0, 0.001)
    better = worse.copy()
    better[:, -1, :2] += 0.1 + np.random.default_rng(1).normal(0, 0.001, (5, 2))
    found = compare([saved(tmp_path, "a()", worse), saved(tmp_path, "b()", better)])
    at = found.measures.index("forgetting")
    assert [row[at].best for row in found.cells] == [False, True]
    assert not any(cell.apart for row in found.cells for cell in row)  # there is no baseline


def test_one_seed_tests_nothing_and_equal_runs_are_equal(tmp_path: Path) -> None:
    one = compare([saved(tmp_path, n, R) for n in ("a()", "b()")], "a")
    assert not any(c.best or c.apart for row in one.cells for c in row)
    assert any("nothing is tested" in note for note in one.notes)
    scores = noisy(1, 0.0, 0.01)
    same = compare([saved(tmp_path, n, scores) for n in ("c()", "d()")], "c")
    assert not any(c.best or c.apart for row in same.cells for c in row)


def test_the_notes_say_what_was_tested_and_chosen(tmp_path: Path) -> None:
    points = [{"ewc.strength": 1.0}, {"ewc.strength": 9.0}]
    both = np.stack([noisy(1, 0.0, 0.01), noisy(2, 0.1, 0.01)])
    sweep = {"points": points, "labels": ["ewc(strength=1)", "ewc(strength=9)"]}
    runs = [saved(tmp_path, "ewc", both, **sweep), saved(tmp_path, "naive()", both[0])]
    said = compare(runs, "naive()").notes
    assert said[0] == "accuracy in %, mean ± 95 % over 5 seeds (Student's t)"
    assert "Holm's correction over the column's 1 pairs of rows, p < 0.05" in said[1]
    assert said[2].startswith("†: differs from naive() (paired t test over seeds, Holm's")
    assert said[3] == (
        "ewc(strength=9) was chosen among 2 points by the final test scores themselves, so it is "
        "optimistic"
    )


def test_a_point_that_held_out_rows_chose_is_said_to_be_honest(tmp_path: Path) -> None:
    both = np.stack([noisy(1, 0.0, 0.01), noisy(2, 0.1, 0.01)])
    folder = tmp_path / "ewc"
    folder.mkdir()
    plain = write(tmp_path / "facts", both, [{"lr": 0.1}, {"lr": 0.2}], ["a", "b"], seeds=5)
    written = report.write(
        folder, plain.summary, plain.points, plain.labels, both,
        validation=np.array([[0.9] * 5, [0.2] * 5]),
    )  # fmt: skip
    (read,) = report.load(folder)
    assert plain.best == 1 and written.best == read.best == 0  # against what the test says
    assert read.summary["selected"] == {"lr": 0.1}
    assert read.summary["matrix"] == read.summary["sweep"][0]["matrix"]
    assert compare([read]).notes[-1] == (
        "a was chosen among 2 points by rows held out of training, not by the test"
    )


def test_runs_whose_seeds_are_no_pairs_and_no_baseline_are_refused(tmp_path: Path) -> None:
    runs = [saved(tmp_path, "a()", R), saved(tmp_path, "b()", R, stages=["a", "b", "x"])]
    with pytest.raises(ValueError, match=r"^stages is \['a', 'b', 'x'\] in .*b\(\), but must be"):
        compare(runs)
    with pytest.raises(ValueError, match=r"baseline is 'c', which none of the rows are called, bu"):
        compare(runs[:1], "c")
