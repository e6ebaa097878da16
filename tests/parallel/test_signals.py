"""A signal at any moment of a command's life: its exit code, its one sentence, and what is left.

By hand, at as many moments as one likes: `python tests/parallel/test_signals.py 200`, and with
`cold` after the number for runs that find nothing compiled, or `kill` for SIGKILL, every other time
in the last second of a run's life.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from jcl import cli
from jcl.parallel import signals

MOMENTS = 6
"""So many moments of a run's life are hit."""
GOLDEN = (5**0.5 - 1) / 2
CODES = {signal.SIGTERM: 75, signal.SIGINT: 130}
START = "import sys; from jcl_command import main; sys.exit(main())"
"""What the installed script `jcl` does."""
TOY = '''
"""Two short stages."""

from dataclasses import dataclass

import numpy as np
import optax

from jcl import data, losses
from jcl.measures.evaluation import accuracy, evaluator
from jcl.runs.experiment import Experiment
from jcl.models import mlp
from jcl.runs.pipeline import Node

METHODS = ("er(capacity=24, rows=8) + ewc(strength=1.)",)


@dataclass(frozen=True)
class Config:
    """None."""


def build(config):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 64, 4)).astype(np.float32)
    tasks = [{"x": a, "y": (a @ rng.normal(size=4) > 0).astype(np.int32)} for a in x]

    def stream(seed):
        return data.from_arrays(tasks, tasks, 8, steps=8, seed=seed)

    return Experiment(
        name="toy", scenario="domain", stream=stream, init=lambda key: mlp.init(key, (4, 8, 2)),
        apply=mlp.apply, loss=losses.cross_entropy(), optimizer=optax.adam, learning_rate=0.05,
        evaluate=evaluator(stream(0).test, accuracy()), chunk=2,
    )
'''
PIPELINE = (
    TOY
    + """

def nodes(config):
    return [Node("one", build(config), "ewc()"), Node("two", build(config), "er(capacity=20)")]
"""
)

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="only Linux says what a process catches"
)


class Ended(NamedTuple):
    """How a process ended that a signal was sent to."""

    moment: float
    """Seconds after it had set its handlers."""
    number: int
    code: int
    said: str
    """On stderr."""
    before: set[str]
    """Names in its folder when the signal was sent."""
    life: float
    """Seconds from when it had set its handlers to its end."""


