"""jcl's side of the benchmark: the peers' stream, model and settings, as one compiled `jcl.run`.

The stream is a split of ten Gaussian classes into five tasks of two, float32 arrays in memory; a
run is one epoch over each task in a shuffled order, work at task ends included, evaluation and
compiling excluded (`compile_seconds` says what compiling took). Prints one JSON line like theirs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from functools import partial
from typing import Any

INPUTS, CLASSES, TASKS, MEMORY = 784, 10, 5, 500
METHODS = {
    "naive": "naive()",
    "ewc": "ewc(strength=100.)",
    "er": "er(capacity={memory}, rows={batch})",
    "lwf": "lwf(strength=1., temperature=2.)",
    "agem": "agem(capacity={memory}, rows={batch})",
    "si": "si(strength=0.1)",
    "der++": "derpp(capacity={memory}, rows={batch}, alpha=0.1, beta=0.5, draws=1)",
    "packnet": "packnet(stages={tasks}, prune=0.5)",
    "ema": "ema()",
}


def parse() -> argparse.Namespace:
    """Reads the command line, which is the peers'."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", default="naive", choices=[*METHODS, "insert", "products"])
    parser.add_argument("--batch", type=int)
    parser.add_argument("--steps", type=int, help="steps a task")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--hidden", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=1, help="so many runs in one function")
    parser.add_argument("--repeat", type=int, default=1)
    given = parser.parse_args()
    given.batch = given.batch or (10 if given.method == "insert" else 128)
    given.steps = given.steps or (
        2000 if given.method == "insert" else 200 if given.batch >= 64 else 800
    )
    return given


