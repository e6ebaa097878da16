"""What methods keep and cost, known from shapes before anything runs, and held to a budget."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

from jcl import memory, trees
from jcl.measures import flops
from jcl.method import Batch, Params
from jcl.program import Program


class Costs(NamedTuple):
    """Of a method, beside plain fine-tuning."""

    examples: int
    """Rows that its buffers have room for."""
    bytes: int
    """Of its whole state: buffers, anchors, statistics, banks."""
    parameters: int
    """Added to the model's tree."""
    flops: float
    """Of a stage, work at its end included, as a share of plain fine-tuning's; 0 is none more."""


class Budget(NamedTuple):
    """The most of each of `Costs`; None is without a limit.

    A strict memory is `Budget(examples=0)`; a relaxed one leaves `examples` open and bounds what
    is computed by `flops`.
    """

    examples: int | None = None
    bytes: int | None = None
    parameters: int | None = None
    flops: float | None = None


def _buffers(state: Any) -> Iterator[memory.Buffer]:
    leaves = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, memory.Buffer))
    return (x for x in leaves if isinstance(x, memory.Buffer))


def costs(
    program: Program, plain: Program, params: Params, batch: Batch, boundary: Batch, steps: int
) -> Costs:
    """What the methods of a program keep and cost; nothing is compiled or run.

    Args:
      program: of one member.
      plain: the same without methods.
      params: the model's, or their shapes.
      batch: an example, or its shapes.
      boundary: what `consolidate` gets, leaves [n, B, ...], or their shapes.
      steps: of a stage.
    """

    def total(p: Program) -> tuple[Any, float]:
        state = jax.eval_shape(p.init, params, batch, jax.random.key(0))
        once = flops.count(p.consolidate, state, boundary)
        return state, steps * flops.count(p.step, state, batch) + once

    state, dear = total(program)
    _, cheap = total(plain)
    return Costs(
        sum(memory.capacity(b) for b in _buffers(state.methods)),
        trees.nbytes(state.methods),
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
    """What goes beyond a budget, as the end of a sentence; empty if nothing does.

    >>> excess(Costs(200, 8, 0, 1.0), Budget(examples=100))
    'it takes 200 stored examples, but must take at most 100'
    """
    for name, unit in _UNITS.items():
        taken, most = getattr(found, name), getattr(budget, name)
        if most is not None and taken > most:
            return f"it takes {taken:.6g} {unit}, but must take at most {most:.6g}"
    return ""