def catches(pid: int, number: int) -> bool:
    """Whether a process handles a signal."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return True  # it is gone


def begin(*args: Any, cache: Path, start: str = START) -> subprocess.Popen[str]:
    """A `jcl` command in a process of its own, once it handles SIGTERM."""
    process = subprocess.Popen(
        [sys.executable, "-c", start, *map(str, args)],
        env={**os.environ, "XDG_CACHE_HOME": str(cache)},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while process.poll() is None and not catches(process.pid, signal.SIGTERM):
        time.sleep(0.001)
    return process


def length(*args: Any, cache: Path) -> float:
    """Seconds that a command takes that nobody ends."""
    process = begin(*args, cache=cache)
    began = time.monotonic()
    _, said = process.communicate()
    assert process.returncode == 0, said
    return time.monotonic() - began


def hit(*args: Any, cache: Path, moment: float, number: int, out: Path | None = None) -> Ended:
    """Sends a signal to a command, `moment` seconds after it has set its handlers."""
    process = begin(*args, cache=cache)
    began = time.monotonic()
    time.sleep(moment)
    before = {path.name for path in out.iterdir()} if out and out.is_dir() else set()
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    life = time.monotonic() - began
    return Ended(moment, number, process.returncode, said, before, life)


def check_ended(ended: Ended, last: Path | None = None) -> None:
    """It ended by the signal with one sentence, or had written its last file."""
    if ended.code == 0:
        assert last is not None and last.exists(), ended
        return
    if ended.number == signal.SIGKILL:
        assert ended.code == -signal.SIGKILL and not ended.said, ended
        return
    assert ended.code == CODES[signal.Signals(ended.number)], ended
    lines = ended.said.splitlines()
    assert len([line for line in lines if line.startswith("jcl: ")]) == 1, ended
    swallowed = ("Traceback", "ignored", "Error reading", "Preempted", "KeyboardInterrupt")
    assert not [line for line in lines if any(word in line for word in swallowed)], ended


def check_resumed(toy: Path, whole: Path, out: Path, files: tuple[str, ...]) -> None:
    """Gone on with, a run leaves the very same files as one that nobody ended."""
    with contextlib.redirect_stdout(io.StringIO()):
        assert cli.main(["run", str(toy), "--out", str(out), "--resume"]) == 0
    for name in files:
        assert (out / name).read_bytes() == (whole / name).read_bytes(), (out, name)
    assert not list(out.rglob("*.partial"))


FILES = ("matrix.csv", "scores.csv", "metrics.jsonl")
NODES = ("scores.csv", "one/metrics.jsonl", "two/metrics.jsonl")


def hit_all(
    folder: Path,
    count: int,
    toy: str,
    files: tuple[str, ...],
    cold: bool = False,
    say: Callable[[Ended], None] = lambda ended: None,
    kill: bool = False,
) -> list[Ended]:
    """Hits `count` moments of a run's life, SIGTERM and SIGINT in turn, and goes on after each.

    They are spread evenly, but early and late ones follow one another, and a run that ends by
    itself sooner says how long a life is, so that a busy machine's first measure doesn't put many
    moments beyond it. With `kill` it is SIGKILL, every other time in the run's last second.
    """
    path, whole, cache = folder / "toy.py", folder / "whole", folder / "cache"
    path.write_text(toy)
    taken = length("run", path, "--out", whole, cache=cache)  # which leaves what it compiles
    if not cold:
        taken = length("run", path, "--out", folder / "again", cache=cache)
    found = []
    for i in sorted(range(count), key=lambda i: i * GOLDEN % 1):
        out, number = folder / f"out{i}", signal.SIGKILL if kill else list(CODES)[i % 2]
        moment = (i + 0.5) / count * taken
        if kill and i % 2:
            moment = taken - 1 + (i + 0.5) / count
        ended = hit(
            "run", path, "--out", out, out=out, number=number,
            cache=folder / f"cache{i}" if cold else cache, moment=moment,
        )  # fmt: skip
        check_ended(ended, out / "report.html")
        check_resumed(path, whole, out, files)
        taken = min(taken, ended.life) if ended.code == 0 else taken
        found.append(ended)
        say(ended)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("toy", "files", "count"), [(TOY, FILES, MOMENTS), (PIPELINE, NODES, 4)])
def test_a_run_may_be_told_to_stop_at_any_moment(
    tmp_path: Path, toy: str, files: tuple[str, ...], count: int
) -> None:
    found = hit_all(tmp_path, count, toy, files)
    assert len({ended.code for ended in found} & {75, 130}) == 2


@pytest.mark.slow
def test_a_run_may_be_killed_at_any_moment(tmp_path: Path) -> None:
    found = hit_all(tmp_path, 2, TOY, FILES, kill=True)
    assert any(ended.code == -signal.SIGKILL for ended in found)


@pytest.mark.slow
@pytest.mark.parametrize("number", CODES)
def test_other_commands_end_at_once(tmp_path: Path, number: int) -> None:
    for args in (["list"], ["explain", "--method", "ewc()"]):
        taken = length(*args, cache=tmp_path)
        for share in (0.0, 0.6):
            ended = hit(*args, cache=tmp_path, moment=share * taken, number=number)
            if share == 0.0 or ended.code:  # later it may be done, as busy as the cores may be
                check_ended(ended)


BUSY = """
import hashlib, sys
from jcl.parallel import signals
def work():
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**8)  # C, in which Python runs no handler
signals.GRACE = float(sys.argv[1])
with signals.take_over():
    {hold}
    print("ready", file=sys.stderr, flush=True)
    work()
