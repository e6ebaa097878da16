"""What a step of each method costs over a plain one, past the first boundary, rounds interleaved.

    taskset -c 0 python experiments/benchmark/overhead.py --model mlp

One table a model: the median over rounds of a method's time over that of plain fine-tuning in the
same round, with the smallest and the largest, beside the bound: forward and backward passes
counted in plain steps. Then what a Fisher costs over a sweep of batch gradients on the same data,
and an evaluation over a sweep of forward passes.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import jcl
from jcl import evaluation, importance, losses, methods, trees
from jcl.models import decoder, mlp

STEPS = 20


def problem(name: str) -> tuple[Any, Any, Any, Any, int]:
    """Apply, loss, parameters, batches [STEPS, B, ...] and the batch size."""
    key = jax.random.key(0)
    if name == "mlp":
        x = jax.random.normal(key, (STEPS, 128, 784))
        batches = {"x": x, "y": jax.random.randint(key, x.shape[:2], 0, 10)}
        params = mlp.init(key, (784, 400, 400, 10))
        return mlp.apply, losses.cross_entropy(), params, batches, 128
    shape = decoder.Config(layers=2, heads=2, kv_heads=2)
    tokens = jax.random.randint(key, (STEPS, 16, 64), 0, 256)
    apply = decoder.apply_fn(shape)
    return apply, losses.next_token, decoder.init(key, shape), {"tokens": tokens}, 16


def passes(model: str) -> dict[str, Callable[[], Any]]:
    """Four compiled calls over the same data: two passes of jcl's, each before its bound."""
    apply, loss, params, batches, _ = problem(model)
    program = jcl.make(methods.naive(), apply, loss, optax.sgd(0.1))
    data = jax.vmap(jcl.program.fill_batch)(batches)
    state = program.init(params, jax.tree.map(lambda x: x[0], data), jax.random.key(0))
    score = evaluation.accuracy() if model == "mlp" else evaluation.token_nll()
    evaluate = jcl.evaluator(jax.tree.map(lambda x: x[None], data), score)

    def at_boundary(statistic: Callable[..., Any]) -> Callable[[], Any]:
        def consolidate(_: Any, ctx: jcl.Ctx, params: Any, batches: Any) -> Any:
            return params, statistic(ctx, params, batches)

        init = lambda ctx, params: (params, trees.zeros(params))  # noqa: E731
        method = jcl.Method("statistic", init=init, consolidate=consolidate)
        measured = jcl.make(method, apply, loss, optax.sgd(0.1))
        start = measured.init(params, jax.tree.map(lambda x: x[0], data), jax.random.key(0))
        call = jax.jit(lambda s, b: measured.consolidate(s, b).methods)
        return lambda: call(start, data)

    def gradients(ctx: jcl.Ctx, params: Any, batches: Any) -> Any:
        def add(total: Any, batch: Any) -> tuple[Any, None]:
            return trees.add(total, jax.grad(ctx.loss, has_aux=True)(params, batch)[0]), None

        return jax.lax.scan(add, trees.zeros(params), batches)[0]

    def forwards(state: Any) -> Any:
        return jax.lax.map(lambda b: jnp.sum(program.predict(state, b)[..., :1]), data)

    scored, forward = jax.jit(lambda s: evaluate(program, s)), jax.jit(forwards)
    return {
        "exact Fisher": at_boundary(importance.fisher),
        "a sweep of batch gradients": at_boundary(gradients),
        "evaluation": lambda: scored(state),
        "a sweep of forward passes": lambda: forward(state),
    }


def compare_passes(model: str, rounds: int) -> None:
    """Prints each pass's time over its bound's."""
    calls = passes(model)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            if i:
                seconds[name].append(time.perf_counter() - start)
    names = list(calls)
    for name, bound in zip(names[::2], names[1::2], strict=True):
        over = [a / b for a, b in zip(seconds[name], seconds[bound], strict=True)]
        spread = f"{statistics.median(over):.2f} ({min(over):.2f}–{max(over):.2f})"
        print(f"{name} over {bound}: {spread}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=["mlp", "decoder"], default="mlp")
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    apply, loss, params, batches, rows = problem(given.model)
    table: dict[str, tuple[jcl.Method, str]] = {
        "naive": (methods.naive(), "1"),
        "ewc": (methods.ewc(), "1"),
        "si": (methods.si(), "1"),
        "packnet": (methods.packnet(), "1"),
        "ema": (methods.ema(), "1"),
        "er": (methods.er(capacity=500, rows=rows), "2"),
        "lwf": (methods.lwf(), "1.33"),
        "agem": (methods.agem(capacity=500, rows=rows), "2"),
        "der": (methods.der(capacity=500, rows=rows), "2"),
    }
    runs, states = {}, {}
    for name, (method, _) in table.items():
        program = jcl.make(method, apply, loss, optax.adam(1e-3))
        example = jax.tree.map(lambda x: x[0], batches)
        state = jax.jit(program.init)(params, example, jax.random.key(1))
        moved = jax.jit(lambda s, b, p=program: jcl.advance(p, s, b)[0], donate_argnums=0)
        state = moved(state, batches)
        few = jax.tree.map(lambda x: x[:2], batches)
        runs[name], states[name] = moved, jax.jit(program.consolidate)(state, few)
    seconds: dict[str, list[float]] = {name: [] for name in table}
    for i in range(given.rounds + 1):
        for name, run in runs.items():
            jax.block_until_ready(states[name])
            start = time.perf_counter()
            states[name] = jax.block_until_ready(run(states[name], batches))
            if i:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    print(f"| {given.model} | ms a step | over naive | bound |\n|---|---|---|---|")
    for name, (_, bound) in table.items():
        over = [a / b for a, b in zip(seconds[name], seconds["naive"], strict=True)]
        spread = f"{statistics.median(over):.2f} ({min(over):.2f}–{max(over):.2f})"
        each = 1e3 * statistics.median(seconds[name]) / STEPS
        print(f"| {name} | {each:.2f} | {spread} | {bound} |")
    compare_passes(given.model, given.rounds)
    assert all(jnp.isfinite(jcl.trees.norm(s.params)) for s in states.values())


if __name__ == "__main__":
    main()
