"""The laws of composition: what a method and one of each kind promise, whichever comes first."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jcl import methods
from jcl.chain import chain
from jcl.method import Method
from jcl.program import run
from jcl.testing.bench import STEPS, TASKS, Bench, Problem, program_of
from jcl.testing.laws import Broken, hold, same
from jcl.testing.witness import watch, witness
from jcl.trees import every_leaf


class Kind(NamedTuple):
    """A representative of methods that act in one way."""

    make: Callable[..., Method]
    arguments: Mapping[str, Any] = {}
    neutral: Mapping[str, Any] | None = None
    """Arguments at which it changes nothing; None if there are none."""


def kinds(problem: Problem) -> dict[str, Kind]:
    """A representative of each kind, for a problem."""
    whole = problem.trainable is every_leaf
    buffer = {"capacity": 12, "rows": 4}
    pair: dict[str, Any] = {"rank": 2}
    if "dense_0" in problem.params:
        pair["targets"] = r"dense_\d"
    found = {
        "adapter": Kind(methods.lora, pair),
        "bank of adapters": Kind(methods.inclora, {"stages": TASKS, **pair}),
        "writer": Kind(methods.wise_ft, {"alpha": 0.5}, {"alpha": 1.0}),
        "writer that jumps": Kind(methods.task_arithmetic),
        "quadratic reader": Kind(methods.ewc, {"strength": 10.0}, {"strength": 0.0}),
        "path reader": Kind(methods.si, {"strength": 10.0}, {"strength": 0.0}),
        "replay": Kind(methods.er, buffer, {"start": TASKS}),
        "replay with outputs": Kind(methods.der, buffer, {"alpha": 0.0}),
        "reference": Kind(methods.lwf, {}, {"strength": 0.0}),
        "mask": Kind(methods.mofo, {"fraction": 0.5}, {"fraction": 1.0}),
        "projection": Kind(methods.agem, buffer),
        "schedule": Kind(
            methods.rewarm, {"warmup": 2, "steps": STEPS}, {"warmup": 0, "final": 1.0}
        ),
    }
    if not whole:  # a frozen base, which adapters of its own let learn
        found.pop("adapter")
    return found


def _chained(parts: tuple[Method, ...], problem: Problem, stream: Any, optimizer: Any) -> Any:
    """The program of a chain; None where it is refused, by a sentence that must name both."""
    try:
        program = program_of(chain(*parts), problem, optimizer)
        example = jax.tree.map(lambda x: x[0, 0], stream)
        jax.eval_shape(program.init, problem.params, example, jax.random.key(3))
        return program
    except ValueError as refusal:
        names = [m.name for m in parts if m.name != "witness"]
        lacking = [name for name in names if name not in str(refusal)]
        hold(
            f"{' + '.join(names)} is refused by a sentence that names both", not lacking,
            f"{str(refusal)!r} doesn't name {' and '.join(lacking)}",
        )  # fmt: skip
        return None


def pair(bench: Bench, kind: Kind) -> Iterator[tuple[str, Callable[[], None]]]:
    """The laws of a method and one of a kind in both orders, each with its name."""
    mine, other = bench.make(), kind.make(**kind.arguments)
    for parts in ((mine, other), (other, mine)):
        name = " + ".join(m.name for m in parts)
        yield f"{name}: hooks see the model", lambda p=parts: _sees(bench, p)  # type: ignore[misc]
    if kind.neutral is not None:
        still = kind.make(**{**kind.arguments, **kind.neutral})
        for parts in ((mine, still), (still, mine)):
            name = " + ".join(m.name for m in parts)
            yield (
                f"{name} at {dict(kind.neutral)} is {mine.name}",
                lambda p=parts: _is_alone(bench, p, dict(kind.neutral or {})),  # type: ignore[misc]
            )


def _sees(bench: Bench, parts: tuple[Method, Method]) -> None:
    """Hooks see what `predict` and the loss give at that moment; a frozen model stays as it was."""
    name, stream = " + ".join(m.name for m in parts), bench.loop.rows
    rows = jax.tree.map(lambda x: x[:, 0, 0], stream)
    program = _chained((*parts, witness(rows)), bench.problem, stream, None)
    if program is None:
        return
    objective = bench.problem.loss
    whole = jax.jit(lambda p, key: watch(program, objective, p, key, stream, rows))
    try:
        found = whole(bench.problem.params, jax.random.key(3))
    except Exception as error:
        raise Broken(
            f"{name} runs: {type(error).__name__}: {str(error).splitlines()[0]}"
        ) from error
    loose = 10 * bench.tolerance
    for when, shown, true in (
        ("in init", found.shown_first, found.first),
        ("where a stage begins", found.shown_begun, found.begun),
        ("at a boundary", found.shown_ended, found.ended),
    ):
        same(f"{name}: what a hook's ctx.apply gives {when}", shown.outputs, true.outputs, loose)
        same(f"{name}: what a hook's ctx.loss gives {when}", shown.loss, true.loss, loose)

    def asked(which: int) -> Any:
        return jax.tree.map(lambda x: x[:, which], found.recalled)

    def left(first: jax.Array, ended: jax.Array) -> jax.Array:
        return jnp.concatenate([first[None], ended[:-1]])

    first = found.first.outputs
    always = jax.tree.map(lambda x: jnp.broadcast_to(x, (TASKS, *x.shape)), first)
    previous = jax.tree.map(left, first, found.ended.outputs)
    for law, answers, true in (
        ("what a frozen model answers later", asked(2), always),
        ("what the initial model answers later", asked(0), always),
        ("what the previous model answers", asked(1), previous),
    ):
        same(f"{name}: {law}", answers, true, loose)


def _is_alone(bench: Bench, parts: tuple[Method, Method], neutral: Mapping[str, Any]) -> None:
    """Beside one that changes nothing, a method does what it does alone."""
    stream, problem = bench.loop.rows, bench.problem
    program = _chained(parts, problem, stream, None)
    if program is None:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of replay that begins after the last stage
        whole = jax.jit(lambda p, k: run(program, p, k, stream))
        state, _ = whole(problem.params, jax.random.key(3))
    law = f"{' + '.join(m.name for m in parts)} at {neutral} is what it is alone"
    same(law, state.params, bench.states[-1].params, 10 * bench.tolerance)
