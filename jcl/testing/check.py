"""`check_method`: all laws over a user's own method."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax

from jcl.method import Method, check
from jcl.records import record
from jcl.testing import composition, laws
from jcl.testing.bench import Bench, Problem, perceptron
from jcl.testing.laws import Broken

ALONE: dict[str, Callable[[Bench], None]] = {
    "one trace": laws.one_trace,
    "shapes and dtypes stay": laws.shapes_and_dtypes_stay,
    "samples are said": laws.samples_are_said,
    "training moves": laws.training_moves,
    "writers say so": laws.writers_say_so,
    "plain until it starts": laws.plain_until_it_starts,
    "equal arguments, equal runs": laws.equal_arguments_equal_runs,
    "members are separate runs": laws.members_equal_runs,
    "saved and restored": laws.restored,
    "four microbatches": laws.microbatches,
    "padding rows count nothing": laws.padding_counts_nothing,
    "bfloat16": laws.bfloat16,
    "finite reports": laws.reports_are_finite,
    "eight devices": laws.sharded,
    "four replicas": laws.replicas,
}
"""The laws of a method by itself, by name."""
DEVICES = {"eight devices": 8, "four replicas": 4}


@record
class Checked(NamedTuple):
    """What `check_method` looked at."""

    held: tuple[str, ...]
    """The names of the laws that hold."""
    left_out: dict[str, str]
    """Laws that weren't looked at, and why."""


def check_method(
    factory: Callable[..., Method],
    arguments: Mapping[str, Any] | None = None,
    *,
    neutral: Mapping[str, Any] | None = None,
    refused: Iterable[Mapping[str, Any]] = (),
    problem: Problem | None = None,
    kinds: Iterable[str] | None = None,
    without: Mapping[str, str] | None = None,
    tolerance: float = 1e-5,
) -> Checked:
    """Holds a method to what all methods here promise, alone and in chains with each kind.

    It trains a small problem through three stages, over and over: a minute or two on a CPU. Eight
    devices of a CPU are made by `XLA_FLAGS=--xla_force_host_platform_device_count=8`, which must be
    set before JAX is imported; with fewer the laws about devices are left out.

    Args:
      factory: a function that returns a method.
      arguments: the factory's arguments to test with.
      neutral: arguments, over these, at which the method is plain fine-tuning bit for bit; None if
        there are none.
      refused: arguments that must raise a ValueError which names the argument, its value and what
        it must be, each as `{"strength": -1.0}`.
      problem: what learns; None is a perceptron of three layers.
      kinds: which kinds of methods it is chained with, by their names in
        `jcl.testing.composition.kinds`; None is all, an empty one none.
      without: laws that needn't hold, by their names, and why.
      tolerance: of parameters, between programs that differ in rounding only.

    Returns:
      The laws that hold, and those that were left out.

    Raises:
      Broken: an AssertionError with a sentence for each law that doesn't hold.
      ValueError: if an argument doesn't fit.
    """
    given = dict(arguments or {})
    left_out = dict(without or {})
    problem = perceptron() if problem is None else problem
    known = composition.kinds(problem)
    chosen = list(known if kinds is None else kinds)
    for name in chosen:
        check(name in known, "kinds", name, f"one of {sorted(known)}")

    every_name = {*ALONE, "neutral"}
    for name in left_out:
        ok = name in every_name or ":" in name or " at " in name or name.startswith("refuses ")
        check(ok, "without", name, f"the name of a law, such as {sorted(every_name)}")

    def make(**changes: Any) -> Method:
        return factory(**{**given, **changes})

    found = make()
    check(isinstance(found, Method), "factory", found, "a function that returns a jcl.Method")
    bench = Bench(make, problem, tolerance)

    def every() -> Iterator[tuple[str, Callable[[], None]]]:
        for wrong in refused:
            yield f"refuses {dict(wrong)}", lambda wrong=wrong: laws.refuses(make, wrong)  # type: ignore[misc]
        for name, law in ALONE.items():
            yield name, lambda law=law: law(bench)  # type: ignore[misc]
        if neutral is not None:
            plain = laws.plain_params(problem)
            yield "neutral", lambda: laws.neutral_is_plain(bench, neutral, plain)
        for name in chosen:
            yield from composition.pair(bench, known[name])

    held, broken = [], []
    for name, law in every():
        if name in left_out:
            continue
        if jax.device_count() < DEVICES.get(name, 1):
            left_out[name] = f"there are {jax.device_count()} devices, and it needs {DEVICES[name]}"
            continue
        try:
            law()
            held.append(name)
        except Broken as error:
            broken.append(str(error))
        except Exception as error:  # in one of its hooks, where its own words say most
            first = (str(error).splitlines() or [""])[0]
            broken.append(f"{name}: {found.name} raises {type(error).__name__}: {first}")
    if broken:
        raise Broken("\n".join(broken))
    if neutral is None:
        left_out.setdefault("neutral", "no neutral arguments were given")
    return Checked(tuple(held), left_out)
