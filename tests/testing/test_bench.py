"""The small problem: a Python loop over it gives what `jcl.run` gives."""

from __future__ import annotations

import jax
import numpy as np
import pytest

import jcl
from jcl import methods
from jcl.testing.bench import STEPS, TASKS, Bench, perceptron, stream


@pytest.mark.quick
def test_the_stream_has_three_unlike_tasks() -> None:
    rows = stream()
    assert {x.shape[:2] for x in rows.values()} == {(TASKS, STEPS)}
    means = np.asarray(rows["x"]).mean(axis=(1, 2))
    apart = [np.linalg.norm(means[i] - means[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert min(apart) > 1


def test_the_loop_is_the_scan() -> None:
    bench = Bench(methods.naive, perceptron())
    state, _ = jax.jit(
        lambda p, k: jcl.run(bench.program, p, k, bench.loop.rows)
    )(bench.problem.params, jax.random.key(3))  # fmt: skip
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        state.params, bench.states[-1].params,
    )  # fmt: skip
