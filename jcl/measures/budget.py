"""Costs of methods, which are known from shapes before anything runs, and limits on them."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

from jcl import trees
from jcl.measures import flops
from jcl.method import Batch, KeepsRows, Params
from jcl.program import Program


class Costs(NamedTuple):
    """What a method costs beyond plain fine-tuning."""

    examples: int
    """How many rows its buffers have room for."""
    bytes: int
    """The bytes of its whole state: buffers, anchors, statistics, banks, frozen models."""
    parameters: int
    """How many parameters it adds to the model's tree."""
    flops: float
    """Operations that it adds to a stage and its end, as a share of plain fine-tuning's."""


class Budget(NamedTuple):
    """Upper limits of `Costs`; None is no limit.

    `Budget(examples=0)` allows no memory of examples; a budget of `flops` alone allows any memory
    but bounds computation.
    """

    examples: int | None = None
    bytes: int | None = None
    parameters: int | None = None
    flops: float | None = None


def _slots(state: Any) -> int:
    """How many rows a state has room for, in all of its nodes that keep any."""
    nodes = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, KeepsRows))
    keepers = [x for x in nodes if isinstance(x, KeepsRows)]
    return sum(jax.tree.leaves(getattr(x, x.row_fields[0]))[0].shape[0] for x in keepers)


def costs(
    program: Program,
    plain: Program,
    params: Params,
    batch: Batch,
    boundary: Batch,
    steps: int,
    collections: Any = (),
) -> Costs:
    """What the methods of a program keep and cost; nothing is compiled or run.

    Args:
      program: a program of one member.
      plain: the same program without methods.
      params: the model's parameters, or their shapes.
      batch: an example, or its shapes.
      boundary: the batches that `consolidate` gets, leaves [n, B, ...], or their shapes.
      steps: how many steps a stage has.
      collections: what the model keeps beside its parameters, or its shapes.
    """

    def total(p: Program) -> tuple[Any, float]:
        state = jax.eval_shape(p.init, params, batch, jax.random.key(0), collections)
        once = flops.count(p.consolidate, state, boundary)
        return state, steps * flops.count(p.step, state, batch) + once

    state, dear = total(program)
    _, cheap = total(plain)
    return Costs(
        _slots(state.methods),
        trees.nbytes((state.methods, state.references)),
        trees.size(state.params) - trees.size(params),
        dear / max(cheap, 1) - 1,
    )


_UNITS = {
    "examples": "stored examples",
    "bytes": "stored bytes",
    "parameters": "added parameters",
    "flops": "FLOPs beside plain fine-tuning's, as a share",
}


def excess(found: Costs, budget: Budget) -> str:
    """Says what exceeds a budget, as the end of a sentence; "" if nothing does.

    >>> excess(Costs(200, 8, 0, 1.0), Budget(examples=100))
    'it takes 200 stored examples, but must take at most 100'
    """
    for name, unit in _UNITS.items():
        taken, most = getattr(found, name), getattr(budget, name)
        if most is not None and taken > most:
            return f"it takes {taken:.6g} {unit}, but must take at most {most:.6g}"
    return ""
