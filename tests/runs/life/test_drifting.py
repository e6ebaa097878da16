"""A detector tells months that are like the tests from others, and the book says what it said."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tiny_life import month

from jcl.runs.life import shown
from jcl.runs.life.drifting import detect
from jcl.runs.life.life import Life


@pytest.mark.quick
def test_it_seldom_fires_without_drift_and_always_with_one() -> None:
    rng = np.random.default_rng(0)
    quiet = [detect(rng.normal(size=60), rng.normal(size=60)).fired for _ in range(20)]
    moved = [detect(rng.normal(size=60), rng.normal(1.5, size=60)).fired for _ in range(20)]
    assert sum(quiet) <= 1 and all(moved)
    assert not detect(rng.normal(size=60), rng.normal(-3, size=60)).fired  # known better
    assert detect(np.ones(5), np.full(5, 2.0)).fired  # where all were alike


def test_only_a_month_that_drifts_is_learned(life: Life) -> None:
    like = [{"text": f"the cat sat on the mat {i}"} for i in range(100, 120)]
    done = life.stage("like", like, when="drift")
    assert not done.accepted and math.isnan(done.before) and "no drift in 1" in done.why
    assert life.stages == ["jan", "feb"]
    assert "like: not trained, no drift" in shown.log_lines(life)[-1]
    other = [{"text": f"{chr(0x4E00 + i)}☕数学 🙂🙂 {i}"} for i in range(20)]
    assert life.stage("other", other, when="drift").accepted
    with pytest.raises(ValueError, match="when is 'never', but must be 'always' or 'drift'"):
        life.stage("x", month("march"), when="never")  # type: ignore[arg-type]
