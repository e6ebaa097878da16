"""A language model of English is pre-trained on a book in one language after another.

    jcl run pretraining --seeds 3
    python experiments/pretraining.py --seeds 3 --out runs/pretraining

The second adds what the figure needs: replay fractions mixed into the stream at equal cost, the
re-warming bump where nothing changes but the learning rate, the infinite schedule's annealed
branch, and token selection by a reference model. Each cell is a run of `jcl run pretraining`, whose
folder stays; one that is there isn't run again.
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
from jcl.methods.schedules.schedule import branch
from jcl.report import figures
from jcl.runs import experiment, expression
from jcl.runs.experiment import Experiment
from jcl.training.fit import last_state

WARMUP, STEPS = 6, 60
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


@cache
def _reference(config: Config) -> Any:
    """Parameters of a model that was trained on a selection of each language, all at once."""
    model = pretrained(config.model)
    texts = {k: (a[::10], b) for k, (a, b) in translations(config.order).items()}
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
    texts = translations(tuple(dict.fromkeys(config.order)))
    recurs = len(texts) < len(config.order)
    stages = config.order if recurs else data.with_replay(config.order, config.replay)

    def stream(seed: int) -> data.Stream:
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

    return Experiment(
        name="pretraining",
        scenario=config.scenario,
        stream=stream,
        init=lambda key: model.params,
        apply=model.apply,
        loss=losses.next_token,
        optimizer=lambda lr: optax.adamw(lr),
        evaluate=evaluator(stream(0).test, token_nll(), losses.with_targets),
        measure="log perplexity",
        higher_is_better=False,
        learning_rate=config.lr,
        chunk=3,
        tokens_per_row=length,
        model=model,
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


def draw(ends: dict[str, np.ndarray], folders: dict[str, Path], path: Path) -> None:
    """Final scores against the replay fraction, those of all methods, and the re-warming bump.

    Args:
      ends: by cell the final scores [seeds, languages].
      folders: of the cells.
      path: of the picture.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    names = ("English (first)", "German", "Italian (last)")
    with rc_context(figures.STYLE):
        figure = Figure(figsize=(13, 4.2), layout="constrained")
        left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1.25, 1))
        at = [0.0, *REPLAYS]
        scores = np.stack([ends["re-warming"], *(ends[f"replay {f:.0%}"] for f in REPLAYS)])
        for t, name in enumerate(names):
            mean, half = scores[..., t].mean(1), figures.interval(scores[..., t].swapaxes(0, 1))
            left.plot(at, mean, "o-", color=figures.HUES[t], label=name, ms=4.5, lw=2)
            left.fill_between(at, mean - half, mean + half, color=figures.HUES[t], alpha=0.15, lw=0)
        mean = scores.mean(axis=(1, 2))
        left.plot(at, mean, "--", color=figures.INK, lw=1.4, label="mean of the three")
        left.set_xticks(at, [f"{x:.0%}" for x in at])
        left.set_xlabel("replay fraction, at equal cost")
        left.set_ylabel("nats a token in the end (lower is better)")
        left.set_title("Replay keeps what is old")
        left.legend()
        shown = [k for k in ends if not k.startswith(("same", "replay 5%", "replay 50%"))]
        y = np.arange(len(shown))[::-1]
        for t, name in enumerate(names):
            mean = np.array([ends[k][:, t].mean() for k in shown])
            half = np.array([figures.interval(ends[k])[t] for k in shown])
            middle.errorbar(
                mean, y + 0.18 * (1 - t), xerr=half, fmt="o", ms=5, color=figures.HUES[t],
                elinewidth=1.2, label=name,
            )  # fmt: skip
        middle.set_yticks(y, shown)
        middle.grid(True, axis="x")
        middle.grid(False, axis="y")
        middle.set_xlabel("nats a token in the end")
        middle.set_title("Methods")
        for m, name in enumerate(k for k in folders if k.startswith("same")):
            step, loss = curve(folders[name])
            near = step > STEPS // 2
            label = name.removeprefix("same, ")
            right.plot(step[near], loss[near], color=figures.HUES[m], lw=1.5, label=label)
        right.axvline(STEPS, color=figures.MUTED, lw=0.8, ls=":")
        right.set_xlabel("step; the dotted line is a boundary, the text goes on as before")
        right.set_ylabel("training loss, nats a token")
        right.set_title("The re-warming bump")
        right.legend()
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", default="runs/pretraining")
    parser.add_argument("--figure", default="experiments/figures/pretraining.png")
    given = parser.parse_args()
    folders = {name: cell(name, given) for name in CELLS}
    ends = {name: report.load(folder)[0].scores[0, :, -1] for name, folder in folders.items()}
    ends = {k: v for k, v in ends.items() if not k.startswith("same")}
    at = list(ends).index("infinite") + 1
    parts = list(ends.items())
    branched = annealed(folders["infinite"], given)
    ends = dict([*parts[:at], ("infinite, annealed", branched), *parts[at:]])
    for name, scores in ends.items():
        pairs = zip(scores.mean(0), figures.interval(scores), strict=True)
        print(f"{name:<20}", "  ".join(f"{m:.3f} ± {h:.3f}" for m, h in pairs))
    draw(ends, folders, Path(given.figure))


if __name__ == "__main__":
    main()
