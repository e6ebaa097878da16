"""A pretrained language model learns to follow one kind of instruction after another.

Four tasks from real sets come in turn, each with its wording and its way to answer: solutions and
common sense by letter, sentiment and topic by word.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import optax
from eras import pretrained

from jcl import answers, data, losses, models, probes
from jcl.data import corpora, questions
from jcl.data.instructions import (
    Task,
    as_instructions,
    documents,
    fitting,
    questions_as_instructions,
)
from jcl.evaluation import evaluator, token_nll
from jcl.experiment import Experiment

METHODS = (
    "lora()",
    "lora() + er(capacity=256, rows=2)",
    "inclora(tasks=4, predict='task')",
    "inclora(tasks=4, predict='task') + infer_task(tasks=4)",
    "olora(tasks=4)",
    "olora(tasks=4, form='square')",
    "progressive_prompts(tasks=4, length=5)",
    "progressive_prompts(tasks=4, length=5) + infer_task(tasks=4)",
    "moelora()",
)
SETS = ("piqa", "tweets", "commonsenseqa", "r8")


@dataclass(frozen=True)
class Config:
    """A run for two cores; `--preset full` is what a GPU would run."""

    model: str = "glassllm"
    """What `jcl fetch` gets (`smollm2`, `glassllm`), a folder, or a Hugging Face id."""
    preset: Literal["small", "full"] = "small"
    """`full` trains three epochs of each task on rows of 512 tokens (or the model's context)."""
    order: tuple[str, ...] = SETS
    """Which tasks, in this order: questions (`boolq`, `piqa`, `commonsenseqa`, `openbookqa`,
    `mmlu`), sentiment (`tweets`, `reviews`, `films`, `news`) and topics (`r8`)."""
    score: Literal["exact", "loss"] = "exact"
    """Share of greedy answers that are exactly right, or the log perplexity of the right ones."""
    steps: int = 50
    """Optimizer steps on each task."""
    batch: int = 8
    """Instructions a step."""
    length: int = 96
    """Tokens of an instruction with its answer; longer ones are left out."""
    lr: float = 1e-3
    """AdamW's learning rate."""
    test_rows: int = 64
    """Test instructions of each task."""
    items: int = 32
    """Items of each probe of general ability."""


def task(name: str) -> Task:
    """A real set as instructions."""
    if name in corpora.SENTIMENT_DOMAINS:
        probe = questions.labelled(
            name, corpora.sentiment(name), ["negative", "positive"], "{}\nFeeling:"
        )
        return as_instructions(probe, "Name the feeling.")
    if name == "r8":
        rows = corpora.r8("train")
        probe = questions.labelled(name, rows, sorted({r.label for r in rows}), "{}\nTopic:")
        return as_instructions(probe, "Name the topic.")
    return questions_as_instructions(name, "given" if name == "boolq" else "letters")


@cache
def tasks(model: str, order: tuple[str, ...], length: int) -> tuple[Task, ...]:
    """The tasks' rows that fit, read once for all methods."""
    tokenizer = pretrained(model).tokenizer
    return tuple(fitting(task(name), tokenizer, length) for name in order)


def build(config: Config) -> Experiment:
    full = config.preset == "full"
    model = pretrained(config.model)
    length = min(512 if full else config.length, model.config.context)
    texts = {
        t.name: (documents(t.train), documents(t.test))
        for t in tasks(config.model, config.order, length)
    }

    def stream(seed: int) -> data.Stream:
        amount: Any = {"epochs": 3} if full else {"steps": config.steps}
        # one a row: soft prompts, and tasks that are inferred, are a row's
        return data.from_text(
            texts, model.tokenizer, length=length, batch=config.batch, seed=seed,
            packing="alone", overlong="cut", boundary_batches=8,
            test_rows=None if full else config.test_rows, test_batch=16,
            vocabulary=model.config.vocabulary, **amount,
        )  # fmt: skip

    exact = config.score == "exact"
    test = stream(0).test
    asked = [probes.read(name, limit=None if full else config.items) for name in ("mmlu", "boolq")]
    encoded = probes.encode(asked, model.tokenizer, min(512, model.config.context), rows=4)
    return Experiment(
        name="instructions",
        scenario="task-incremental",
        stream=stream,
        init=lambda key: model.params,
        apply=models.decoder.apply_fn(model.config),
        loss=losses.fused_next_token(),
        optimizer=lambda lr: optax.adamw(lr),
        evaluate=evaluator(test, answers.exact_match())
        if exact
        else evaluator(test, token_nll(), losses.shifted),
        measure="exact match" if exact else "log perplexity of answers",
        higher_is_better=exact,
        learning_rate=config.lr,
        boundary="reset",
        chunk=10,
        tokens_per_row=length,
        model=model,
        probe_names=("mmlu", "boolq"),
        probe=probes.evaluator(encoded),
    )
