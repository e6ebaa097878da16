"""A language model follows one project's documentation: on what each version changed, or on all.

    jcl run snapshots --seeds 3
    python experiments/snapshots.py --seeds 3 --out runs/snapshots

It begins as a model of Django's documentation of 2017 and is trained on that of 2019, 2021 and
2023, and probed for what stayed, what was updated and what is new, apart. The second command runs
both ways to train, beside methods that hold on to what was, and draws the figure. Each cell is a
run of `jcl run snapshots`, whose folder stays; one that is there isn't run again. The numbers stay
beside the figure as JSON, from which `--redraw` draws it again.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import optax
from cells import run_cell
from eras import pretrained

import jcl
from jcl import data, losses, methods, metrics, report
from jcl.data.corpora import Page, django_docs
from jcl.data.snapshots import KINDS, Series, series, with_dates
from jcl.measures.evaluation import evaluator, token_nll
from jcl.method import check
from jcl.program import Evaluate
from jcl.report.format import format_samples
from jcl.report.numbers import beside
from jcl.report.style import (
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

METHODS = ("naive()", "l2sp(strength=0.01)", "lora(rank=8)")
YEARS = {"1.11": 2017, "2.2": 2019, "3.2": 2021, "4.2": 2023}


@dataclass(frozen=True)
class Config:
    """Sizes that train all methods with three seeds within ten minutes on two cores."""

    scenario: Literal["temporal"] = "temporal"
    """One version after another; what a text is of isn't told, but for `dates`."""
    model: str = "glassllm"
    """What `jcl fetch` gets, a folder, or a Hugging Face id."""
    preset: Literal["small", "full"] = "small"
    """`full` takes an epoch of every stage, on rows of 1024 tokens (or the model's context)."""
    train: Literal["changed", "whole"] = "changed"
    """What of a version is trained on: what was updated or is new in it, or all of it."""
    replay: float = 0.0
    """Share of the rows that are of the first version."""
    dates: bool = False
    """Whether every paragraph has its year before it, which isn't learned."""
    probe: Literal["held_out", "seen"] = "seen"
    """Whether probes are of paragraphs that are never trained on, or may be, as facts are that a
    model is to recall."""
    folder: str = "topics"
    """Which part of the documentation; all of it with `folder=`."""
    base: int = 300
    """Optimizer steps on the first version, which all methods start from."""
    steps: int = 80
    """Optimizer steps on each later version."""
    batch: int = 8
    """Rows a step."""
    length: int = 64
    """Tokens in a row."""
    lr: float = 1e-3
    """AdamW's learning rate."""
    test_rows: int = 32
    """Test rows of each kind and version."""
    validation: float = 0.0
    """Share of each stage's training paragraphs to hold out, see --select-on; with probes of
    paragraphs that are held out too."""


TESTED = 0.2
"""The share of paragraphs that are tested."""


@cache
def _versions(folder: str, probe: Any, dates: bool, tested: float = TESTED) -> Series:
    read: dict[str, list[Page]] = {
        v: [p for p in django_docs(v) if p.path.startswith(folder)] for v in YEARS
    }
    made = series(read, probe=probe, share=tested)
    if not dates:
        return made
    year = {name: YEARS[name.partition(" ")[0]] for name in made.domains}
    domains: Any = {
        name: tuple(with_dates(side, year[name]) for side in sides)
        for name, sides in made.domains.items()
    }
    return made._replace(domains=domains)


def _learned(config: Config) -> tuple[Series, dict[str, Any] | None]:
    """What is trained on and tested, and what is held out of it, of each kind and version."""
    given, share = (config.folder, config.probe, config.dates), config.validation
    check(0 <= share < 1, "validation", share, "at least 0 and below 1")
    if not share:
        return _versions(*given), None
    asked = "0 where probe is 'seen', which asks what was trained on; give probe held_out"
    check(config.probe == "held_out", "validation", share, asked)
    tested, wider = (_versions(*given, at) for at in (TESTED, TESTED + (1 - TESTED) * share))
    domains: Any = {}
    held: Any = {}
    for name, (_, test) in tested.domains.items():
        learned, apart = wider.domains[name]
        out = [text for text in apart if text not in test]
        check(bool(out), "validation", share, f"large enough for a paragraph of {name!r}")
        domains[name], held[name] = (learned, test), (learned, out)
    return tested._replace(domains=domains), held


def _sizes(config: Config) -> dict[str, Any]:
    model = pretrained(config.model)
    full = config.preset == "full"
    return {
        "tokenizer": model.tokenizer,
        "length": min(1024 if full else config.length, model.config.context),
        "batch": config.batch,
        "boundary_batches": 8,
        "test_rows": None if full else config.test_rows,
        "test_batch": 16,
        "vocabulary": model.config.vocabulary,
    }