def pin(threads: int) -> None:
    """So many cores for this process; with several, a host device each, for `replicate`."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    os.environ["JAX_PLATFORMS"] = "cpu"


def insert(given: argparse.Namespace) -> dict[str, Any]:
    """Reservoir inserts, `batch` rows a call, in one scan."""
    import jax
    import jax.numpy as jnp

    from jcl import memory

    steps = given.steps
    x = jax.random.normal(jax.random.key(0), (steps * given.batch, INPUTS))
    rows = {
        "x": x.reshape(steps, given.batch, INPUTS),
        "y": jnp.zeros((steps, given.batch), jnp.int32),
        "weight": jnp.ones((steps, given.batch)),
        "task": jnp.zeros((steps, given.batch), jnp.int32),
    }

    def all_of_them(rows: Any, key: jax.Array) -> Any:
        def one(buffer: memory.Buffer, xs: Any) -> Any:
            key, batch = xs
            return memory.reservoir(buffer, key, batch), None

        start = memory.empty(jax.tree.map(lambda a: a[0], rows), MEMORY)
        return jax.lax.scan(one, start, (jax.random.split(key, steps), rows))[0]

    return timed(jax.jit(all_of_them), (rows, jax.random.key(1)), steps * given.batch, given)


def products(given: argparse.Namespace) -> dict[str, Any]:
    """The matrix products of a plain step and nothing else: what no library can exceed."""
    import jax
    import jax.numpy as jnp

    sizes = (INPUTS, given.hidden, given.hidden, CLASSES)
    keys = jax.random.split(jax.random.key(0), len(sizes))
    shapes = zip(keys, sizes[:-1], sizes[1:], strict=False)
    weights = [0.03 * jax.random.normal(k, (a, b)) for k, a, b in shapes]
    x = jax.random.normal(keys[-1], (given.batch, INPUTS))

    def step(w: Any, _: None) -> Any:
        h1 = x @ w[0]
        h2 = h1 @ w[1]
        d3 = h2 @ w[2]
        d2 = d3 @ w[2].T
        d1 = d2 @ w[1].T
        slopes = (x.T @ d1, h1.T @ d2, h2.T @ d3)
        return [a + 1e-9 * b for a, b in zip(w, slopes, strict=True)], jnp.float32(0)

    steps = TASKS * given.steps
    run = jax.jit(lambda w: jax.lax.scan(step, w, None, length=steps)[0])
    return timed(run, (weights,), steps * given.batch, given)


def train(given: argparse.Namespace) -> dict[str, Any]:
    """Five tasks under a method."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    import jcl
    from jcl import data, losses
    from jcl.measures.evaluation import accuracy, evaluator
    from jcl.models import mlp
    from jcl.runs import expression

    rng = np.random.default_rng(given.seed)
    means = rng.standard_normal((CLASSES, INPUTS), np.float32)

    def tasks(rows: int) -> list[dict[str, Any]]:
        y = [rng.integers(2 * t, 2 * t + 2, rows).astype(np.int32) for t in range(TASKS)]
        noise = [rng.standard_normal((rows, INPUTS), np.float32) for _ in y]
        return [{"x": n + 0.1 * means[c], "y": c} for n, c in zip(noise, y, strict=True)]

    learn, exam = tasks(given.steps * given.batch), tasks(400)
    streams = [
        data.from_arrays(learn, exam, given.batch, epochs=1, seed=s) for s in range(given.seeds)
    ]
    stream = streams[0]
    text = METHODS[given.method].format(memory=MEMORY, batch=given.batch, tasks=TASKS)
    program = jcl.make(
        expression.build(expression.parse(text)),
        mlp.apply,
        losses.cross_entropy(),
        optax.adam(1e-3),
    )
    sizes = (INPUTS, given.hidden, given.hidden, CLASSES)

    def one(program: Any, key: jax.Array, rows: Any, source: Any) -> Any:
        fetch = partial(stream.fetch, source)
        return jcl.run(program, mlp.init(key, sizes), key, rows, fetch=fetch)[0]

    source = jax.tree.map(jnp.asarray, stream.source)
    keys = jax.random.split(jax.random.key(given.seed), given.seeds)
    if given.seeds == 1:
        call = jax.jit(lambda k, r, s: one(program, k, r, s))
        arguments = (keys[0], data.stack(stream), source)
    else:
        many = jcl.replicate(lambda _: program, jnp.arange(given.seeds))
        call = jax.jit(lambda k, r, s: many.over_members(lambda p, a, b: one(p, a, b, s), k, r))
        rows = jax.tree.map(lambda *x: np.stack(x), *[data.stack(s) for s in streams])
        arguments = (keys, rows, source)
    line = timed(call, arguments, given.seeds * TASKS * given.steps * given.batch, given)
    last = line.pop("result")
    if given.seeds == 1:
        score = jax.jit(partial(evaluator(stream.test, accuracy()), program))(last)
        line["final_accuracy"] = round(float(jnp.mean(score)), 4)
    return line


def timed(call: Any, arguments: Any, rows: int, given: argparse.Namespace) -> dict[str, Any]:
    """Compiles, runs once to warm up, then times `repeat` runs; the median counts."""
    import jax

    start = time.perf_counter()
    compiled = call.lower(*arguments).compile()
    compile_seconds = time.perf_counter() - start
    result = jax.block_until_ready(compiled(*arguments))
    seconds, cpu = [], []
    for _ in range(given.repeat):
        start, cpu_start = time.perf_counter(), time.process_time()
        result = jax.block_until_ready(compiled(*arguments))
        seconds.append(time.perf_counter() - start)
        cpu.append(time.process_time() - cpu_start)
    median = statistics.median(seconds)
    return {
        "peer": "jcl", **vars(given),
        "examples_per_second": round(rows / median, 1), "seconds": round(median, 4),
        "seconds_all": [round(s, 4) for s in seconds],
        "cpu_seconds": round(statistics.median(cpu), 4),
        "compile_seconds": round(compile_seconds, 2), "result": result,
    }  # fmt: skip


def main() -> None:
    given = parse()
    pin(given.threads)
    if given.seeds > 1 and given.threads > 1:
        os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={given.threads}"
    line = {"insert": insert, "products": products}.get(given.method, train)(given)
    line.pop("result", None)
    print(json.dumps(line))


if __name__ == "__main__":
    main()
