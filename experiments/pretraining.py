"""A language model of English is pre-trained on a book in one language after another.

    jcl run pretraining --seeds 3
    python experiments/pretraining.py --seeds 3 --out runs/pretraining

The second adds what the figure needs: replay fractions mixed into the stream at equal cost, the
re-warming bump where nothing changes but the learning rate, the infinite schedule's annealed
branch, and token selection by a reference model. Each cell is a run of `jcl run pretraining`, whose
folder stays; one that is there isn't run again. The numbers stay beside the figure as JSON, from
which `--redraw` draws it again.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from cells import run_cell
from eras import pretrained

import jcl
from jcl import data, losses, methods, report
from jcl.data.snapshots import translations
from jcl.measures.evaluation import evaluator, token_nll
from jcl.method import check
from jcl.methods.schedules.schedule import branch
from jcl.program import Evaluate
from jcl.report.format import format_samples
from jcl.report.labels import name_ends
from jcl.report.numbers import beside
from jcl.report.style import (
    INK,
    MUTED,
    across,
    draw_intervals,
    draw_line,
    drawing,
    hue,
    interval,
    note_seeds,
    set_limits,
)
from jcl.runs import experiment, expression
from jcl.runs.experiment import Experiment
from jcl.training.fit import last_state

WARMUP, STEPS = 6, 60
TESTED = 0.2
"""The share of pages that are tested."""
REWARM = f"rewarm(warmup={WARMUP}, steps={STEPS})"
ONCE = f"infinite(warmup={WARMUP}, cooldown={STEPS - WARMUP}, anneal=1, level=0.1)"
INFINITE = f"infinite(warmup={WARMUP}, cooldown=24, anneal=15)"
METHODS = (
    ONCE,  # warm-up and decay in the first stage; later ones stay at its last, lowest rate
    REWARM,
    INFINITE,
    f"er(capacity=512, fraction=0.25) + {REWARM}",
    f"lwf(strength=1.0) + {REWARM}",
)


@dataclass(frozen=True)
class Config:
    """Sizes that train all methods with three seeds within ten minutes on two cores."""

    scenario: Literal["domain"] = "domain"
    """Domain-incremental: one language after another, no task id."""
    model: str = "glassllm"
    """Where training starts: what `jcl fetch` gets, a folder, or a Hugging Face id."""
    preset: Literal["small", "full"] = "small"
    """`full` takes batches of 64 rows of 1024 tokens, or of the model's context."""
    order: tuple[str, ...] = ("en-US", "de-DE", "it-IT")
    """Languages of the Debian handbook; one that comes again goes on with the same text."""
    steps: int = STEPS
    """Optimizer steps on each; schedules among the methods have to be told."""
    replay: float = 0.0
    """Share of a later stage's rows that are of earlier languages, mixed by the stream."""
    reference: int = 0
    """Steps of a reference model, on a tenth of each language, for `rho(reference="batch")`."""
    batch: int = 8
    """Rows a step."""
    length: int = 64
    """Tokens in a row."""
    lr: float = 1e-3
    """AdamW's learning rate, which schedules multiply."""
    test_rows: int = 64
    """Test rows a language."""
    validation: float = 0.0
    """Share of each stage's training pages to hold out, see --select-on."""


