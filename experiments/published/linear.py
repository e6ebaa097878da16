"""Forgetting of linear regression, trained task after task to convergence, in closed form.

Each task is fitted from where the last one ended, by gradient descent on all its rows until it has
converged, which is the solution nearest to where it began; everything runs through `jcl.fit`.

Lin et al. draw for each of T tasks n rows of p standard normal features, n + 2 ≤ p, with labels of
the task's own w*_i and noise of variance σ². The score is ‖w - w*_i‖², the expected squared error
beyond the noise, and with r = 1 - n/p the expected forgetting of tasks 1 to T - 1 is

    F = 1/(T-1) Σ_{i<T} ((r^T - r^i) ‖w*_i‖² + Σ_{j>i} c_ij ‖w*_j - w*_i‖² + s (r^i - r^T))
    c_ij = (1 - r) (r^{T-i} - r^{j-i} + r^{T-j}),    s = p σ² / (p - n - 1)

Evron et al. train two tasks in turn, k times in all, on rows and a common w* of norm 1 at most; of
all such pairs the worst is forgotten by 1/(2k) (1 - 1/k)^(k-1), the mean over the k stages of the
squared error in the end. Ours is the largest over 200 angles between two tasks of one row each.

Both formulas were derived again before they were written here: a projection to a task's solutions
keeps the share r of a squared distance on average; and of two lines at angle θ the error after k
stages is cos^{2(k-1)} θ sin² θ on one task and none on the other, the most where cos² θ = 1 - 1/k.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jcl
from jcl import data, losses, methods, metrics
from jcl.data.arrays import Scenario
from jcl.runs.reproduce import Cell

SOURCE = (
    "Lin, Ju, Liang & Shroff, arXiv 2302.05836, theorem 4.1; Evron, Moroshko, Ward, Srebro & "
    "Soudry, arXiv 2205.09588, two tasks in cyclic order"
)
TASKS, BLOCK = 5, 500


def model(params: Any, batch: Any, call: Any = None) -> jax.Array:
    """Predictions [B, 1] of the linear model `{"w": [p]}`."""
    return (batch["x"] @ params["w"])[:, None]


def train(
    x: np.ndarray, y: np.ndarray, order: Sequence[int], rate: float, steps: int, score: Any
) -> np.ndarray:
    """Trains on tasks in turn, all members in one function; scores [members, stages + 1, tasks].

    Args:
      x: features [members, tasks, n, p].
      y: labels [members, tasks, n].
      order: the task of each stage.
      rate: of gradient descent.
      steps: on each stage.
      score: `(w, member) -> [tasks]`.
    """
    members, tasks, n, p = x.shape
    rows = {"x": x.reshape(-1, p), "y": y.reshape(-1, 1), "task": np.zeros(len(x) * tasks * n, int)}
    rows["task"] = rows["task"].astype(np.int32)
    names = tuple(f"task {i}" for i in range(tasks))
    tests = tuple({k: v[:1] for k, v in rows.items()} for _ in names)  # scored by w itself

    def stream(member: int) -> data.Stream:
        first = [(member * tasks + task) * n for task in order]
        stages = tuple(np.arange(a, a + n, dtype=np.int32) for a in first)
        given = Scenario(tuple(f"{names[t]}, {s}" for s, t in enumerate(order)), tuple(order),
                         rows, stages, names, tests)  # fmt: skip
        return data.from_scenario(given, n, steps=steps, seed=0, boundary_batches=1)

    def build(member: Any) -> jcl.Program:
        return jcl.make(methods.naive(), model, losses.squared_error, optax.sgd(rate))

    def evaluate(program: jcl.Program, state: jcl.State) -> jax.Array:
        return program.over_members(lambda one, s: score(s.params["w"], one.member), state)

    program = jcl.replicate(build, jnp.arange(members), how="vmap")
    keys = jax.random.split(jax.random.key(0), members)
    many = data.members([stream(member) for member in range(members)])
    start = {"w": jnp.zeros((members, p))}
    result = jcl.fit(program, start, keys, many, evaluate=evaluate, chunk=steps)
    assert result.scores is not None
    return result.scores


def targets(p: int, likeness: float) -> np.ndarray:
    """Each task's w* [tasks, p], of norm 1, with this cosine between any two."""
    own = np.eye(TASKS + 1, p)
    return (np.sqrt(likeness) * own[:1] + np.sqrt(1 - likeness) * own[1:]).astype(np.float32)


