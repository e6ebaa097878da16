"""What is chosen is said and kept; names and files of stages as they are typed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_life import month

from jcl.runs.life.begin import named
from jcl.runs.life.life import Life
from jcl.runs.life.plan import source_of


def test_what_nobody_says_is_chosen_said_and_kept(born: Callable[..., Life]) -> None:
    said: list[str] = []
    rows = [{"text": row["text"], "label": "ab"[i % 2]} for i, row in enumerate(month("jan"))]
    life = born(rows, say=said.append)
    assert [line.partition(":")[0] for line in said] == ["method", "lr", "length", "room"]
    kept = json.loads((life.folder / "config.json").read_text())["life"]
    assert kept["task"] == "classify" and kept["room"] == 12 and kept["length"] == 32
    assert kept["method"] == "er(capacity=512, fraction=0.25)" and kept["lr"] == 1e-3
    assert Life(life.folder).settings == life.settings


@pytest.mark.quick
def test_a_stage_is_named_by_its_file_or_before_it(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.csv"):
        (tmp_path / name).write_text("x")
    both = f"jan={tmp_path / 'a.jsonl'},{tmp_path / 'b.csv'}"
    assert named(both) == ("jan", [tmp_path / "a.jsonl", tmp_path / "b.csv"])
    assert named(str(tmp_path / "a.jsonl"))[0] == "a"
    found = source_of([tmp_path / "a.jsonl", tmp_path])["files"]
    assert found[0]["bytes"] == 1 and found[1]["bytes"] == 2
    assert found[0]["sha256"].startswith("2d711642b726b044")
    for text, sentence in (
        ("jan=", "data is 'jan=', but must be a file, or name=file"),
        ("jan=nowhere.csv", "data is 'nowhere.csv', but must be a file or a folder that is there"),
        (f"a<b={tmp_path}", "name of the stage is 'a<b', but must be a word without"),
    ):
        with pytest.raises(ValueError, match=sentence):
            named(text)
