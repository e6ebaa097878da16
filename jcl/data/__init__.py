"""Streams of tasks: what a sequence is made of, and how it is drawn."""

from jcl.data.stream import (
    Scenario,
    Stream,
    from_arrays,
    from_scenario,
    members,
    pack,
    reorder,
    scenario,
    stack,
)

__all__ = [
    "Scenario",
    "Stream",
    "from_arrays",
    "from_scenario",
    "members",
    "pack",
    "reorder",
    "scenario",
    "stack",
]