def _texts(config: Config) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Pages to train on and to test by language, and those held out, alike in each language."""
    languages = tuple(dict.fromkeys(config.order))
    found, share = translations(languages, share=TESTED), config.validation
    check(0 <= share < 1, "validation", share, "at least 0 and below 1")
    if not share:
        return found, None
    wider = translations(languages, share=TESTED + (1 - TESTED) * share)
    out = {k: [page for page in wider[k][1] if page not in found[k][1]] for k in found}
    check(all(out.values()), "validation", share, "large enough for a page of each language")
    learned = {k: wider[k][0] for k in found}
    return {k: (a, found[k][1]) for k, a in learned.items()}, {
        k: (a, out[k]) for k, a in learned.items()
    }


@cache
def _reference(config: Config) -> Any:
    """Parameters of a model that was trained on a selection of each language, all at once."""
    model = pretrained(config.model)
    texts = {k: (a[::10], b) for k, (a, b) in _texts(config)[0].items()}
    stream = data.from_text(
        texts, model.tokenizer, length=config.length, batch=config.batch, steps=config.reference,
        stages=[dict.fromkeys(texts, 1.0)], seed=1, boundary_batches=1, test_rows=1,
    )  # fmt: skip
    program = jcl.make(methods.naive(), model.apply, losses.next_token, optax.adamw(config.lr))
    return jcl.fit(program, model.params, jax.random.key(1), stream).state.params


def build(config: Config) -> Experiment:
    full = config.preset == "full"
    model = pretrained(config.model)
    length = min(1024 if full else config.length, model.config.context)
    texts, held = _texts(config)
    recurs = len(texts) < len(config.order)
    stages = config.order if recurs else data.with_replay(config.order, config.replay)

    def stream(seed: int, texts: Any = texts) -> data.Stream:
        made = data.from_text(
            texts, model.tokenizer, length=length, batch=64 if full else config.batch,
            steps=config.steps, stages=stages, seed=seed, boundary_batches=8,
            test_rows=None if full else config.test_rows, test_batch=16,
            vocabulary=model.config.vocabulary,
        )  # fmt: skip
        if not config.reference:
            return made

        def fetch(source: Any, rows: Any) -> Any:
            batch = made.fetch(source["rows"], rows)
            outputs = model.apply(source["reference"], losses.with_targets(batch))
            return {**batch, "reference": outputs.nll[:, :-1]}

        source = {"rows": made.source, "reference": _reference(config)}
        return made._replace(source=source, fetch=fetch)

    def judge(stream: data.Stream) -> Evaluate:
        return evaluator(stream.test, token_nll(), losses.with_targets)

    return Experiment(
        name="pretraining",
        scenario=config.scenario,
        stream=stream,
        init=lambda key: model.params,
        apply=model.apply,
        loss=losses.next_token,
        optimizer=lambda lr: optax.adamw(lr),
        evaluate=judge(stream(0)),
        measure="log perplexity",
        higher_is_better=False,
        learning_rate=config.lr,
        chunk=3,
        tokens_per_row=length,
        model=model,
        validate=None if held is None else judge(stream(0, held)),
    )


REPLAYS = (0.05, 0.25, 0.5)
CELLS: dict[str, tuple[str, dict[str, Any]]] = {
    "no re-warming": (ONCE, {}),
    "re-warming": (REWARM, {}),
    "infinite": (INFINITE, {}),
    "distillation": (f"lwf(strength=1.0) + {REWARM}", {}),
    "memory of 512": (f"er(capacity=512, fraction=0.25) + {REWARM}", {}),
    "token selection": (f'rho(share=0.6, reference="batch") + {REWARM}', {"reference": STEPS}),
    **{f"replay {f:.0%}": (REWARM, {"replay": f}) for f in REPLAYS},
    "same, no re-warming": (ONCE, {"order": "en-US,en-US"}),
    "same, re-warming": (REWARM, {"order": "en-US,en-US"}),
    "same, infinite": (INFINITE, {"order": "en-US,en-US"}),
}
"""By name the method and the settings of a run."""


def cell(name: str, given: argparse.Namespace) -> Path:
    """The folder of a cell's run, which is made if need be."""
    method, settings = CELLS[name]
    folder = Path(given.out) / name.replace(" ", "-").replace(",", "").replace("%", "")
    return run_cell(folder, "pretraining", method, settings, given.seeds)


def annealed(folder: Path, given: argparse.Namespace, steps: int = 15) -> np.ndarray:
    """Scores [seeds, tasks] of a branch off the infinite schedule's trunk, which is annealed on
    rows of the last language."""
    built = build(Config())
    setup = experiment.setup(built, expression.parse(INFINITE), given.seeds)
    program, stream = setup.program, setup.stream
    state = branch(last_state(*setup, built.evaluate, folder))
    fetch = partial(stream.fetch, jax.tree.map(jnp.asarray, stream.source))

    def anneal(state: Any, chunk: Any) -> Any:
        return program.over_members(lambda p, s, c: jcl.advance(p, s, c, fetch)[0], state, chunk)

    state = jax.jit(anneal)(state, stream.chunk(len(stream.steps) - 1, 0, steps))
    return np.asarray(built.evaluate(program, state)).reshape(given.seeds, -1)


