"""Looks at what is handed to `fit` before anything is compiled, so that nothing wrong is silent.

A compiled step can't refuse a row: it would have to ask in every step. So the data's bounds are
compared with what the model, the loss and the methods have room for, once.
"""

from __future__ import annotations

import warnings
from typing import Any

import jax
import numpy as np

from jcl import trees
from jcl.data.bounds import check_limits
from jcl.data.stream import Stream, from_leaves
from jcl.method import Params
from jcl.program import Program, State, fill_batch


def as_stream(given: Any, program: Program) -> Stream:
    """A stream, or leaves as one, which has the program's members.

    Raises:
      ValueError: if it is something else, or has other members.
    """
    stream = given if isinstance(given, Stream) else from_leaves(given)
    if program.members != stream.members:
        raise ValueError(
            f"the stream has {stream.members} members, but must have the program's "
            f"{program.members}; see jcl.data.members"
        )
    return stream


def warn_of_other_params(params: Params, carried: State | None) -> None:
    """Warns where methods' states are carried beside parameters that they don't belong to."""
    if carried is None:
        return
    mine, theirs = trees.by_path(params), trees.by_path(carried.params)
    here = [p for p in mine if p in theirs and getattr(theirs[p], "is_fully_addressable", True)]
    # on the host, for the two may lie on different devices
    other = next((p for p in here if not np.array_equal(mine[p], theirs[p])), None)
    if other is not None:
        warnings.warn(
            f"params at {other!r} are not those of carried, whose anchors and memories belong "
            "to its own; unless they were changed on purpose, give carried.params",
            stacklevel=3,
        )


def check_rows(
    program: Program, params: Params, key: jax.Array, stream: Stream, collections: Any
) -> None:
    """Refuses a stream with labels, tokens or tasks that would be read as others.

    Nothing is computed: of the model only the shapes of its outputs are asked, and of the data the
    smallest and the largest value of the columns that have a limit.

    Raises:
      ValueError: in one sentence that names the column, its values and who sets the limit.
    """
    bounds = getattr(stream.fetch, "bounds", None)
    if bounds is None or program.scene is None:
        return
    check_limits(bounds, program.scene.structure.limits, "the model", "the stream")
    for part in program.method.parts:
        check_limits(bounds, part.limits, part.name, "the stream")
    objective: Any = program.scene.objective
    if hasattr(objective, "limits"):
        outputs = _outputs(program, params, key, stream, collections)
        check_limits(bounds, objective.limits(outputs), "the model", "the stream")


def _outputs(
    program: Program, params: Params, key: jax.Array, stream: Stream, collections: Any
) -> Any:
    """The shapes of a member's outputs for a batch of the stream, as in prediction."""
    found: list[Any] = []

    def shapes(params: Params, key: jax.Array, kept: Any, source: Any, rows: Any) -> State:
        def ask(p: Program, params: Params, key: jax.Array, kept: Any, rows: Any) -> State:
            first = jax.tree.map(lambda x: x[0], rows)
            batch = fill_batch(stream.fetch(source, first))
            state = p.init(params, batch, key, kept)
            found.append(jax.eval_shape(p.predict, state, batch))
            return state

        return program.over_members(ask, params, key, kept, rows)

    given = (params, key, collections, stream.source, stream.chunk(0, 0, 1))
    jax.eval_shape(shapes, *given)
    return found[-1]
