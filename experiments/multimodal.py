"""A model of images and text learns one kind of question after another.

A small vision transformer, a projector and a pretrained language model, in LLaVA's manner, are
first trained to describe handwritten digits and clothes, and on questions in words alone. Then
tasks come in turn: What digit is this? What garment is this? Is it larger than five? Where is it
worn? The score is the share of answers that greedy decoding gets right to the letter.

On three seeds training in sequence loses 55 to 61 points of what was learned, replay of 128 rows
11, and EProj none. MoELoRA loses as much as LoRA here, unlike in CoIN.

`jcl run multimodal --seeds 3 --out runs/multimodal` makes the runs, and `python
experiments/multimodal.py runs/multimodal` draws figures/multimodal.png of them; the numbers stay
beside it as JSON, from which `--redraw` draws it again.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from eras import pretrained

import jcl
from jcl import data, losses, methods, report
from jcl.data import images
from jcl.data.stream import Arrays
from jcl.data.validation import is_held_out
from jcl.measures.evaluation import Score, evaluator
from jcl.method import Batch, Params, check
from jcl.models import multimodal, vision
from jcl.report.labels import name_ends, write_value
from jcl.report.numbers import beside
from jcl.report.style import (
    MUTED,
    draw_intervals,
    draw_line,
    drawing,
    hue,
    interval,
    note_seeds,
    number,
    set_limits,
)
from jcl.runs.experiment import Experiment

METHODS = (
    "naive()",  # the projector alone
    "lora()",  # and pairs in the decoder
    "lora() + er(capacity=128, rows=8)",
    "moelora()",
    "eproj(slots=4)",
)
LENGTH = 18
"""Tokens of a row, which the longest question and its answer fit in."""
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
    describe: int = 500
    """Steps of 32 rows in which the whole model first learns to describe."""
    test_rows: int = 128
    """Test rows a task."""
    validation: float = 0.0
    """Share of the training images to hold out, of the descriptions too, see --select-on."""


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
    asked = images.image_questions(task, split, limit=limit)
    return {"image": asked.image, **images.tokenised(asked.turns, tokenizer, LENGTH, ("{}", " {}"))}


def divided(given: Arrays, share: float) -> tuple[Arrays, Arrays]:
    """Rows to learn and those held out, by their images, which tasks have in common."""
    check(0 <= share < 1, "validation", share, "at least 0 and below 1")
    out = np.array([is_held_out(image.tobytes(), share) for image in np.asarray(given["image"])])
    return {k: x[~out] for k, x in given.items()}, {k: x[out] for k, x in given.items()}


def told(tokenizer: Any, number: int) -> Arrays:
    """Questions in words alone, of which the language model learns what the answers sound like."""
    rng = np.random.default_rng(1)
    turns = []
    for _ in range(number):
        a, b = (int(i) for i in rng.integers(0, 10, 2))
        first, second, garment = images.NUMBERS[a], images.NUMBERS[b], images.GARMENTS[a]
        asked = [
            (f"Is {first} larger than {second}?", "yes" if a > b else "no"),
            (f"Is {first} even or odd?", ("even", "odd")[a % 2]),
            (f"Where is a {garment} worn?", images.WORN[a]),
        ]
        turns.append((asked[rng.integers(0, len(asked))],))
    blank = np.zeros((number, images.SIDE, images.SIDE, 1), np.uint8)
    return {"image": blank, **images.tokenised(turns, tokenizer, LENGTH, ("{}", " {}"))}


@cache
def described(name: str, steps: int, validation: float = 0.0) -> tuple[multimodal.Config, Params]:
    """The model after it has learned to describe, the same for all methods and seeds."""
    language = pretrained(name)
    config = multimodal.Config(vision.Config(patch=14, width=96, hidden=192), language.config)
    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        "vision": vision.init(keys[0], config.vision),
        "projector": multimodal.projector(keys[1], config),
        **language.params,
    }
    given = [rows(task, "train", language.tokenizer, 1400) for task in CAPTIONS]
    parts = [divided(part, validation)[0] for part in given]
    parts.append(told(language.tokenizer, 1400))
    for part in parts:
        part["has_image"] = np.asarray(part["image"].any(axis=(1, 2, 3)), np.int32)
    mixed = {k: np.concatenate([part[k] for part in parts]) for k in parts[0]}
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
    made, params = described(config.model, config.describe, config.validation)
    limit = None if full else 4 * config.steps * config.batch
    most = None if full else config.test_rows
    given = [rows(task, "train", tokenizer, limit) for task in config.order]
    train, held = zip(*(divided(one, config.validation) for one in given), strict=True)
    asked = [{k: x[:most] for k, x in out.items()} for out in held]
    test = [rows(task, "test", tokenizer, most) for task in config.order]

    def stream(seed: int, test: Any = test) -> data.Stream:
        amount: Any = {"epochs": 1} if full else {"steps": config.steps}
        return data.from_arrays(
            train, test, config.batch, seed=seed, names=config.order, boundary_batches=4,
            test_batch=64, **amount,
        )  # fmt: skip

    held_out = stream(0, asked) if config.validation else None
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
        validate=evaluator(held_out.test, exact()) if held_out else None,
    )


def measured(folder: Path) -> dict[str, Any]:
    """The names of the tasks, and by method scores [seeds, stages + 1, tasks] and what was lost."""
    runs = report.labelled(report.load(folder))
    return {
        "tasks": list(runs[0].tasks),
        "scores": {run.label: run.scores for run in runs},
        "lost": {run.label: run.forgetting[:, :-1] for run in runs},
    }


def draw(found: dict[str, Any], path: Path) -> None:
    """What is asked of which image; answers right of the tasks so far; what each task has lost.

    Args:
      found: as `measured` has it.
      path: of the picture.
    """
    tasks, names = found["tasks"], list(found["scores"])
    with drawing(10, 8.2) as figure:
        grid = figure.add_gridspec(3, len(tasks), height_ratios=(0.75, 1.3, 1.2))
        for i, task in enumerate(tasks):
            axes = figure.add_subplot(grid[0, i])
            shown = images.image_questions(task, "test", limit=1, seed=i)
            axes.imshow(shown.image[0, ..., 0], cmap="gray_r")
            axes.set_axis_off()
            ((question, answer),) = shown.turns[0]
            axes.set_title(f"{question}\n{answer}", loc="center", fontsize=9.5)
        top, below = figure.add_subplot(grid[1, :]), figure.add_subplot(grid[2, :])
        width = 0.8 / len(names)
        ends = []
        for m, name in enumerate(names):
            R, lost = np.asarray(found["scores"][name]), 100 * np.asarray(found["lost"][name])
            seen = [R[:, k, :k].mean(axis=1) for k in range(1, len(tasks) + 1)]
            x = np.arange(len(tasks)) + 0.025 * (m - (len(names) - 1) / 2)
            mean = draw_line(
                top, x, 100 * np.stack(seen, axis=1), hue(m), bounds=(0, 100), marker="o"
            )  # fmt: skip
            ends.append(mean[-1])
            place = np.arange(len(tasks) - 1) + (m - (len(names) - 1) / 2) * width
            below.bar(place, lost.mean(axis=0), 0.9 * width, color=hue(m))
            _, high = draw_intervals(
                below, place, lost.mean(axis=0), interval(lost), bounds=(-100, 100)
            )  # fmt: skip
            for at, value, end in zip(place, lost.mean(axis=0), high, strict=True):
                write_value(below, number(value, 0), (at, max(end, 0)), (0, 1))
        top.set_ylim(0, 100)
        top.set_xticks(range(len(tasks)), [f"after {task}" for task in tasks])
        top.set_ylabel("right to the letter (%)")
        top.set_title("Mean over the tasks so far")
        two_lines = [name.replace(" + ", "\n+ ") for name in names]
        hues = [hue(m) for m in range(len(names))]
        name_ends(top, len(tasks) - 1 + 0.08, ends, two_lines, hues)
        below.set_xticks(range(len(tasks) - 1), tasks[:-1])
        below.axhline(0, color=MUTED, linewidth=0.8)
        set_limits(below, "y", 2, (-100, 100))
        below.set_ylabel("points lost")
        below.set_title("Lost of each task's best")
        note_seeds(figure, [len(R) for R in found["scores"].values()])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Draws the figure of finished runs.")
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs/multimodal"),
                        help="what `jcl run multimodal --out` was given")  # fmt: skip
    parser.add_argument("--figure", type=Path, default=Path("experiments/figures/multimodal.png"))
    parser.add_argument("--redraw", action="store_true", help="from the JSON beside the figure")
    given = parser.parse_args()
    draw(beside(given.figure, given.redraw, lambda: measured(given.folder)), given.figure)


if __name__ == "__main__":
    main()
