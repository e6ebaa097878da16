"""A language model is aligned with one set of preferences after another, and what that costs it.

Pairs of a right and a wrong answer come in stages. Scores are the share of held-out pairs of each
stage that the model ranks rightly; the probe is a general text, whose bytes' mean probability (2 to
the minus bits per byte) falls as the model drifts: the alignment tax. `python
experiments/alignment.py` measures the implicit reward and the divergence from the first model too,
at several strengths of each method, and draws figures/alignment.png.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from eras import pretrained
from jax import lax

import jcl
from jcl import data, losses, models, preference
from jcl.data import corpora, questions
from jcl.data.preferences import Pair
from jcl.measures.evaluation import bits_per_byte, evaluator
from jcl.method import Objective
from jcl.models.generation import generate
from jcl.program import Evaluate, Program, State
from jcl.report.labels import name_points
from jcl.report.style import (
    MUTED,
    across,
    draw_intervals,
    drawing,
    hue,
    interval,
    note_seeds,
    set_limits,
)
from jcl.runs import experiment, expression
from jcl.runs.experiment import Experiment

METHODS = (
    "dpo()",
    "dpo(reference='previous')",
    "dpo() + kl_to_reference(strength=0.1)",
    "er(capacity=96, rows=4) + dpo()",
    "copr(stages=3)",
    "wise_ft(alpha=0.5) + dpo()",
    "hma(alpha=0.5) + dpo()",
    "online_merging(alpha=0.003) + dpo()",
)

LOSSES: dict[str, Objective] = {
    "ranking": preference.ranking(),
    "ipo": preference.ranking("ipo"),
    "simpo": preference.simpo(),
    "orpo": preference.orpo(),
}


@dataclass(frozen=True)
class Config:
    """A run for two cores; `--preset full` is what a GPU would run, with adapters for example:
    `--method "lora() + dpo()"`."""

    preset: Literal["small", "full"] = "small"
    """`full` is SmolLM2 on piqa, commonsenseqa and boolq, an epoch of each, on rows of 256 tokens,
    where the settings below are left as they are."""
    order: tuple[str, ...] = ()
    """Stages: `spam`, `r8`, `newsgroups` (a text's label over another), a probe such as `piqa` (the
    right choice over a wrong one), or `hh:FOLDER` and `shp:FOLDER` with their files for training
    and test. By default those of the preset."""
    loss: Literal["ranking", "ipo", "simpo", "orpo"] = "ranking"
    """What is learned of a pair; the last two have no reference, so that `dpo` isn't for them."""
    model: str = ""
    """What `jcl fetch` gets, a folder, or a Hugging Face id; default is the preset's."""
    steps: int = 30
    """Optimizer steps on each stage."""
    batch: int = 8
    """Pairs a step."""
    length: int = 48
    """Tokens of a prompt with its answer."""
    lr: float = 5e-4
    """AdamW's learning rate."""
    test_rows: int = 96
    """Test pairs a stage."""
    text_rows: int = 32
    """Rows of general text."""
    validation: float = 0.0
    """Share of each stage's training pairs to hold out, see --select-on."""


class Shape(NamedTuple):
    """A config with what its preset leaves open."""

    model: str
    order: tuple[str, ...]
    length: int
    amount: dict[str, int]
    test_rows: int


def _shape(config: Config) -> Shape:
    full = config.preset == "full"
    model = config.model or ("smollm2" if full else "glassllm")
    stages = ("piqa", "commonsenseqa", "boolq") if full else ("spam", "r8", "newsgroups")
    amount = {"epochs": 1} if full else {"steps": config.steps}
    length, rows = (256, 512) if full else (config.length, config.test_rows)
    return Shape(model, config.order or stages, length, amount, rows)


