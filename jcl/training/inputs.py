"""Looks at what is handed to `fit` before anything is compiled, so that nothing wrong is silent.

A compiled step can't refuse a row: it would have to ask in every step. So the data's bounds are
compared with what the model, the loss and the methods have room for, once.
"""

from __future__ import annotations

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


def check_carried(params: Params, carried: State | None) -> None:
    """Refuses parameters beside methods' states that don't belong to them.

    Raises:
      ValueError: if they aren't the parameters of `carried`, in one sentence that names a leaf.
    """
    if carried is None or params is carried.params:
        return
    mine, theirs = trees.by_path(params), trees.by_path(carried.params)
    # on the host, for the two may lie on different devices
    here = [p for p in mine if p in theirs and getattr(theirs[p], "is_fully_addressable", True)]
    other = sorted(mine.keys() ^ theirs.keys())
    other += [p for p in here if not np.array_equal(mine[p], theirs[p])]
    if other:
        raise ValueError(
            f"params at {other[0]!r} are not those of carried, to whose own its anchors and "
            "memories belong; give carried.params, or where they were changed on purpose say so "
            "by carried=carried._replace(params=params)"
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
