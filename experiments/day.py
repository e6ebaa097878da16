"""A researcher's day in percent cells, which VS Code, Spyder and Jupytext run one by one.

From a question (does replay keep more than an anchor?) to a table whose differences are tested:
`python experiments/day.py` runs all of it within a minute, and needs no download.
"""

# %% What to train on: five tasks of two digits, of which a tenth is held out to choose by.
from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jcl
from jcl import data, evaluator, losses, methods, models
from jcl.measures.evaluation import accuracy

jcl.cache()  # what is compiled in the morning is read from the disk in the afternoon
FOLDER, SEEDS, STEPS = Path(tempfile.mkdtemp(prefix="jcl-day-")), 4, 40
tasks, held_out = data.hold_out(data.split(*data.digits(), tasks=5, view="domain"), 0.1)
streams = [data.from_scenario(tasks, batch=32, steps=STEPS, seed=seed) for seed in range(SEEDS)]
exam = evaluator(streams[0].test, accuracy())
judge = evaluator(data.pack(held_out.test), accuracy())

# %% One run, to look at: where it is, how large its gradients are, and its best state.
params = models.mlp.init(jax.random.key(0), [64, 100, 2])
optimizer = optax.inject_hyperparams(optax.adam)(optax.cosine_decay_schedule(1e-3, 5 * STEPS))
make = partial(jcl.make, apply=models.mlp.apply, loss=losses.cross_entropy(), tx=optimizer)
first = jcl.fit(
    make(methods.er(capacity=200, rows=32), gradient_norm=True),
    params,
    jax.random.key(1),
    streams[0],
    evaluate=judge,
    chunk=20,
    evaluate_every=20,
    keep="best",
    on_event=jcl.progress("one run"),
)
print(first)
norms = [round(line["gradient_norm"], 2) for line in first.history]
print(f"gradient norms: {norms}")
best = max(first.evaluations[-2:], key=lambda line: sum(line["scores"]))
print(f"the last stage ends in its state after step {best['step']}")

# %% Which anchor: strengths and seeds are members of one compiled function, held-out rows choose.
strengths = jnp.array([1.0, 100.0, 10_000.0])
points = len(strengths)
each = {"strength": jnp.repeat(strengths, SEEDS), "seed": jnp.tile(jnp.arange(SEEDS), points)}


def start(count: int) -> tuple[Any, jax.Array]:
    """Parameters and keys of as many members; a seed has the same in every sweep."""
    keys = [jax.random.split(jax.random.key(seed % SEEDS)) for seed in range(count)]
    drawn = [models.mlp.init(weights, [64, 100, 2]) for weights, _ in keys]
    return jax.tree.map(lambda *x: jnp.stack(x), *drawn), jnp.stack([run for _, run in keys])


anchors = jcl.replicate(lambda v: make(methods.ewc(strength=v["strength"])), each)
tried = jcl.fit(anchors, *start(points * SEEDS), data.members(streams * points), evaluate=judge)
assert tried.scores is not None
by_strength = tried.scores[:, -1].reshape(points, -1).mean(axis=1)
strength = float(strengths[by_strength.argmax()])
print(f"held-out rows choose strength {strength:g}: {by_strength.round(3)}")

# %% The question: three methods, the same seeds, scored on the test; each leaves a folder.
candidates = {
    "naive": methods.naive(),
    "ewc": methods.ewc(strength=strength),
    "er": methods.er(capacity=200, rows=32),
}


def over_seeds(method: jcl.Method) -> jcl.Program:
    """One program whose members differ in their seeds alone."""
    return jcl.replicate(lambda seed: make(method), jnp.arange(SEEDS))


for name, method in candidates.items():
    jcl.fit(
        over_seeds(method), *start(SEEDS), data.members(streams), evaluate=exam, out=FOLDER / name,
        on_event=jcl.progress(name),
    )  # fmt: skip

# %% The answer as a table: every score is a row.
scores = jcl.results.load(f"{FOLDER}/*")
last = scores[scores.row == scores.row.max()]
print(last.groupby(["method", "seed"]).score.mean().unstack().round(3))

# %% The answer for a paper: means, intervals, and paired tests over the seeds.
from jcl.cli import main  # noqa: E402

main(["compare", *(str(FOLDER / name) for name in candidates), "--baseline", "naive",
      "--latex", str(FOLDER / "table.tex"), "--out", str(FOLDER / "comparison.png")])  # fmt: skip

# %% The next morning: a state is in its folder still, and is asked something else.
state = jcl.load_state(FOLDER / "er", over_seeds(candidates["er"]), start(SEEDS)[0])
unsure = evaluator(streams[0].test, jcl.evaluation.nll())(over_seeds(candidates["er"]), state)
print(f"nats a row, by seed and task:\n{np.asarray(unsure).round(2)}")
