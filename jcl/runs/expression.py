"""Method expressions of the command line, such as `er(capacity=500) + ewc(strength=10.0)`.

They are read from Python's syntax tree and never evaluated: they may have known methods, literal
arguments and `+`. A function of a user's own file is one of them where it is named as
`./mine.py:pull(0.1)`, and so is a method of an installed package, see `jcl.runs.own`.
"""

from __future__ import annotations

import ast
import difflib
import functools
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jcl import methods, moved
from jcl.chain import chain
from jcl.method import Method
from jcl.runs import files, own


class Call(NamedTuple):
    """One method of an expression."""

    name: str
    """The name of a factory: in `jcl.methods`, in a file, or of an installed package's method."""
    arguments: dict[str, Any]
    """Literals by parameter name; parameters that are left out keep their defaults."""
    file: str = ""
    """The whole path of the file that has the factory; "" for one that is known by its name."""
    factory: Callable[..., Method] | None = None
    """The factory of a file or of an installed package; None is that of `jcl.methods`."""

    def __str__(self) -> str:
        """The call as one could type it beside its file."""
        inner = ", ".join(f"{k}={v!r}" for k, v in self.arguments.items())
        return f"{Path(self.file).name + ':' if self.file else ''}{self.name}({inner})"


def near(word: str, words: Iterable[str], prefix: str = "") -> str:
    """The end of a sentence: `; did you mean a or b?`, or all words if none is similar.

    >>> near("ewk", ["ewc", "si"])
    '; did you mean ewc?'
    """
    words = sorted(words)
    close = difflib.get_close_matches(word, words, 3, 0.6)
    close += [w for w in words if w not in close and (word in w or w in word)][: 3 - len(close)]
    shown = [prefix + w for w in close or words]
    if close:
        return f"; did you mean {listed(shown)}?"
    return f"; there {'is' if len(words) == 1 else 'are'} {listed(shown, 'and')}"


def listed(words: Iterable[str], joint: str = "or") -> str:
    """The words as `a, b or c`."""
    *head, last = list(words) or ["none"]
    return f"{', '.join(head)} {joint} {last}" if head else last


_FILES = "; a function of a file is called as './mine.py:pull(0.1)'"


def factories() -> dict[str, Callable[..., Method]]:
    """Every public method factory by name."""
    found = {name: getattr(methods, name) for name in methods.__all__}
    return {name: f for name, f in sorted(found.items()) if inspect.isfunction(f)}


Known = Mapping[str, Callable[..., Any]]


def _factory(name: str, known: Known | None = None) -> Callable[..., Any]:
    if known is not None:
        if name not in known:
            raise ValueError(f"no method is called {name!r}{near(name, known)}")
        return known[name]
    built_in, installed = factories(), own.packages()
    brought = installed.get(name, [])
    if not brought:
        if name not in built_in:
            raise ValueError(f"no method is called {name!r}{near(name, {*built_in, *installed})}")
        return built_in[name]
    owners = [f"the package {own.package(entry)}" for entry in brought]
    owners = ["jcl itself", *owners] if name in built_in else owners
    if len(owners) > 1:
        raise ValueError(
            f"the method {name!r} is brought by {listed(owners, 'and by')}, so it can't be told "
            "which is meant; a package must give its methods names of their own"
        )
    return load(brought[0])


def load(entry: Any) -> Callable[..., Any]:
    """Imports an installed package's method.

    Raises:
      ValueError: if it can't be imported, or is no function.
    """
    whose = f"{entry.name} of the package {own.package(entry)}"
    try:
        found = entry.load()
    except Exception as error:
        kind = type(error).__name__
        raise ValueError(f"{whose} can't be imported: {kind}: {error}") from error
    return _callable(found, whose)


def of_file(reference: own.Named) -> Callable[..., Any]:
    """A function of a user's file, which is run for it.

    Raises:
      ValueError: if the file can't be run, or has no such function.
    """
    module = files.once(reference.path)
    if not hasattr(module, reference.name):
        defined = files.functions(reference.path)
        hint = near(reference.name, defined) if defined else "; it defines none"
        raise ValueError(f"{reference.path} has no function {reference.name!r}{hint}")
    return _callable(getattr(module, reference.name), str(reference))


