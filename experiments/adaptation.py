"""A general model is adapted to a domain, then to a task's own text: gained there, lost elsewhere.

    jcl run adaptation --seeds 3
    python experiments/adaptation.py --seeds 3 --out runs/adaptation

The domain is Django's documentation, the task its release notes (DAPT, then TAPT); what the model
knew is scored on the presidents' addresses and on probes. The first stage is one step of no size:
there methods read general text, and the model stays as it is. The second command runs all methods,
general text mixed in and LLaMA Pro's added blocks among them, and draws the figure. Each cell is a
run of `jcl run adaptation`, whose folder stays; one that is there isn't run again. The numbers stay
beside the figure as JSON, from which `--redraw` draws it again.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optax
from cells import run_cell
from eras import pretrained, probe_evaluator

from jcl import data, growth, losses, models, report
from jcl.data.corpora import django_docs, held_out, state_of_the_union
from jcl.measures.evaluation import evaluator, token_nll
from jcl.program import Evaluate
from jcl.report.format import format_samples
from jcl.report.labels import name_points
from jcl.report.numbers import beside
from jcl.report.style import (
    GRID,
    HUES,
    MUTED,
    across,
    draw_intervals,
    drawing,
    hue,
    interval,
    note_seeds,
    set_limits,
)
from jcl.runs.experiment import Experiment

METHODS = ("naive()", "soft_mask()", "lora(rank=8)", 'wise_ft(alpha=0.5, anchor="first")')
STAGES = ("general", "django", "releases")


@dataclass(frozen=True)
class Config:
    """Sizes that train all methods with three seeds within ten minutes on two cores."""

    scenario: Literal["vertical"] = "vertical"
    """From the general to a domain to a task."""
    model: str = "glassllm"
    """What `jcl fetch` gets, a folder, or a Hugging Face id."""
    preset: Literal["small", "full"] = "small"
    """`full` takes 50 times the steps, on rows of 1024 tokens (or the model's context), and all
    items of the probes."""
    mix: float = 0.0
    """Share of the rows of domain and task stages that are general text."""
    expand: int = 0
    """LLaMA Pro: a new block after every so many, for `llama_pro(layers=...)`; 0 is none."""
    steps: int = 60
    """Optimizer steps on the domain."""
    task_steps: int = 20
    """Optimizer steps on the task's text."""
    batch: int = 8
    """Rows a step."""
    length: int = 64
    """Tokens in a row."""
    lr: float = 1e-3
    """AdamW's learning rate, after a warm-up of ten steps from 0."""
    test_rows: int = 48
    """Test rows of each."""
    probe: tuple[str, ...] = ("boolq", "piqa", "commonsenseqa", "mmlu")
    """Probes of general ability; none with `probe=`."""
    items: int = 32
    """Items of each probe."""
    validation: float = 0.0
    """Share of each stage's training texts to hold out, see --select-on."""


@cache
def _texts() -> dict[str, tuple[list[str], list[str]]]:
    pages = django_docs("4.2")
    rows: dict[str, tuple[Any, Any]] = {
        "general": held_out(state_of_the_union()),
        "django": held_out([p for p in pages if not p.path.startswith("releases/")]),
        "releases": held_out([p for p in pages if p.path.startswith("releases/")]),
    }
    return {k: ([r.text for r in a], [r.text for r in b]) for k, (a, b) in rows.items()}


def grown(config: Config) -> tuple[models.Model, tuple[int, ...]]:
    """The model that is trained, and which of its blocks are new."""
    model = pretrained(config.model)
    if not config.expand:
        return model, ()
    made = growth.expand_blocks(model.params, model.config, config.expand)
    return models.of(made.config, made.params, model.tokenizer), made.layers


def build(config: Config) -> Experiment:
    full = config.preset == "full"
    model, _ = grown(config)
    length = min(1024 if full else config.length, model.config.context)
    texts, held = data.validation_split(_texts(), config.validation)

    def stream(seed: int, texts: Any = texts) -> data.Stream:
        stages = data.with_replay(STAGES, config.mix, general="general")
        longer = 50 if full else 1
        steps = [1, longer * config.steps, longer * config.task_steps]
        return data.from_text(
            texts, model.tokenizer, length=length, batch=config.batch, steps=steps, stages=stages,
            seed=seed, boundary_batches=8, test_rows=None if full else config.test_rows,
            test_batch=16, vocabulary=model.config.vocabulary,
        )  # fmt: skip

    def judge(stream: data.Stream) -> Evaluate:
        return evaluator(stream.test, token_nll(), losses.with_targets)

    return Experiment(
        name="adaptation",
        scenario=config.scenario,
        stream=stream,
        init=lambda key: model.params,
        apply=model.apply,
        loss=losses.fused_next_token(),
        optimizer=lambda lr: optax.adamw(optax.warmup_constant_schedule(0.0, lr, 10)),
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


CELLS: dict[str, tuple[str, dict[str, Any]]] = {
    "DAPT": ("naive()", {}),
    **{f"general text {f:.0%}": ("naive()", {"mix": f}) for f in (0.1, 0.25, 0.5)},
    "soft mask": ("soft_mask()", {}),
    "LLaMA Pro": ("llama_pro(layers=(2, 5))", {"expand": 2}),
    "LoRA": ("lora(rank=8)", {}),
    **{f"WiSE-FT {a}": (f'wise_ft(alpha={a}, anchor="first")', {}) for a in (0.25, 0.5, 0.75)},
}
"""By name the method and the settings of a run."""


def cell(name: str, given: argparse.Namespace) -> report.Run:
    """A cell's run, which is made if need be."""
    method, settings = CELLS[name]
    folder = Path(given.out) / name.replace(" ", "-").replace("%", "")
    return report.load(run_cell(folder, "adaptation", method, settings, given.seeds))[0]


def measured(given: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Of each cell `scores` [seeds, rows, texts], and `probes` [rows], the share of right answers.

    Rows 1 to 3 are the model as it came, after the domain and after the task.
    """
    runs = {name: cell(name, given) for name in CELLS}
    return {
        name: {
            "scores": run.scores[0],
            "probes": run.probed and np.asarray(run.probed["matrix"]).mean(-1),
        }
        for name, run in runs.items()
    }


def draw(found: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Domain gain against general loss; the task's text along the chain; probes before and after.

    Args:
      found: as `measured` has it.
      path: of the picture.
    """
    scores = {name: np.asarray(one["scores"]) for name, one in found.items()}
    with drawing(10, 9.2) as figure:
        grid = figure.add_gridspec(2, 2, height_ratios=(1.2, 1))
        top = figure.add_subplot(grid[0, :])
        left, right = figure.add_subplot(grid[1, 0]), figure.add_subplot(grid[1, 1])
        y = np.arange(len(scores))[::-1]
        points = []
        for m, R in enumerate(scores.values()):
            lost, gained = R[:, 2, 0] - R[:, 1, 0], R[:, 1, 1] - R[:, 2, 1]
            points.append((lost.mean(), gained.mean()))
            top.plot(*points[-1], "o", color=hue(m), markersize=6)
            draw_intervals(top, *points[-1], interval(lost), hue(m), across="x")
            draw_intervals(top, *points[-1], interval(gained), hue(m))
            chain = R[:, 1:, 2].mean(0)
            left.plot(chain[1:], [y[m]] * 2, "-", color=GRID, lw=2)
            left.plot(chain[1], y[m], "o", color=HUES[0], ms=6)
            left.plot(chain[2], y[m], "o", color=HUES[1], ms=6)
        top.axvline(0, color=MUTED, lw=0.8)
        top.set_xlabel("lost on general text, nats a token")
        top.set_ylabel("gained on the domain, nats a token")
        top.set_title("Gained against lost after the domain")
        top.margins(x=0.1, y=0.12)
        set_limits(top, "x", 0.05)
        set_limits(top, "y", 0.05)
        name_points(top, points, list(scores), [hue(m) for m in range(len(points))])
        left.set_yticks(y, list(scores))
        left.set_xlabel("nats a token after domain (blue) and task (orange)")
        left.set_title("The task's text: DAPT, then TAPT")
        set_limits(left, "x", 0.05)
        for place, one in zip(y, found.values(), strict=True):
            if one["probes"] is not None:
                before, after = 100 * np.asarray(one["probes"])[1:3]
                right.plot([before, after], [place] * 2, "-", color=GRID, lw=2)
                right.plot(before, place, "o", color=MUTED, ms=6)
                right.plot(after, place, "o", color=HUES[0], ms=6)
        right.set_yticks(y, [""] * len(y))
        right.set_xlabel("right answers (%), before (grey) and after (blue)")
        right.set_title("General probes")
        set_limits(right, "x", 2, (0, 100))
        for axes in (left, right):
            across(axes)
        note_seeds(figure, [len(R) for R in scores.values()])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", default="runs/adaptation")
    parser.add_argument("--figure", type=Path, default=Path("experiments/figures/adaptation.png"))
    parser.add_argument("--redraw", action="store_true", help="from the JSON beside the figure")
    given = parser.parse_args()
    found = beside(given.figure, given.redraw, lambda: measured(given))
    print(
        f"{'':<18} general lost, domain gained, task gained by DAPT, by TAPT; probes before, after"
    )
    for name, one in found.items():
        R = np.asarray(one["scores"])
        parts = (R[:, 2, 0] - R[:, 1, 0], R[:, 1, 1] - R[:, 2, 1], R[:, 1, 2] - R[:, 2, 2],
                 R[:, 2, 2] - R[:, 3, 2])  # fmt: skip
        shown = [format_samples(x) for x in parts]
        if one["probes"] is not None:
            shown += [f"{100 * p:.1f}" for p in one["probes"][1:3]]
        print(f"{name:<18}", "  ".join(shown))
    draw(found, given.figure)


if __name__ == "__main__":
    main()
