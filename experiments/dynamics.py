"""Two things that only show step by step: the stability gap, and recovery ahead of a revisit.

Left: accuracy on the first task of handwritten digits around the switch to the second. Right: a
pretrained language model takes some gradient steps on one document after another, round and round;
its loss on each is shown by how long ago it was read, until right before it comes again. Run with
`python experiments/dynamics.py`; writes `experiments/figures/dynamics.png` and, beside it, the
numbers as JSON, from which `--redraw` draws it again.
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
from jcl.report.labels import name_ends
from jcl.report.numbers import beside
from jcl.report.style import GRID, draw_line, drawing, hue, note_seeds, set_limits
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
    redraw: bool = False
    """Only draws, from the JSON beside the figure."""


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
    with drawing(10, 3.9) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(1.3, 1))
        ends = []
        for m, curves in enumerate(gaps.values()):
            x = np.arange(curves.shape[1]) - config.steps
            some = x >= -20
            drawn = 100 * curves[:, some]
            ends.append(draw_line(left, x[some], drawn, hue(m), turn=m, bounds=(0, 100))[-1])
        left.axvline(0, color=GRID, linewidth=1)
        left.set(ylim=(0, 100), xlim=(-20, x[-1]), xlabel="steps since the switch")
        left.set_title("Accuracy on the first task (%)")
        name_ends(
            left,
            x[-1],
            ends,
            [n.replace(", ", ",\n") for n in gaps],
            [hue(m) for m in range(len(gaps))],
        )
        draw_line(right, np.arange(ages.shape[1]), ages, hue(0), marker="o")
        right.set_xlabel("documents read since")
        right.set_title("Loss on a document (nats a token)")
        set_limits(right, "y", 0.05)
        note_seeds(figure, [len(ages)])
    config.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(config.out)


def shown(values: np.ndarray) -> str:
    mean, half = metrics.interval(values)
    return f"{mean:.3f}" if half is None else f"{mean:.3f} ± {half:.3f}"


def measured(config: Config) -> dict[str, Any]:
    """Accuracies by method [seeds, 1 + steps], and losses by age [seeds, documents]."""
    gaps = {method: gap(method, config) for method in config.methods}
    return {"accuracy": gaps, "loss": by_age(cycle(config), config.documents)}


def main(config: Config) -> None:
    found = beside(config.out, config.redraw, lambda: measured(config))
    gaps = {method: np.asarray(curves) for method, curves in found["accuracy"].items()}
    for method, curves in gaps.items():
        after = curves[:, config.steps :]
        lowest, end = after.min(axis=1), after[:, -1]
        print(
            f"{method}: first task {shown(after[:, 0])} at the switch, lowest {shown(lowest)}, in "
            f"the end {shown(end)}; stability gap {shown(end - lowest)}"
        )
    ages = np.asarray(found["loss"])
    print(f"recovery before the revisit: {shown(metrics.anticipatory_recovery(ages))}")
    draw(gaps, ages, config)
    print(f"figure: {config.out}")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
