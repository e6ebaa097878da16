"""What a life is begun with: model, method, rate, sizes; and what they are where nobody says."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from jcl.method import check
from jcl.program import Boundary
from jcl.runs.life.rows import Kind

SMALL = 50_000_000
"""Up to so many parameters all are tuned; beyond, low-rank pairs beside them."""
LEAST, MOST = 20, 1000
"""How few and how many steps a stage has, whatever its rows, unless steps are given."""
CHUNK = 10
"""How many steps a compiled call takes; steps of a stage are a multiple of it."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is kept in config.json, and holds for all stages unless one says otherwise."""

    model: str
    """A folder, a name that `jcl fetch` knows, or a Hugging Face id."""
    task: Kind
    """What the rows are."""
    method: str
    """An expression, as `--method` takes it."""
    lr: float
    """AdamW's learning rate."""
    length: int
    """How many tokens a row has."""
    batch: int = 8
    """How many rows a step takes."""
    epochs: float = 3.0
    """How often a stage passes over its rows."""
    steps: int = 0
    """How many steps each stage takes, whatever its rows; 0 is what `epochs` make of them."""
    optimizer: Boundary = "keep"
    """What happens to the optimizer's state between stages."""
    held_out: float = 0.1
    """The share of a stage's rows that are tested on where no test is given."""
    test_rows: int = 256
    """How many rows of a test are scored at most: those of the lowest hashes."""
    keep: int = 2
    """Of how many stages the whole state is kept; of older ones all but the optimizer's."""
    room: int = 0
    """How many classes the head has columns for; 0 is what the first stage's labels make of it."""
    probe: tuple[str, ...] = ()
    """Probes of general ability, such as `boolq`, which are asked before and after each stage."""
    items: int = 48
    """How many items of each probe are asked at most."""
    seed: int = 0
    """Of all draws."""
    mesh: str | None = None
    """Axes of devices, such as `fsdp=2`."""

    def steps_for(self, rows: int) -> int:
        """How many steps a stage with so many rows takes, a multiple of `CHUNK`."""
        if self.steps:
            return self.steps
        wanted = min(max(self.epochs * rows / self.batch, LEAST), MOST)
        return math.ceil(wanted / CHUNK) * CHUNK


def flags_of(given: Settings) -> list[str]:
    """The flags of `jcl run finetune` that make these settings, whatever the model and the rows.

    >>> flags_of(Settings("glassllm", "text", "er()", 1e-3, 32, steps=20, probe=("boolq", "piqa")))
    ... # doctest: +NORMALIZE_WHITESPACE
    ['--task', 'text', '--method', 'er()', '--lr', '0.001', '--length', '32', '--steps', '20',
     '--probe', 'boolq', 'piqa']
    """
    found: list[str] = []
    for field in dataclasses.fields(given):
        value = getattr(given, field.name)
        if field.name == "model" or value == field.default:
            continue
        values = value if isinstance(value, tuple) else (value,)
        found += [f"--{field.name.replace('_', '-')}", *map(str, values)]
    return found


def check_settings(given: Settings) -> Settings:
    """The settings, if all of them can be.

    Raises:
      ValueError: naming the first that can't.
    """
    check(given.lr > 0, "lr", given.lr, "above 0")
    check(given.batch >= 1, "batch", given.batch, "at least 1")
    check(given.length >= 2, "length", given.length, "at least 2")
    check(given.epochs > 0, "epochs", given.epochs, "above 0")
    check(given.steps >= 0, "steps", given.steps, "at least 1, or 0 for what epochs make of it")
    check(0 < given.held_out < 1, "held-out", given.held_out, "in (0, 1)")
    check(given.test_rows >= 1, "test-rows", given.test_rows, "at least 1")
    check(given.keep >= 1, "keep", given.keep, "at least 1")
    check(given.items >= 1, "items", given.items, "at least 1")
    texts = not given.probe or given.task != "classify"
    check(
        texts, "probe", ", ".join(given.probe), "left out for a head of classes, which can't answer"
    )
    words = ("keep", "reset", "reset_moments")
    check(given.optimizer in words, "optimizer", given.optimizer, f"one of {', '.join(words)}")
    return given


def method_for(parameters: int, task: Kind) -> str:
    """The method for a model of so many parameters: replay, on low-rank pairs if it is large."""
    parts = ["er(capacity=512, fraction=0.25)"]
    if parameters > SMALL:
        parts.insert(0, "lora()")
    return " + ".join([*parts, "dpo()"] if task == "prefer" else parts)


def rate_for(parameters: int, method: str) -> float:
    """AdamW's rate for a model of so many parameters: smaller for larger, larger for pairs."""
    if "lora(" in method:
        return 5e-4
    return 1e-3 if parameters < 5_000_000 else 1e-4 if parameters < 10 * SMALL else 2e-5


def room_for(labels: int) -> int:
    """How many columns a head has for so many labels: twice as many, and eight more."""
    return 2 * labels + 8


def length_for(longest: int, context: int) -> int:
    """The least power of two from 32 on that holds rows of so many tokens, at most 512."""
    return min(2 ** math.ceil(math.log2(max(longest, 32))), context, 512)


def restored(saved: dict[str, Any], folder: Path, mesh: str | None = None) -> Settings:
    """The settings of a life's config.json, with another mesh if one is given.

    Raises:
      ValueError: if they are no life's.
    """
    given = saved.get("life")
    names = {field.name for field in dataclasses.fields(Settings)}
    if not isinstance(given, dict) or not set(given) <= names:
        raise ValueError(
            f"{folder} is no run to which data can be added, but must be one of jcl run finetune"
        )
    found = Settings(**{**given, "probe": tuple(given.get("probe", ()))})
    return check_settings(dataclasses.replace(found, mesh=mesh or found.mesh))
