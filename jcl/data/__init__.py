"""Streams of tasks: what a sequence is made of, and how it is drawn."""

from jcl.data.arrays import Scenario, from_arrays, from_scenario, reorder, scenario
from jcl.data.scenarios import (
    blurry,
    by_domain,
    gradual,
    joint,
    online,
    permuted,
    recurring,
    rotated,
    rotation,
    split,
)
from jcl.data.sources import digits, mnist, mnist5k, python_domains
from jcl.data.stream import Stream, from_leaves, members, pack, stack
from jcl.data.text import from_bytes, windows

__all__ = [
    "Scenario",
    "Stream",
    "blurry",
    "by_domain",
    "digits",
    "from_arrays",
    "from_bytes",
    "from_leaves",
    "from_scenario",
    "gradual",
    "joint",
    "members",
    "mnist",
    "mnist5k",
    "online",
    "pack",
    "permuted",
    "python_domains",
    "recurring",
    "reorder",
    "rotated",
    "rotation",
    "scenario",
    "split",
    "stack",
    "windows",
]
