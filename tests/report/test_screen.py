import numpy as np
import pytest

from jcl.report import screen

PROGRESS = {
    "kind": "progress", "stage": 1, "name": "two [2]", "step": 30, "steps": 60, "loss": 0.5,
    "examples_per_second": 10.0, "seconds_left": 75.4,
}  # fmt: skip
SCORES = {"kind": "scores", "stage": 1, "name": "one", "scores": np.array([[0.5, 1], [1, 0]])}


@pytest.fixture
def watch(monkeypatch):
    monkeypatch.setattr(screen, "EVERY", -1.0)
    return screen.Watch("er(groups=[1])", 3, ("one", "two [2]"), ("tokens", 64))


def test_plain_lines_say_where_a_run_is(watch, capsys):
    with watch:
        watch(PROGRESS)
        watch(SCORES)
        watch({"kind": "something new"})
    shown = capsys.readouterr().out
    assert "er(groups=[1])" in shown  # brackets are no markup
    assert "2/3 two [2]: step 30/60 · loss 0.500 · 640 tokens/s · 1:15 left" in shown
    assert "after one" in shown and "0.750  0.500" in shown  # the mean over members


@pytest.mark.quick
@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (75.4, "1:15"), (3599.7, "1:00:00"), (90061, "25:01:01")]
)
def test_time_is_told_as_on_a_clock(seconds, text):
    assert screen._clock(seconds) == text
