"""RL's Razor on ParityMNIST: the divergence on the new task predicts what is forgotten.

A perceptron of 784 pixels and the task's sign, 512 and 256 hidden units and ten outputs is trained
on 500 digits of MNIST and 500 pieces of Fashion-MNIST at once, 50 epochs of Adam at 1e-3. A digit
is right with any output of its parity, so its label is drawn anew from the five. Then it is tuned
on the parity of all of MNIST's digits for one epoch, from labels of one of three kinds: always 0 or
1 (SFT-1); 0 or 4, 1 or 5 by a coin (SFT-2); or the distribution nearest to the first network's
among those that are right (the oracle: its probabilities of the right outputs, made to sum to 1; it
is the target itself, where the paper draws labels from it). Each kind is tuned at each of the rates
3e-5, 1e-4, 3e-4 and 1e-3; the paper has fifteen from 3e-6 to 1e-3, two schedules, one or two epochs
and what was on the way. Batches have 64 rows; rates warm up over a tenth of the steps and fall as a
cosine.

A run's forgetting is by how many points its accuracy on Fashion-MNIST's test fell, its divergence
KL(first || tuned) in nats on MNIST's test. R² is of a quadratic fit to a seed's twelve runs; the
paper has .96, and .9 is asked for. It depends on where the sweep ends: with 3e-3 among the rates,
beyond the paper's, it was .80 ± .16 here, for there the oracle forgets more than 40 points at a
divergence of .35. At 1e-3 the oracle is to forget less than SFT-1, which is as often right. The
on-policy runs of the paper aren't here yet. Of the paper section 4's numbers and appendix B.3 were
read; batch, depth and schedule are those of SakanaAI/rl-razor-mnist, a replication, of which some
files were at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jcl
from jcl import data, losses, methods
from jcl.method import Apply, Batch, Params
from jcl.models import mlp
from jcl.runs.reproduce import Cell, by_seed, once

SOURCE = (
    "Shenfeld, Pari & Agrawal, arXiv 2509.04259, section 4, figure 3 and appendix B.3; "
    "SakanaAI/rl-razor-mnist (scripts for pretraining and tuning, sft.py, oracle.py, data.py)"
)
KINDS = ("SFT-1", "SFT-2", "oracle")
RATES = (3e-5, 1e-4, 3e-4, 1e-3)
SCALES = {"new": (0.1307, 0.3081), "old": (0.2860, 0.3530)}
"""Mean and standard deviation of the pixels of MNIST and of Fashion-MNIST."""


def soft(apply: Apply, params: Params, batch: Batch) -> tuple[jax.Array, Any]:
    """Cross-entropy with the distributions `batch["target"]` [B, 10], in nats."""
    logits = apply(params, batch)
    each = -jnp.sum(batch["target"] * jax.nn.log_softmax(logits), axis=-1)
    return losses.weighted_mean(each, batch["weight"]), losses.Logits(logits, batch["weight"])


def inputs(images: Any, task: str) -> np.ndarray:
    """Standardised pixels and the task's sign, float32 [n, pixels + 1]."""
    mean, spread = SCALES[task]
    x = (np.asarray(images["x"]) - mean) / spread
    sign = np.full((len(x), 1), 1.0 if task == "new" else -1.0)
    return np.concatenate([x, sign], axis=1).astype(np.float32)


def right(y: jax.Array) -> jax.Array:
    """Which of ten outputs have the parity of the digits `y` [...], float32 [..., 10]."""
    return (jnp.arange(10) % 2 == y[..., None] % 2).astype(jnp.float32)


def rows_of(rng: np.random.Generator, rows: int, batch: int, epochs: int) -> dict[str, Any]:
    """A stage of shuffled full batches, and a number that draws each row's label."""
    steps = rows // batch
    order = [rng.permutation(rows)[: steps * batch] for _ in range(epochs)]
    shape = (1, epochs * steps, batch)
    row = np.concatenate(order).astype(np.int32).reshape(shape)
    return {"row": jnp.asarray(row), "draw": jnp.asarray(rng.integers(20, size=shape))}


