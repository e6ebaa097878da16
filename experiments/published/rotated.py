"""GEM on rotated MNIST: twenty tasks of a thousand rows, each seen once.

A task turns MNIST's images by an angle of its own, the t-th of twenty drawn from its part of 0 to
180 degrees, each pixel the nearest one as Pillow takes it. A thousand training images of a task
come once, in batches of ten, to a perceptron of 2 × 100 units whose weights are Xavier's and whose
biases are 0. GEM descends at .1, remembers the last 256 rows of each task, and has margin .5; plain
descent has the rate that the authors chose for it, .003. Angles and rows are drawn anew for each
seed.

The figures are GEM's own, in points: the average accuracy over all twenty tests of 10,000 images in
the end, backward transfer (what later tasks did to a task's accuracy) and forward transfer (by how
much a task that is still to come is better than before any training), both over twenty tasks, of
which one adds 0, as in the authors' code. The numbers are those of the paper's appendix B, which
was read in another's notes; they are of one run each, as the authors' script has one seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from online_mnist import rotations, scores

from jcl import data, methods
from jcl.measures import metrics
from jcl.method import Method
from jcl.runs.reproduce import Cell, once

SOURCE = (
    "Lopez-Paz & Ranzato, arXiv 1706.08840, appendix B; run_experiments.sh, "
    "data/mnist_rotations.py, main.py, metrics/metrics.py and model/ of "
    "facebookresearch/GradientEpisodicMemory"
)


def forward(found: np.ndarray) -> np.ndarray:
    """Forward transfer as GEM's code has it, the sum over T tasks, the first adding 0."""
    tasks = found.shape[-1]
    return np.asarray(metrics.forward_transfer(found)) * (tasks - 1) / tasks


MEASURES: dict[str, Callable[[np.ndarray], Any]] = {
    "accuracy": metrics.average,
    "backward transfer": metrics.gem_backward_transfer,
    "forward transfer": forward,
}


def cells(
    name: str, method: Method, rate: float, published: dict[str, float], **given: Any
) -> tuple[Cell, ...]:
    """A cell for each measure of one run, which is made when the first of them is asked for."""
    matrices = once(lambda folder: scores(method, rate, folder, rotations, **given))

    def run(measure: str, folder: Path) -> dict[int, float]:
        return dict(enumerate((100 * MEASURES[measure](matrices(folder))).tolist()))

    return tuple(
        Cell(f"{name}, {measure}", partial(run, measure), number)
        for measure, number in published.items()
    )


def numbers(*points: float) -> dict[str, float]:
    return dict(zip(MEASURES, points, strict=True))


CELLS = (
    *cells("plain descent", methods.naive(), 0.003, numbers(53.1, -9.0, 42.5)),
    *cells("GEM", methods.gem(20, 256, margin=0.5), 0.1, numbers(86.1, 0.5, 66.5), seeds=3),
)
SMALL: Any = {"images": data.digits, "tasks": 5, "rows": 400, "seeds": 8}
QUICK = tuple(
    replace(cell, tolerance=0.05)
    for cell in cells("8×8 digits", methods.naive(), 0.1, {"accuracy": 52.5}, **SMALL)
)
