"""Streams of tasks: what a sequence is made of, and how it is drawn."""

from jcl.data.sources import digits, mnist, mnist5k, python_domains
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
from jcl.data.text import from_bytes, windows

__all__ = [
    "Scenario",
    "Stream",
    "digits",
    "from_arrays",
    "from_bytes",
    "from_scenario",
    "members",
    "mnist",
    "mnist5k",
    "pack",
    "python_domains",
    "reorder",
    "scenario",
    "stack",
    "windows",
]
