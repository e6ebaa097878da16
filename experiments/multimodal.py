"""A model of images and text learns one kind of question after another.

A small vision transformer, a projector and a pretrained language model, in LLaVA's manner, are
first trained to describe handwritten digits and clothes. Then tasks come in turn: What digit is
this? What garment is this? Is it larger than five? Where is it worn? The score is the share of
answers that greedy decoding gets right to the letter.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from eras import pretrained

import jcl
from jcl import data, losses, methods
from jcl.data import images
from jcl.data.stream import Arrays
from jcl.evaluation import Score, evaluator
from jcl.experiment import Experiment
from jcl.method import Batch, Params
from jcl.models import multimodal, vision

METHODS = ("naive()", "er(capacity=128, rows=8)", "lora()", "moelora()")
LENGTH = 16
"""Tokens of the longest question with its answer."""
CAPTIONS = ("caption digit", "caption garment")


@dataclass(frozen=True)
class Config:
    """A reduced run for two cores; `--set preset=full` is what a GPU would run."""

    scenario: Literal["task"] = "task"
    """One kind of question after another; the question says which it is."""
    model: str = "glassllm"
    """The language model: what `jcl fetch` gets (`glassllm`, `smollm2`), a folder, or a Hugging
    Face id."""
    preset: Literal["reduced", "full"] = "reduced"
    """`full` trains an epoch of each task, and tests on all images."""
    order: tuple[str, ...] = ("digit", "garment", "larger", "worn")
    """Tasks in this order, of `jcl.data.images.TASKS`."""
    train: Literal["projector", "language"] = "projector"
    """What learns beside adapters: the projector alone, or the decoder too; never the tower."""
    steps: int = 60
    """Optimizer steps on each task."""
    batch: int = 16
    """Rows a step."""
    lr: float = 2e-3
    """Adam's learning rate."""
    describe: int = 400
    """Steps of 32 rows in which the whole model first learns to describe."""
    test_rows: int = 128
    """Test rows a task."""


def exact() -> Score:
    """Share of rows whose every learned token is the likeliest after those before it.

    That is when greedy decoding writes the answer, its end included, and nothing else.
    """

    def score(outputs: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        right = jnp.argmax(outputs[:, :-1], axis=-1) == batch["tokens"][:, 1:]
        hit = jnp.all(right | (batch["mask"] == 0), axis=1).astype(jnp.float32)
        return jnp.sum(hit * batch["weight"]), jnp.sum(batch["weight"])

    return score


def rows(task: str, split: Literal["train", "test"], tokenizer: Any, limit: int | None) -> Arrays:
    """A task's arrays: `image`, `tokens`, `segments`, `mask`."""
    asked = images.worded(task, split, limit=limit)
    return {"image": asked.image, **images.tokenised(asked.turns, tokenizer, LENGTH, ("{}", " {}"))}


@cache
def described(name: str, steps: int) -> tuple[multimodal.Config, Params]:
    """The model after it has learned to describe, the same for all methods and seeds."""
    language = pretrained(name)
    config = multimodal.Config(vision.Config(patch=14, width=96, hidden=192), language.config)
    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        "vision": vision.init(keys[0], config.vision),
        "projector": multimodal.projector(keys[1], config),
        **language.params,
    }
    train = [rows(task, "train", language.tokenizer, 1400) for task in CAPTIONS]
    mixed = {k: np.concatenate([part[k] for part in train]) for k in train[0]}
    stream = data.from_arrays([mixed], [mixed], 32, steps=steps, boundary_batches=1)
    rate = optax.warmup_cosine_decay_schedule(0.0, 1e-3, steps // 10, steps)
    program = jcl.make(
        methods.naive(), multimodal.apply_fn(config), losses.next_token, optax.adamw(rate)
    )
    fetch = partial(stream.fetch, stream.source)
    run = jax.jit(partial(jcl.run, program, fetch=fetch, boundary_batches=1))
    taken = jax.tree.map(lambda x: x[None], stream.chunk(0, 0, steps))
    return config, run(params, keys[2], taken)[0].params


def build(config: Config) -> Experiment:
    full = config.preset == "full"
    tokenizer = pretrained(config.model).tokenizer
    made, params = described(config.model, config.describe)
    limit = None if full else 4 * config.steps * config.batch
    train = [rows(task, "train", tokenizer, limit) for task in config.order]
    test = [rows(t, "test", tokenizer, None if full else config.test_rows) for t in config.order]

    def stream(seed: int) -> data.Stream:
        amount: Any = {"epochs": 1} if full else {"steps": config.steps}
        return data.from_arrays(
            train, test, config.batch, seed=seed, names=config.order, boundary_batches=4,
            test_batch=64, **amount,
        )  # fmt: skip

    learning = {
        "projector": multimodal.projector_and_adapters,
        "language": multimodal.all_but_vision,
    }
    return Experiment(
        name="multimodal",
        scenario=f"{config.scenario}-incremental",
        stream=stream,
        init=lambda key: params,
        apply=multimodal.apply_fn(made),
        loss=losses.next_token,
        optimizer=lambda lr: optax.adam(lr),
        evaluate=evaluator(stream(0).test, exact()),
        measure="exact match",
        learning_rate=config.lr,
        trainable=learning[config.train],
        chunk=20,
        tokens_per_row=LENGTH,
    )
