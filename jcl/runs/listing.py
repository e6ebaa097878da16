"""What `jcl list` shows: all that has a name here, or one of them whole."""

from __future__ import annotations

import ast
import inspect
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.markup import escape

from jcl import data, editing, methods, models
from jcl.chain import explain
from jcl.editing import Editor
from jcl.report import screen
from jcl.runs import edit, experiment, expression

GIVEN = {
    "anneal": 30, "cooldown": 240, "layers": (2, 5), "slots": 5, "stages": 5, "steps": 300,
    "tasks": 5, "warmup": 30,
}  # fmt: skip
"""What an example gives for an argument without a default, as for five stages of 300 steps."""


def show_all() -> None:
    """Prints experiments, methods and editors with their arguments, streams and models."""
    console = screen.console()

    def section(title: str, rows: Sequence[tuple[str, str]]) -> None:
        console.print(f"[bold]{title}")
        for name, text in rows:
            console.print(f"  {escape(name)}\n      [dim]{escape(text)}", soft_wrap=True)

    known = [(name, experiment.headline(path)) for name, path in experiment.available().items()]
    section("experiments (jcl run NAME)", known)
    section("methods (--method)", [_described(f) for f in expression.factories().values()])
    section("editors (jcl edit --method)", [_described(f) for f in edit.EDITORS.values()])
    section("streams (jcl.data)", [_described(f) for f in _functions().values()])
    kinds = [(n, _headline(m)) for n, m in _modules().items() if n != "layers"]
    section("models (jcl.models)", kinds)


def show(name: str) -> None:
    """Prints all that has this name: its call, its whole docstring, and how it is used.

    Raises:
      ValueError: if nothing has it; names near ones.
    """
    kinds: list[tuple[str, dict[str, Any], Callable[[Any], Iterator[str]]]] = [
        ("experiment", dict(experiment.available()), _experiment),
        ("method", dict(expression.factories()), _method),
        ("editor", _editors(), _editor),
        ("function of jcl.data", _functions(), _function),
        ("module of jcl.models", _modules(), _module),
    ]
    found = [(kind, parts, known[name]) for kind, known, parts in kinds if name in known]
    if not found:
        near = expression.near(name, {n for _, known, _ in kinds for n in known})
        hint = near if "did you mean" in near else "; jcl list names all that there is"
        raise ValueError(f"nothing is called {name!r}{hint}")
    console = screen.console()
    for kind, parts, thing in found:
        console.print(f"[bold]{escape(name)}[/bold], {kind}\n")
        for part in parts(thing):
            console.print(f"{part}\n", markup=False, highlight=False, soft_wrap=True)


def example(name: str) -> str | None:
    """An expression of a method that `--method` takes, None if it needs what can't be written."""
    arguments: dict[str, Any] = {}
    for argument, parameter in inspect.signature(getattr(methods, name)).parameters.items():
        if parameter.default is parameter.empty:
            arguments[argument] = GIVEN.get(argument)
        elif isinstance(parameter.default, int | float) and not arguments:
            arguments[argument] = parameter.default
    missing = None in arguments.values()
    return None if missing else str(expression.Call(name, arguments))


def _method(factory: Callable[..., Any]) -> Iterator[str]:
    yield from _function(factory)
    name = factory.__name__
    expressed = example(name)
    if expressed is None:  # what it needs, a teacher say, is only read once it runs
        takes = inspect.signature(factory).parameters
        needed = [n for n, p in takes.items() if p.default is p.empty]
        method = factory(**{n: GIVEN.get(n) for n in needed})
        usage = f"in Python: jcl.methods.{name}({', '.join(f'{n}={n}' for n in needed)})"
    else:
        method = expression.build(expression.parse(expressed))
        usage = f'jcl run EXPERIMENT --method "{expressed}"'
    yield "phases of a step:\n  " + "\n".join(explain(method).splitlines()[1:]).lstrip()
    yield f"reads of earlier stages: {', '.join(method.reads) or 'nothing'}"
    yield f"example: {usage}"


def _editor(factory: Callable[..., Editor]) -> Iterator[str]:
    yield from _function(factory)
    name = factory.__name__
    if name in edit.EDITORS:
        asked = 'smollm2 "The capital of France is" Lyon --to edited'
        yield f"example: jcl edit {asked} --method {name}"
    else:
        yield f"example: in Python, jcl.editing.{name}(model.apply, ...)"


def _experiment(path: Path) -> Iterator[str]:
    """An experiment's docstring and settings, read from its file, which isn't imported."""
    tree = ast.parse(path.read_text())
    yield ast.get_docstring(tree) or ""
    classes = (node for node in tree.body if isinstance(node, ast.ClassDef))
    config = next((node for node in classes if node.name == "Config"), None)
    fields = [] if config is None else [n for n in config.body if isinstance(n, ast.AnnAssign)]
    shown = (f"  {ast.unparse(n.target)} = {ast.unparse(n.value)}" for n in fields if n.value)
    yield "\n".join(["settings (jcl run NAME --help says what they mean):", *shown])
    yield f"file: {path}\nexample: jcl run {path.stem}"


def _function(function: Callable[..., Any]) -> Iterator[str]:
    yield f"{_described(function)[0]}\n\n{inspect.getdoc(function) or ''}"


def _module(module: ModuleType) -> Iterator[str]:
    yield inspect.getdoc(module) or ""
    own = {n: x for n, x in vars(module).items() if getattr(x, "__module__", "") == module.__name__}
    public = [x for n, x in own.items() if not n.startswith("_") and callable(x)]
    rows = (f"  {text}\n      {said}" for text, said in map(_described, public))
    yield "\n".join([f"jcl.models.{module.__name__.rpartition('.')[2]} has", *rows])


def _functions() -> dict[str, Callable[..., Any]]:
    """The functions of `jcl.data`, by name."""
    found = {name: getattr(data, name) for name in data.__all__}
    return {name: f for name, f in found.items() if inspect.isfunction(f)}


def _editors() -> dict[str, Callable[..., Editor]]:
    """All editors, by name, those too that leave a model of another layout."""
    found = {name: getattr(editing, name) for name in editing.__all__}
    functions = {name: f for name, f in found.items() if inspect.isfunction(f)}
    return {n: f for n, f in functions.items() if typing.get_type_hints(f)["return"] is Editor}


def _modules() -> dict[str, ModuleType]:
    return {name: m for name, m in vars(models).items() if inspect.ismodule(m)}


def _headline(documented: Any) -> str:
    return (inspect.getdoc(documented) or "").partition("\n")[0]


def _described(function: Callable[..., Any]) -> tuple[str, str]:
    """A call with its defaults, and the first line of what it says of itself."""
    shown = []
    for name, parameter in inspect.signature(function).parameters.items():
        default = parameter.default
        text = getattr(default, "__name__", None) or repr(default)
        shown.append(name if default is parameter.empty else f"{name}={text}")
    return f"{function.__name__}({', '.join(shown)})", _headline(function)