def _callable(found: Any, whose: str) -> Callable[..., Any]:
    if callable(found) and not inspect.isclass(found):
        return found
    shown = "a class" if inspect.isclass(found) else f"of type {type(found).__name__}"
    raise ValueError(f"{whose} is {shown}, but must be a function that returns a jcl.Method")


def _of(call: Call) -> Callable[..., Any]:
    """The factory of a call that was parsed, or made for a method of `jcl.methods`."""
    return call.factory or _factory(call.name, factories())


def _takes(factory: Callable[..., Any]) -> list[str]:
    """The names of a factory's parameters, but for `*args` and `**kwargs`."""
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    found = inspect.signature(factory).parameters.items()
    return [name for name, parameter in found if parameter.kind not in kinds]


def _hint(factory: Callable[..., Any], argument: str) -> Any:
    """The type of a parameter; that of its default where it is a float and nothing is annotated."""
    plain = factory
    while isinstance(plain, functools.partial):
        plain = plain.func
    try:
        hints = typing.get_type_hints(plain)
    except Exception:  # of names that only a type checker imports
        hints = {}
    parameter = inspect.signature(factory).parameters.get(argument)
    guess = float if parameter is not None and isinstance(parameter.default, float) else Any
    return hints.get(argument, guess)


def accepts(hint: Any, value: Any) -> bool:
    """Whether a literal is of an annotated type; unknown types accept anything."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(accepts(h, value) for h in typing.get_args(hint))
    if origin is typing.Literal:
        return value in typing.get_args(hint)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (str, bool, type(None)):
        return isinstance(value, hint)
    if (origin or hint) in (tuple, list, dict):
        return isinstance(value, origin or hint)
    return True


def wanted(hint: Any) -> str:
    """An annotated type in words, for an error."""
    if typing.get_origin(hint) is typing.Literal:
        return listed(map(repr, typing.get_args(hint)))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return listed(wanted(h) for h in typing.get_args(hint))
    if hint is float:
        return "a number"
    names = {int: "a whole number", str: "a string", bool: "True or False", type(None): "None"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def _check(name: str, argument: str, value: Any, factory: Callable[..., Any]) -> None:
    takes = _takes(factory)
    more = [p.kind for p in inspect.signature(factory).parameters.values()]
    if argument not in takes and inspect.Parameter.VAR_KEYWORD not in more:
        raise ValueError(f"{name} has no argument {argument!r}; it takes {listed(takes, 'and')}")
    hint = _hint(factory, argument)
    if not accepts(hint, value):
        raise ValueError(f"{name}'s {argument} is {value!r}, but must be {wanted(hint)}")


def _call(
    node: ast.expr, text: str, known: Known | None, references: Mapping[str, own.Named]
) -> Call:
    if isinstance(node, ast.Name):  # `ewc` is `ewc()`
        node = ast.Call(func=node, args=[], keywords=[])
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        shown = ast.unparse(node)
        for plain, named in references.items():
            shown = shown.replace(plain, str(named))
        raise ValueError(
            f"{shown!r} in the method {text!r} is no call such as ewc(strength=100.0)"
            f"{_FILES if '.py' in text else ''}"
        )
    reference = references.get(node.func.id)
    name = node.func.id if reference is None else reference.name
    factory = _factory(name, known) if reference is None else of_file(reference)
    takes = _takes(factory)
    if len(node.args) > len(takes):
        raise ValueError(f"{name} takes at most {len(takes)} arguments, but got {len(node.args)}")
    given = [*zip(takes, node.args, strict=False), *((k.arg, k.value) for k in node.keywords)]
    ours = reference is None and factory in factories().values()
    arguments: dict[str, Any] = {}
    for old, value in given:
        key = moved.argument(name, old) if old and ours else old
        if key is None or key in arguments:
            raise ValueError(f"{name} got {'**' if key is None else f'{key!r} twice'} in {text!r}")
        try:
            arguments[key] = ast.literal_eval(value)
        except (ValueError, TypeError):
            raise ValueError(
                f"{name}'s {key} is {ast.unparse(value)}, but must be a literal such as 100.0"
            ) from None
        _check(name, key, arguments[key], factory)
    own_factory = None if ours or known is not None else factory
    return Call(name, arguments, "" if reference is None else str(reference.path), own_factory)


def parse(text: str, known: Known | None = None) -> list[Call]:
    """The calls of a method expression, in the order in which they are chained.

    Args:
      text: the expression. The files that it names are run.
      known: factories by name, beside which no others are; None is those of `jcl.methods`, of
        installed packages and of files.

    Raises:
      ValueError: if `text` is no such expression, or a method or an argument isn't known, or a file
        has no such function or raises anything.

    >>> [str(call) for call in parse("er(capacity=500, rows=16) + ewc(100.)")]
    ['er(capacity=500, rows=16)', 'ewc(strength=100.0)']
    """
    plain, references = own.split(own.absolute(text, Path.cwd()))
    if known is not None and references:
        named = next(iter(references.values()))
        raise ValueError(f"{named} is a function of a file, but must be one of {listed(known)}")
    try:
        node = ast.parse(plain, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError(
            f"{text!r} is no method; write calls joined by +, such as "
            f"'er(capacity=500) + ewc(strength=100.0)'{_FILES if '.py' in text else ''}"
        ) from None
    terms: list[ast.expr] = []
    while isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        terms.append(node.right)
        node = node.left
    return [_call(term, text, known, references) for term in [node, *reversed(terms)]]


def show(calls: Iterable[Call]) -> str:
    """The expression that `parse` reads back, beside the files that it names."""
    return " + ".join(map(str, calls))


def build(calls: Iterable[Call], overrides: Mapping[str, Any] | None = None) -> Method:
    """The method of an expression.

    Args:
      calls: from `parse`.
      overrides: values by `method.argument`, such as `ewc.strength`; they may be traced.

    Raises:
      ValueError: if an argument is missing or out of range, or the methods don't compose.
    """
    parts = []
    for call in calls:
        swept = {
            key.split(".", 1)[1]: value
            for key, value in (overrides or {}).items()
            if key.split(".", 1)[0] == call.name
        }
        arguments = {**call.arguments, **swept}
        parts.append(_made(call, arguments))
    return chain(*parts)


def _made(call: Call, arguments: Mapping[str, Any]) -> Method:
    """The method that a factory makes of its arguments."""
    factory = _of(call)
    parameters = inspect.signature(factory).parameters
    for name in _takes(factory):
        if parameters[name].default is inspect.Parameter.empty and name not in arguments:
            raise ValueError(f"{call.name} needs its argument {name!r}")
    try:
        found = factory(**arguments)
    except jax.errors.ConcretizationTypeError as error:
        swept = listed([k for k, v in arguments.items() if isinstance(v, jax.core.Tracer)], "and")
        raise ValueError(
            f"{call.name} branches in Python on {swept}, which is swept and so traced; use "
            "jnp.where and jcl.method.check, or annotate it as an int, which isn't traced"
        ) from error
    except (ValueError, TypeError) as error:
        raise ValueError(f"{call.name}: {error}") from error
    except Exception as error:
        if call.factory is None:
            raise
        raise ValueError(f"{call.name}: {type(error).__name__}: {error}") from error
    if not isinstance(found, Method):
        got = "None" if found is None else f"something of type {type(found).__name__}"
        raise ValueError(f"{call.name} returned {got}, but must return a jcl.Method")
    return found


def traceable(call: Call, argument: str) -> bool:
    """Whether an argument may be traced, that is whether it is a float: others set shapes.

    Raises:
      ValueError: if the method or the argument isn't known.
    """
    factory = _of(call)
    if argument not in _takes(factory):
        _check(call.name, argument, None, factory)
    hint = _hint(factory, argument)
    return float in (hint, *typing.get_args(hint))


def override(call: Call, argument: str, value: Any) -> Call:
    """A call with another value of one argument.

    Raises:
      ValueError: if the value isn't of the argument's type.
    """
    _check(call.name, argument, value, _of(call))
    return call._replace(arguments={**call.arguments, argument: value})


def literal(text: str) -> Any:
    """The Python literal in a text, or the text itself if it is none."""
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError):
        return text.strip()
