"""Several local processes against one: the same numbers, in the face of all that ends a process."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jcl import cli
from jcl.parallel import processes
from jcl.runs import experiment, expression
from jcl.training.fit import last_state

TOY = '''
"""Slow enough to be interrupted; its stream hands out the rows themselves, from the host."""

import os
import time
from dataclasses import dataclass

import jax
import numpy as np
import optax

from jcl import checkpoint, data, losses
from jcl.data import Stream
from jcl.measures.evaluation import accuracy, evaluator
from jcl.runs.experiment import Experiment
from jcl.models import mlp

METHODS = ("er(capacity=24, rows=8) + ewc(strength=1.)",)
BATCH, STEPS, STAGES = 8, 40, 3
if "UNSHARED" in os.environ:
    checkpoint.is_shared = lambda folder: False


@dataclass(frozen=True)
class Config:
    """None."""

    pause: float = 0.02
    """Seconds a step takes."""


def build(config):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(STAGES, 64, 4)).astype(np.float32)
    y = (x * rng.normal(size=(STAGES, 1, 4)) > 0).sum(-1).astype(np.int32)

    def read(stage, index, rows):
        own = index[:, rows]
        if stage == 1 and os.environ.get("FAILS") == str(jax.process_index()):
            raise ValueError("the second stage's file is torn")
        if len(index) > 1 and "WHOLE" not in os.environ:  # one step is read for its shapes
            assert own.shape[1] * jax.process_count() == BATCH, "others' rows are read too"
        return {"x": x[stage][own], "y": y[stage][own], "weight": np.ones(own.shape, np.float32),
                "task": np.full(own.shape, stage, np.int32)}

    def chunk(stage, start, stop, rows=slice(None)):
        time.sleep(config.pause * (stop - start))
        draws = [np.random.default_rng((stage, i)).integers(64, size=BATCH)
                 for i in range(start, stop)]
        return read(stage, np.stack(draws), rows)

    def boundary(stage, rows=slice(None)):
        return read(stage, np.arange(64).reshape(-1, BATCH), rows)

    names = tuple("abc"[:STAGES])
    tests = [{"x": a, "y": b, "task": np.zeros(64, np.int32)} for a, b in zip(x, y)]
    stream = Stream(names, (0, 1, 2), (STEPS,) * STAGES, chunk, boundary, (),
                    lambda source, batch: batch, names, data.stream.pack(tests))
    return Experiment(
        name="toy", scenario="domain", stream=lambda seed: stream,
        init=lambda key: mlp.init(key, (4, 16, 8)), apply=mlp.apply,
        loss=losses.cross_entropy(), optimizer=optax.adam, learning_rate=1e-2,
        evaluate=evaluator(stream.test, accuracy()), chunk=4,
    )
'''


@pytest.fixture(scope="module")
def toy(tmp_path_factory: Any) -> Path:
    path = tmp_path_factory.mktemp("toy") / "toy.py"
    path.write_text(TOY)
    return path


@pytest.fixture(scope="module")
def whole(toy: Path) -> Path:
    """The run of one process on one device that all others must equal."""
    out = toy.parent / "whole"
    assert cli.main(["run", str(toy), "--pause", "0", "--out", str(out)]) == 0
    return out


class Group:
    """Local processes of one run."""

    def __init__(
        self, toy: Path, out: Path, count: int, *args: str, devices: int = 1, **env: str
    ) -> None:
        """`devices` of each."""
        with socket.create_server(("", 0)) as server:
            port = server.getsockname()[1]
        count_of = "--xla_force_host_platform_device_count="  # beside what makes compiling cheap
        flags = re.sub(rf"{count_of}\d+", f"{count_of}{devices}", os.environ["XLA_FLAGS"])
        env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, **env}
        self.out = out
        self.all = [
            subprocess.Popen(
                [
                    sys.executable, "-c", "import sys; from jcl.cli import main; sys.exit(main())",
                    "run", str(toy), "--out", str(out), "--resume", *args,
                    *(["--distributed", f"localhost:{port},{count},{i}"] if count > 1 else []),
                ],
                env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            )
            for i in range(count)
        ]  # fmt: skip

    def wait_for(self, steps: int) -> None:
        """Until so many steps are in the log."""
        while (self.logged() or [{"step": 0}])[-1]["step"] < steps:
            assert all(p.poll() is None for p in self.all), self.ends()
            time.sleep(0.02)

    def logged(self) -> list[dict[str, Any]]:
        path = self.out / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def ends(self) -> list[tuple[int, str]]:
        """Exit codes, and what was said on stderr."""
        said = [p.communicate(timeout=300)[1] for p in self.all]
        return [(p.returncode, text) for p, text in zip(self.all, said, strict=True)]


def state_of(toy: Path, out: Path) -> Any:
    module = experiment.load(toy)
    built = module.build(module.Config(pause=0.0))
    made = experiment.setup(built, expression.parse(module.METHODS[0]))
    return last_state(*made, built.evaluate, out)


def assert_same(toy: Path, whole: Path, out: Path) -> None:
    """The same losses and parameters to rounding, and the very same rows in the memory."""
    one, two = (
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (whole, out)
    )
    assert [e["step"] for e in one] == [e["step"] for e in two]
    np.testing.assert_allclose([e["loss"] for e in one], [e["loss"] for e in two], rtol=1e-4)
    a, b = (state_of(toy, folder) for folder in (whole, out))
    for x, y in zip(jax.tree.leaves(a.params), jax.tree.leaves(b.params), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4)
    memories = [jax.tree.leaves(s.methods["er"].buffer) for s in (a, b)]
    assert memories[0]
    for x, y in zip(*memories, strict=True):
        np.testing.assert_array_equal(x, y)
    one, two = (json.loads((f / "summary.json").read_text())["average"] for f in (whole, out))
    np.testing.assert_allclose(one["mean"], two["mean"], atol=0.02)


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
def test_preempted_it_goes_on_with_one_process_and_with_four(
    toy: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    # of four devices each, without a folder in common
    two = Group(toy, out, 2, "--mesh", "data=2,fsdp=4", devices=4, UNSHARED="1")
    two.wait_for(12)
    two.all[1].send_signal(signal.SIGTERM)
    ends = two.ends()
    assert [code for code, _ in ends] == [75, 75], ends
    assert "told to stop by SIGTERM" in ends[0][1] and "--resume" in ends[0][1]
    assert "Traceback" not in ends[0][1] + ends[1][1]
    reached = two.logged()[-1]["step"]
    assert reached < 60
    one = Group(toy, out, 1, "--mesh", "fsdp=2", devices=2)
    one.wait_for(reached + 12)
    one.all[0].send_signal(signal.SIGTERM)
    assert [code for code, _ in one.ends()] == [75]
    assert reached < one.logged()[-1]["step"] < 110
    four = Group(toy, out, 4, "--mesh", "fsdp=-1", UNSHARED="1")
    ends = four.ends()
    assert [code for code, _ in ends] == [0] * 4, ends
    assert_same(toy, whole, out)


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
def test_told_to_stop_while_it_compiles_it_goes_on_later(
    toy: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    one = Group(toy, out, 1)
    while not (out / "config.json").exists():  # what comes next is compiling
        assert one.all[0].poll() is None, one.ends()
        time.sleep(0.01)
    one.all[0].send_signal(signal.SIGTERM)
    [(code, said)] = one.ends()
    assert code == 75 and "told to stop by SIGTERM" in said
    # two processes, each with a part of all rows
    two = Group(toy, out, 2, "--mesh", "sequence=2", WHOLE="1")
    assert [code for code, _ in two.ends()] == [0, 0]
    assert_same(toy, whole, out)


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
def test_what_one_process_alone_meets_ends_them_all(toy: Path, tmp_path: Path) -> None:
    group = Group(toy, tmp_path / "out", 2, "--mesh", "fsdp=-1", FAILS="1")
    (first, lost), (second, failed) = group.ends()
    assert (first, second) == (processes.LOST, 2)
    assert "jcl: process 1 of 2 ended early, so process 0 ends too" in lost
    assert "jcl: the second stage's file is torn" in failed
    assert "Traceback" not in lost + failed


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
@pytest.mark.parametrize("victim", [0, 1])
def test_a_lost_process_ends_the_others_with_a_sentence(
    toy: Path, whole: Path, tmp_path: Path, victim: int
) -> None:
    group = Group(toy, tmp_path / "out", 2, "--mesh", "fsdp=-1")
    group.wait_for(56)
    began = time.monotonic()
    group.all[victim].kill()
    ends = group.ends()
    assert time.monotonic() - began < 60
    code, said = ends[1 - victim]
    assert code == processes.LOST, ends
    assert f"jcl: process {victim} of 2 is lost, so process {1 - victim} ends too" in said
    assert "Traceback" not in said and "stack trace" not in said
    if victim == 1:  # the same command goes on from the last checkpoint
        again = Group(toy, tmp_path / "out", 2, "--pause", "0.02")
        assert [code for code, _ in again.ends()] == [0, 0]
        assert_same(toy, whole, tmp_path / "out")


@pytest.mark.quick
def test_who_it_is_must_be_said_rightly() -> None:
    wrong = {
        "nonsense": "must be auto, or HOST:PORT",
        "host:80,2,2": "index is 2, but must be from 0 to 1",
        "host:80,0,0": "number of processes is 0",
        "host:70000,2,0": "port is 70000",
    }
    for text, sentence in wrong.items():
        with pytest.raises(ValueError, match=sentence):
            processes.start(text)


def test_who_cannot_be_reached_is_said() -> None:
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(OSError, match=f"process 0 can't listen at port {port}"):
            processes.start(f"localhost:{port},2,0")
    with pytest.raises(OSError, match=f"process 1 can't reach process 0 at localhost:{port}"):
        processes.start(f"localhost:{port},2,1", patience=0.3)


@pytest.mark.quick
def test_alone_it_agrees_with_itself() -> None:
    assert not processes.has_peers() and processes.is_leader()
    assert processes.largest_of_all(3) == 3
    assert processes.from_leader(lambda: "x") == "x"
    processes.check_same("command", {"a": 1})
    processes.finish(2)  # does nothing
