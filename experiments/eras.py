"""A pretrained language model goes through two centuries of State of the Union addresses.

It is trained on one era after another, and scored on all of them and, before and after each, on
probes of general ability that no era teaches. Methods with adapters train those alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import optax

from jcl import data, losses, models, probes
from jcl.data.corpora import eras, held_out, state_of_the_union
from jcl.data.registry.fetch import fetch
from jcl.measures.evaluation import evaluator, token_nll
from jcl.program import Evaluate
from jcl.runs.experiment import Experiment

METHODS = ("lora()", "lora() + er(capacity=256, rows=2)")


@dataclass(frozen=True)
class Config:
    """A reduced run for two cores; `--set preset=full` is what a GPU would run."""

    scenario: Literal["domain"] = "domain"
    """Domain-incremental: one era after another, no task id."""
    model: str = "glassllm"
    """What `jcl fetch` gets (`smollm2`, `glassllm`), a folder, or a Hugging Face id."""
    preset: Literal["reduced", "full"] = "reduced"
    """`full` trains an epoch of each era on rows of 1024 tokens (or the model's context), and
    probes every item."""
    order: tuple[str, ...] = ()
    """Eras in another order, by name such as `1861-1900`."""
    steps: int = 40
    """Optimizer steps on each era."""
    batch: int = 4
    """Rows a step."""
    length: int = 128
    """Tokens in a row."""
    lr: float = 1e-3
    """AdamW's learning rate."""
    test_rows: int = 16
    """Test rows an era."""
    probe: tuple[str, ...] = ("boolq", "piqa", "commonsenseqa", "mmlu")
    """Which probes; none with `probe=()`."""
    items: int = 48
    """Items of each probe."""
    remat: Literal["none", "block", "dots"] = "none"
    """What the backward pass computes again to save memory."""
    validation: float = 0.0
    """Share of each stage's training addresses to hold out, see --select-on."""


@cache
def pretrained(name: str) -> models.Model:
    """The model, loaded once for all methods."""
    known = "/" not in name and not name.startswith(".") and not Path(name).exists()
    return models.load(fetch(name) if known else name)


def probe_evaluator(
    names: Sequence[str], limit: int | None, model: models.Model
) -> Evaluate | None:
    """Scores of general ability, on at most `limit` items of each probe; None without a name."""
    if not names:
        return None
    asked = [probes.read(name, limit=limit) for name in names]
    return probes.evaluator(
        probes.encode(asked, model.tokenizer, min(512, model.config.context), rows=4)
    )


def build(config: Config) -> Experiment:
    full = config.preset == "full"
    model = pretrained(config.model)
    length = min(1024 if full else config.length, model.config.context)
    texts = {}
    for name, addresses in eras(state_of_the_union()).items():
        train, test = held_out(addresses)
        texts[name] = ([a.text for a in train], [a.text for a in test])
    if config.order:
        texts = {name: texts[name] for name in config.order}
    texts, held = data.validation_split(texts, config.validation)

    def stream(seed: int, texts: Any = texts) -> data.Stream:
        amount: Any = {"epochs": 1} if full else {"steps": config.steps}
        return data.from_text(
            texts, model.tokenizer, length=length, batch=config.batch, seed=seed,
            boundary_batches=None if full else 8,
            test_rows=None if full else config.test_rows, test_batch=8,
            vocabulary=model.config.vocabulary, **amount,
        )  # fmt: skip

    def judge(stream: data.Stream) -> Evaluate:
        return evaluator(stream.test, token_nll(), losses.with_targets)

    apply = models.decoder.apply_fn(model.config, remat=config.remat)
    return Experiment(
        name="eras",
        scenario=config.scenario,
        stream=stream,
        init=lambda key: model.params,
        apply=apply,
        loss=losses.fused_next_token(),
        optimizer=lambda lr: optax.adamw(lr),
        evaluate=judge(stream(0)),
        measure="log perplexity",
        higher_is_better=False,
        learning_rate=config.lr,
        chunk=10,
        tokens_per_row=length,
        model=model,
        probe_names=config.probe,
        probe=probe_evaluator(config.probe, None if full else config.items, model),
        validate=None if held is None else judge(stream(0, held)),
    )
