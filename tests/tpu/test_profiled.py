"""tpu/profiled.py: a trace of a run's devices, and the run's own exit code."""

from __future__ import annotations

import contextlib
import importlib.util
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import pytest

from jcl import cli


@pytest.fixture(scope="module")
def profiled() -> ModuleType:
    path = Path(__file__).parents[2] / "tpu" / "profiled.py"
    spec = importlib.util.spec_from_file_location("profiled", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("after", "seconds"), [(0.1, 0.3), (0.1, 60.0)])
def test_a_trace_of_what_ran_meanwhile(
    after: float,
    seconds: float,
    profiled: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also when the run ends before the trace should."""
    begun, multiplied, trace = threading.Event(), threading.Event(), jax.profiler.trace

    @contextlib.contextmanager
    def noted(to: Path) -> Iterator[None]:  # what it knows of the process takes seconds to begin
        with trace(to):
            begun.set()
            multiplied.wait(60)
            yield

    def train(args: list[str]) -> int:
        assert args == ["run", "eras", "--out", "a"]
        multiply = jax.jit(jnp.dot)
        assert begun.wait(60)
        for _ in range(10):
            multiply(jnp.ones((8, 8)), jnp.ones((8, 8))).block_until_ready()
        multiplied.set()
        return 75

    monkeypatch.setattr(jax.profiler, "trace", noted)
    monkeypatch.setattr(cli, "main", train)
    when = ["--after", str(after), "--seconds", str(seconds)]
    code = profiled.main(["--to", str(tmp_path), *when, "run", "eras", "--out", "a"])
    assert code == 75
    [written] = tmp_path.rglob("*.xplane.pb")
    assert b"jit_dot" in written.read_bytes()


def test_a_run_that_ends_first_leaves_no_trace(
    profiled: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "main", lambda args: 2)
    assert profiled.main(["--to", str(tmp_path), "run", "eras"]) == 2
    assert not list(tmp_path.iterdir())
