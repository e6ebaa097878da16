"""Conditions under which a new state becomes the current one, such as `forgetting<2, boolq>80`."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from jcl.runs.expression import near

_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt, ">": operator.gt, "<=": operator.le, ">=": operator.ge,
}  # fmt: skip
_ONE = re.compile(r"\s*(?P<name>[^<>=,]+?)\s*(?P<sign><=|>=|<|>)\s*(?P<value>[^<>=,]+?)\s*")


class Condition(NamedTuple):
    """One comparison."""

    name: str
    """A measure of the report, such as `forgetting`, or a test."""
    sign: str
    value: float
    """In per cent where scores are shares."""

    def __str__(self) -> str:
        return f"{self.name}{self.sign}{self.value:g}"


def parse(text: str) -> list[Condition]:
    """The conditions of a text, joined by commas; none of an empty one.

    Raises:
      ValueError: if it is no such text.

    >>> [str(one) for one in parse("forgetting<2, average >= 80")]
    ['forgetting<2', 'average>=80']
    """
    found: list[Condition] = []
    for part in text.split(",") if text.strip() else []:
        match = _ONE.fullmatch(part)
        try:
            assert match is not None
            found.append(Condition(match["name"], match["sign"], float(match["value"])))
        except (AssertionError, ValueError):
            raise ValueError(
                f"accept has {part.strip()!r}, but must have comparisons with a number, such as "
                "'forgetting<2, average>80'"
            ) from None
    return found


def check_names(conditions: Sequence[Condition], known: Sequence[str]) -> None:
    """Refuses a condition on what isn't measured, before anything is trained.

    Raises:
      ValueError: naming it, and what is like it.
    """
    for one in conditions:
        if one.name not in known:
            raise ValueError(
                f"accept asks for {one.name!r}, which isn't measured{near(one.name, known)}; there "
                f"are {', '.join(known)}"
            )


def broken(conditions: Sequence[Condition], measured: Mapping[str, float | None]) -> list[str]:
    """The conditions that don't hold, each as a sentence's part; what isn't defined yet holds.

    >>> broken(parse("average>80, forgetting<2"), {"average": 71.5, "forgetting": None})
    ['average is 71.5 and not >80']
    """
    found: list[str] = []
    for one in conditions:
        value = measured[one.name]
        if value is not None and not _COMPARE[one.sign](value, one.value):
            found.append(f"{one.name} is {value:.4g} and not {one.sign}{one.value:g}")
    return found