def falling(rate: Any, steps: int) -> optax.Schedule:
    """`rate` after a tenth of the steps, then down to 0 as a cosine."""
    shape = optax.warmup_cosine_decay_schedule(0.0, 1.0, max(1, steps // 10), steps)
    return lambda count: rate * shape(count)


def points(
    seed: int,
    *,
    new: Callable[[], Any] = data.mnist,
    old: Callable[[], Any] = data.fashion_mnist,
    few: int = 500,
    hidden: tuple[int, ...] = (512, 256),
    batch: int = 64,
    epochs: tuple[int, int] = (50, 1),
    rates: Sequence[float] = RATES,
) -> np.ndarray:
    """Divergence, forgetting and the new task's accuracy of each run, [kinds, rates, 3]."""
    (train, test), (old_train, old_test) = new(), old()
    rng = np.random.default_rng((41, seed))
    y, old_y = np.asarray(train["y"]), np.asarray(old_train["y"])
    x, old_x = inputs(train, "new"), inputs(old_train, "old")
    test_x, old_test_x = jnp.asarray(inputs(test, "new")), jnp.asarray(inputs(old_test, "old"))
    test_y, old_test_y = jnp.asarray(test["y"]), jnp.asarray(old_test["y"])
    own, older = rng.permutation(len(y))[:few], rng.permutation(len(old_y))[:few]
    weights, key = jax.random.split(jax.random.key(seed))

    def tune(params: Params, rate: Any, slices: Any, fetch: Callable[[Any], Batch]) -> Params:
        steps = slices["row"].shape[1]
        program = jcl.make(methods.naive(), mlp.apply, soft, optax.adam(falling(rate, steps)))
        return jcl.run(program, params, key, slices, fetch=fetch, boundary_batches=1)[0].params

    def pretrain() -> Params:
        both = jnp.asarray(np.concatenate([x[own], old_x[older]]))
        label = jnp.asarray(np.concatenate([y[own], old_y[older]]))

        def fetch(slices: Any) -> Batch:
            row, is_new = slices["row"], slices["row"] < few
            parity = label[row] % 2 + 2 * (slices["draw"] % 5)
            target = jax.nn.one_hot(jnp.where(is_new, parity, label[row]), 10)
            return jcl.program.fill_batch({"x": both[row], "target": target})

        slices = rows_of(rng, 2 * few, batch, epochs[0])
        start = mlp.init(weights, (x.shape[1], *hidden, 10))
        return jax.jit(lambda: tune(start, 1e-3, slices, fetch))()

    first = pretrain()
    logits = jax.jit(lambda rows: mlp.apply(first, {"x": rows}))
    # the nearest distribution that is right
    nearest = jax.nn.softmax(jnp.where(right(jnp.asarray(y)) > 0, logits(x), -jnp.inf))
    before = jax.nn.log_softmax(logits(test_x))

    def share(params: Params, rows: Any, is_right: Callable[[jax.Array], jax.Array]) -> jax.Array:
        guess = jnp.argmax(mlp.apply(params, {"x": rows}), axis=-1)
        return 100 * jnp.mean(is_right(guess).astype(jnp.float32))

    def old_share(params: Params) -> jax.Array:
        return share(params, old_test_x, lambda guess: guess == old_test_y)

    started, slices = old_share(first), rows_of(rng, len(y), batch, epochs[1])
    table, parity = jnp.asarray(x), jnp.asarray(y) % 2

    def one(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
        kind, rate = pair

        def fetch(slices: Any) -> Batch:
            row = slices["row"]
            drawn = parity[row] + jnp.where(kind == 1, 4 * (slices["draw"] % 2), 0)
            target = jnp.where(kind == 2, nearest[row], jax.nn.one_hot(drawn, 10))
            return jcl.program.fill_batch({"x": table[row], "target": target})

        params = tune(first, rate, slices, fetch)
        after = jax.nn.log_softmax(mlp.apply(params, {"x": test_x}))
        divergence = jnp.mean(jnp.sum(jnp.exp(before) * (before - after), axis=-1))
        fell = started - old_share(params)
        new_share = share(params, test_x, lambda guess: guess % 2 == test_y % 2)
        return jnp.stack([divergence, fell, new_share])

    kinds = jnp.repeat(jnp.arange(len(KINDS)), len(rates))
    found = jax.jit(partial(jax.lax.map, one))((kinds, jnp.tile(jnp.asarray(rates), len(KINDS))))
    return np.asarray(found, np.float64).reshape(len(KINDS), len(rates), 3)


def explained(found: np.ndarray) -> float:
    """R² of a quadratic fit of forgetting to the divergence, over all runs."""
    divergence, fell = found[..., 0].ravel(), found[..., 1].ravel()
    rest = fell - np.polyval(np.polyfit(divergence, fell, 2), divergence)
    return float(1 - rest.var() / fell.var())


def entry(place: tuple[int, int, int], found: np.ndarray) -> float:
    """What stands at a place of what `points` gives."""
    return float(found[place])


def family(seeds: int, rate: int, **given: Any) -> dict[str, Any]:
    """What cells run, by name; all measure the same runs, made when the first of them asks."""
    runs = once(partial(by_seed, partial(points, **given), seeds))

    def measured(measure: Callable[[np.ndarray], float], folder: Path) -> dict[int, float]:
        return {seed: measure(found) for seed, found in runs(folder).items()}

    ways: dict[str, Any] = {"R² of KL and forgetting": partial(measured, explained)}
    for i, kind in enumerate(KINDS):
        for column, what in ((1, "forgetting"), (2, "parity")):
            ways[f"{kind}, {what}"] = partial(measured, partial(entry, (i, rate, column)))
    return ways


FULL = family(3, RATES.index(1e-3))
CELLS = (
    Cell("R² of KL and forgetting", FULL["R² of KL and forgetting"], 0.96, tolerance=0.0625),
    Cell("oracle, forgetting", FULL["oracle, forgetting"], below="SFT-1, forgetting"),
    Cell("SFT-1, forgetting", FULL["SFT-1, forgetting"]),
    Cell("SFT-2, forgetting", FULL["SFT-2, forgetting"]),
    *(Cell(f"{kind}, parity", FULL[f"{kind}, parity"]) for kind in KINDS),
)


def moved_digits() -> Any:
    """8×8 digits with their pixels permuted, as the old task of the short form."""
    order = np.random.default_rng(0).permutation(64)
    return tuple({**part, "x": part["x"][:, order]} for part in data.digits())


SHORT = family(
    1, 1, new=data.digits, old=moved_digits, few=300, hidden=(64,), batch=32, epochs=(20, 3),
    rates=(1e-3, 3e-3, 1e-2),
)  # fmt: skip
QUICK = (
    Cell("R², 8×8 digits", SHORT["R² of KL and forgetting"], 0.9, tolerance=0.1),
    Cell("oracle, 8×8 digits", SHORT["oracle, forgetting"], below="SFT-1, 8×8 digits"),
    Cell("SFT-1, 8×8 digits", SHORT["SFT-1, forgetting"]),
)
