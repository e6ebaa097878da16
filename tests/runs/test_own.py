"""Methods of users' own files and of installed packages: how they are named, found and refused."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from own_method import MINE, install, write_mine

import jcl
from jcl import cli
from jcl.runs import expression, own
from jcl.runs.own import Named


@pytest.mark.quick
@pytest.mark.parametrize(
    ("text", "plain", "found"),
    [
        ("./mine.py:pull(0.1) + er()", "_file_0(0.1) + er()", ["mine.py:pull"]),
        ("er()+my files/a.py:f", "er()+_file_0", ["my files/a.py:f"]),
        ("'x+(1)/a.py':f() + b.py : g", "_file_0() + _file_1", ["'x+(1)/a.py':f", "b.py:g"]),
        ("er(policy='+ a.py:f')", "er(policy='+ a.py:f')", []),
        ("er(policy='x') + a.py:f(b='c.py:d')", "er(policy='x') + _file_0(b='c.py:d')", ["a.py:f"]),
        ("a.txt:f()", "a.txt:f()", []),
        ("a.py", "a.py", []),
        ("C:/x/a.py:f()", "_file_0()", ["C:/x/a.py:f"]),
    ],
)
def test_functions_of_files_are_found_in_an_expression(
    text: str, plain: str, found: list[str]
) -> None:
    read, references = own.split(text)
    assert read == plain
    assert [str(r) for r in references.values()] == found


def test_whole_paths_are_read_back_and_brief_ones_shown(tmp_path: Path) -> None:
    text = own.absolute("../a b.py:f(1) + '/c+d.py':g + er()", tmp_path / "x")
    assert own.split(text)[1] == {
        "_file_0": Named(tmp_path / "a b.py", "f"),
        "_file_1": Named(Path("/c+d.py"), "g"),
    }
    assert own.absolute(text, Path("/elsewhere")) == text
    assert own.brief(text) == "a b.py:f(1) + c+d.py:g + er()"


def test_a_files_function_is_a_method_like_the_built_in_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_mine(tmp_path)
    monkeypatch.chdir(tmp_path)
    calls = expression.parse("./mine.py:pull(0.1) + er(capacity=9)")
    assert expression.show(calls) == "mine.py:pull(strength=0.1) + er(capacity=9)"
    assert expression.parse(expression.show(calls)) == calls
    assert expression.build(calls).name == "pull + er"
    assert expression.traceable(calls[0], "strength")
    assert expression.traceable(expression.parse("mine.py:bare()")[0], "strength")
    changed = expression.override(calls[0], "strength", 0.5)
    assert changed.arguments == {"strength": 0.5} and changed.factory is calls[0].factory

    def slope(strength: jax.Array) -> jax.Array:
        from tiny_context import context

        method = expression.build(calls[:1], {"pull.strength": strength})
        at = context(params=jnp.float32(2), stage=jnp.int32(1), key=jax.random.key(0))
        return method.grads({"pull": jnp.float32(0)}, at, jnp.float32(0))

    assert jax.vmap(slope)(jnp.asarray([0.0, 1.0, 5.0])).tolist() == [0, 2, 10]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("./none.py:pull()", "there is no file"),
        ("./mine.py:pul()", "has no function 'pul'; did you mean pull?"),
        (
            "./mine.py:ready()",
            "is of type Method, but must be a function that returns",
        ),
        ("./mine.py:number()", "number returned something of type int, but must return a jcl"),
        ("./mine.py:fails()", "fails: RuntimeError: oh no"),
        ("./mine.py:needs(1.0)", "needs needs its argument 'count'"),
        ("./mine.py:pull(-1.0)", "pull: strength is -1.0, but must be at least 0"),
        ("./mine.py:pull('a')", "pull's strength is 'a', but must be a number"),
        ("./mine.py:pull(a=1)", "pull has no argument 'a'; it takes strength"),
        ("./mine.py:bare(1, 2)", "bare takes at most 1 arguments, but got 2"),
        ("./mine.py:pull(1) + ./mine.py:pull(2)", "two methods are named 'pull'"),
        ("./mine.py", "a function of a file is called as './mine.py:pull(0.1)'"),
        ("./mine.py:", "a function of a file is called as './mine.py:pull(0.1)'"),
        ("er(./mine.py:pull())", "a function of a file is called as './mine.py:pull(0.1)'"),
    ],
)
def test_what_is_wrong_with_an_own_method_is_one_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    text: str,
    says: str,
) -> None:
    write_mine(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["explain", "--method", text]) == 2
    said = capsys.readouterr()
    assert says in said.err and said.err.count("\n") == 1 and not said.out


def test_an_editor_is_no_function_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a function of a file, but must be one of rome"):
        expression.parse(f"{tmp_path}/mine.py:pull()", {"rome": lambda: 0})


def test_a_run_goes_on_only_with_the_files_that_it_was_begun_with(tmp_path: Path) -> None:
    path = write_mine(tmp_path)
    saved = own.digests([f"{path}:pull(0.1) + er()", "ewc()"])
    assert list(saved) == [str(path)]
    own.check_same(saved, tmp_path)
    path.write_text(MINE + "\n")
    with pytest.raises(ValueError, match=r"mine\.py, which has changed since"):
        own.check_same(saved, tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match=r"mine\.py, which isn't there any more"):
        own.check_same(saved, tmp_path)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of installed packages."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("brings"):
            del sys.modules[name]


def test_a_package_brings_a_method(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    install(site, "brings_pull", "pull = brings_pull:pull\nbroken = brings_pull:nothing")
    assert cli.main(["explain", "--method", "ewc() + er()"]) == 0
    assert "brings_pull" not in sys.modules  # it isn't imported before it is named
    calls = expression.parse("pull(0.5) + er()")
    assert expression.show(calls) == "pull(strength=0.5) + er()"
    assert isinstance(expression.build(calls), jcl.Method)
    with pytest.raises(ValueError, match="pull's strength is 'a', but must be a number"):
        expression.parse("pull('a')")
    with pytest.raises(ValueError, match="broken of the package brings_pull can't be imported"):
        expression.parse("broken()")
    with pytest.raises(ValueError, match="did you mean pull"):
        expression.parse("pul()")
    capsys.readouterr()
    assert cli.main(["list"]) == 0
    shown = capsys.readouterr().out
    part = shown.partition("methods of the package brings_pull (--method)")[2]
    assert "pull(strength=1.0)\n      ½ λ" in part and "broken\n" in part
    assert cli.main(["list", "pull"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("pull, method of the package brings_pull\n")
    assert 'example: jcl run EXPERIMENT --method "pull(strength=1.0)"' in shown


def test_a_name_that_is_taken_is_refused_when_it_is_used(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install(site, "brings_ewc", "ewc = brings_ewc:pull\npull = brings_ewc:pull")
    install(site, "brings_too", "pull = brings_too:pull")
    assert expression.parse("er()")
    with pytest.raises(ValueError, match="'ewc' is brought by jcl itself and by the package brin"):
        expression.parse("ewc()")
    both = "'pull' is brought by the package brings_(ewc|too) and by the package brings_"
    with pytest.raises(ValueError, match=both):
        expression.parse("pull()")
    assert cli.main(["list"]) == 0
    assert "can't be used by its name, which jcl itself has too" in capsys.readouterr().out


def test_list_shows_a_function_of_a_file_and_all_that_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_mine(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["list", "./mine.py:pull"]) == 0
    shown = capsys.readouterr().out
    assert "½ λ" in shown and "reads of earlier stages: parameters" in shown
    assert f'--method "{tmp_path}{os.sep}mine.py:pull(strength=1.0)"' in shown
    assert cli.main(["list", "mine.py"]) == 0
    shown = capsys.readouterr().out
    assert "My own methods." in shown and "mine.py:needs(strength, count)" in shown
    assert cli.main(["list", "./mine.py:pul"]) == 2
    assert "did you mean pull?" in capsys.readouterr().err
