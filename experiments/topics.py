"""Text classification, one data set after another, with a pretrained encoder or decoder.

20 Newsgroups, Reuters' R8, SpamAssassin and sentiment in four domains come in turn; all labels
share one head, of which a row's own data set (task) or those seen so far (class) compete.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from eras import pretrained

from jcl import data, losses
from jcl.data import corpora
from jcl.data.stream import Arrays
from jcl.measures.evaluation import accuracy, evaluator
from jcl.program import Evaluate
from jcl.runs.experiment import Experiment

METHODS = ("naive()", "er(capacity=256, rows=8)")
SETS = ("newsgroups", "r8", "spam", "tweets", "reviews", "films", "news")


@dataclass(frozen=True)
class Config:
    """A reduced run for two cores; `--set preset=full` is what a GPU would run."""

    scenario: Literal["task", "class"] = "class"
    """Whether prediction is told which data set a text is of."""
    model: str = "minilm"
    """What `jcl fetch` gets: an encoder (`minilm`) or a decoder (`glassllm`, `smollm2`); a folder,
    or a Hugging Face id."""
    preset: Literal["reduced", "full"] = "reduced"
    """`full` trains an epoch of each set on texts of up to 256 tokens, and tests on all."""
    order: tuple[str, ...] = SETS
    """Which data sets, in this order."""
    steps: int = 40
    """Optimizer steps on each set."""
    batch: int = 16
    """Texts a step."""
    length: int = 64
    """Tokens of a text that are read, from its first."""
    lr: float = 2e-4
    """AdamW's learning rate."""
    test_rows: int = 128
    """Texts that are tested, of each set."""
    validation: float = 0.0
    """Share of each stage's training texts to hold out, see --select-on."""


def read(name: str) -> tuple[Sequence[corpora.Labelled], Sequence[corpora.Labelled]]:
    """A data set's training and test rows."""
    if name == "newsgroups":
        return corpora.newsgroups("train"), corpora.newsgroups("test")
    if name == "r8":
        return corpora.r8("train"), corpora.r8("test")
    rows = corpora.spam_assassin() if name == "spam" else corpora.sentiment(name)
    return corpora.held_out(rows)


def build(config: Config) -> Experiment:
    full = config.preset == "full"
    model = pretrained(config.model)
    tokenizer = model.tokenizer
    length = min(256 if full else config.length, model.config.context)
    rng = np.random.default_rng(0)
    train: list[Arrays] = []
    test: list[Arrays] = []
    asked: list[Arrays] = []
    sizes: list[int] = []
    for name in config.order:
        rows, held = read(name)
        labels = sorted({row.label for row in rows})
        encode = partial(data.encode_labelled, labels=labels, tokenizer=tokenizer, length=length)
        if not full:  # a sample, the same for every method
            most = 4 * config.steps * config.batch
            rows = [rows[i] for i in rng.permutation(len(rows))[:most]]
            held = [held[i] for i in rng.permutation(len(held))[: config.test_rows]]
        rows, out = data.hold_rows_out(rows, config.validation)
        if out:
            asked.append(encode(out[: None if full else config.test_rows], first=sum(sizes)))
        train.append(encode(rows, first=sum(sizes)))
        test.append(encode(held, first=sum(sizes)))
        sizes.append(len(labels))
    task_of = np.repeat(np.arange(len(sizes)), sizes)
    classes = task_of[None] == np.arange(len(sizes))[:, None]
    mask = {"class": "seen", "task": "task"}[config.scenario]

    def stream(seed: int, test: Any = test) -> data.Stream:
        amount: Any = {"epochs": 1} if full else {"steps": config.steps}
        return data.from_arrays(
            train, test, config.batch, seed=seed, names=config.order, boundary_batches=8,
            test_batch=64, **amount,
        )  # fmt: skip

    def judge(stream: data.Stream) -> Evaluate:
        return evaluator(stream.test, accuracy(classes, mask))

    def init(key: jax.Array) -> Any:
        fan_in, fan_out = model.config.width, len(task_of)
        kernel = 0.02 * jax.random.normal(key, (fan_in, fan_out))
        return {**model.params, "classifier": {"kernel": kernel, "bias": jnp.zeros(fan_out)}}

    return Experiment(
        name="topics",
        scenario=f"{config.scenario}-incremental",
        stream=stream,
        init=init,
        apply=model.apply,
        loss=losses.cross_entropy(classes, mask),
        optimizer=lambda lr: optax.adamw(lr),
        evaluate=judge(stream(0)),
        learning_rate=config.lr,
        chunk=10,
        tokens_per_row=length,
        validate=judge(stream(0, asked)) if asked else None,
    )
