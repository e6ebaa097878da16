"""A pipeline: history, then a manual, then instructions, every node scored on the tests of all.

A pretrained language model reads State of the Union addresses era by era, adapts to a program's
documentation at two dates, and last learns to answer questions; a branch of it skips the manual.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import optax
from eras import pretrained, probe_evaluator

from jcl import data, losses, models
from jcl.data.corpora import django_docs, eras, held_out, state_of_the_union
from jcl.data.questions import Item, read
from jcl.measures.evaluation import Score, bits_per_byte, evaluator, token_nll
from jcl.runs.experiment import Experiment
from jcl.runs.pipeline import Node


@dataclass(frozen=True)
class Config:
    """A run for two cores; `--preset full` is what a GPU would run."""

    model: str = "glassllm"
    """What `jcl fetch` gets (`smollm2`, `glassllm`), a folder, or a Hugging Face id."""
    preset: Literal["small", "full"] = "small"
    """`full` trains an epoch of each stage on rows of 1024 tokens (or the model's context)."""
    pretrain: str = "rewarm(warmup=4, steps=30) + er(capacity=256, rows=2)"
    """How history is read."""
    adapt: str = "er(capacity=256, rows=2)"
    """How the manual is read; with `carry`, the addresses are among what is replayed."""
    instruct: str = "lora(rank=8)"
    """How questions are learnt."""
    carry: bool = True
    """Whether the manual's methods go on from the states of history's, if they are the same."""
    steps: int = 30
    """Optimizer steps on each stage."""
    batch: int = 4
    """Rows a step."""
    length: int = 128
    """Tokens in a row."""
    lr: float = 1e-3
    """AdamW's learning rate."""
    test_rows: int = 12
    """Test rows of each set."""
    items: int = 32
    """Items of each probe."""


def answered(items: Sequence[Item]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Training and test questions with the right answer; as documents, only it is in the loss."""
    pairs = [(item.prompt, item.choices[item.answer].strip()) for item in items]
    return [p for i, p in enumerate(pairs) if i % 5], pairs[::5]


def nodes(config: Config) -> list[Node]:
    full = config.preset == "full"
    model = pretrained(config.model)
    length = min(1024 if full else config.length, model.config.context)
    probe = probe_evaluator(("mmlu", "boolq"), None if full else config.items, model)

    def trained(
        name: str, texts: Mapping[str, Any], score: Score, measure: str, **options: Any
    ) -> Experiment:
        def stream(seed: int) -> data.Stream:
            amount: Any = {"epochs": 1} if full else {"steps": config.steps}
            return data.from_text(
                texts, model.tokenizer, length=length, batch=config.batch, seed=seed,
                boundary_batches=8, test_rows=None if full else config.test_rows, test_batch=4,
                vocabulary=model.config.vocabulary, **amount, **options,
            )  # fmt: skip

        return Experiment(
            name=name,
            scenario="domain",
            stream=stream,
            init=lambda key: model.params,
            apply=models.decoder.apply_fn(model.config),
            loss=losses.fused_next_token(),
            optimizer=lambda lr: optax.adamw(lr),
            evaluate=evaluator(stream(0).test, score, losses.with_targets),
            measure=measure,
            higher_is_better=False,
            learning_rate=config.lr,
            chunk=10,
            tokens_per_row=length,
            model=model,
            probe_names=("mmlu", "boolq"),
            probe=probe,
        )

    def split(rows: Any) -> tuple[list[str], list[str]]:
        train, test = held_out(rows)
        return [r.text for r in train], [r.text for r in test]

    addresses = eras(state_of_the_union())
    history = {name: split(addresses[name]) for name in list(addresses)[-2:]}
    manual = {version: split(django_docs(version)) for version in ("1.11", "4.2")}
    questions = {name: answered(read(name).items) for name in ("commonsenseqa", "piqa")}
    text = (bits_per_byte(), "bits per byte")
    read_history = trained("history", history, *text)
    read_manual = trained("manual", manual, *text)
    learn = trained("instructions", questions, token_nll(), "log perplexity", overlong="cut")
    carried = config.carry and config.adapt == config.pretrain
    return [
        Node("history", read_history, config.pretrain),
        Node("manual", read_manual, config.adapt, carry=carried),
        Node("instructions", learn, config.instruct),
        Node("shortcut", learn, config.instruct, after="history"),
    ]
