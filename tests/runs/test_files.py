"""Files that a user names: what they may be, and what is said of those that don't run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from jcl.runs import experiment, files


@pytest.mark.quick
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("import math\nimport nothing_of_this_name", "line 2: ModuleNotFoundError: No module"),
        ("x = 1\n\nraise RuntimeError('oh no')", "line 3: RuntimeError: oh no"),
        ("def f():\n    return y\nf()", "line 2: NameError"),
        ("import sys\nsys.exit(0)", "line 2: SystemExit: 0"),
        ("def f(:", "SyntaxError: invalid syntax (own.py, line 1)"),
    ],
)
def test_what_a_file_raises_is_one_sentence_with_its_line(
    tmp_path: Path, text: str, says: str
) -> None:
    path = tmp_path / "own.py"
    path.write_text(text)
    for load in (files.once, experiment.load):
        before = dict(sys.modules)
        with pytest.raises(ValueError) as refused:
            load(path)
        assert str(refused.value).startswith(f"{path} can't be run: {says}")
        assert not {n for n in sys.modules.keys() - before.keys() if n.startswith("jcl_")}


def test_a_file_runs_once_until_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text("VALUE = [1]")
    first, was = files.once(path), files.digest(path)
    assert files.once(path) is first
    path.write_text("VALUE = [2]")  # as long as before, and maybe in the same second
    assert files.once(path).VALUE == [2] and files.digest(path) != was
    assert first.VALUE == [1]


def test_what_is_no_python_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("")
    with pytest.raises(ValueError, match=r"own\.txt is no Python file"):
        files.digest(tmp_path / "own.txt")
    with pytest.raises(ValueError, match="there is no file"):
        files.once(tmp_path / "none.py")


def test_functions_are_read_without_running_the_file(tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text("raise SystemExit\ndef pull(): ...\ndef _hidden(): ...\nclass A: ...")
    assert files.functions(path) == ["pull"]
    path.write_text("def (")
    assert files.functions(path) == []
