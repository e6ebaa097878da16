"""MNIST with its pixels moved in each task, and each row seen once, for the protocols on it.

The networks and their training are those of GEM's code (facebookresearch/GradientEpisodicMemory at
its last commit: `main.py`, `model/common.py`) and of A-GEM's, which took over its protocol: plain
gradient descent, batches of ten, weights uniform as Xavier has them, no biases at the start.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jcl
from jcl import data, losses
from jcl.method import Method
from jcl.models import mlp

BATCH = 10


def start(key: jax.Array, sizes: tuple[int, ...]) -> Any:
    """A perceptron with Xavier's uniform weights and no biases."""
    params = mlp.init(key, sizes)
    for draw, layer in zip(jax.random.split(key, len(params)), params.values(), strict=True):
        shape = layer["kernel"].shape
        bound = (6 / sum(shape)) ** 0.5
        layer["kernel"] = jax.random.uniform(draw, shape, minval=-bound, maxval=bound)
        layer["bias"] = jnp.zeros(shape[1])
    return params


def permutations(pixels: int, tasks: int, seeds: int) -> dict[str, np.ndarray]:
    """Tables of tasks that permute all pixels, each seed's its own, see `scores`."""
    rng = np.random.default_rng(29)
    source = [rng.permutation(pixels) for _ in range(seeds * tasks)]
    return {"source": np.stack(source).astype(np.int32)[..., None]}


def rotations(pixels: int, tasks: int, seeds: int) -> dict[str, np.ndarray]:
    """Tables of rotations, task t's drawn from its part of 0 to 180 degrees, see `scores`.

    A pixel is the nearest of the turned image, as Pillow's `rotate` takes it (which differs in 1 of
    2,000 pixels), or 0 outside of it.
    """
    rng = np.random.default_rng(31)
    angles = (np.arange(seeds * tasks) % tasks + rng.random(seeds * tasks)) * 180 / tasks
    pairs = [data.rotation(round(pixels**0.5), angle) for angle in angles]
    source, share = (np.stack(part) for part in zip(*pairs, strict=True))
    best = share.argmax(-1)[..., None]
    inside = (share > 0).any(-1, keepdims=True)
    return {
        "source": np.take_along_axis(source, best, -1),
        "weight": np.asarray(inside, np.float32),
    }


def scores(
    method: Method,
    rate: float,
    folder: Path,
    tables: Callable[[int, int, int], dict[str, np.ndarray]],
    *,
    images: Callable[[], Any] = data.mnist,
    hidden: tuple[int, ...] = (100, 100),
    tasks: int = 20,
    rows: int = 1000,
    seeds: int = 5,
) -> np.ndarray:
    """The accuracy on each task's whole test before any training and after each task, in [0, 1].

    Seeds are members of one compiled function, each with tasks and rows of its own.

    Args:
      method: what is added to plain descent.
      rate: of the descent.
      folder: where checkpoints are left, from which an interrupted run goes on.
      tables: `(pixels, tasks, seeds) -> {"source": int32 [seeds · tasks, pixels, K]}`, from which
        pixel a pixel comes, with `weight` of the same shape if it isn't 1.
      images: gives the training rows and the test.
      hidden: widths of the hidden layers.
      tasks: how many tasks there are.
      rows: how many training rows of a task come, once each.
      seeds: how many seeds there are.

    Returns:
      float64 [seeds, tasks + 1, tasks].
    """
    train, test = images()
    pixels, count = train["x"].shape[1], len(train["y"])
    moved = tables(pixels, tasks, seeds)
    few = {key: value[:1] for key, value in test.items()}  # the evaluation below moves the weights
    whole = data.permuted(train, few, tasks=seeds * tasks)._replace(tables=moved)
    names = tuple(f"task {t}" for t in range(tasks))

    def stream(seed: int) -> data.Stream:
        rng = np.random.default_rng((23, seed))
        chosen = [(seed * tasks + t) * count + rng.permutation(count)[:rows] for t in range(tasks)]
        own = whole._replace(
            names=names, tasks=tuple(range(tasks)), tests=names, test=whole.test[:tasks],
            stages=tuple(x.astype(np.int32) for x in chosen),
        )  # fmt: skip
        return data.from_scenario(own, BATCH, epochs=1, seed=seed)

    x, y = jnp.asarray(test["x"]), jnp.asarray(test["y"])
    own = {key: jnp.asarray(t).reshape(seeds, tasks, pixels, -1) for key, t in moved.items()}

    def evaluate(program: jcl.Program, state: Any) -> jax.Array:
        def member(program: jcl.Program, state: Any) -> jax.Array:
            def share(table: Any) -> jax.Array:
                # moving the rows of the first kernel back is moving the pixels of all images
                first = state.params["dense_0"]
                spread = jnp.repeat(first["kernel"][:, None], table["source"].shape[1], axis=1)
                if "weight" in table:
                    spread = spread * table["weight"][..., None]
                kernel = jnp.zeros_like(first["kernel"]).at[table["source"]].add(spread)
                params = {**state.params, "dense_0": {**first, "kernel": kernel}}
                guess = jnp.argmax(mlp.apply(params, {"x": x}), axis=-1)
                return jnp.mean((guess == y).astype(jnp.float32))

            return jax.lax.map(share, jax.tree.map(lambda t: t[program.member], own))

        return program.over_members(member, state)

    def build(seed: Any) -> jcl.Program:
        return jcl.make(method, mlp.apply, losses.cross_entropy(), optax.sgd(rate))

    keys = [jax.random.split(jax.random.key(seed)) for seed in range(seeds)]
    sizes = (pixels, *hidden, 10)
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[start(k[0], sizes) for k in keys])
    result = jcl.fit(
        jcl.replicate(build, jnp.arange(seeds)), params, jnp.stack([k[1] for k in keys]),
        data.members([stream(seed) for seed in range(seeds)]), evaluate=evaluate,
        out=folder / "run", resume=True, checkpoint_every=10_000,
    )  # fmt: skip
    assert result.scores is not None
    return np.asarray(result.scores, np.float64)
