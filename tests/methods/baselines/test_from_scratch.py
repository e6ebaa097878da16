"""from_scratch: every stage is a run of its own."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import optax
import pytest
from tiny_stages import after_boundaries

import jcl
from jcl import losses, methods, models

pytestmark = pytest.mark.quick

TASKS, STEPS = 3, 6
PARAMS = models.mlp.init(jax.random.key(0), [4, 8, 3])
DATA = {
    "x": jax.random.normal(jax.random.key(1), (TASKS, STEPS, 8, 4)),
    "y": jax.random.normal(jax.random.key(2), (TASKS, STEPS, 8, 3)),
}


def stages(method: jcl.Method, tasks: list[int]) -> list[Any]:
    """Weights after each boundary, with momentum that is reset there."""
    program = jcl.make(
        method, models.mlp.apply, losses.squared_error,
        optax.sgd(0.05, momentum=0.9), boundary="reset",
    )  # fmt: skip
    return after_boundaries(program, PARAMS, DATA, tasks)


def close(a: Any, b: Any, tolerance: float) -> bool:
    return all(
        np.allclose(x, y, atol=tolerance, rtol=0)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def test_every_stage_equals_a_run_on_its_task_alone() -> None:
    seen = stages(methods.from_scratch(), [0, 1, 2])
    sequential = stages(methods.naive(), [0, 1, 2])
    for t in range(TASKS):
        assert close(seen[t], stages(methods.naive(), [t])[0], 2e-6)
        assert close(seen[t], sequential[t], 1e-3) == (t == 0)


def test_beside_a_method_that_replays_it_still_starts_afresh() -> None:
    both = jcl.chain(methods.from_scratch(), methods.er(capacity=8, rows=4, weight=0.0))
    assert close(stages(both, [0, 1])[1], stages(methods.naive(), [1])[0], 2e-6)
