"""Handwritten digits, two classes at a time: real images, seconds long, nothing to download.

In the class-incremental scenario plain fine-tuning keeps only the last task; a memory of 200
images keeps most of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import jax
import optax

from jcl import data, losses
from jcl.data.scenarios import split
from jcl.data.stream import Arrays
from jcl.measures.evaluation import accuracy, evaluator
from jcl.method import Batch, check
from jcl.models import mlp
from jcl.program import Evaluate
from jcl.runs.experiment import Experiment

METHODS = ("naive()", "er(capacity=200, rows=32)")


@dataclass(frozen=True)
class Config:
    """Settings of `digits`."""

    scenario: Literal["class", "task", "domain"] = "class"
    """What is asked: which of all classes seen, which of the task's two, or which place in it."""
    tasks: int = 5
    """How many tasks the ten classes are dealt to."""
    order: tuple[int, ...] = ()
    """The tasks in another order, such as 4 3 2 1 0; by default as they are numbered."""
    draw_classes: bool = False
    """Deal the classes to the tasks anew for each seed, as van de Ven's code does; needs steps."""
    epochs: int = 20
    """Passes over each task's images."""
    steps: int | None = None
    """Optimizer steps on each task, instead of epochs."""
    batch: int = 32
    """Images a step."""
    lr: float = 1e-3
    """Adam's learning rate."""
    hidden: tuple[int, ...] = (100, 100)
    """Widths of the hidden layers."""

    joint: bool = False
    """Train on all tasks at once, which is what the others are measured against."""
    validation: float = 0.0
    """Share of each task's training images to hold out, see --select-on."""


def same(batch: Batch) -> Batch:
    """Tests that are batches already."""
    return batch


def classification(name: str, images: tuple[Arrays, Arrays], config: Any) -> Experiment:
    """A split of labelled images, for configs with the fields of `Config`.

    One without `hidden` gets an experiment whose model is yet to be replaced.
    """
    hidden = getattr(config, "hidden", ())
    check(all(n >= 1 for n in hidden), "hidden", hidden, "widths of at least 1")
    mask = {"class": "seen", "task": "task", "domain": "all"}[config.scenario]
    if config.joint:
        mask = "task" if mask == "task" else "all"  # its one stage sees every class
    view = {"tasks": config.tasks, "view": config.scenario}
    held_out = None
    if config.draw_classes:
        check(config.validation == 0, "validation", config.validation, "0 where draw_classes is on")
        check(not config.order, "order", config.order, "left out where draw_classes draws it")
        check(config.steps is not None, "steps", config.steps, "given where draw_classes is on")
        first, last = ({"y": part["y"]} for part in images)  # the classes need no more than labels
        classes = split(first, last, **view).classes
        stream, prepare = data.split_by_seed(
            *images, config.batch, config.steps, joint=config.joint, **view
        )
    else:
        scenario = split(*images, **view)
        scenario = data.reorder(scenario, config.order) if config.order else scenario
        classes, prepare = scenario.classes, same
        if config.validation:
            scenario, held_out = data.hold_out(scenario, config.validation)
        scenario = data.joint(scenario) if config.joint else scenario

        def stream(seed: int) -> data.Stream:
            length = {"epochs": config.epochs} if config.steps is None else {"steps": config.steps}
            return data.from_scenario(scenario, config.batch, seed=seed, **length)

    assert classes is not None

    def score(stream: data.Stream) -> Evaluate:
        return evaluator(stream.test, accuracy(classes, mask), prepare)

    validate = None
    if held_out is not None:
        validate = evaluator(data.pack(held_out.test), accuracy(classes, mask))

    def init(key: jax.Array) -> object:
        return mlp.init(key, (images[0]["x"].shape[1], *hidden, classes.shape[1]))

    return Experiment(
        name=name,
        scenario=f"{config.scenario}-incremental",
        stream=stream,
        init=jax.jit(init),
        apply=mlp.apply,
        loss=losses.cross_entropy(classes, mask),
        optimizer=optax.adam,
        evaluate=score(stream(0)),
        evaluate_on=score if config.draw_classes else None,
        learning_rate=config.lr,
        validate=validate,
    )


def build(config: Config) -> Experiment:
    return classification("digits", data.digits(), config)