def _labelled(name: str, length: int) -> tuple[list[Pair], list[Pair]]:
    """A text's own label over another one, drawn for each text."""
    prompt, rows = {
        "spam": ("Mail: {}\nThis mail is", corpora.spam_assassin),
        "r8": ("News: {}\nThe topic is", lambda: corpora.r8("train")),
        "newsgroups": ("Post: {}\nThe group is", lambda: corpora.newsgroups("train")),
    }[name]
    given = [
        corpora.Labelled(" ".join(row.text.split())[: 2 * length], row.label.split(".")[0])
        for row in rows()
    ]
    labels = sorted({row.label for row in given})

    def pairs(rows: Sequence[corpora.Labelled]) -> list[Pair]:
        order = np.random.default_rng(0).permutation(len(rows))[:3000]
        some = [rows[i] for i in order if rows[i].text]
        items = questions.from_labels(name, some, labels, prompt).items
        return data.right_over_wrong(items, wrong=1)

    train, test = corpora.held_out(given)
    return pairs(train), pairs(test)


def _pairs(name: str, length: int) -> tuple[list[Pair], list[Pair]]:
    """A stage's pairs to train on and to test."""
    kind, _, folder = name.partition(":")
    if kind == "hh":
        train, test = (Path(folder) / f"{part}.jsonl.gz" for part in ("train", "test"))
        return data.read_hh(train, bad="skip"), data.read_hh(test, bad="skip")
    if kind == "shp":
        train, test = (Path(folder) / f"{part}.json" for part in ("train", "test"))
        return data.read_shp(train, ratio=2.0), data.read_shp(test, ratio=2.0)
    if name in ("spam", "r8", "newsgroups"):
        return _labelled(name, length)
    items = questions.read(name).items
    learned = [item for i, item in enumerate(items) if i % 5]
    return data.right_over_wrong(learned), data.right_over_wrong(items[::5], wrong=1)


@cache
def _stages(config: Config) -> dict[str, tuple[list[Pair], list[Pair]]]:
    shape = _shape(config)
    found = {name: _pairs(name, shape.length) for name in shape.order}
    return {name: (train, test[: shape.test_rows]) for name, (train, test) in found.items()}


@cache
def _text(config: Config) -> Any:
    """Rows of addresses that no stage trains on, as test leaves [1, n, B, L]."""
    shape = _shape(config)
    model = pretrained(shape.model)
    texts = [address.text for address in corpora.state_of_the_union()[-20:]]
    stream = data.from_text(
        {"text": (texts, texts)}, model.tokenizer, length=shape.length, batch=1, steps=1,
        test_rows=config.text_rows, test_batch=16, cache=False,
    )  # fmt: skip
    return stream.test


def build(config: Config) -> Experiment:
    shape = _shape(config)
    model = pretrained(shape.model)
    stages, held = data.validation_split(_stages(config), config.validation)
    asked = held and {name: (a, out[: shape.test_rows]) for name, (a, out) in held.items()}

    def stream(seed: int, stages: Any = stages) -> data.Stream:
        return data.from_pairs(
            stages, model.tokenizer, length=shape.length, batch=config.batch, seed=seed,
            boundary_batches=12, test_batch=32, vocabulary=model.config.vocabulary, **shape.amount,
        )  # fmt: skip

    def judge(stream: data.Stream) -> Evaluate:
        return evaluator(stream.test, preference.accuracy, preference.pair_rows)

    bits = evaluator(_text(config), bits_per_byte(), losses.with_targets)
    return Experiment(
        name="alignment",
        scenario="domain",
        stream=stream,
        init=lambda key: model.params,
        apply=models.decoder.apply_fn(model.config),
        loss=LOSSES[config.loss],
        optimizer=lambda lr: optax.adamw(lr),
        evaluate=judge(stream(0)),
        measure="pairs ranked rightly",
        learning_rate=config.lr,
        chunk=10,
        tokens_per_row=2 * shape.length,
        model=model,
        probe_names=("text",),
        probe=lambda program, state: 2.0 ** -bits(program, state),
        validate=None if asked is None else judge(stream(0, asked)),
    )


# What follows is the comparison: several strengths of each method, and more measures.

