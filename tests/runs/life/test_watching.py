"""A folder is watched: each file once, whole, and the watch ends when it is told to."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest
from tiny_life import month

from jcl.runs.life import watching
from jcl.runs.life.life import Life


def put(path: Path, name: str, rows: int = 12) -> None:
    lines = [json.dumps(row) + "\n" for row in month(name, rows)]
    path.with_name("." + path.name).write_text("".join(lines))
    path.with_name("." + path.name).rename(path)


def test_each_file_is_a_stage_and_none_comes_twice(life: Life, tmp_path: Path) -> None:
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    put(inbox / "march.jsonl", "march")
    (inbox / "notes.docx").write_text("x")
    (inbox / "bad.jsonl").write_text("{")
    said: list[str] = []

    def later() -> None:
        while not any(line.startswith("march") for line in said):
            time.sleep(0.05)
        put(inbox / "copy.jsonl", "march")  # the same bytes by another name
        (inbox / "march.csv").write_text("text\n" + "".join(f"april {i}\n" for i in range(12)))
        while not any(line.startswith("march.csv") for line in said):
            time.sleep(0.05)
        (inbox / "stop").touch()

    thread = threading.Thread(target=later)
    thread.start()
    done = watching.watch(life, inbox, every=0.05, say=said.append)
    thread.join()
    assert [one.name for one in done] == ["march", "march-2"] == life.stages[2:]
    assert sum(line.startswith("bad.jsonl is left") for line in said) == 1
    assert not any("copy" in line or "notes" in line for line in said)
    (inbox / "stop").unlink()
    (inbox / "bad.jsonl").unlink()
    put(inbox / "june.jsonl", "jan", 30)  # nothing new in it

    def stop() -> None:
        while not any("june" in line for line in said):
            time.sleep(0.05)
        (inbox / "stop").touch()

    thread = threading.Thread(target=stop)
    thread.start()
    assert watching.watch(Life(life.folder), inbox, every=0.05, say=said.append) == []
    thread.join()
    assert "number of new rows to train on is 0" in said[-1]


@pytest.mark.quick
def test_what_cannot_be_watched_is_refused(lived: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"inbox is .*, but must be a folder that is there"):
        watching.watch(Life(lived), tmp_path / "none")
    with pytest.raises(ValueError, match="every is 0, but must be above 0"):
        watching.watch(Life(lived), tmp_path, every=0)
