"""OPCM beside the authors' steps in numpy, with whole singular bases, over three stages."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jcl
from jcl import losses, methods, models, trees

RNG = np.random.default_rng(0)
START = models.mlp.init(jax.random.key(0), [6, 9, 4])
ROWS = {
    "x": jnp.asarray(RNG.normal(size=(3, 5, 8, 6)), jnp.float32),
    "y": jnp.asarray(RNG.normal(size=(3, 5, 8, 4)), jnp.float32),
}


def authors(vectors: list[dict[str, np.ndarray]], share: float) -> list[dict[str, np.ndarray]]:
    """`OPCMForCLIP.run` of fusion_bench: the merged vector after each stage, float64."""

    def norm(tree: dict[str, np.ndarray]) -> float:
        return np.sqrt(sum((x**2).sum() for x in tree.values()))

    merged, scale, norms = [vectors[0]], 1.0, [norm(vectors[0])]
    for vector in vectors[1:]:
        norms.append(norm(vector))
        new = {}
        for path, tau in vector.items():
            old = merged[-1][path]
            if path.endswith("/kernel"):
                u, s, vh = np.linalg.svd(old)
                split = int(np.argmax(np.cumsum(s) / s.sum() > share))
                inner = u.T @ tau @ vh.T
                np.fill_diagonal(inner, 0)
                inner[:split, :split] = 0
                tau = u @ inner @ vh
            new[path] = scale * old + tau
        factor = np.mean(norms) / norm(new)
        merged.append({path: factor * x for path, x in new.items()})
        scale = 1 / factor
    return merged


@pytest.mark.quick
@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_three_stages_are_merged_as_the_authors_do(share: float) -> None:
    """Each expert is trained alone from the base; the merge of their vectors is held to theirs."""
    merging = jcl.make(methods.opcm(share), models.mlp.apply, losses.squared_error, optax.sgd(0.2))
    plain = jcl.make(methods.naive(), models.mlp.apply, losses.squared_error, optax.sgd(0.2))
    rows = [jax.tree.map(lambda x: x[t], ROWS) for t in range(3)]  # noqa: B023
    state = merging.init(START, jax.tree.map(lambda x: x[0], rows[0]), jax.random.key(0))
    vectors: list[dict[str, np.ndarray]] = []
    step, alone, close = (jax.jit(f) for f in (merging.step, plain.step, merging.consolidate))
    for stage in range(3):
        expert: Any = plain.init(START, jax.tree.map(lambda x: x[0], rows[0]), jax.random.key(0))
        for i in range(5):
            batch = jax.tree.map(lambda x: x[i], rows[stage])  # noqa: B023
            state, _ = step(state, batch)
            expert, _ = alone(expert, batch)
        moved = jax.tree.map(
            lambda a, b: np.asarray(a, float) - np.asarray(b), expert.params, START
        )
        vectors.append(trees.by_path(moved))
        state = close(state, rows[stage])
        found = trees.by_path(jax.tree.map(lambda a, b: a - b, state.params, START))
        for path, wanted in authors(vectors, share)[-1].items():
            np.testing.assert_allclose(found[path], wanted, rtol=1e-3, atol=2e-6, err_msg=path)


def test_the_merged_vector_is_as_long_as_the_experts_are_on_average() -> None:
    stream = {**ROWS, "task": jnp.zeros((3, 5, 8), jnp.int32)}
    program = jcl.make(methods.opcm(), models.mlp.apply, losses.squared_error, optax.sgd(0.2))
    state, _ = jcl.run(program, START, jax.random.key(0), stream)
    kept = state.methods["opcm"].kept
    length = trees.norm(trees.subtract(state.params, START))
    np.testing.assert_allclose(length, kept.lengths / 3, rtol=1e-4)
