"""What memory is worth: nothing kept, the last model, few examples or all, at equal FLOPs.

Each regime is a node of its own that starts from the same weights, declares what it may keep, and
takes as many steps as its methods leave of one budget of FLOPs; `--scenario` asks for one of the
three views of the same stream of handwritten digits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from digits import Config as Digits
from digits import classification

from jcl import data
from jcl.measures.budget import Budget
from jcl.runs.experiment import Experiment
from jcl.runs.pipeline import Node, cost


@dataclass(frozen=True)
class Config:
    """Settings of `regimes`; a minute on two cores."""

    scenario: Literal["class", "task", "domain"] = "class"
    """What is asked: which of all classes seen, which of the task's two, or which place in it."""
    steps: int = 300
    """Optimizer steps that plain fine-tuning takes on each task; the others take fewer."""
    batch: int = 32
    """Images a step."""
    lr: float = 1e-3
    """Adam's learning rate."""


REGIMES = {
    "strict": ("naive()", Budget(examples=0, bytes=0)),
    "last-model": ("lwf()", Budget(examples=0)),
    "budgeted": ("er(capacity=100, rows=32)", Budget(examples=100)),
    "relaxed": ("er(capacity=1500, rows=32)", Budget()),
}
"""By name: the methods, and what they may keep."""


def nodes(config: Config) -> list[Node]:
    images = data.digits()

    def trained(steps: int) -> Experiment:
        settings = Digits(config.scenario, steps=steps, batch=config.batch, lr=config.lr)
        return classification("regimes", images, settings)

    found: list[Node] = []
    for name, (method, budget) in REGIMES.items():
        extra = cost(Node(name, trained(config.steps), method)).flops
        equal = trained(max(1, round(config.steps / (1 + extra))))
        if found:  # all are scored on the same tests
            equal = equal._replace(evaluate=found[0].experiment.evaluate)
        found.append(Node(name, equal, method, after="", budget=budget))
    return found
