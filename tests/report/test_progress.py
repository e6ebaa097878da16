"""Progress in a terminal, a notebook, and where there is neither."""

from __future__ import annotations

import io
import subprocess
import sys
import types
from typing import Any

import numpy as np
import pytest

import jcl
from jcl.report import progress as shown

pytestmark = pytest.mark.quick
PROGRESS: dict[str, Any] = {
    "kind": "progress", "stage": 0, "name": "one [1]", "step": 30, "steps": 60, "loss": 0.5,
    "examples_per_second": 1234.0, "seconds_left": 75.0, "scalars": {"ewc/fisher": 2.0},
    "learning_rate": 1e-3,
}  # fmt: skip
SCORES = {"kind": "scores", "stage": 1, "name": "one", "scores": np.array([[0.5, 1], [1, 0]])}
FACTS = "one [1] · loss 0.500 · ewc/fisher 2 · learning rate 0.001 · 1,234 examples/s · 1:15 left"


def test_elsewhere_a_line_comes_every_so_often(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = jcl.progress("a run")
    watch({**SCORES, "stage": 0})
    watch(PROGRESS)
    assert capsys.readouterr().out == "a run\nbefore: 0.750  0.500\n"
    monkeypatch.setattr(shown, "EVERY", 0.0)
    watch(PROGRESS)
    watch({"kind": "evaluation", "step": 30, "scores": np.array([0.25]), "best": True})
    watch({"kind": "diverged", "member": 1, "step": 31})
    watch({"kind": "something new"})
    watch.close()
    said = capsys.readouterr().out.splitlines()
    assert said == [
        f"step 30/60 · {FACTS}", "at step 30: 0.250 (best)", "member 1 diverged at step 31",
    ]  # fmt: skip


def test_in_a_notebook_a_plain_bar_is_written_over(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = type("ZMQInteractiveShell", (), {})()
    fake: Any = types.SimpleNamespace(get_ipython=lambda: kernel)
    monkeypatch.setitem(sys.modules, "IPython", fake)
    watch = jcl.progress()
    watch(PROGRESS)
    watch(SCORES)
    watch.close()
    first, second = capsys.readouterr().out.split("\r")[1:]
    assert first == f"[{'#' * 12}{'.' * 12}] 30/60 · {FACTS}"
    assert second.rstrip() == "after one: 0.750  0.500" and len(second) > len(first)


def test_in_a_terminal_it_is_rich_s_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "150")
    watch = jcl.progress()
    watch(PROGRESS)
    watch(SCORES)
    watch.close()
    text = screen.getvalue()
    assert "━" in text and "30/60 · one [1] · loss 0.500" in text
    assert "after one: 0.750  0.500" in text and "\x1b[?25h" in text  # the cursor is back


def test_rich_is_loaded_only_where_it_is_shown() -> None:
    code = "import sys, jcl; jcl.progress()({'kind': 'x'}); assert 'rich' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
