"""How a run goes on from the last state of another: what of that state it takes over."""

from __future__ import annotations

from typing import Any, Literal

import jax

from jcl import trees
from jcl.method import check
from jcl.program import State

Carry = Literal["methods", "whole"]
"""`methods`: the methods' states and the counts of stages and steps; optimizer, key and references
start anew. `whole`: all of it, so that stages to come are as if the first run had known them."""

_METHODS = ("methods", "stage", "step")


def take_over(state: State, carried: State, what: Carry = "methods") -> State:
    """`state`, which a program has just made, with what it takes over of another run's last state.

    Args:
      state: a first state.
      carried: the other's, between two stages.
      what: which fields of it.

    Raises:
      ValueError: if `what` is neither word, `carried` is within a stage, or a field that is taken
        over has other leaves or shapes.
    """
    check(what in ("methods", "whole"), "carry", what, "'methods' or 'whole'")
    at = int(jax.device_get(carried.stage_step).reshape(-1)[0])
    check(what == "methods" or at == 0, "stage_step of carried", at, "0, that of a finished stage")
    fields = _METHODS if what == "methods" else State._fields
    mine, theirs = ({f: getattr(s, f) for f in fields} for s in (state, carried))
    _check_same(mine, theirs)
    # copied, for a step is given its state's buffers to write into
    where = jax.tree.map(lambda x: x.sharding, mine)
    return state._replace(**jax.tree.map(jax.device_put, trees.copy(theirs), where))


def _check_same(mine: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Refuses fields of a state with other leaves than the program's."""
    for field in mine:
        here, there = trees.kinds(mine[field]), trees.kinds(theirs[field])
        of = "the methods' states" if field == "methods" else f"its {field}"
        for path in sorted(here.keys() | there.keys()):
            if here.get(path) != there.get(path):
                raise ValueError(
                    f"carried has {there.get(path)} at {path!r} of {of}, where this run has "
                    f"{here.get(path)}; both must have the same methods, parameters and batches"
                )
