"""A byte-level language model goes through the domains that every Python installation carries.

It is pre-trained on prose and then trained on C headers, HTML, tables and code in turn. Plain
fine-tuning forgets what it learnt first; replaying a few old rows beside each batch keeps it. With
`--objective masked` the model is an encoder that predicts hidden bytes, as BERT and RoBERTa do, and
with `--objective spans` a T5 that writes the spans that were cut out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import optax

from jcl import data, losses
from jcl.measures.evaluation import bits_per_byte, evaluator, masked_nll
from jcl.models import decoder, encoder, t5
from jcl.runs.experiment import Experiment

METHODS = ("naive()", "er(capacity=512, rows=8)")
MEASURES = {
    "next": "bits per byte",
    "masked": "nats per hidden byte",
    "spans": "bits per written token",
}


@dataclass(frozen=True)
class Config:
    """Sizes that train two methods within two minutes on two cores."""

    scenario: Literal["domain"] = "domain"
    """Domain-incremental: one task after another, the same head, no task id."""
    objective: Literal["next", "masked", "spans"] = "next"
    """What is learned: the next byte, by a decoder; hidden ones, by an encoder; spans, by a T5."""
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


def model(config: Config) -> tuple[Any, Any, Any]:
    """A model of bytes for the objective: its `init`, its `apply`, and what becomes of a stream."""
    layers, width, wide = config.layers, config.width, 11 * config.width // 4
    if config.objective == "masked":
        reader = encoder.Config(
            vocabulary=257, layers=layers, width=width, heads=2, hidden=wide,
            context=config.length, masked=True,
        )  # fmt: skip
        hidden = partial(data.masked, mask=256, vocabulary=257)
        return lambda key: encoder.init(key, reader), encoder.apply_fn(reader), hidden
    if config.objective == "spans":
        marks = range(258, 258 + config.length)
        writer = t5.Config(
            vocabulary=marks.stop, layers=layers, decoder_layers=layers, width=width, heads=2,
            head_width=width // 2, hidden=wide, start=256,
        )  # fmt: skip
        cut = partial(data.spans, sentinels=marks, end=257, start=256)
        return lambda key: t5.init(key, writer), t5.apply_fn(writer), cut
    shape = decoder.Config(layers=layers, width=width, heads=2, kv_heads=2, hidden=wide)
    return lambda key: decoder.init(key, shape), decoder.apply_fn(shape), lambda s, seed: s


def build(config: Config) -> Experiment:
    texts, held = data.validation_split(data.python_domains(config.order), config.validation)
    steps = (config.pretrain, *[config.steps] * (len(texts) - 1))
    init, apply, rewritten = model(config)

    def stream(seed: int, texts: Any = texts) -> data.Stream:
        plain = data.from_bytes(
            texts, config.length, config.batch, steps, seed,
            boundary_batches=16, test_rows=config.test_rows,
        )  # fmt: skip
        return rewritten(plain, seed=seed)

    masked = config.objective == "masked"
    score = masked_nll() if masked else bits_per_byte()
    return Experiment(
        name="domains",
        scenario=config.scenario,
        stream=stream,
        init=jax.jit(init),
        apply=apply,
        loss=losses.masked_token if masked else losses.next_token,
        optimizer=lambda lr: optax.adamw(optax.warmup_constant_schedule(0.0, lr, 50)),
        evaluate=evaluator(stream(0).test, score),
        measure=MEASURES[config.objective],
        higher_is_better=False,
        learning_rate=config.lr,
        chunk=20,
        tokens_per_row=config.length,
        validate=None if held is None else evaluator(stream(0, held).test, score),
    )
