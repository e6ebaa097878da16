"""Numbers and names as text."""

import numpy as np
import pytest
from tiny_run import R, write

from jcl import metrics, report
from jcl.report import format as text

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
