"""Fashion-MNIST, two classes at a time, with a residual network and its batch norms.

The network is the reduced ResNet-18 of GEM, Mammoth and Avalanche (width 20), trained as Mammoth
trains it, by plain SGD in batches of 32. Get the images by `jcl fetch fashion`, and Flax by
`pip install 'jcl-kit[flax]'`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from digits import classification

from jcl import data, models
from jcl.data.packages import needed
from jcl.data.stream import Arrays
from jcl.runs.experiment import Experiment

METHODS = ("naive()", "er(capacity=500, rows=32)")
SIDE, CLASSES = 28, 10
SIZES = {"small": (10_000, 2_000, 1), "full": (60_000, 10_000, 5)}
"""How many images to train on and to be tested by, and epochs of each task, by preset."""


@dataclass(frozen=True)
class Config:
    """A run for two cores; `--preset full` is what an accelerator would run."""

    preset: Literal["small", "full"] = "small"
    """10,000 images and one epoch of each task, or all 60,000 and five."""
    scenario: Literal["class", "task", "domain"] = "class"
    """What is asked: which of all classes seen, which of the task's two, or which place in it."""
    tasks: int = 5
    """How many tasks the ten classes are dealt to."""
    order: tuple[int, ...] = ()
    """The tasks in another order, such as 4 3 2 1 0; by default as they are numbered."""
    draw_classes: bool = False
    """Deal the classes to the tasks anew for each seed, as van de Ven's code does; needs steps."""
    images: int | None = None
    """How many images to train on, the first ones; by default the preset's."""
    epochs: int | None = None
    """Passes over each task's images; by default the preset's."""
    steps: int | None = None
    """Optimizer steps on each task, instead of epochs."""
    batch: int = 32
    """Images a step."""
    lr: float = 0.1
    """SGD's learning rate."""
    width: int = 20
    """Channels of the network's first group; the others have 2, 4 and 8 times as many."""
    joint: bool = False
    """Train on all tasks at once, which is what the others are measured against."""
    validation: float = 0.0
    """Share of each task's training images to hold out, see --select-on."""


def first(arrays: Arrays, count: int) -> Arrays:
    """The first rows, with images as [rows, 28, 28, 1]."""
    x = np.asarray(arrays["x"][:count])
    return {"x": x.reshape(-1, SIDE, SIDE, 1), "y": arrays["y"][:count]}


def build(config: Config) -> Experiment:
    with needed("the experiment fashion", "flax", "flax"):
        from jcl.models.resnet import ResNet

    count, tested, epochs = SIZES[config.preset]
    train, test = data.fashion_mnist()
    images = first(train, config.images or count), first(test, tested)
    outputs = CLASSES // config.tasks if config.scenario == "domain" else CLASSES
    module = ResNet(outputs, config.width)
    example = {"x": jnp.zeros((1, SIDE, SIDE, 1))}
    draw = jax.jit(lambda key: module.init(key, example["x"], train=False))
    model = models.flax.linen(module, example, variables=draw(jax.random.key(0)), head="head")
    chosen = replace(config, epochs=config.epochs or epochs)
    return classification("fashion", images, chosen)._replace(
        init=lambda key: draw(key)["params"],
        apply=model.apply,
        optimizer=optax.sgd,
        collections=model.collections,
    )
