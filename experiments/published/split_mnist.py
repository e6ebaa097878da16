"""Split-MNIST as van de Ven's code runs it, for the protocols that are measured on it.

Source: GMvandeVen/continual-learning at e6d795a: `train/train_task_based.py` (the loop and the
losses' weights), `params/param_values.py` (settings by scenario), `data/load.py` (the classes are
dealt to the tasks anew for each seed), `models/fc/excitability_modules.py` (weights and biases
uniform in ±1/√fan_in, as `models.mlp` has them), `params/options.py` (in the class scenario all
outputs are active from the start, `--active-classes=all`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

import jcl
from jcl import data, losses
from jcl.data.scenarios import split
from jcl.measures.evaluation import accuracy, evaluator
from jcl.method import Method
from jcl.models import mlp

Scenario = Literal["task", "domain", "class"]
TASKS, HIDDEN, RATE = 5, (400, 400), 1e-3


def accuracies(
    scenario: Scenario,
    method: Callable[[Any], Method],
    folder: Path,
    strength: float = 0.0,
    *,
    seeds: Sequence[int] = tuple(range(10)),
    images: Callable[[], Any] = data.mnist,
    steps: int = 2000,
    batch: int = 128,
    joint: bool = False,
) -> dict[int, float]:
    """The average accuracy over the five tasks in the end, in per cent, by seed.

    Seeds are members of one compiled function, and the strength is traced, so that cells that
    differ in it alone share what was compiled.

    Args:
      scenario: whether a row's task is given (`task`), or its class within the task is asked for
        (`domain`), or which of the ten it is (`class`).
      method: makes the method of a strength.
      folder: where checkpoints are left, from which an interrupted run goes on.
      strength: what `method` is called with.
      seeds: of the weights, the order of the rows, and of how the classes are dealt.
      images: gives the training rows and the test.
      steps: on each task.
      batch: rows of a step.
      joint: whether all tasks are trained on at once, for as many steps as on all of them.
    """
    train, test = images()
    steps = TASKS * steps if joint else steps
    stream, prepare = data.split_by_seed(
        train, test, batch, steps, tasks=TASKS, view=scenario, joint=joint
    )
    classes = split({"y": train["y"]}, {"y": test["y"]}, TASKS, scenario).classes
    assert classes is not None
    mask = "task" if scenario == "task" else "all"

    def build(value: dict[str, Any]) -> jcl.Program:
        made = method(value["strength"])
        return jcl.make(made, mlp.apply, losses.cross_entropy(classes, mask), optax.adam(RATE))

    sizes = (train["x"].shape[1], *HIDDEN, classes.shape[1])
    pairs = [jax.random.split(jax.random.key(seed)) for seed in seeds]
    params = jax.tree.map(lambda *x: jnp.stack(x), *[mlp.init(pair[0], sizes) for pair in pairs])
    rows = data.members([stream(seed) for seed in seeds])
    values = {"seed": jnp.asarray(seeds), "strength": jnp.full(len(seeds), strength, jnp.float32)}
    result = jcl.fit(
        jcl.replicate(build, values), params, jnp.stack([pair[1] for pair in pairs]), rows,
        evaluate=evaluator(rows.test, accuracy(classes, mask), prepare),
        out=folder / "run", resume=True, checkpoint_every=10_000,
    )  # fmt: skip
    assert result.scores is not None
    final = 100 * result.scores[:, -1].mean(-1)
    return dict(zip(seeds, final.tolist(), strict=True))
