"""A run's folder: who holds it, and files that are whole or not there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from jcl.training import folder

HOLD = """
import sys
from pathlib import Path
from jcl.training import folder
with folder.hold(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.quick
def test_another_process_is_refused_by_a_sentence_and_let_in_afterwards(tmp_path: Path) -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert other.stdout is not None and other.stdout.readline() == "held\n"
    with (
        pytest.raises(ValueError, match=f"is in use by process {other.pid} on .*; wait until"),
        folder.hold(tmp_path),
    ):
        pass
    other.kill()  # by which the system lets go
    other.wait()
    with folder.hold(tmp_path):
        assert json.loads((tmp_path / folder.HOLDER).read_text())["pid"] == os.getpid()
    assert folder.is_empty(tmp_path) and not (tmp_path / folder.HOLDER).exists()


def test_one_run_may_hold_it_twice_and_another_thread_may_not(tmp_path: Path) -> None:
    said: list[str] = []

    def another() -> None:
        try:
            with folder.hold(tmp_path):
                said.append("held")
        except ValueError as refused:
            said.append(str(refused))

    with folder.hold(tmp_path):
        with folder.hold(tmp_path):
            pass
        thread = threading.Thread(target=another)
        thread.start()
        thread.join()
    assert len(said) == 1 and f"in use by process {os.getpid()}" in said[0]


@pytest.mark.quick
def test_a_file_is_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with folder.whole(path) as partial:
        partial.write_text("old")
        assert not path.exists()
    with pytest.raises(KeyError), folder.whole(path) as partial:
        partial.write_text("ne")
        raise KeyError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
