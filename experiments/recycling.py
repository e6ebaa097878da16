"""A supplier upgrades its model; a consumer, who had tuned the old one, tunes the new one sooner.

The supplier trains a pretrained model further on State of the Union addresses, era by era. The
consumer had tuned the model as it was to a program's documentation. On the upgraded one it tunes
afresh, starts from the old change, learns from the old tuned model, or does both; how many steps
that saves until the same score is printed. Beside it, what is between the supplier's checkpoints:
the loss along the line from one to the next, and how alike their features are. Run with
`python experiments/recycling.py`; writes `experiments/figures/recycling.png` and, beside it, the
numbers as JSON, from which `--redraw` draws it again.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from eras import pretrained

import jcl
from jcl import data, landscape, losses, metrics, models, taps
from jcl.data.corpora import django_docs, eras, held_out, state_of_the_union
from jcl.measures.evaluation import evaluator, token_nll
from jcl.report.labels import name_ends
from jcl.report.numbers import beside
from jcl.report.style import HEAT, draw_line, drawing, hue, note_seeds, set_limits
from jcl.runs.recycle import recycle, steps_to

Way = Literal["none", "start", "distil", "both"]
SHOWN = {"none": "afresh", "start": "from the old change", "distil": "distilled", "both": "both"}


@dataclass(frozen=True)
class Config:
    """Some minutes on two cores."""

    seeds: int = 3
    """Of the order of rows."""
    model: str = "glassllm"
    """What `jcl fetch` gets, a folder, or a Hugging Face id."""
    upgrade: int = 30
    """Steps of the supplier on each era."""
    tune: int = 60
    """Steps of the consumer, on either model."""
    every: int = 5
    """Steps between scores."""
    batch: int = 4
    """Rows a step."""
    length: int = 128
    """Tokens in a row."""
    lr: float = 1e-3
    """AdamW's learning rate."""
    strength: float = 0.5
    """Of the distillation."""
    out: Path = Path(__file__).parent / "figures" / "recycling.png"
    """Where the figure goes."""
    redraw: bool = False
    """Only draws, from the JSON beside the figure."""


class Setting:
    """The model, the supplier's eras and the consumer's documentation."""

    def __init__(self, config: Config) -> None:
        self.config, self.model = config, pretrained(config.model)
        self.apply = models.decoder.apply_fn(self.model.config)
        parts = eras(state_of_the_union())
        self.supplier = self._texts({name: parts[name] for name in list(parts)[:3]})
        self.consumer = self._texts({"manual": django_docs("4.2")})

    def _texts(self, rows: dict[str, Any]) -> dict[str, tuple[list[str], list[str]]]:
        split = {name: held_out(some) for name, some in rows.items()}
        return {n: ([r.text for r in a], [r.text for r in b]) for n, (a, b) in split.items()}

    def stream(self, texts: Any, steps: int, seed: int) -> data.Stream:
        """Rows of some texts, as many steps of each."""
        c = self.config
        return data.from_text(
            texts, self.model.tokenizer, length=c.length, batch=c.batch, steps=steps, seed=seed,
            test_rows=12, test_batch=4, boundary_batches=1, vocabulary=self.model.config.vocabulary,
        )  # fmt: skip

    def train(self, stream: data.Stream, params: Any, method: Any, seed: int) -> Any:
        """Parameters after each stage [stages, ...], and scores every so often [n]."""
        program = jcl.make(method, self.apply, losses.next_token, optax.adamw(self.config.lr))
        source = jax.tree.map(jnp.asarray, stream.source)
        score = evaluator(stream.test, token_nll())
        chunk = min(self.config.every, stream.steps[0])

        @partial(jax.jit, static_argnums=2)
        def some(state: Any, rows: Any, scored: bool) -> Any:
            fetch = partial(stream.fetch, source)
            state, _ = jcl.advance(program, state, rows, fetch)
            return state, score(program, state).mean() if scored else jnp.float32(0)

        first = stream.fetch(source, jax.tree.map(lambda x: x[0], stream.chunk(0, 0, 1)))
        state = program.init(params, first, jax.random.key(seed))
        curve = [jax.jit(partial(score, program))(state).mean()]
        kept = []
        for stage, steps in enumerate(stream.steps):
            for at in range(0, steps, chunk):
                rows = stream.chunk(stage, at, min(at + chunk, steps))
                state, value = some(state, rows, len(stream.steps) == 1)
                curve.append(value)
            kept.append(state.params)
        return kept, np.asarray(curve)