def lin(n: int, p: int, likeness: float, noise: float) -> float:
    """The expected forgetting of the docstring's first formula."""
    w, r, last = targets(p, likeness).astype(np.float64), 1 - n / p, TASKS
    total = 0.0
    for i in range(1, last):
        total += (r**last - r**i) * (w[i - 1] @ w[i - 1])
        total += p * noise**2 / (p - n - 1) * (r**i - r**last)
        for j in range(i + 1, last + 1):
            apart = w[j - 1] - w[i - 1]
            total += (1 - r) * (r ** (last - i) - r ** (j - i) + r ** (last - j)) * (apart @ apart)
    return total / (last - 1)


def lin_measured(
    n: int, p: int, likeness: float, noise: float, seeds: int, folder: Any
) -> dict[int, float]:
    """Forgetting by seed of the draws of features and noise, which are made in blocks."""
    w = targets(p, likeness)
    rate = 0.9 * n / (np.sqrt(n) + np.sqrt(p)) ** 2  # just below 1 over the largest curvature
    found: list[float] = []

    def score(now: jax.Array, member: Any) -> jax.Array:
        return jnp.sum((now - jnp.asarray(w)) ** 2, axis=-1)

    while len(found) < seeds:
        rng = np.random.default_rng((17, len(found)))
        block = min(BLOCK, seeds - len(found))
        x = rng.normal(size=(block, TASKS, n, p)).astype(np.float32)
        y = np.einsum("stnp,tp->stn", x, w) + noise * rng.normal(size=x.shape[:3])
        scores = train(x, y.astype(np.float32), range(TASKS), rate, 300, score)
        found += metrics.backward_transfer(scores).tolist()
    return dict(enumerate(found))


def evron(k: int) -> float:
    """The worst forgetting after k stages, the docstring's second formula."""
    return (1 - 1 / k) ** (k - 1) / (2 * k)


def evron_measured(k: int, angles: int, folder: Any) -> dict[int, float]:
    """The worst forgetting over pairs of unit rows whose cosines are spread evenly."""
    cosines = np.linspace(0, 1, angles, endpoint=False)
    x = np.zeros((angles, 2, 1, 2), np.float32)
    x[:, 0, 0] = (1, 0)
    x[:, 1, 0] = np.stack([cosines, np.sqrt(1 - cosines**2)], axis=-1)
    w = np.array([0, 1], np.float32)  # at right angles to the first row, so that all of it is left
    y = x @ w

    def score(found: jax.Array, member: Any) -> jax.Array:
        own = jnp.asarray(x)[member, :, 0]
        return (own @ (found - w)) ** 2

    scores = train(x, y, [stage % 2 for stage in range(k)], 1.0, 1, score)
    return {0: float(scores[:, -1].mean(-1).max())}


SETTINGS = {
    "like tasks": (60, 200, 0.9, 0.0),
    "unlike tasks": (60, 200, 0.0, 0.0),
    "half as many rows as features": (100, 200, 0.5, 0.0),
    "noise": (60, 200, 0.5, 0.3),
}


def cells(seeds: int, angles: int, tolerance: float, ks: Sequence[int]) -> tuple[Cell, ...]:
    """The cells, by how many draws and angles."""
    first = [
        Cell(f"Lin, {name}", partial(lin_measured, *given, seeds), lin(*given), tolerance=tolerance)
        for name, given in SETTINGS.items()
    ]
    second = [Cell(f"Evron, k = {k}", partial(evron_measured, k, angles), evron(k), tolerance=0.01)
              for k in ks]  # fmt: skip
    return (*first, *second)


CELLS = cells(4000, 200, 0.01, (2, 4, 10, 40))
QUICK = cells(100, 200, 0.05, (2, 10))
