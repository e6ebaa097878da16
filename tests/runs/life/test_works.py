"""What a life computes with is built once, and of nothing that has changed since it began."""

from __future__ import annotations

from pathlib import Path

import own_method
import pytest
from tiny_life import month

from jcl.runs.life.life import Life


@pytest.mark.quick
def test_each_is_built_once(lived: Path) -> None:
    life = Life(lived)
    first, second = life.book.lineage()
    assert life.work(first) is life.work(second) is life.work()
    assert life.works.of("naive()", (), 0) is not life.work()
    assert Life(lived, life.base).base is life.base


def test_another_model_in_its_place_is_refused(life: Life) -> None:
    life.saved["weights"] = "0" * 64
    with pytest.raises(
        ValueError, match=r"the weights of .* are others than those that .* began with"
    ):
        life.stage("march", month("march"))


def test_a_users_own_method_stays_what_it_was(
    life: Life, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(own_method.MINE)
    monkeypatch.chdir(tmp_path)
    known = [{"text": f"the cat sat on the mat {i}"} for i in range(30, 50)]
    skipped = life.stage("more", known, method="./mine.py:pull(0.1)", when="drift")
    assert not skipped.accepted and "no drift in" in skipped.why  # as the current method sees it
    life.stage("march", month("march"), method="./mine.py:pull(0.1)")
    monkeypatch.chdir("/")
    assert set(Life(life.folder).state.methods) == {"pull"}
    mine.write_text(own_method.MINE + "\n")
    for changed in (lambda: Life(life.folder).state, lambda: life.stage("april", known)):
        with pytest.raises(ValueError, match=r"was begun with .*mine\.py, which has changed since"):
            changed()
    assert life.book.pending() is None