def between(setting: Setting, checkpoints: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Losses from each checkpoint to the next [pairs, points], and CKA, each with each."""
    test = setting.stream(setting.supplier, 1, 0).test
    rows = jax.tree.map(lambda x: jnp.asarray(x[:, 0]).reshape(-1, *x.shape[3:]), test)

    def loss(params: Any) -> jax.Array:
        return losses.next_token(setting.apply, params, rows)[0]

    @jax.jit
    def features(params: Any) -> jax.Array:
        last = setting.model.config.layers - 1
        wanted = {"blocks:out": (last, lambda h: h)}
        found, _ = taps.read(setting.apply, params, rows, wanted)
        return found["blocks:out"].reshape(-1, setting.model.config.width)

    lines = jax.jit(lambda a, b: landscape.along(loss, a, b))
    walked = np.stack([np.asarray(lines(a, b)) for a, b in pairwise(checkpoints)])
    seen = [features(p) for p in checkpoints]
    alike = np.array([[float(landscape.cka(x, y)) for y in seen] for x in seen])
    return walked, alike


def draw(curves: dict[str, np.ndarray], walked: np.ndarray, alike: np.ndarray, c: Config) -> None:
    """The figure."""
    with drawing(10, 3.7) as figure:
        left, middle, right = figure.subplots(1, 3, width_ratios=(1.5, 1, 0.9))
        hues = [hue(m) for m in range(len(curves))]
        ends = []
        for m, values in enumerate(curves.values()):
            x = c.every * np.arange(values.shape[1])
            apart = x + (m - (len(curves) - 1) / 2) * 0.008 * x[-1]  # intervals side by side
            ends.append(draw_line(left, apart, values, hues[m], marker="o", markersize=3)[-1])
        left.set(xlabel="steps", ylabel="log perplexity")
        left.set_title("Tuning the upgraded model")
        set_limits(left, "y", 0.05)
        name_ends(left, left.get_xlim()[1], ends, list(curves), hues)
        for i, line in enumerate(walked):
            middle.plot(np.linspace(i, i + 1, len(line)), line, color=hue(0))
            middle.plot([i, i + 1], line[[0, -1]], "o", color=hue(0))
        middle.set(xlabel="supplier's checkpoint", xticks=range(len(alike)))
        middle.set_title("Loss between checkpoints")
        set_limits(middle, "y", 0.05)
        right.imshow(alike, cmap=HEAT, vmin=0, vmax=1)
        for i, j in np.ndindex(alike.shape):
            ink = "white" if alike[i, j] > 0.5 else "black"
            right.text(j, i, f"{alike[i, j]:.2f}", ha="center", va="center", color=ink, fontsize=9)
        right.grid(False)
        right.set(xticks=range(len(alike)), yticks=range(len(alike)))
        right.set_title("CKA of last features")
        note_seeds(figure, [len(values) for values in curves.values()])
    c.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(c.out)


def shown(values: Any) -> str:
    mean, half = metrics.interval(np.asarray(values, np.float64))
    return f"{mean:.3f}" if half is None else f"{mean:.3f} ± {half:.3f}"


def measured(config: Config) -> dict[str, Any]:
    """Scores while tuning by way [seeds, n]; and, as `between` has them, `walked` and `alike`."""
    setting = Setting(config)
    base = setting.model.params
    supplier = setting.stream(setting.supplier, config.upgrade, 0)
    upgrades, _ = setting.train(supplier, base, jcl.chain(), 0)
    curves: dict[str, list[np.ndarray]] = {SHOWN[way]: [] for way in get_args(Way)}
    for seed in range(config.seeds):
        stream = setting.stream(setting.consumer, config.tune, seed)
        tuned, old = setting.train(stream, base, jcl.chain(), seed)
        print(f"seed {seed}: the old model {old[0]:.3f}, tuned {old[-1]:.3f}", flush=True)
        for way in get_args(Way):
            start, method = recycle(
                base, tuned[-1], upgrades[-1], way, jcl.chain(), config.strength
            )
            curves[SHOWN[way]].append(setting.train(stream, start, method, seed)[1])
    walked, alike = between(setting, [base, *upgrades])
    return {"curves": curves, "walked": walked, "alike": alike}


def main(config: Config) -> None:
    found = beside(config.out, config.redraw, lambda: measured(config))
    stacked = {name: np.asarray(values) for name, values in found["curves"].items()}
    walked, alike = np.asarray(found["walked"]), np.asarray(found["alike"])
    afresh = stacked["afresh"]
    for name, values in stacked.items():
        steps = [
            steps_to(curve, goal, higher_is_better=False)
            for curve, goal in zip(values, afresh[:, -1], strict=True)
        ]
        taken = [config.every * s for s in steps if s is not None]
        reach = shown(taken) if len(taken) == len(steps) else f"reached by {len(taken)} seeds"
        print(
            f"{name}: before a step {shown(values[:, 0])}, in the end {shown(values[:, -1])}, "
            f"steps to what tuning afresh ends with {reach}"
        )
    high = [float(landscape.barrier(jnp.asarray(line))) for line in walked]
    print(f"barriers between checkpoints: {', '.join(f'{b:.4f}' for b in high)}")
    draw(stacked, walked, alike, config)
    print(f"figure: {config.out}")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
