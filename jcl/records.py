"""How records show themselves: what their fields mean in `help`, and what is in one at a glance.

A record is a NamedTuple. Python calls a field of one "Alias for field number 6" and drops the
string that is written beneath it; and the repr of one that holds arrays runs to pages.
"""

from __future__ import annotations

import ast
import html
import inspect
import re
import reprlib
import sys
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, TypeVar

Class = TypeVar("Class", bound=type)

LONGEST, WIDEST = 200, 70
"""Characters of a record in a line, and of one of its facts."""
_SHORT = reprlib.Repr()
_SHORT.maxtuple, _SHORT.maxstring, _SHORT.maxother = 4, WIDEST, WIDEST


def record(cls: Class) -> Class:
    """Decorates a NamedTuple: its fields get their docstrings, and it shows its facts.

    What a field means is the string beneath it, or its entry under `Args` in the docstring of the
    class. A class with a method `_facts`, which gives what a user wants to know by name, is shown
    by these facts: in a line by `repr`, and as a table in a notebook.

    >>> from typing import NamedTuple
    >>> @record
    ... class Run(NamedTuple):
    ...     '''A run.
    ...
    ...     Args:
    ...       scores: one a task.
    ...     '''
    ...     scores: list[float]
    ...     def _facts(self):
    ...         return {"tasks": len(self.scores), "last": self.scores[-1]}
    >>> Run.scores.__doc__
    'one a task.'
    >>> Run([0.5, 0.75])
    Run(tasks=2, last=0.75)
    """
    for name, text in {**_listed(cls), **_beneath(cls)}.items():
        getattr(cls, name).__doc__ = text
    if hasattr(cls, "_facts"):
        kind: Any = cls
        kind.__repr__ = lambda self: line(cls.__name__, self._facts())
        kind._repr_html_ = lambda self: table(cls.__name__, self._facts())
    return cls


def line(name: str, facts: Mapping[str, Any]) -> str:
    """The facts as `name(key=value, ...)`, in at most `LONGEST` characters.

    >>> line("Stream", {"stages": 9, "names": tuple("abcdefghi"), "members": None})
    "Stream(stages=9, names=('a', 'b', 'c', 'd', ...))"
    """
    shown = ", ".join(f"{key}={text}" for key, text in _texts(facts).items())
    return f"{name}({_cut(shown, LONGEST - len(name) - 2)})"


def table(name: str, facts: Mapping[str, Any]) -> str:
    """The facts as a table of HTML, a row each, in which nothing of them is markup."""
    rows = "".join(
        f"<tr><th>{html.escape(key)}</th><td>{html.escape(text)}</td></tr>"
        for key, text in _texts(facts).items()
    )
    return f"<table><caption>{html.escape(name)}</caption>{rows}</table>"


def _texts(facts: Mapping[str, Any]) -> dict[str, str]:
    """Each fact as text, long ones cut; None and what is empty says nothing and is left out."""
    told = {key: fact for key, fact in facts.items() if fact is not None and fact not in ("", ())}
    return {key: _cut(_SHORT.repr(fact), WIDEST) for key, fact in told.items()}


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _listed(cls: type) -> dict[str, str]:
    """What the docstring of a class says of its fields under `Args`."""
    fields = cls._fields  # type: ignore[attr-defined]
    entries = re.findall(r"^  (\w+): (.+(?:\n    .+)*)", inspect.getdoc(cls) or "", re.MULTILINE)
    return {name: inspect.cleandoc(text) for name, text in entries if name in fields}


def _beneath(cls: type) -> dict[str, str]:
    """The strings beneath the fields of a class at the top of its module, read from its source.

    Only the lines of the class are parsed, so that this takes a fraction of a millisecond.
    """
    try:
        source = inspect.getsource(sys.modules[cls.__module__])
    except OSError:  # Python is run without the source
        return {}
    found = re.search(rf"^class {cls.__name__}\b.*\n(?:(?:[ \t].*)?\n)*", source, re.MULTILINE)
    if found is None:
        return {}
    body = ast.parse(found[0]).body[0].body  # type: ignore[attr-defined]
    return {
        field.target.id: inspect.cleandoc(text.value.value)
        for field, text in pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
        if isinstance(text.value.value, str)
    }