COMPARED: dict[str, tuple[str, str, tuple[float, ...]]] = {
    "DPO": ("dpo()", "dpo.beta", (0.03, 0.1, 0.3)),
    "DPO, previous reference": ("dpo(reference='previous')", "dpo.beta", (0.1,)),
    "DPO + KL": ("dpo() + kl_to_reference()", "kl_to_reference.strength", (0.03, 0.1, 0.3)),
    "DPO + replay": ("er(capacity=96, rows=4) + dpo()", "dpo.beta", (0.1,)),
    "COPR": ("copr(stages=3)", "copr.beta", (0.8,)),
    "DPO + averaging": ("wise_ft() + dpo()", "wise_ft.alpha", (0.25, 0.5, 0.75)),
    "DPO + HMA": ("hma() + dpo()", "hma.alpha", (0.25, 0.5, 0.75)),
    "DPO + online merging": (
        "online_merging() + dpo()", "online_merging.alpha", (1e-3, 3e-3, 1e-2),
    ),
}  # fmt: skip
"""By what the figure calls it: the method, what of it is varied, and its values."""
MEASURES = ("accuracy", "margin", "kl", "bits")


def _drift(config: Config) -> Evaluate:
    """KL(π₀ ‖ π) in nats a token, estimated on texts that the first model itself wrote, [1]."""
    model = pretrained(_shape(config).model)
    starts = [
        row[:8].tolist() for row in _text(config)["tokens"].reshape(-1, _shape(config).length)
    ]
    written = generate(
        model.apply, model.params, model.config, starts, steps=40, key=jax.random.key(0),
        temperature=1.0,
    )  # fmt: skip
    tokens = np.array([a + b for a, b in zip(starts, written, strict=True)], np.int32)
    rows = {
        "tokens": tokens,
        "mask": np.tile((np.arange(47) >= 7).astype(np.float32), (len(tokens), 1)),
    }
    before = np.asarray(
        model.apply(model.params, losses.with_targets(jax.tree.map(jnp.asarray, rows))).nll
    )
    test = data.pack([{**rows, "before": before, "task": np.zeros(len(tokens), np.int32)}], 16)

    def score(outputs: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
        weight = losses.token_weight(batch)
        return jnp.sum((outputs.nll - batch["before"])[:, :-1] * weight), jnp.sum(weight)

    return evaluator(test, score, losses.with_targets)


def measures(config: Config, built: Experiment) -> Evaluate:
    """`evaluate(program, state) -> [2 · stages + 2]`, as `MEASURES` has them."""
    model = pretrained(_shape(config).model)
    test = jax.tree.map(jnp.asarray, built.stream(0).test)

    def margin(batch: Any) -> jax.Array:
        return preference.pair_log_probs(
            model.apply(model.params, preference.pair_rows(batch)), batch
        ).margin

    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), test)
    held = jax.jit(lambda rows: lax.map(margin, rows))(flat)
    known = {**test, "reference": held.reshape(test["weight"].shape)}
    parts: list[Callable[[Program, State], jax.Array]] = [
        built.evaluate,
        evaluator(known, preference.margin, preference.pair_rows),
        _drift(config),
        evaluator(_text(config), bits_per_byte(), losses.with_targets),
    ]
    return lambda program, state: jnp.concatenate([f(program, state) for f in parts], axis=-1)


def trained(name: str, built: Experiment, evaluate: Evaluate, seeds: int) -> dict[str, Any]:
    """One of `COMPARED` at all its values: each measure [values][seeds][stages + 1][columns]."""
    text, varied, values = COMPARED[name]
    points = [{varied: value} for value in values]
    setup = experiment.setup(built, expression.parse(text), seeds, points)
    result = jcl.fit(*setup, evaluate=evaluate, chunk=built.chunk)
    assert result.scores is not None
    rows, stages = len(setup.stream.names) + 1, len(setup.stream.tests)
    scores = result.scores.astype(float).reshape(len(values), seeds, rows, -1).round(4)
    each = np.split(scores, [stages, 2 * stages, 2 * stages + 1], axis=-1)
    measured = {m: x.tolist() for m, x in zip(MEASURES, each, strict=True)}
    return {"method": text, "varied": varied, "values": list(values), **measured}


SHOWN = {
    "accuracy": (100.0, (0, 100), "pairs ranked rightly (%), mean over stages"),
    "bits": (1.0, (0, None), "general text: bits per byte"),
    "margin": (1.0, (None, None), "margin of rewards (nats, β\u00a0=\u00a01), mean over stages"),
    "kl": (1.0, (0, None), "KL from the first model (nats)"),
}
"""Of each measure its scale, its bounds and its name."""


