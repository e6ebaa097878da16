"""What `jcl list` shows: all that has a name here, or one of them whole."""

from __future__ import annotations

import ast
import inspect
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.markup import escape

from jcl import data, editing, methods, models
from jcl.chain import explain
from jcl.editing import Editor
from jcl.method import Method
from jcl.report import screen
from jcl.runs import edit, experiment, expression, files, own

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
    for whose, rows in _installed().items():
        section(f"methods of the package {whose} (--method)", rows)
    section("editors (jcl edit --method)", [_described(f) for f in edit.EDITORS.values()])
    section("streams (jcl.data)", [_described(f) for f in _functions().values()])
    kinds = [(n, _headline(m)) for n, m in _modules().items() if n != "layers"]
    section("models (jcl.models)", kinds)


def show(name: str) -> None:
    """Prints all that has this name: its call, its whole docstring, and how it is used.

    Raises:
      ValueError: if nothing has it; names near ones.
    """
    plain, references = own.split(own.absolute(name, Path.cwd()))
    if plain in references:
        factory = expression.of_file(references[plain])
        kind = f"method of the file {references[plain].path}"
        return _print([(references[plain].name, kind, _own(factory, str(references[plain])))])
    if name.endswith(".py"):
        return _print([_file(Path(name).expanduser())])
    kinds: list[tuple[str, dict[str, Any], Callable[[Any], Iterator[str]]]] = [
        ("experiment", dict(experiment.available()), _experiment),
        ("method", dict(expression.factories()), _method),
        ("editor", _editors(), _editor),
        ("function of jcl.data", _functions(), _function),
        ("module of jcl.models", _modules(), _module),
    ]
    found = [(name, kind, parts(known[name])) for kind, known, parts in kinds if name in known]
    installed = own.packages()
    for entry in installed.get(name, []):
        whose = f"method of the package {own.package(entry)}"
        found.append((name, whose, _own(expression.load(entry), name, _clash(entry, installed))))
    if not found:
        everything = {n for _, known, _ in kinds for n in known} | installed.keys()
        near = expression.near(name, everything)
        hint = near if "did you mean" in near else "; jcl list names all that there is"
        raise ValueError(f"nothing is called {name!r}{hint}")
    _print(found)


def _print(found: Sequence[tuple[str, str, Iterator[str]]]) -> None:
    """Prints things whole, each with its name and what it is."""
    console = screen.console()
    for name, kind, parts in found:
        shown = list(parts)  # before its head, for a file may raise anything
        console.print(f"[bold]{escape(name)}[/bold], {escape(kind)}\n", soft_wrap=True)
        for part in shown:
            console.print(f"{part}\n", markup=False, highlight=False, soft_wrap=True)


def _installed() -> dict[str, list[tuple[str, str]]]:
    """The methods of each package that brings any, described; they are imported for it."""
    installed = own.packages()
    rows: dict[str, list[tuple[str, str]]] = {}
    for name, entries in installed.items():
        for entry in entries:
            try:
                shown = _described(expression.load(entry), name)
            except ValueError as error:  # which is no reason not to list the others
                shown = name, str(error)
            clash = _clash(entry, installed)
            mine = rows.setdefault(own.package(entry), [])
            mine.append((shown[0], clash) if clash else shown)
    return rows


def _clash(entry: Any, installed: Mapping[str, Sequence[Any]]) -> str:
    """Why a package's method can't be used by its name; "" if it can."""
    others = ["jcl itself"] if entry.name in expression.factories() else []
    others += [f"the package {own.package(e)}" for e in installed[entry.name] if e is not entry]
    who = expression.listed(others, "and")
    return f"can't be used by its name, which {who} has too" if others else ""


def _own(factory: Callable[..., Any], called: str, clash: str = "") -> Iterator[str]:
    """A user's method; `called` is what an expression calls it."""
    name = called.rpartition(":")[2]
    call, _ = _described(factory, name)
    yield f"{call}\n\n{inspect.getdoc(factory) or 'It has no docstring.'}"
    if clash:
        yield clash
        return
    arguments = _arguments(factory)
    if None in arguments.values():
        needed = [n for n, value in arguments.items() if value is None]
        yield f"it needs {expression.listed(needed, 'and')}"
        return
    written = expression.Call(name, arguments, factory=factory)
    method = expression.build([written])
    yield from _facts(method)
    whole = str(written).replace(name, called, 1)
    yield f'example: jcl run EXPERIMENT --method "{whole}"'


def _file(path: Path) -> tuple[str, str, Iterator[str]]:
    """The functions of a file that return a method, by what they are annotated with if they are."""
    module = files.once(path)
    defined = [getattr(module, name, None) for name in files.functions(path)]
    found = [f for f in defined if inspect.isfunction(f) and _may_be_factory(f)]
    rows = [f"{path}:{call}\n    {said}" for call, said in map(_described, found)]
    said = inspect.getdoc(module) or ""
    return str(path), "file", iter([said] * bool(said) + (rows or ["It defines no methods."]))


def _may_be_factory(function: Callable[..., Any]) -> bool:
    said = function.__annotations__.get("return", Method)
    return said is Method or str(said).rpartition(".")[2] == "Method"


def example(name: str) -> str | None:
    """An expression of a method that `--method` takes, None if it needs what can't be written."""
    arguments = _arguments(getattr(methods, name))
    missing = None in arguments.values()
    return None if missing else str(expression.Call(name, arguments))


def _arguments(factory: Callable[..., Any]) -> dict[str, Any]:
    """What an example gives to a factory; None for what it needs and can't be written."""
    arguments: dict[str, Any] = {}
    for argument, parameter in inspect.signature(factory).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.default is parameter.empty:
            arguments[argument] = GIVEN.get(argument)
        elif isinstance(parameter.default, int | float) and not arguments:
            arguments[argument] = parameter.default
    return arguments


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
    yield from _facts(method)
    yield f"example: {usage}"


def _facts(method: Method) -> Iterator[str]:
    yield "phases of a step:\n  " + "\n".join(explain(method).splitlines()[1:]).lstrip()
    yield f"reads of earlier stages: {', '.join(method.reads) or 'nothing'}"


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


def _described(function: Callable[..., Any], name: str = "") -> tuple[str, str]:
    """A call with its defaults, and the first line of what it says of itself."""
    name = name or function.__name__
    shown = []
    for argument, parameter in inspect.signature(function).parameters.items():
        default = parameter.default
        text = getattr(default, "__name__", None) or repr(default)
        shown.append(argument if default is parameter.empty else f"{argument}={text}")
    return f"{name}({', '.join(shown)})", _headline(function)
