"""EWC and SI on permuted MNIST: ten tasks of all rows.

A task permutes the pixels of MNIST in its own way, the first leaves them as they are; all 60,000
images of a task come in batches of 256 to a perceptron with ten outputs that all tasks share,
trained by Adam at 1e-3 whose moments are kept. SI is as in its authors' notebook: 2 × 2,000 units,
20 epochs a task, damping ξ = .1 and c = .1, plain Adam being c = 0. Their numbers are those of the
single run that they keep beside their plot. EWC's paper wasn't at hand; .94 for it and .95 for SI
are what continual-learning-baselines gives, where Avalanche gets .83 for each.

The authors' size is more than an hour of a processor for each run. The cells of 2 × 400 units see
three epochs of each task and ask how near a twelfth of the weights comes to these values, with
strengths chosen by one seed that doesn't count: EWC had 92.0, 92.7, 88.7 and 77.9 with λ = 50, 100,
300 and 1,000 and the exact Fisher of 2,048 rows, SI 86.3, 92.9 and 92.4 with c = .3, 1 and 3.

Avalanche's script has SI with λ = 10, which its plugin halves and multiplies by .0015: c is .0075,
below every value in the authors' plot but 0, and importances are clipped at .001. Its script for
EWC descends at 1e-3 without Adam for ten epochs, and its Fisher squares the mean gradient of 256
rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

import jcl
from jcl import data, losses, methods
from jcl.method import Method
from jcl.models import mlp
from jcl.runs.reproduce import Cell

SOURCE = (
    "SI: Zenke, Poole & Ganguli, arXiv 1703.04200, figure 4; ganguli-lab/pathint, "
    "fig_permuted_mnist (notebook and kept data), pathint/protocols.py. EWC: Kirkpatrick et al., "
    "arXiv 1612.00796, figure 3B, not read; ContinualAI/continual-learning-baselines (README and "
    "experiments/permuted_mnist); ContinualAI/avalanche, its plugins of both"
)
TASKS, BATCH = 10, 256


def accuracies(
    method: Callable[[], Method],
    folder: Path,
    *,
    hidden: tuple[int, ...] = (400, 400),
    epochs: int = 5,
    rate: float = 1e-3,
    batch: int = BATCH,
    tasks: int = TASKS,
    images: Callable[[], Any] = data.mnist,
    seeds: Sequence[int] = (0, 1, 2),
) -> dict[int, float]:
    """The average accuracy in the end over all tasks' tests, in per cent, by seed.

    Args:
      method: makes the method.
      folder: where checkpoints are left, from which an interrupted run goes on.
      hidden: widths of the hidden layers.
      epochs: passes over a task's rows.
      rate: Adam's learning rate.
      batch: rows of a step.
      tasks: how many tasks there are, of which the first leaves pixels as they are.
      images: gives the training rows and the test.
      seeds: of the weights, the permutations and the order of the rows.
    """
    train, test = images()
    few = {key: value[:1] for key, value in test.items()}  # scored below, all of them at once
    x, y = jnp.asarray(test["x"]), jnp.asarray(test["y"])

    @jax.jit
    def average(params: Any, places: jax.Array) -> jax.Array:
        def share(place: jax.Array) -> jax.Array:
            guess = jnp.argmax(mlp.apply(params, {"x": x[:, place]}), axis=-1)
            return jnp.mean((guess == y).astype(jnp.float32))

        return jax.lax.map(share, places).mean()

    program = jcl.make(method(), mlp.apply, losses.cross_entropy(), optax.adam(rate))
    found = {}
    for seed in seeds:
        own = data.permuted(train, few, tasks, seed)
        weights, key = jax.random.split(jax.random.key(seed))
        # 2,048 rows of a task are enough for a Fisher
        rows = data.from_scenario(
            own, batch, epochs=epochs, seed=seed, boundary_batches=max(1, 2048 // batch)
        )
        result = jcl.fit(
            program, mlp.init(weights, (x.shape[1], *hidden, 10)), key, rows,
            out=folder / f"run{seed}", resume=True, checkpoint_every=100_000,
        )  # fmt: skip
        places = jnp.asarray(own.tables["source"][:, :, 0])
        found[seed] = 100 * float(average(result.state.params, places))
    return found


def si(c: float) -> Method:
    return methods.si(2 * c, damping=0.1)  # their c is half of our strength


def ewc(strength: float) -> Method:
    return methods.ewc(strength, labels="exact")


def cell(
    name: str, method: Callable[[], Method], published: float | None = None, **given: Any
) -> Cell:
    """Of the authors' size."""
    run = partial(accuracies, method, hidden=(2000, 2000), epochs=20, seeds=(0,))
    return Cell(name, run, published, **given)


def small(
    name: str, method: Callable[[], Method], published: float | None = None, **given: Any
) -> Cell:
    """Of 2 × 400 units."""
    run = partial(accuracies, method, hidden=(400, 400), epochs=3, seeds=(0, 1, 2))
    return Cell(f"{name}, 2 × 400 units", run, published, **given)


CELLS = (
    cell("SI, c = .1", partial(si, 0.1), 96.94, tolerance=0.01),
    cell("plain Adam", methods.naive, 57.41, tolerance=0.1),
    small("SI, c = 1", partial(si, 1.0), 95.0, tolerance=0.01),
    small("SI, c = .0075 as Avalanche", partial(si, 0.0075), below="SI, c = 1, 2 × 400 units"),
    small("EWC, λ = 100", partial(ewc, 100.0), 94.0, tolerance=0.01),
    small("plain Adam", methods.naive, below="EWC, λ = 100, 2 × 400 units"),
)


def short(folder: Path) -> dict[int, float]:
    """SI on four permutations of 8×8 digits."""
    return accuracies(
        partial(si, 1.0), folder, hidden=(100,), epochs=8, rate=3e-3, batch=32, tasks=4,
        images=data.digits, seeds=(0,),
    )  # fmt: skip


QUICK = (Cell("SI, 8×8 digits", short, 83.0, tolerance=0.05),)