def curve(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Training loss in nats a token over steps, the mean over seeds and three steps."""
    lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    lines = [x for x in lines if "loss" in x]
    return np.array([x["step"] for x in lines]), np.array([x["loss"] for x in lines])


NAMES = ("English (first)", "German", "Italian (last)")


def draw(found: dict[str, Any], path: Path) -> None:
    """Final scores against the replay fraction, those of all methods, and the re-warming bump.

    Args:
      found: as `measured` has it.
      path: of the picture.
    """
    ends = {name: np.asarray(scores) for name, scores in found["ends"].items()}
    with drawing(10, 7.6) as figure:
        grid = figure.add_gridspec(2, 2, height_ratios=(1.15, 1))
        methods = figure.add_subplot(grid[0, :])
        left, right = figure.add_subplot(grid[1, 0]), figure.add_subplot(grid[1, 1])

        shown = [k for k in ends if k not in ("replay 5%", "replay 50%")]
        y = np.arange(len(shown))[::-1]
        for t in range(len(NAMES)):
            mean = np.array([ends[k][:, t].mean() for k in shown])
            half = np.array([interval(ends[k])[t] for k in shown])
            rows = y + 0.22 * (1 - t)
            methods.plot(mean, rows, "o", color=hue(t))
            draw_intervals(methods, mean, rows, half, hue(t), across="x")
        methods.set_yticks(y, shown)
        across(methods)
        set_limits(methods, "x", 0.05)
        methods.set_xlabel("nats a token in the end, in the colours of the languages below")
        methods.set_title("Methods")

        at = [0.0, *REPLAYS]
        scores = np.stack([ends["re-warming"], *(ends[f"replay {f:.0%}"] for f in REPLAYS)])
        last = [
            draw_line(left, at, scores[..., t].T, hue(t), marker="o")[-1] for t in range(len(NAMES))
        ]
        mean = scores.mean(axis=(1, 2))
        left.plot(at, mean, "--", color=INK, lw=1.4)
        set_limits(left, "y", 0.05)
        names = [*NAMES, "mean of the three"]
        name_ends(left, at[-1], [*last, mean[-1]], names, [*map(hue, range(len(NAMES))), INK])
        left.set_xticks(at, [f"{x:.0%}" for x in at])
        left.set_xlabel("replay fraction, at equal cost")
        left.set_ylabel("nats a token in the end")
        left.set_title("Replay keeps what is old")

        last = []
        for m, (step, loss) in enumerate(found["curves"].values()):
            near = np.asarray(step) > STEPS // 2
            right.plot(np.asarray(step)[near], np.asarray(loss)[near], color=hue(m), lw=1.5)
            last.append(loss[-1])
        set_limits(right, "y", 0.05)
        name_ends(right, step[-1], last, list(found["curves"]), list(map(hue, range(len(last)))))
        right.axvline(STEPS, color=MUTED, lw=0.8, ls=":")
        right.set_xlabel("step; the text goes on as before at the dotted boundary")
        right.set_ylabel("training loss, nats a token")
        right.set_title("The re-warming bump")
        note_seeds(figure, [len(one) for one in ends.values()])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def measured(given: argparse.Namespace) -> dict[str, Any]:
    """Of each cell `ends`, final scores [seeds, languages]; and `curves`, steps with losses, where
    the text goes on as before."""
    folders = {name: cell(name, given) for name in CELLS}
    same = "same, "
    ends = {
        name: report.load(folder)[0].scores[0, :, -1]
        for name, folder in folders.items()
        if not name.startswith(same)
    }
    at = list(ends).index("infinite") + 1
    parts = list(ends.items())
    branched = annealed(folders["infinite"], given)
    return {
        "ends": dict([*parts[:at], ("infinite, annealed", branched), *parts[at:]]),
        "curves": {
            name.removeprefix(same): curve(folder)
            for name, folder in folders.items()
            if name.startswith(same)
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", default="runs/pretraining")
    parser.add_argument("--figure", type=Path, default=Path("experiments/figures/pretraining.png"))
    parser.add_argument("--redraw", action="store_true", help="from the JSON beside the figure")
    given = parser.parse_args()
    found = beside(given.figure, given.redraw, lambda: measured(given))
    for name, scores in found["ends"].items():
        print(f"{name:<20}", "  ".join(format_samples(x) for x in np.asarray(scores).T))
    draw(found, given.figure)


if __name__ == "__main__":
    main()
