"""The single-task reference: every stage trains alone, from the initial weights.

Joint training, the other usual reference, is a stream and not a method: see `jcl.data`.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jcl import trees
from jcl.mechanisms import experts, merging
from jcl.method import Batch, Ctx, Info, Method, Params


class FromScratchState(NamedTuple):
    """The state of `from_scratch`."""

    start: Params
    """The initial weights, in the parameters' dtype."""
    moved: jax.Array
    """float32 []: ‖θ - θ₀‖ at the last boundary."""


def from_scratch() -> Method:
    """Every stage trains from the initial weights θ₀, which shows what it reaches without transfer.

    The evaluation at the end of a stage sees the stage's own model, and the next stage begins at
    θ₀. Make the program with `boundary="reset"` if the optimizer should start afresh too. The first
    stage is plain fine-tuning; no argument makes the others so.

    Source: the usual single-task reference, such as the random-initialisation term of forward
    transfer in Lopez-Paz & Ranzato, arXiv 1706.08840, section 3.
    """

    def init(ctx: Ctx, params: Params) -> tuple[Params, FromScratchState]:
        return params, FromScratchState(trees.copy(params), jnp.float32(0))

    def consolidate(
        state: FromScratchState, ctx: Ctx, params: Params, batches: Batch
    ) -> tuple[Params, FromScratchState]:
        moved = trees.norm(merging.task_vector(params, state.start))
        return params, state._replace(moved=moved)

    def report(state: FromScratchState, info: Info) -> dict[str, jax.Array]:
        return {"moved": state.moved}

    return Method(
        "from_scratch",
        init=init,
        begin=experts.begin_stages_at(lambda state: state.start),
        consolidate=consolidate,
        report=report,
        writes=True,
        jumps=True,
        reads=("parameters",),
    )
