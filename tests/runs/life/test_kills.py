"""Killed at any write of `continue`, `rollback` and `forget`, a life goes on to the same end.

By hand, at as many moments as one likes: `python tests/runs/life/test_kills.py 40`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest

TINY = Path(__file__).parents[2] / "tiny"
sys.path.insert(0, str(TINY))

from tiny_life import SMALL, month  # noqa: E402

from jcl.runs.life import forget  # noqa: E402
from jcl.runs.life.begin import begin  # noqa: E402
from jcl.runs.life.life import Life  # noqa: E402

ROW = {"text": "the cat sat on the mat 3"}
"""What is forgotten: a row of January."""
WRITES = ("os.rename", "shutil.rmtree", "shutil.copyfile", "os.remove")
CHILD = """
import os, sys
sys.path[:0] = [{here!r}, {tiny!r}]
from test_kills import WRITES, finish
from jcl.runs.life.life import Life
left = [int(sys.argv[2])]
def count(event, args):
    if event in WRITES and "/stages/" in str(args) + "book.json" * ("book.json" in str(args)):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), 9)
sys.addaudithook(count)
finish(Life(sys.argv[1]))
print("writes left:", left[0])
"""


def finish(life: Life) -> None:
    """Learns March, goes back to February, learns March again by another name, and forgets ROW."""
    if life.book.pending() is not None:
        name = life.book.pending()["name"]  # type: ignore[index]
        life.stage(name, month("march"))
    names = [stage.name for stage in life.book.stages]
    if "march" not in names:
        life.stage("march", month("march"))
    if not any(entry["kind"] == "rollback" for entry in life.book.entries):
        life.rollback("feb")
    if "again" not in names:
        life.stage("again", month("march"))
    if not any(entry["kind"] == "purge" for entry in life.book.entries):
        life.forget([ROW])


def kill(lived: Path, to: Path, moment: int) -> tuple[int, Life]:
    """A copy of a life that was killed at a write and then finished, and the child's exit code."""
    copy = shutil.copytree(lived, to)
    code = CHILD.format(here=str(Path(__file__).parent), tiny=str(TINY))
    done = subprocess.run(
        [sys.executable, "-c", code, str(copy), str(moment)], capture_output=True, text=True,
        env={**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"},
    )  # fmt: skip
    assert done.returncode in (-9, 0), done.stderr
    left = Life(copy)
    leaves = jax.tree.leaves(left.state.params)  # a whole one
    assert all(np.isfinite(np.asarray(x)).all() for x in leaves)
    finish(left)
    return done.returncode, Life(copy)


def check_same(found: Life, expected: Life) -> None:
    assert found.stages == expected.stages == ["jan", "feb", "again"]
    np.testing.assert_array_equal(found.scores, expected.scores)
    states = [s._replace(key=()) for s in (found.state, expected.state)]
    for one, other in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_array_equal(one, other)
    assert forget.pending(found.book) is None
    for path in found.folder.rglob("*"):
        assert not path.is_file() or ROW["text"].encode() not in path.read_bytes(), path


@pytest.mark.whole
def test_killed_at_any_write_it_goes_on_to_the_same_end(lived: Path, tmp_path: Path) -> None:
    expected = Life(shutil.copytree(lived, tmp_path / "whole"))
    finish(expected)
    codes = []
    for moment in (3, 20):
        code, found = kill(lived, tmp_path / f"killed-{moment}", moment)
        codes.append(code)
        check_same(found, expected)
    assert -9 in codes


def main(moments: int) -> None:
    """Kills at so many moments, one after another, and prints what became of each."""
    import tiny_text

    from jcl import models
    from jcl.models import decoder

    jax.config.update("jax_compilation_cache_dir", str(Path(tempfile.gettempdir()) / "kills-cache"))
    root = Path(tempfile.mkdtemp())
    tokenizer = tiny_text.byte_level()
    config = decoder.Config(
        vocabulary=len(tokenizer), layers=1, width=16, heads=2, kv_heads=1, hidden=24
    )
    params = decoder.init(jax.random.key(0), config)
    stored = models.save(models.of(config, params, tokenizer), params, root / "model")
    life = begin(
        root / "lived", str(stored), month("jan"), method="er(capacity=8, rows=2)", **SMALL
    )
    for name in ("jan", "feb"):
        life.stage(name, month(name))
    expected = Life(shutil.copytree(root / "lived", root / "whole"))
    finish(expected)
    for moment in range(1, moments + 1):
        code, found = kill(root / "lived", root / "killed", moment)
        check_same(found, expected)
        print(f"write {moment}: exit {code}, the same end", flush=True)
        shutil.rmtree(root / "killed")


if __name__ == "__main__":
    main(int(sys.argv[1]))
