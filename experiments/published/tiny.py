"""Tiny episodic memories on permuted MNIST: seventeen tasks of a thousand rows, each seen once.

A task permutes the pixels of MNIST in its own way. A thousand training images of it come once, in
batches of ten, to a perceptron of 2 × 256 units, trained by plain descent at .1. ER adds to each
batch ten rows from a memory of 170 or 850 rows in all, 1 or 5 a class of each task, filled by
reservoir sampling; A-GEM has a memory of the same size, from which it draws as many rows as a task
has there, at most 256. The authors give three of twenty tasks to choosing rates, which we took from
their script.

The accuracy is the average over all seventeen tests of 10,000 images in the end, in per cent;
forgetting is by how much a task was better at its best than in the end, as a share. Of the paper
only the abstract was at hand: a row a class makes ER better than fine-tuning by 7 to 17 points,
over four benchmarks of which this is one, and ER beats A-GEM on such memories. That fine-tuning
forgets .29 on MNIST was read in a summary.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from online_mnist import permutations, scores

from jcl import data, methods
from jcl.measures import metrics
from jcl.method import Method
from jcl.runs.reproduce import Cell, once

SOURCE = (
    "Chaudhry et al., arXiv 1902.10486, abstract; replicate_results_er.sh and fc_permute_mnist.py "
    "of facebookresearch/agem; memorypapers.org's summary for fine-tuning's forgetting"
)
TASKS = 17


def er(a_class: int, tasks: int = TASKS) -> Method:
    return methods.er(10 * a_class * tasks, 10, start=0)


def agem(a_class: int) -> Method:
    return methods.agem(10 * a_class * TASKS, 10 * a_class, policy="ring", groups=TASKS)


METHODS: dict[str, Callable[[], Method]] = {
    "fine-tuning": methods.naive,
    "ER, 1 row a class": partial(er, 1),
    "ER, 5 rows a class": partial(er, 5),
    "A-GEM, 1 row a class": partial(agem, 1),
}


def cells() -> tuple[Cell, ...]:
    """The cells, which measure one run of each method, made when the first of them asks."""

    def matrices(name: str, folder: Path) -> np.ndarray:
        return scores(
            METHODS[name](), 0.1, folder / name, permutations,
            hidden=(256, 256), tasks=TASKS, seeds=3,
        )  # fmt: skip

    runs = {name: once(partial(matrices, name)) for name in METHODS}

    def accuracy(name: str, folder: Path) -> dict[int, float]:
        return dict(enumerate((100 * metrics.average(runs[name](folder))).tolist()))

    def forgetting(folder: Path) -> dict[int, float]:
        return dict(enumerate(metrics.forgetting(runs["fine-tuning"](folder)).tolist()))

    def gain(folder: Path) -> dict[int, float]:
        plain = accuracy("fine-tuning", folder)
        ours = accuracy("ER, 1 row a class", folder)
        return {seed: value - plain[seed] for seed, value in ours.items()}

    def cell(name: str, below: str = "") -> Cell:
        return Cell(name, partial(accuracy, name), below=below)

    return (
        cell("fine-tuning", "ER, 1 row a class"),
        Cell("fine-tuning, forgetting", forgetting, 0.29, 0.005),
        cell("ER, 1 row a class", "ER, 5 rows a class"),
        Cell("ER, 1 row a class, gain over fine-tuning", gain, 12.0, 5.0),
        cell("ER, 5 rows a class"),
        cell("A-GEM, 1 row a class", "ER, 1 row a class"),
    )


CELLS = cells()


def short(folder: Path) -> dict[int, float]:
    """The accuracy of ER on 8×8 digits, of three tasks."""
    found = scores(
        er(5, 3), 0.1, folder, permutations,
        images=data.digits, hidden=(100,), tasks=3, rows=1200, seeds=6,
    )  # fmt: skip
    return dict(enumerate((100 * metrics.average(found)).tolist()))


QUICK = (Cell("ER, 8×8 digits", short, 85.0, tolerance=0.05),)
