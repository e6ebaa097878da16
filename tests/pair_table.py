"""The kinds of methods whose pairs are tested, and what becomes of each pair.

`test_every_pair` holds every pair of kinds to the laws that it lists. A method of another kind is
one row of `KINDS`, one row and one column of `OUTCOMES`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from method_table import RANKER, TABLE, VIEWER, Row

import jcl
from jcl import methods

STAGES = 3
FROZEN = "plain fine-tuning trains the base, which stands still here"


@dataclass(frozen=True)
class Kind:
    """One method that stands for all of its kind."""

    name: str
    build: Callable[..., jcl.Method]
    values: dict[str, float] = field(default_factory=dict)
    """Arguments that are traced, so that one compiled run serves all their values."""
    neutral: dict[str, float] | str = "why it has no neutral strength"
    """Of these arguments: the values at which it changes nothing, or the reason why none exist."""
    decoder: bool = False
    """Whether it needs a language model with a stack of blocks, and not just any perceptron."""
    pairs: bool = False
    """Whether it needs a language model and pairs of answers."""
    images: bool = False
    """Whether it needs a model of images and text."""
    teacher: bool = False
    """Whether it is given a model's parameters, as `teacher`."""
    second: bool = False
    """Whether another row of `KINDS` stands for its kind too. To keep CI short, of its pairs only
    those in `ONCE_AT_FAULT` are held to the laws there; as one of `ROWS` it meets all by hand."""


KINDS = [
    Kind(  # a bank of adapters
        "inclora",
        partial(methods.inclora, stages=STAGES, rank=2),
        {"alpha": 4.0},
        neutral={"alpha": 0.0},
        decoder=True,
    ),
    Kind(  # prompts
        "progressive_prompts",
        partial(methods.progressive_prompts, stages=STAGES, length=2),
        neutral="a prompt is read from the first step on",
        decoder=True,
    ),
    Kind(  # low-rank pairs
        "lora",
        partial(methods.lora, rank=2),
        {"alpha": 4.0},
        neutral={"alpha": 0.0},
        decoder=True,
        second=True,
    ),
    Kind(  # a router, which reads the task of a row that doesn't name it
        "infer_task", partial(methods.infer_task, tasks=STAGES), neutral={}, decoder=True
    ),
    Kind("wise_ft", methods.wise_ft, {"alpha": 0.5}, neutral={"alpha": 1.0}),  # a writer
    Kind(  # another, which averages
        "ema", methods.ema, {"decay": 0.5}, neutral={"decay": 0.0}, second=True
    ),
    Kind(  # a jumper
        "task_arithmetic",
        methods.task_arithmetic,
        {"scale": 0.5},
        neutral="every stage but the first starts from somewhere else",
    ),
    Kind(  # a mask that fixes what finished stages own
        "packnet",
        partial(methods.packnet, stages=STAGES),
        {"prune": 0.6},
        neutral="a finished stage keeps some weights for ever, or the model is zero",
    ),
    Kind("ewc", methods.ewc, {"strength": 10.0}, neutral={"strength": 0.0}),  # reads a boundary
    Kind("si", methods.si, {"strength": 10.0}, neutral={"strength": 0.0}),  # reads a path
    Kind(  # replay
        "er", partial(methods.er, capacity=6, rows=2), {"weight": 1.0}, neutral={"weight": 0.0}
    ),
    Kind(  # replay with outputs
        "derpp",
        partial(methods.derpp, capacity=6, rows=2),
        {"alpha": 0.5, "beta": 0.5},
        neutral={"alpha": 0.0, "beta": 0.0},
    ),
    Kind(
        "lwf", methods.lwf, {"strength": 1.0}, neutral={"strength": 0.0}
    ),  # the last stage's model
    Kind(  # the first model
        "kl_to_reference",
        methods.kl_to_reference,
        {"strength": 1.0},
        neutral={"strength": 0.0},
        second=True,
    ),
    Kind(  # a projection
        "agem",
        partial(methods.agem, capacity=6, rows=2),
        neutral="it has no strength: wherever the memory disagrees the gradient is projected",
    ),
    Kind(  # a mask on updates
        "mofo", methods.mofo, {"fraction": 0.3}, neutral={"fraction": 1.0}, second=True
    ),
    Kind(  # a schedule
        "rewarm",
        partial(methods.rewarm, steps=2),
        {"warmup": 1.0, "final": 0.1},
        neutral={"warmup": 0.0, "final": 1.0},
    ),
]


ONCE_AT_FAULT = {
    ("inclora", "ema"),
    ("inclora", "kl_to_reference"),
    ("lora", "wise_ft"),
    ("lora", "ewc"),
    ("ema", "si"),
    ("task_arithmetic", "mofo"),
    ("mofo", "task_arithmetic"),
}
"""Pairs of a kind's second row in which a law was once broken."""

SENTENCES = {
    "w": "{second} changes parameters at a boundary and {first} reads them, so {second} must come "
    "before {first}",
    "g": "{second} adds parameters, so it must come before {first}",
    "f": "({first} promises .* and {second}|{second} promises .* and {first}) changes them at a "
    "boundary, so they can't be in one chain",
    "t": "{second} .* pairs .* that {first} has added",
    "p": "{second} can't merge the factors of low-rank pairs, such as lora's .* chain inclora",
    "r": "{first} renews every leaf that learns when a stage ends, so {second} has nothing to "
    "keep; chain {second} with lora",
}
"""What the sentence says by which a pair is refused; a dot stands for a pair that holds.

w: the writer comes after the reader          f: a promise that the other would break
g: what grows the tree comes after its state  p: factors of pairs aren't merged one by one
t: two methods at the same low-rank pairs     r: nothing that learns outlives a boundary
"""


