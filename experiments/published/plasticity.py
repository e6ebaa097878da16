"""Loss of plasticity in slowly changing regression, after Dohare and colleagues.

An input has 20 bits and a constant; 15 of the bits are drawn anew every 10,000 examples, the others
for each example. The target is a network of 100 threshold units whose weights are +1 or -1 and
whose thresholds are .7 · 21 less the number of its -1s. A network of 5 ReLU units learns from one
example at a time, once each, by gradient descent at .01 on the squared error, from Kaiming's
uniform weights; a million examples, so a hundred settings of the slow bits. Backprop gets worse
with time, and it is the curves that the paper has, so a direction is all that is asked for here:
the squared error over the last tenth, in means over 100 networks and targets, as many as theirs.

Decay is 1e-2 for shrink and perturb, as in the authors' configuration, with noise of 1e-3 a step,
and the same pull for L2 Init; continual backprop renews 1e-4 of the mature units a step, its decay
.99 and maturity 100 as theirs; ReDo, which isn't in their experiment, renews units below a tenth of
the mean every 1,000 steps, by their answers to the last 200 examples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jcl
from jcl import losses, methods
from jcl.method import Method
from jcl.models import mlp
from jcl.runs.reproduce import Cell

SOURCE = (
    "Dohare et al., Loss of plasticity in deep continual learning, Nature 632 (2024), and "
    "arXiv 2306.13812, slowly-changing regression; shibhansh/loss-of-plasticity, "
    "lop/slowly_changing_regression with cfg/sgd"
)
BITS, SLOW, TARGETS, UNITS, BETA = 20, 15, 100, 5, 0.7
RATE = 0.02  # of ½ (y - z)², where theirs is .01 of (y - z)²
PULL = 5e-3  # with that rate what a decay of 1e-2 is with theirs

METHODS: dict[str, Callable[[], Method]] = {
    "backprop": methods.naive,
    "L2 Init": lambda: methods.l2sp(PULL),
    "shrink and perturb": lambda: methods.shrink_and_perturb(1 - RATE * PULL, 1e-3, at="step"),
    "continual backprop": lambda: methods.continual_backprop(1e-4, decay=0.99, maturity=100),
    "ReDo": lambda: methods.redo(0.1, every=1000, over=200),
}


def sign(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """+1 or -1, float32."""
    return 2.0 * jax.random.bernoulli(key, shape=shape) - 1.0


def target(key: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """A network of threshold units that `key` draws: bits [B, 20] to labels [B, 1]."""
    shapes = ((BITS, TARGETS), (TARGETS,), (TARGETS, 1), (1,))
    keys = jax.random.split(key, len(shapes))
    first, bias, second, last = (sign(k, s) for k, s in zip(keys, shapes, strict=True))
    minus = (BITS - jnp.sum(first, axis=0) + bias) / 2  # as their code counts them
    tau = BETA * (BITS + 1) - minus
    return lambda x: (x @ first + bias > tau).astype(jnp.float32) @ second + last


def start(key: jax.Array) -> Any:
    """The network that learns: no bias, weights uniform as Kaiming has them."""
    params = mlp.init(key, (BITS, UNITS, 1))
    bounds = {"dense_0": math.sqrt(6 / BITS), "dense_1": math.sqrt(3 / UNITS)}
    for draw, (name, bound) in zip(jax.random.split(key, 2), bounds.items(), strict=True):
        kernel = params[name]["kernel"]
        drawn = jax.random.uniform(draw, kernel.shape, minval=-bound, maxval=bound)
        params[name] = {"kernel": drawn, "bias": jnp.zeros(kernel.shape[1])}
    return params


def errors(method: Method, settings: int, examples: int, seeds: int) -> np.ndarray:
    """Mean squared error of each setting of the slow bits, [seeds, settings].

    Every row is drawn inside the compiled run, which so holds no data.
    """

    def fetch(key: jax.Array, label: Any, place: Any) -> Any:
        now = jax.random.fold_in(key, place["setting"])
        slow = jax.random.bernoulli(now, shape=(SLOW,))
        quick = jax.random.bernoulli(
            jax.random.fold_in(now, place["example"]), shape=(BITS - SLOW,)
        )
        x = jnp.concatenate([slow, quick]).astype(jnp.float32)[None]
        return {"x": x, "y": label(x), "task": jnp.zeros(1, jnp.int32)}

    program = jcl.make(method, mlp.apply, losses.squared_error, optax.sgd(RATE))
    setting, example = np.indices((settings, examples), np.int32)
    places = {"setting": jnp.asarray(setting), "example": jnp.asarray(example)}

    def one(seed: jax.Array) -> jax.Array:
        run, weights, teacher, bits = jax.random.split(jax.random.key(seed), 4)
        rows = partial(fetch, bits, target(teacher))
        _, aux = jcl.run(program, start(weights), run, places, fetch=rows)
        return 2 * aux["steps"]["loss"].mean(-1)

    return np.asarray(jax.jit(jax.vmap(one))(jnp.arange(seeds)))


def cell(name: str, tenth: int, below: str, settings: int, examples: int) -> Cell:
    """The error of a method in a tenth of the settings of the slow bits, counted from 1."""
    part = settings // 10

    def run(folder: Any) -> dict[int, float]:
        found = errors(METHODS[name](), settings, examples, 100)
        own = found[:, (tenth - 1) * part : tenth * part]
        return dict(enumerate(own.mean(-1).tolist()))

    return Cell(name if tenth == 10 else f"{name}, tenth {tenth} of 10", run, below=below)


def cells(settings: int, examples: int, names: tuple[str, ...]) -> tuple[Cell, ...]:
    """Backprop in its last tenth, and what stays below it."""
    others = [cell(name, 10, "backprop", settings, examples) for name in names]
    return (cell("backprop", 10, "", settings, examples), *others)


CELLS = (
    *cells(100, 10_000, tuple(name for name in METHODS if name != "backprop")),
    cell("backprop", 2, "backprop", 100, 10_000),
)
QUICK = cells(50, 1000, ("continual backprop",))