@cache
def _first(
    model: str, folder: str, probe: Any, dates: bool, steps: int, batch: int, length: int,
    lr: float, validation: float,
) -> Any:  # fmt: skip
    """Parameters after training on the first version, the same for all methods and seeds."""
    config = Config(
        model=model, batch=batch, length=length, folder=folder, probe=probe, dates=dates,
        validation=validation,
    )  # fmt: skip
    made, _ = _learned(config)
    stream = data.from_text(
        made.domains, steps=steps, stages=[next(iter(YEARS))], seed=1, **_sizes(config)
    )
    loaded = pretrained(model)
    rate = optax.warmup_cosine_decay_schedule(0.0, lr, steps // 10, steps, lr / 10)
    program = jcl.make(methods.naive(), loaded.apply, losses.fused_next_token(), optax.adamw(rate))
    return jcl.fit(program, loaded.params, jax.random.key(1), stream).state.params


def build(config: Config) -> Experiment:
    made, held = _learned(config)
    full = config.preset == "full"
    model = pretrained(config.model)
    first = next(iter(YEARS))
    stages: list[dict[str, float]] = []
    for stage in (made.whole if config.train == "whole" else made.changed)[1:]:
        assert isinstance(stage, Mapping)
        total = sum(stage.values())
        shares = {k: (1 - config.replay) * v / total for k, v in stage.items()}
        stages.append(shares | ({first: config.replay} if config.replay else {}))
    sizes = _sizes(config)
    start = _first(
        config.model, config.folder, config.probe, config.dates, config.base, config.batch,
        config.length, config.lr, config.validation,
    )  # fmt: skip

    def stream(seed: int, domains: Any = made.domains) -> data.Stream:
        amount: Any = {"epochs": 1} if full else {"steps": config.steps}
        return data.from_text(domains, stages=stages, seed=seed, **amount, **sizes)

    def judge(stream: data.Stream) -> Evaluate:
        return evaluator(stream.test, token_nll(), losses.with_targets)

    return Experiment(
        name="snapshots",
        scenario=config.scenario,
        stream=stream,
        init=lambda key: start,
        apply=model.apply,
        loss=losses.fused_next_token(),
        optimizer=lambda lr: optax.adamw(lr),
        evaluate=judge(stream(0)),
        measure="log perplexity",
        higher_is_better=False,
        learning_rate=config.lr,
        chunk=10,
        tokens_per_row=sizes["length"],
        model=model._replace(params=start),
        validate=None if held is None else judge(stream(0, held)),
    )


CELLS: dict[str, tuple[str, dict[str, Any]]] = {
    "changed": ("naive()", {}),
    "whole": ("naive()", {"train": "whole"}),
    "changed, 25 % of 2017": ("naive()", {"replay": 0.25}),
    "changed, l2sp": ("l2sp(strength=0.01)", {}),
    "changed, lora": ("lora(rank=8)", {}),
    "changed, dated": ("naive()", {"dates": "true"}),
}
"""By name the method and the settings of a run."""


def cell(name: str, given: argparse.Namespace) -> report.Run:
    """A cell's run, which is made if need be."""
    method, settings = CELLS[name]
    folder = Path(given.out) / name.replace(" ", "-").replace(",", "").replace("%", "percent")
    return report.load(run_cell(folder, "snapshots", method, settings, given.seeds))[0]


def changes(run: report.Run) -> dict[str, np.ndarray]:
    """Nats a token [seeds, versions] that each update took off its own probes, kind by kind."""
    R, tasks = run.scores[0], list(run.summary["tasks"])
    later = list(YEARS)[1:]
    return {
        kind: np.stack(
            [R[:, k, t] - R[:, k + 1, t] for k, v in enumerate(later)
             for t in [tasks.index(f"{v} {kind}")]], axis=-1,
        )
        for kind in KINDS
    }  # fmt: skip


def ratio(gained: Mapping[str, np.ndarray]) -> np.ndarray:
    """FUAR of each seed, over all updates."""
    parts = zip(*(gained[kind] for kind in KINDS), strict=True)
    return np.array([metrics.fuar(-kept, updated, new) for kept, updated, new in parts])


def draw(found: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """What an update took off each kind of probe, over methods, and FUAR.

    Args:
      found: of each cell what `changes` gives.
      path: of the picture.
    """
    gains = {
        name: {kind: np.asarray(one[kind]) for kind in KINDS} for name, one in found.items()
    }  # fmt: skip
    y = np.arange(len(gains))[::-1]
    with drawing(9.5, 1.8 + 0.6 * len(gains)) as figure:
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(2, 1))
        for i, kind in enumerate(KINDS):
            samples = np.stack([g[kind].mean(1) for g in gains.values()], axis=1)
            rows = y + 0.26 * (1 - i)
            left.barh(rows, samples.mean(0), 0.24, color=hue(i))
            _, high = draw_intervals(left, samples.mean(0), rows, interval(samples), across="x")
            left.annotate(  # beside its first bar
                kind, (max(high[0], 0), rows[0]), (4, 0), textcoords="offset points", va="center",
                color=hue(i), fontsize=9,
            )  # fmt: skip
        left.axvline(0, color=MUTED, lw=0.8)
        left.set_yticks(y, list(gains))
        left.set_xlabel("nats a token that an update takes off (mean of three); below 0 is lost")
        left.set_title("What stayed, was updated, is new")
        left.margins(x=0.12)
        set_limits(left, "x", 0.05)
        fuar = np.stack([ratio(g) for g in gains.values()], axis=1)
        right.barh(y, fuar.mean(0), 0.5, color=HUES[7])
        draw_intervals(right, fuar.mean(0), y, interval(fuar), across="x", bounds=(0, None))
        set_limits(right, "x", 0.05, (0, None))
        right.set_xlabel("lost on what stayed for each nat gained")
        right.set_title("FUAR (lower is better)")
        for axes in (left, right):
            across(axes)
        note_seeds(figure, [len(g[KINDS[0]]) for g in gains.values()])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", default="runs/snapshots")
    parser.add_argument("--figure", type=Path, default=Path("experiments/figures/snapshots.png"))
    parser.add_argument("--redraw", action="store_true", help="from the JSON beside the figure")
    given = parser.parse_args()
    found = beside(
        given.figure, given.redraw, lambda: {name: changes(cell(name, given)) for name in CELLS}
    )  # fmt: skip
    for name, one in found.items():
        gained = {kind: np.asarray(one[kind]) for kind in KINDS}
        shown = [gained[kind].mean(1) for kind in KINDS] + [ratio(gained)]
        print(f"{name:<24}", "  ".join(format_samples(x) for x in shown))
    draw(found, given.figure)


if __name__ == "__main__":
    main()
