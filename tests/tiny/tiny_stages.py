"""A program run stage by stage, for tests of what its boundaries leave."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

import jcl


def after_boundaries(
    program: jcl.Program, params: Any, data: Any, order: Sequence[int] | None = None
) -> list[Any]:
    """The parameters after each boundary; `data` has leaves [stages, steps, B, ...]."""
    stages, steps = jax.tree.leaves(data)[0].shape[:2]
    state = program.init(params, jax.tree.map(lambda x: x[0, 0], data), jax.random.key(3))
    step, consolidate, seen = jax.jit(program.step), jax.jit(program.consolidate), []
    for t in range(stages) if order is None else order:
        for i in range(steps):
            state, _ = step(state, jax.tree.map(lambda x, t=t, i=i: x[t, i], data))
        state = consolidate(state, jax.tree.map(lambda x, t=t: x[t], data))
        seen.append(state.params)
    return seen
