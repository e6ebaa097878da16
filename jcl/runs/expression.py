"""Method expressions of the command line, such as `er(capacity=500) + ewc(strength=10.0)`.

They are read from Python's syntax tree and never evaluated: they may have known methods, literal
arguments and `+`.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from jcl import methods, moved
from jcl.chain import chain
from jcl.method import Method


class Call(NamedTuple):
    """One method of an expression."""

    name: str
    """The name of a factory in `jcl.methods`."""
    arguments: dict[str, Any]
    """Literals by parameter name; parameters that are left out keep their defaults."""

    def __str__(self) -> str:
        """The call as one could type it."""
        inner = ", ".join(f"{k}={v!r}" for k, v in self.arguments.items())
        return f"{self.name}({inner})"


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


def factories() -> dict[str, Callable[..., Method]]:
    """Every public method factory by name."""
    found = {name: getattr(methods, name) for name in methods.__all__}
    return {name: f for name, f in sorted(found.items()) if inspect.isfunction(f)}


Known = Mapping[str, Callable[..., Any]]


def _factory(name: str, known: Known | None = None) -> Callable[..., Any]:
    known = factories() if known is None else known
    if name not in known:
        raise ValueError(f"no method is called {name!r}{near(name, known)}")
    return known[name]


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


def _check(name: str, argument: str, value: Any, known: Known | None = None) -> None:
    hints = typing.get_type_hints(_factory(name, known))
    if argument not in hints:
        takes = inspect.signature(_factory(name, known)).parameters
        raise ValueError(f"{name} has no argument {argument!r}; it takes {listed(takes, 'and')}")
    if not accepts(hints[argument], value):
        raise ValueError(f"{name}'s {argument} is {value!r}, but must be {wanted(hints[argument])}")


def _call(node: ast.expr, text: str, known: Known | None) -> Call:
    if isinstance(node, ast.Name):  # `ewc` is `ewc()`
        node = ast.Call(func=node, args=[], keywords=[])
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        raise ValueError(
            f"{ast.unparse(node)!r} in the method {text!r} is no call such as ewc(strength=100.0)"
        )
    name = node.func.id
    takes = list(inspect.signature(_factory(name, known)).parameters)
    if len(node.args) > len(takes):
        raise ValueError(f"{name} takes at most {len(takes)} arguments, but got {len(node.args)}")
    given = [*zip(takes, node.args, strict=False), *((k.arg, k.value) for k in node.keywords)]
    arguments: dict[str, Any] = {}
    for old, value in given:
        key = old and moved.argument(name, old)
        if key is None or key in arguments:
            raise ValueError(f"{name} got {'**' if key is None else f'{key!r} twice'} in {text!r}")
        try:
            arguments[key] = ast.literal_eval(value)
        except (ValueError, TypeError):
            raise ValueError(
                f"{name}'s {key} is {ast.unparse(value)}, but must be a literal such as 100.0"
            ) from None
        _check(name, key, arguments[key], known)
    return Call(name, arguments)


def parse(text: str, known: Known | None = None) -> list[Call]:
    """The calls of a method expression, in the order in which they are chained.

    Args:
      text: the expression.
      known: factories by name; None is those of `jcl.methods`.

    Raises:
      ValueError: if `text` is no such expression, or a method or an argument isn't known.

    >>> [str(call) for call in parse("er(capacity=500, rows=16) + ewc(100.)")]
    ['er(capacity=500, rows=16)', 'ewc(strength=100.0)']
    """
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError(
            f"{text!r} is no method; write calls joined by +, such as "
            "'er(capacity=500) + ewc(strength=100.0)'"
        ) from None
    terms: list[ast.expr] = []
    while isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        terms.append(node.right)
        node = node.left
    return [_call(term, text, known) for term in [node, *reversed(terms)]]


def show(calls: Iterable[Call]) -> str:
    """The expression that `parse` reads back."""
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
        for name, parameter in inspect.signature(_factory(call.name)).parameters.items():
            if parameter.default is parameter.empty and name not in arguments:
                raise ValueError(f"{call.name} needs its argument {name!r}")
        try:
            parts.append(_factory(call.name)(**arguments))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{call.name}: {error}") from error
    return chain(*parts)


def traceable(name: str, argument: str) -> bool:
    """Whether an argument may be traced, that is whether it is a float: others set shapes.

    Raises:
      ValueError: if the method or the argument isn't known.
    """
    if argument not in inspect.signature(_factory(name)).parameters:
        _check(name, argument, None)
    hint = typing.get_type_hints(_factory(name))[argument]
    return float in (hint, *typing.get_args(hint))


def override(call: Call, argument: str, value: Any) -> Call:
    """A call with another value of one argument.

    Raises:
      ValueError: if the value isn't of the argument's type.
    """
    _check(call.name, argument, value)
    return call._replace(arguments={**call.arguments, argument: value})


def literal(text: str) -> Any:
    """The Python literal in a text, or the text itself if it is none."""
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError):
        return text.strip()
