"""The hooks' Protocols: each hook of `Method` has one, and what it says is so."""

from __future__ import annotations

import inspect
import pydoc
import re
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import pytest

import jcl
import jcl.method
from jcl import methods
from jcl.method import PHASES, Method, defines

HOOKS: dict[str, Any] = {
    phase: hint for phase, hint in typing.get_type_hints(Method).items() if phase in PHASES
}


def arguments(call: Any) -> list[str]:
    return [name for name in inspect.signature(call).parameters if name != "self"]


@pytest.mark.quick
@pytest.mark.parametrize("phase", PHASES)
def test_help_says_all_about_a_hook(phase: str) -> None:
    hook = HOOKS[phase]
    assert getattr(jcl.method, hook.__name__) is hook
    shown = pydoc.render_doc(hook, renderer=pydoc.plaintext)
    # the docstring's first words are the hook as it is called: its own name and its arguments
    taken = arguments(hook.__call__)
    first = re.match(rf"`{phase}\(([a-z_, ]+)\) -> ", inspect.getdoc(hook) or "")
    assert first and first[1].split(", ") == taken
    said = inspect.getdoc(hook.__call__) or ""
    for name in taken:
        assert re.search(rf"^  {name}: \w", said, re.MULTILINE), name
    assert "Returns:" in said or len(said.splitlines()[0]) > 30
    assert said.splitlines()[0] in shown
    # a method's own default is such a function
    assert arguments(Method._field_defaults[phase]) == taken


MAKE: dict[str, Any] = {
    "er": lambda: methods.er(capacity=4),
    "der": lambda: methods.der(capacity=4),
    "packnet": lambda: methods.packnet(stages=2),
    "rewarm": lambda: methods.rewarm(warmup=1, steps=3),
    "inclora": lambda: methods.inclora(stages=2),
}


@pytest.mark.quick
@pytest.mark.parametrize("phase", PHASES)
def test_who_is_said_to_use_a_hook_defines_it(phase: str) -> None:
    users = (inspect.getdoc(HOOKS[phase]) or "").partition("Users: ")[2].partition("\n\n")[0]
    names = [name for name in re.findall(r"`(\w+)`", users) if name in methods.__all__]
    assert names
    for name in names:
        assert defines(MAKE.get(name, getattr(methods, name))(), phase), name


WRONG = """
import jax
import jcl
from jcl.method import Apply, Batch, Ctx, Info, LossFn, Params

def grads(state: int, ctx: Ctx, grads: Params) -> Params:
    return grads

def no_state(ctx: Ctx, grads: Params) -> Params:
    return grads

def state_alone(state: int, ctx: Ctx, params: Params, batches: Batch) -> int:
    return state

def scalar(state: int, ctx: Ctx, loss_fn: LossFn) -> jax.Array:
    return jax.numpy.float32(0)

jcl.Method("right", grads=grads)
jcl.Method("wrong", grads=no_state)
jcl.Method("wrong", consolidate=state_alone)
jcl.Method("wrong", loss=scalar)
"""


def test_a_type_checker_refuses_a_hook_of_another_form(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    (tmp_path / "mine.py").write_text(WRONG)
    command = [sys.executable, "-m", "mypy", "--follow-imports=silent", "--cache-dir"]
    shown = subprocess.run(
        [*command, str(tmp_path / "cache"), str(tmp_path / "mine.py")],
        capture_output=True, text=True, cwd=Path(jcl.__file__).parents[1],
    ).stdout  # fmt: skip
    lines = WRONG.splitlines()
    wrong = [line for line in re.findall(r"mine\.py:(\d+): error: (.*)", shown)]
    assert [lines[int(at) - 1] for at, _ in wrong] == [x for x in lines if '"wrong"' in x]
    hooks = [re.search(r'expected "(\w+)"', says) for _, says in wrong]
    assert [found and found[1] for found in hooks] == ["Grads", "Consolidate", "Loss"]
