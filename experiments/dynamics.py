"""Two things that only show step by step: the stability gap, and recovery ahead of a revisit.

Left: accuracy on the first task of handwritten digits around the switch to the second. Right: a
pretrained language model takes some gradient steps on one document after another, round and round;
its loss on each is shown by how long ago it was read, until right before it comes again. Run with
`python experiments/dynamics.py`; writes `experiments/figures/dynamics.png`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from digits import Config as Digits
from digits import classification
from eras import pretrained
from jax import lax

from jcl import data, losses, metrics, models
from jcl.data.corpora import state_of_the_union
from jcl.data.packing import gather, pack_rows
from jcl.data.tokens import tokenise
from jcl.runs import expression
from jcl.runs.experiment import setup


@dataclass(frozen=True)
class Config:
    """Some minutes on two cores."""

    seeds: int = 3
    """How many."""
    steps: int = 150
    """Steps on each task of digits."""
    methods: tuple[str, ...] = ("naive()", "lwf()", "er(capacity=200, rows=32)")
    """What learns the digits."""
    model: str = "glassllm"
    """What reads documents; as in `eras`."""
    documents: int = 12
    """In a round."""
    rounds: int = 5
    """How often each is read."""
    visits: int = 10
    """Gradient steps on a document each time."""
    length: int = 128
    """Tokens of a document that are read."""
    lr: float = 0.02
    """Of plain gradient descent, as in the paper."""
    out: Path = Path(__file__).parent / "figures" / "dynamics.png"
    """Where the figure goes."""


def gap(method: str, config: Config) -> np.ndarray:
    """Accuracy on the first task, before any step and after each of two stages', [seeds, 1 + n]."""
    built = classification("digits", data.digits(), Digits("class", steps=config.steps))
    program = setup(built, expression.parse(method)).program

    def curve(seed: int) -> jax.Array:
        stream = built.stream(seed)
        fetch = partial(stream.fetch, jax.tree.map(jnp.asarray, stream.source))

        def step(state: Any, rows: Any) -> Any:
            state, _ = program.step(state, fetch(rows))
            return state, built.evaluate(program, state)[0]

        @jax.jit
        def both(state: Any, first: Any, slices: Any, second: Any) -> Any:
            state, start = lax.scan(step, state, first)
            state = program.consolidate(state, jax.vmap(fetch)(slices))
            return jnp.concatenate([start, lax.scan(step, state, second)[1]])

        weights, key = jax.random.split(jax.random.key(seed))
        first, second = (stream.chunk(i, 0, config.steps) for i in (0, 1))
        batch = fetch(jax.tree.map(lambda x: x[0], first))
        state = program.init(built.init(weights), batch, key)
        before = built.evaluate(program, state)[:1]
        return jnp.concatenate([before, both(state, first, stream.boundary(0), second)])

    return np.asarray(jnp.stack([curve(seed) for seed in range(config.seeds)]))


def cycle(config: Config) -> np.ndarray:
    """Loss on each document after every visit, [seeds, rounds * documents, documents]."""
    model = pretrained(config.model)
    apply = models.decoder.apply_fn(model.config)
    texts = [a.text for a in state_of_the_union()]
    tx = optax.sgd(config.lr)
    objective = losses.fused_next_token()

    @jax.jit
    def read(params: Any, rows: Any) -> jax.Array:
        """Losses [visits, documents]."""

        def loss(params: Any, row: Any) -> jax.Array:
            return objective(apply, params, jax.tree.map(lambda x: x[None], row))[0]

        def visit(params: Any, place: jax.Array) -> Any:
            row = jax.tree.map(lambda x: x[place], rows)

            def one(carry: Any, _: None) -> Any:
                params, opt = carry
                updates, opt = tx.update(jax.grad(loss)(params, row), opt)
                return (optax.apply_updates(params, updates), opt), None

            (params, _), _ = lax.scan(one, (params, tx.init(params)), None, config.visits)
            return params, lax.map(lambda r: loss(params, r), rows)

        order = jnp.tile(jnp.arange(config.documents), config.rounds)
        return lax.scan(visit, params, order)[1]

    found = []
    for seed in range(config.seeds):
        drawn = np.random.default_rng(seed).permutation(len(texts))[: config.documents]
        tokens = tokenise([texts[i][:4000] for i in drawn], model.tokenizer, cache=False)
        laid = pack_rows(tokens, config.length, "alone", "cut")
        rows = gather(laid, np.arange(laid.number))
        batch = {
            "tokens": jnp.asarray(rows["tokens"], jnp.int32),
            "segments": jnp.asarray(rows["segments"], jnp.int32),
            "mask": jnp.asarray(rows["mask"], jnp.float32),
            "weight": jnp.ones(laid.number),
        }
        found.append(read(model.params, batch))
    return np.asarray(jnp.stack(found))


def by_age(curves: np.ndarray, documents: int, skip: int = 1) -> np.ndarray:
    """Loss by visits to other documents since a document was read, [seeds, documents].

    The mean over documents and over the rounds after the first `skip`.
    """
    seeds, visits, _ = curves.shape
    found: list[list[np.ndarray]] = [[] for _ in range(documents)]
    for read in range(skip * documents, visits):
        for age in range(documents):
            if read + age < visits:
                found[age].append(curves[:, read + age, read % documents])
    return np.stack([np.mean(f, axis=0) for f in found], axis=1).reshape(seeds, documents)


def draw(gaps: dict[str, np.ndarray], ages: np.ndarray, config: Config) -> None:
    """The figure."""
    from matplotlib.figure import Figure

    from jcl.report.figures import HUES, interval

    figure = Figure(figsize=(9.5, 3.4), layout="constrained", dpi=150)
    left, right = figure.subplots(1, 2)

    def line(axes: Any, x: np.ndarray, values: np.ndarray, hue: str, label: str) -> None:
        mean, half = values.mean(axis=0), interval(values)
        axes.plot(x, mean, color=hue, label=label, linewidth=1.6)
        axes.fill_between(x, mean - half, mean + half, color=hue, alpha=0.15, linewidth=0)

    for hue, (name, curves) in zip(HUES, gaps.items(), strict=False):
        x = np.arange(curves.shape[1]) - config.steps
        shown = x >= -20
        line(left, x[shown], 100 * curves[:, shown], hue, name)
    left.axvline(0, color="#c3c8cf", linewidth=1)
    left.set(
        title="Accuracy on the first task (%)", xlabel="steps since the switch", ylim=(-3, 103)
    )
    left.legend(frameon=False, fontsize=8)
    line(right, np.arange(ages.shape[1]), ages, HUES[0], "")
    right.set(title="Loss on a document (nats a token)", xlabel="documents read since")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(config.out)


def shown(values: np.ndarray) -> str:
    mean, half = metrics.interval(values)
    return f"{mean:.3f}" if half is None else f"{mean:.3f} ± {half:.3f}"


def main(config: Config) -> None:
    gaps = {}
    for method in config.methods:
        gaps[method] = gap(method, config)
        after = gaps[method][:, config.steps :]
        lowest, end = after.min(axis=1), after[:, -1]
        print(
            f"{method}: first task {shown(after[:, 0])} at the switch, lowest {shown(lowest)}, in "
            f"the end {shown(end)}; stability gap {shown(end - lowest)}"
        )
    curves = cycle(config)
    ages = by_age(curves, config.documents)
    print(f"recovery before the revisit: {shown(metrics.anticipatory_recovery(ages))}")
    draw(gaps, ages, config)
    print(f"figure: {config.out}")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