"""


@pytest.mark.parametrize(
    ("hold", "grace", "sent", "code", "sentence"),
    [
        ("", 50, [signal.SIGTERM], 75, "jcl: told to stop by SIGTERM"),
        ("", 50, [signal.SIGINT], 130, "jcl: stopped by Ctrl-C"),
        ("signals.hold('once more')", 0.3, [signal.SIGTERM], 75,
         "jcl: told to stop by SIGTERM, but came to no point to save at within 0 s; what was saved "
         "before is whole, once more"),
        ("signals.hold('once more')", 50, [signal.SIGINT] * 2, 130,
         "jcl: stopped by Ctrl-C twice, so it ended at once; what was saved before is whole, once "
         "more"),
    ],
)  # fmt: skip
def test_who_comes_to_no_safe_point_is_ended(
    tmp_path: Path, hold: str, grace: float, sent: list[int], code: int, sentence: str
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY.format(hold=hold), str(grace)],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None and process.stderr.readline() == "ready\n"
    for number in sent:
        assert process.poll() is None
        process.send_signal(number)
        time.sleep(0.1)
    _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (code, sentence + "\n")


def handlers() -> list[Any]:
    return [signal.getsignal(number) for number in CODES]


def send(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.01)  # for Python to run its handler


@pytest.mark.quick
def test_a_signal_is_noted_until_a_safe_point_and_the_handlers_put_back() -> None:
    before, saved = handlers(), list[int]()
    for number, error in ((signal.SIGTERM, signals.Preempted), (signal.SIGINT, KeyboardInterrupt)):
        with pytest.raises(error), signals.note():
            signals.stop(lambda: saved.append(0))
            send(number)
            saved.append(1)
            signals.stop(lambda: saved.append(2))
            saved.append(3)
        assert saved == [1, 2] and handlers() == before
        saved.clear()


def test_a_second_ctrl_c_stops_a_caller_s_work_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), signals.note():
        send(signal.SIGINT)
        send(signal.SIGINT)
        pytest.fail("it went on")


def test_what_comes_after_the_last_safe_point_is_raised_in_the_end() -> None:
    done = False
    with pytest.raises(signals.Preempted), signals.note():
        send(signal.SIGTERM)
        done = True
    assert done


@pytest.mark.parametrize("outer", [signals.take_over, signals.note])
def test_a_note_within_another_is_the_same(outer: Callable[[], Any]) -> None:
    before = handlers()
    with outer():
        signals.hold("")
        mine = handlers()
        with pytest.raises(signals.Preempted), signals.note():
            assert handlers() == mine
            send(signal.SIGTERM)
            signals.look()
        assert handlers() == mine
        with pytest.raises(signals.Preempted):
            signals.stop()  # it is still told
        if outer is signals.note:
            mine[0].found.clear()
    assert handlers() == before


@pytest.mark.quick
def test_in_another_thread_there_are_no_handlers() -> None:
    before, found = handlers(), list[Any]()

    def work() -> None:
        for context in (signals.take_over, signals.note):
            with context():
                found.append(handlers())
                signals.stop()
                signals.look()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [before, before]


def show(ended: Ended) -> None:
    """Prints a line, with what was in the run's folder when the signal was sent."""
    name, there = signal.Signals(ended.number).name, " ".join(sorted(ended.before))
    print(f"{ended.moment:6.3f} s {name:<7} {ended.code:>4} {there or '-'}", flush=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        how = {"cold": "cold" in sys.argv, "kill": "kill" in sys.argv}
        moments = hit_all(Path(place), int(sys.argv[1]), TOY, FILES, say=show, **how)
    print({code: sum(e.code == code for e in moments) for code in {e.code for e in moments}})
