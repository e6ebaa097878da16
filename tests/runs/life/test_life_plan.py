"""What a stage is to be: refusals before anything is written, and items by their rows' hashes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_life import month

from jcl.runs.life.accept import parse
from jcl.runs.life.book import Book
from jcl.runs.life.plan import plan_stage, read_given, read_items, source_of, write_items
from jcl.runs.life.rows import hash_of
from jcl.runs.life.settings import Settings

pytestmark = pytest.mark.quick
GIVEN = Settings("model", "text", "er()", 1e-3, 16)


def test_a_plan_says_what_is_to_be_done(tmp_path: Path) -> None:
    plan, parts = plan_stage(
        Book(tmp_path), GIVEN, "jan", month("jan"), None, parse("jan<3"), None, None, False, {}
    )
    assert plan["name"] == "jan" and plan["parent"] == -1 and plan["method"] == "er()"
    assert plan["accept"] == "jan<3" and plan["counts"]["train"] == len(parts.train)
    with pytest.raises(ValueError, match="accept asks for 'feb', which isn't measured"):
        plan_stage(
            Book(tmp_path), GIVEN, "jan", month("jan"), None, parse("feb<3"), None, None, False, {}
        )


def test_items_are_known_by_their_rows(tmp_path: Path) -> None:
    rows = month("jan", 3)
    write_items(tmp_path, {0: rows}, {0: np.array([[1.5, 3.0], [2.0, 4.0]])})  # two were scored
    assert read_items(tmp_path) == {0: {hash_of(rows[0]): [1.5, 3.0], hash_of(rows[1]): [2.0, 4.0]}}


def test_files_are_read_where_rows_are_wanted(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo")
    rows, tests, source = read_given(tmp_path / "a.txt", None, None, "text")
    assert list(rows) == [{"text": "one"}, {"text": "two"}] and tests is None
    assert source == source_of([tmp_path / "a.txt"])
    assert read_given(rows, str(tmp_path / "a.txt"), {}, "text") == (rows, list(rows), {})