def draw(found: Any, path: Path) -> None:
    """What each method gained against what it lost by the last stage, a line through its values.

    Above are means; below is each measure by itself, with intervals.
    """
    ends = {
        name: {m: SHOWN[m][0] * np.asarray(run[m])[..., (0, -1), :].mean(-1) for m in SHOWN}
        for name, run in found.items()
    }  # [values, seeds, (before, after)]
    panels = (
        ("accuracy", "bits", "Rightly ranked, against general text"),
        ("margin", "kl", "Reward, against the divergence"),
    )
    rows = [(m, i) for m, run in enumerate(found.values()) for i in range(len(run["values"]))]
    y = np.array([-r - 0.6 * m for r, (m, _) in enumerate(rows)])
    with drawing(10, 10.2) as figure:
        grid = figure.add_gridspec(2, 4, height_ratios=(1, 1.15))
        for p, (gain, cost, title) in enumerate(panels):
            axes = figure.add_subplot(grid[0, 2 * p : 2 * p + 2])
            points = []
            for m, run in enumerate(ends.values()):
                at = np.stack([run[gain][..., 1].mean(1), run[cost][..., 1].mean(1)], axis=1)
                axes.plot(*at.T, color=hue(m))
                # the larger the value, the larger the mark
                for i, point in enumerate(at):
                    axes.plot(*point, "o", color=hue(m), markersize=4 + 1.6 * i)
                points.append(tuple(at[len(at) // 2]))
            first = next(iter(ends.values()))  # before, all are the same model
            before = (first[gain][..., 0].mean(), first[cost][..., 0].mean())
            axes.plot(*before, "s", color=MUTED)
            axes.invert_yaxis()  # up is better
            axes.margins(x=0.08, y=0.12)
            axes.set_xlabel(SHOWN[gain][2])
            axes.set_ylabel(SHOWN[cost][2])
            axes.set_title(title)
            hues = [hue(m) for m in range(len(points))]
            name_points(axes, [*points, before], [*ends, "before"], [*hues, MUTED])
        for p, (measure, (_, bounds, title)) in enumerate(SHOWN.items()):
            axes = figure.add_subplot(grid[1, p])
            for place, (m, i) in zip(y, rows, strict=True):
                samples = list(ends.values())[m][measure][i, :, 1]
                half = interval(samples)
                draw_intervals(axes, samples.mean(), place, half, hue(m), "x", bounds)
                axes.plot(samples.mean(), place, "o", color=hue(m))
            names = [f"{name} {v:g}" for name, run in found.items() for v in run["values"]]
            axes.set_yticks(y, names if not p else [""] * len(y))
            for text, (m, _) in zip(axes.get_yticklabels(), rows, strict=True):
                text.set_color(hue(m))
            across(axes)
            set_limits(axes, "x", 0.05, bounds)
            axes.set_xlabel(title)
        note_seeds(
            figure, [run["kl"].shape[1] for run in ends.values()], "larger marks: larger values"
        )
    figure.savefig(path)


def main() -> None:
    """Trains, keeps the measures beside the figure, and draws it; what is there isn't run again."""
    here = Path(__file__).parent / "figures" / "alignment.png"
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--out", type=Path, default=here, help="the figure, a .png")
    args = parser.parse_args()
    cores = f"--xla_force_host_platform_device_count={os.cpu_count()}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {cores}".strip()
    path = args.out.with_suffix(".json")
    found = json.loads(path.read_text()) if path.is_file() else {}
    if missing := [name for name in COMPARED if name not in found]:
        config = Config()
        built = build(config)
        evaluate = measures(config, built)
        for name in missing:
            begun = time.perf_counter()
            found[name] = trained(name, built, evaluate, args.seeds)
            path.write_text(json.dumps(found) + "\n")
            print(f"{name}: {time.perf_counter() - begun:.0f} s", flush=True)
    draw({name: found[name] for name in COMPARED}, args.out)
    print(args.out)


if __name__ == "__main__":
    main()
