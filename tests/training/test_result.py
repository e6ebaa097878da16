"""What a run gives back, shown in a line or two."""

from __future__ import annotations

import numpy as np
import pytest

from jcl.training.result import Result, peak_memory


@pytest.mark.quick
def test_a_result_is_shown_in_a_line() -> None:
    scores = np.array([[0.1, 0.1], [0.5, 0.1], [0.4, 0.8]], np.float32)
    history = [{"stage": 1, "step": 8, "loss": 0.25}]
    result = Result(None, scores, history, 3.21, 1.0, 10.0, 1, peak_memory(), None, {})  # type: ignore[arg-type]
    shown = repr(result)
    assert "stages=2" in shown and "mean=0.6" in shown and "steps=8" in shown and "3.2" in shown
    assert shown.count("\n") <= 1


@pytest.mark.quick
def test_peak_memory_is_bytes() -> None:
    before = peak_memory()
    held = np.ones(2**25, np.uint8)
    assert held.nbytes // 2 < before < 2**40 and peak_memory() >= before
