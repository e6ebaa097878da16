"""A byte-level language model goes through the domains that every Python installation carries.

It is pre-trained on prose and then trained on C headers, HTML, tables and code in turn. Plain
fine-tuning forgets what it learnt first; replaying a few old rows beside each batch keeps it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import jax
import optax

from jcl import data, losses
from jcl.measures.evaluation import bits_per_byte, evaluator
from jcl.models import decoder
from jcl.runs.experiment import Experiment

METHODS = ("naive()", "er(capacity=512, rows=8)")


@dataclass(frozen=True)
class Config:
    """Sizes that train two methods within two minutes on two cores."""

    scenario: Literal["domain"] = "domain"
    """Domain-incremental: one task after another, the same head, no task id."""
    order: tuple[str, ...] = ("prose", "headers", "markup", "code")
    """Which domains, in this order; a package of the standard library is one too, by its name."""
    steps: int = 120
    """Optimizer steps on each domain after the first."""
    pretrain: int = 300
    """Optimizer steps on the first domain."""
    batch: int = 16
    """Windows a step."""
    length: int = 64
    """Bytes in a window."""
    lr: float = 2e-3
    """AdamW's learning rate, after a warm-up of 50 steps."""
    layers: int = 2
    """Transformer blocks."""
    width: int = 128
    """Width of the residual stream, in 2 heads."""
    test_rows: int = 96
    """Test windows a domain."""
    validation: float = 0.0
    """Share of each stage's training bytes to hold out, see --select-on."""


def build(config: Config) -> Experiment:
    texts, held = data.validation_split(data.python_domains(config.order), config.validation)
    shape = decoder.Config(
        layers=config.layers, width=config.width, heads=2, kv_heads=2, hidden=11 * config.width // 4
    )
    steps = (config.pretrain, *[config.steps] * (len(texts) - 1))

    def stream(seed: int, texts: Any = texts) -> data.Stream:
        return data.from_bytes(
            texts, config.length, config.batch, steps, seed,
            boundary_batches=16, test_rows=config.test_rows,
        )  # fmt: skip

    return Experiment(
        name="domains",
        scenario=config.scenario,
        stream=stream,
        init=jax.jit(lambda key: decoder.init(key, shape)),
        apply=decoder.apply_fn(shape),
        loss=losses.next_token,
        optimizer=lambda lr: optax.adamw(optax.warmup_constant_schedule(0.0, lr, 50)),
        evaluate=evaluator(stream(0).test, bits_per_byte()),
        measure="bits per byte",
        higher_is_better=False,
        learning_rate=config.lr,
        chunk=20,
        tokens_per_row=config.length,
        validate=None if held is None else evaluator(stream(0, held).test, bits_per_byte()),
    )
