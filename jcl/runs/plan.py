"""Plans compiled runs for a command line: which values share one run, and which need their own.

Seeds and swept floats are members of one compiled run; a swept value that sets a shape needs a run
of its own.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
import typing
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jcl.method import check
from jcl.runs import expression
from jcl.runs.expression import Call

RATE = "lr"
"""The key of the optimizer's learning rate, which is traced like a method's floats."""


class Plan(NamedTuple):
    """One compiled run."""

    family: str
    """The method expression as it was given."""
    calls: tuple[Call, ...]
    """The method with the values of `outer` filled in."""
    config: Any
    """The experiment's config with the values of `outer` filled in."""
    outer: dict[str, Any]
    """The values that a sweep sets for the whole run, by `method.argument` or setting."""
    points: list[dict[str, float]]
    """The traced values of each point of a sweep; `[{}]` if none are traced."""

    @property
    def name(self) -> str:
        """The method, with the settings that a sweep changed."""
        return _label(self.calls, {k: v for k, v in self.outer.items() if "." not in k})

    @property
    def labels(self) -> list[str]:
        """The method with the values of each point, and the settings that a sweep changed."""
        outer = {k: v for k, v in self.outer.items() if "." not in k}
        return [_label(self.calls, {**outer, **point}) for point in self.points]


def _label(calls: Sequence[Call], values: Mapping[str, Any]) -> str:
    """A text such as `ewc(strength=10) with lr=0.01`, from calls and the values of a sweep."""
    short = {k: int(v) if isinstance(v, float) and v.is_integer() else v for k, v in values.items()}
    shown = [_filled(call, short) for call in calls]
    rest = ", ".join(f"{k}={v}" for k, v in short.items() if "." not in k)
    return expression.show(shown) + (f" with {rest}" if rest else "")


class _Axis(NamedTuple):
    key: str
    values: list[Any]
    traced: bool


def _axis(text: str, methods: Sequence[Sequence[Call]], config: Any) -> _Axis:
    """A sweep `key=v1,v2,...`, checked."""
    key, equals, listed = (part.strip() for part in text.partition("="))
    if not equals or not listed:
        raise ValueError(f"the sweep {text!r} is no key=value,value such as ewc.strength=0,1,10")
    values = [expression.literal(item) for item in listed.split(",")]
    if len(set(map(repr, values))) < len(values):
        raise ValueError(f"the sweep {text!r} has a value twice")
    fields = typing.get_type_hints(type(config))
    if "." in key:
        name, argument = key.split(".", 1)
        calls = [call for method in methods for call in method if call.name == name]
        if not calls:
            known = {call.name for method in methods for call in method}
            near = expression.near(name, known)
            raise ValueError(f"the sweep {text!r} is of a method that isn't run{near}")
        if len({call.factory for call in calls}) > 1:
            raise ValueError(
                f"the sweep {text!r} is of two methods that are called {name}; rename one of them"
            )
        for value in values:
            expression.override(calls[0], argument, value)
        traced = expression.traceable(calls[0], argument)
        return _Axis(key, [float(v) for v in values] if traced else values, traced)
    if key == RATE or key in fields:
        hint = float if key == RATE else fields[key]
        for value in values:
            if not expression.accepts(hint, value):
                right = expression.wanted(hint)
                raise ValueError(f"the sweep {text!r} has {value!r}, but {key} must be {right}")
        return _Axis(key, [float(v) for v in values] if key == RATE else values, key == RATE)
    near = expression.near(key, {*fields, RATE})
    raise ValueError(f"{key!r} is neither method.argument nor a setting{near}")


def _changed(config: Any) -> dict[str, Any]:
    """The settings of a config that aren't its defaults."""
    fields = dataclasses.fields(config)
    return {f.name: v for f in fields if (v := getattr(config, f.name)) != f.default}


def _check_numbers(values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        finite = not isinstance(value, float) or math.isfinite(value)
        check(finite, name, value, "a finite number")
    rate = values.get(RATE, 0.0)
    check(not isinstance(rate, int | float) or rate >= 0, RATE, rate, "at least 0")


def plans(methods: Sequence[str], sweeps: Sequence[str], config: Any) -> list[Plan]:
    """The compiled runs for all methods and sweeps, in order.

    Args:
      methods: method expressions.
      sweeps: texts `key=v1,v2,...`, each an axis of a grid; a key is `method.argument`, `lr` or a
        field of the config. An expression without the key's method runs without that axis, as a
        reference.
      config: the experiment's config, a dataclass.

    Raises:
      ValueError: if one of them isn't known or doesn't fit.
    """
    parsed = [expression.parse(text) for text in methods]
    axes = [_axis(text, parsed, config) for text in sweeps]
    keys = [axis.key for axis in axes]
    if len(set(keys)) < len(keys):
        raise ValueError(f"two sweeps are of the same key: {keys}")
    found: list[Plan] = []
    for calls in parsed:
        names = {call.name for call in calls}
        mine = [a for a in axes if "." not in a.key or a.key.split(".")[0] in names]
        outer = [a for a in mine if not a.traced]
        traced = [a for a in mine if a.traced]
        points = [
            dict(zip([a.key for a in traced], values, strict=True))
            for values in itertools.product(*(a.values for a in traced))
        ]
        for values in itertools.product(*(a.values for a in outer)):
            chosen = dict(zip([a.key for a in outer], values, strict=True))
            settings = {k: v for k, v in chosen.items() if "." not in k}
            plan = Plan(
                expression.show(calls),
                tuple(_filled(call, chosen) for call in calls),
                dataclasses.replace(config, **settings),
                chosen,
                points,
            )
            for point in points:  # before anything is trained
                _check_numbers({**_changed(plan.config), **point})
                expression.build(plan.calls, point)
            found.append(plan)
    return found


def _filled(call: Call, chosen: Mapping[str, Any]) -> Call:
    for key, value in chosen.items():
        if key.startswith(f"{call.name}."):
            call = expression.override(call, key.split(".", 1)[1], value)
    return call


def folders(found: Sequence[Plan]) -> list[str]:
    """A folder's name for each plan: its methods, and its values if the methods aren't unique."""
    short = ["+".join(call.name for call in plan.calls) for plan in found]
    long = [re.sub(r"[^\w.+=-]+", "-", plan.name).strip("-")[:100] for plan in found]
    names: list[str] = []
    for brief, full in zip(short, long, strict=True):
        name = brief if short.count(brief) == 1 else full
        while name in names:
            name += "+"
        names.append(name)
    return names
