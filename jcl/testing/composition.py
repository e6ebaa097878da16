"""The laws of composition: what a method and one of each kind promise, whichever comes first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jcl import methods
from jcl.chain import chain
from jcl.method import Ctx, Method, Params, Reference
from jcl.program import Program, State, run
from jcl.testing.bench import STEPS, TASKS, Bench, Problem, program_of
from jcl.testing.laws import Broken, hold, same
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


class Seen(NamedTuple):
    """What the witness was shown at the last boundary."""

    outputs: Any
    """Of `ctx.apply`."""
    loss: jax.Array
    """Of `ctx.loss`."""
    frozen: Reference
    """The model of `init`."""
    recalled: Any
    """Its outputs at the last boundary."""


def witness(rows: Any) -> Method:
    """The last of a chain, which keeps what a hook is shown for `rows`, and changes nothing."""

    def init(ctx: Ctx, params: Params) -> tuple[Params, Seen]:
        frozen = ctx.freeze(params)
        outputs = ctx.apply(params, rows)
        return params, Seen(outputs, jnp.float32(0), frozen, ctx.recall(frozen, rows))

    def consolidate(state: Seen, ctx: Ctx, params: Params, batches: Any) -> tuple[Params, Seen]:
        outputs, loss = ctx.apply(params, rows), ctx.loss(params, rows)[0]
        return params, Seen(outputs, loss, state.frozen, ctx.recall(state.frozen, rows))

    return Method("witness", init=init, consolidate=consolidate)


class _Ends(NamedTuple):
    """What is compared, of one compiled run."""

    state: State
    first: Any
    """What the first model predicts."""
    outputs: Any
    loss: jax.Array


def _watched(program: Program, problem: Problem, stream: Any, rows: Any) -> _Ends:
    """A whole run of a chain with a witness, and what its model says at both ends."""

    def whole(params: Any, key: jax.Array) -> _Ends:
        example = jax.tree.map(lambda x: x[0, 0], stream)
        first = program.predict(program.init(params, example, key), rows)
        state, _ = run(program, params, key, stream)
        outputs = program.predict(state, rows)

        def says(params: Any, batch: Any, tap: Any = None) -> Any:
            return outputs

        loss = problem.loss(says, state.params, rows)
        return _Ends(state, first, outputs, loss[0] if isinstance(loss, tuple) else loss)

    return jax.jit(whole)(problem.params, jax.random.key(3))


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
    """At a boundary a later hook sees what `predict` gives, and a frozen model stays as it was."""
    name, stream = " + ".join(m.name for m in parts), bench.loop.rows
    rows = jax.tree.map(lambda x: x[:, 0, 0], stream)
    program = _chained((*parts, witness(rows)), bench.problem, stream, None)
    if program is None:
        return
    try:
        ends = _watched(program, bench.problem, stream, rows)
    except Exception as error:
        raise Broken(
            f"{name} runs: {type(error).__name__}: {str(error).splitlines()[0]}"
        ) from error
    seen: Seen = ends.state.methods["witness"]
    loose = 10 * bench.tolerance
    same(f"{name}: what a hook's ctx.apply gives at a boundary", seen.outputs, ends.outputs, loose)
    same(f"{name}: what a hook's ctx.loss gives at a boundary", seen.loss, ends.loss, loose)
    same(
        f"{name}: what a frozen model answers after {TASKS} stages",
        seen.recalled,
        ends.first,
        loose,
    )


def _is_alone(bench: Bench, parts: tuple[Method, Method], neutral: Mapping[str, Any]) -> None:
    """Beside one that changes nothing, a method does what it does alone."""
    stream, problem = bench.loop.rows, bench.problem
    program = _chained(parts, problem, stream, None)
    if program is None:
        return
    state, _ = jax.jit(lambda p, k: run(program, p, k, stream))(problem.params, jax.random.key(3))
    law = f"{' + '.join(m.name for m in parts)} at {neutral} is what it is alone"
    same(law, state.params, bench.states[-1].params, 10 * bench.tolerance)
