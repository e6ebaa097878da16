"""Plans what each stage of a stream over domains trains on: one domain, or a mixture of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jcl.method import check

Stage = str | Mapping[str, float]
"""A domain's name, or the shares of several, such as `{"prose": 0.25, "code": 0.75}`."""


class Plan(NamedTuple):
    """The stages of a stream over domains, checked."""

    names: tuple[str, ...]
    """The stages' names."""
    tasks: tuple[int, ...]
    """Which domain has the largest share of each stage; -1 if several have it."""
    shares: np.ndarray
    """float64 [stages, domains], rows that sum to 1."""


def plan(stages: Sequence[Stage] | None, domains: Sequence[str]) -> Plan:
    """The plan of `stages` over `domains`; None trains on each domain in turn.

    Raises:
      ValueError: if there is no domain or no stage, or a stage names an unknown domain or has no
        share above 0.

    >>> plan(["a", {"a": 1, "b": 3}], ["a", "b"]).shares
    array([[1.  , 0.  ],
           [0.25, 0.75]])
    """
    check(len(domains) >= 1, "number of domains", len(domains), "at least 1")
    stages = list(domains) if stages is None else list(stages)
    check(len(stages) >= 1, "number of stages", len(stages), "at least 1")
    shares = np.stack([_shares(s, domains) for s in stages])
    best = [np.flatnonzero(s == s.max()) for s in shares]
    return Plan(
        tuple(s if isinstance(s, str) else " + ".join(s) for s in stages),
        tuple(int(b[0]) if len(b) == 1 else -1 for b in best),
        shares,
    )


def each_stage(steps: int | Sequence[int], stages: int) -> tuple[int, ...]:
    """How many steps each of `stages` stages has, from one number for all or one for each.

    Raises:
      ValueError: if there are not as many numbers as stages, or one is below 1.
    """
    taken = (steps,) * stages if isinstance(steps, int) else tuple(int(n) for n in steps)
    check(len(taken) == stages, "number of steps", len(taken), f"{stages}, one a stage")
    check(min(taken) >= 1, "steps", steps, "at least 1")
    return taken


def _shares(stage: Stage, domains: Sequence[str]) -> np.ndarray:
    """A stage's share of each domain, float64 [domains], summing to 1."""
    given = {stage: 1.0} if isinstance(stage, str) else dict(stage)
    for name, share in given.items():
        check(name in domains, "stage's domain", name, f"one of {list(domains)}")
        check(share >= 0, f"share of {name!r}", share, "at least 0")
    shares = np.array([given.get(d, 0.0) for d in domains], np.float64)
    check(shares.sum() > 0, "stage's shares", given, "above 0 for a domain at least")
    return shares / shares.sum()


def with_replay(
    domains: Sequence[str], fraction: float, general: str | None = None
) -> tuple[Stage, ...]:
    """Stages of each domain in turn, mixed with earlier domains, at the same cost of a step.

    Args:
      domains: the domains, in order.
      fraction: ρ in [0, 1), the share of a stage's rows that come from earlier domains, in equal
        parts of each.
      general: the one domain that is mixed in instead of the earlier ones; its own stage stays as
        it is.

    Raises:
      ValueError: if `fraction` is out of range.

    Source: Ibrahim et al., arXiv 2403.08763, section 5: 5 % for related data, 25 to 50 % for
    another language.

    >>> with_replay(["en", "de", "fr"], 0.5)
    ('en', {'de': 0.5, 'en': 0.5}, {'fr': 0.5, 'en': 0.25, 'de': 0.25})
    """
    check(0 <= fraction < 1, "fraction", fraction, "at least 0 and below 1")
    stages: list[Stage] = []
    for i, name in enumerate(domains):
        earlier = [d for d in ([general] if general else domains[:i]) if d != name]
        mixed = {name: 1 - fraction} | {d: fraction / len(earlier) for d in earlier if d}
        stages.append(mixed if fraction and earlier else name)
    return tuple(stages)
