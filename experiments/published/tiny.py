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
from typing import Any

import numpy as np
from online_mnist import permutations, scores

from jcl import data, methods
from jcl.measures import metrics
from jcl.method import Method
from jcl.runs.reproduce import Cell

SOURCE = (
    "Chaudhry et al., arXiv 1902.10486, abstract; replicate_results_er.sh and fc_permute_mnist.py "
    "of facebookresearch/agem; memorypapers.org's summary for fine-tuning's forgetting"
)
TASKS = 17
Measure = Callable[[np.ndarray], Any]


def tuned(method: Method, folder: Path, **given: Any) -> np.ndarray:
    full: dict[str, Any] = {"hidden": (256, 256), "tasks": TASKS}
    return scores(method, 0.1, folder, permutations, **{**full, **given})


def accuracy(method: Method, folder: Path, **given: Any) -> dict[int, float]:
    return dict(enumerate((100 * metrics.average(tuned(method, folder, **given))).tolist()))


def forgetting(method: Method, folder: Path) -> dict[int, float]:
    return dict(enumerate(metrics.forgetting(tuned(method, folder)).tolist()))


def gain(method: Method, folder: Path) -> dict[int, float]:
    """How many points of accuracy a method has more than fine-tuning, by seed."""
    ours = accuracy(method, folder / "ours")
    plain = accuracy(methods.naive(), folder / "plain")
    return {seed: value - plain[seed] for seed, value in ours.items()}


def er(a_class: int, tasks: int = TASKS) -> Method:
    return methods.er(10 * a_class * tasks, 10, start=0)


def agem(a_class: int) -> Method:
    return methods.agem(10 * a_class * TASKS, 10 * a_class, policy="ring", groups=TASKS)


CELLS = (
    Cell("fine-tuning", partial(accuracy, methods.naive()), below="ER, 1 row a class"),
    Cell("fine-tuning, forgetting", partial(forgetting, methods.naive()), 0.29, 0.005),
    Cell("ER, 1 row a class", partial(accuracy, er(1)), below="ER, 5 rows a class"),
    Cell("ER, 1 row a class, gain over fine-tuning", partial(gain, er(1)), 12.0, 5.0),
    Cell("ER, 5 rows a class", partial(accuracy, er(5))),
    Cell("A-GEM, 1 row a class", partial(accuracy, agem(1)), below="ER, 1 row a class"),
)
SMALL: Any = {"images": data.digits, "hidden": (100,), "tasks": 3, "rows": 1200, "seeds": 6}
QUICK = (Cell("ER, 8×8 digits", partial(accuracy, er(5, 3), **SMALL), 85.0, tolerance=0.05),)