def _read(text: str) -> dict[str, dict[str, str]]:
    """The letters of a table by the names of the first and the second method."""
    rows = [line.split() for line in text.strip().splitlines()]
    names = [kind.name for kind in KINDS]
    return {row[0]: dict(zip(names, row[1:], strict=True)) for row in rows}


# the second method, from left to right in the order of KINDS: inclora progressive_prompts lora |
# infer_task | wise_ft ema task_arithmetic packnet | ewc si | er derpp | lwf kl | agem mofo rewarm
OUTCOMES = _read("""
inclora              - g t . . . . f . . . . . . . . .
progressive_prompts  . - . . . . . f . . . . . . . . .
lora                 t . - . . . p . . . . . . . . . .
infer_task           g g g - . . . . . . . . . . . . .
wise_ft              g g g . - . . f . . . . . . . . .
ema                  g g g . . - . f . . . . . . . . .
task_arithmetic      g g g . . . - f . . . . . . . . .
packnet              f f g . f f f - . . . . . . . . .
ewc                  w w g . w w w w - . . . . . . . .
si                   w w g . w w w w . - . . . . . . .
er                   g g g . . . . . . . - . . . . . .
derpp                g g g . . . . . . . . - . . . . .
lwf                  . . . . . . . . . . . . - . . . .
kl_to_reference      . . . . . . . . . . . . . - . . .
agem                 w w g . w w w w . . . . . . - . .
mofo                 g g g . . . . . . . . . . . . - .
rewarm               . . . . . . . . . . . . . . . . -
""")
"""What becomes of each pair where all parameters learn; the first method's row."""

OUTCOMES_OF_ADAPTERS = _read("""
inclora              - g t . r r r f r r . . . . . . .
progressive_prompts  . - . . r r r f r r . . . . . . .
lora                 t . - . . . p . . . . . . . . . .
infer_task           g g g - - - - - - - - - - - - - -
wise_ft              g g g - - - - - - - - - - - - - -
ema                  g g g - - - - - - - - - - - - - -
task_arithmetic      g g g - - - - - - - - - - - - - -
packnet              f f g - - - - - - - - - - - - - -
ewc                  w w g - - - - - - - - - - - - - -
si                   w w g - - - - - - - - - - - - - -
er                   g g g - - - - - - - - - - - - - -
derpp                g g g - - - - - - - - - - - - - -
lwf                  . . . - - - - - - - - - - - - - -
kl_to_reference      . . . - - - - - - - - - - - - - -
agem                 w w g - - - - - - - - - - - - - -
mofo                 g g g - - - - - - - - - - - - - -
rewarm               . . . - - - - - - - - - - - - - -
""")
"""What becomes of a pair of which one adds adapters, where these alone learn."""

ROUNDS: list[tuple[Callable[[str, str], bool], str]] = [
    (
        lambda neutral, other: other == "copr",
        "copr's gradient is a sum of several matrix products, and where a neutral term joins the "
        "sum the compiler adds them up in another order, within other products",
    ),
    (
        lambda neutral, other: neutral == "distil" and other == "kl_to_reference",
        "the gradients of two divergences meet in one sum, of which the compiler rounds a product "
        "and a sum once (fused multiply-add) or twice, as the rest of the program has it: with "
        "XLA_FLAGS=--xla_cpu_max_isa=AVX, which has no such instruction, the bits are the same",
    ),
]
"""Where a neutral method and another leave the other as it is only to rounding, and why."""

FAULTS: dict[tuple[str, str, str], str] = {}
"""Which pairs break which law, and why: strict expected failures, that go as they are mended."""


def _of_row(row: Row) -> Kind:
    """A row of `method_table`, its neutral numbers traced and its other arguments fixed."""
    fixed = {**row.arguments, **ON_BOTH.get(row.name, {}), **WITH_ALL.get(row.name, {})}
    values, neutral = {}, row.neutral
    if not isinstance(neutral, str):
        numbers = {k: v for k, v in neutral.items() if isinstance(v, int | float) and k != "parts"}
        fixed |= {k: v for k, v in neutral.items() if k not in numbers}
        defaults = inspect.signature(row.build).parameters
        values = {k: fixed.pop(k) if k in fixed else defaults[k].default for k in numbers}
        neutral = numbers
    language = "blocks" in row.problem.params and row.problem.params is not VIEWER.params
    return Kind(
        row.name, partial(methods.distil if row.name == "distil" else row.build, **fixed),
        values, neutral, decoder=language or row.name in ON_BOTH, pairs=row.problem is RANKER,
        images=row.problem is VIEWER, teacher=row.name == "distil",
    )  # fmt: skip


ON_BOTH: dict[str, dict[str, Any]] = {
    name: {"targets": r"blocks/(query|value)"}
    for name in ("lora", "svd_lora", "oplora", "osf", "inclora", "olora")
} | {"ia3": {"outputs": "blocks/key", "inputs": "blocks/down"}}
"""What rows with a perceptron's layers are told of a decoder's."""

WITH_ALL: dict[str, dict[str, Any]] = {"ogd": {"of": "loss"}}
"""Arguments that suit every problem."""

TESTED = {row.name for row in TABLE if "+" not in row.name} - {"naive", "infer_task"}
ROWS = [_of_row(row) for row in TABLE if row.name in TESTED]
ROWS += [kind for kind in KINDS if kind.name == "infer_task"]
"""Every method, for the pairs and triples that are run by hand."""
