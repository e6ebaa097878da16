"""A small problem on which a method is tried, and its compiled work, done once for all laws."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jcl import losses
from jcl.method import Method
from jcl.models import mlp
from jcl.program import Program, State, make
from jcl.trees import Trainable, every_leaf

TASKS, STEPS, ROWS, FEATURES, HIDDEN, CLASSES = 3, 5, 8, 16, 32, 8


class Problem(NamedTuple):
    """What learns."""

    apply: Callable[..., Any]
    params: Any
    trainable: Trainable = every_leaf
    loss: Any = losses.cross_entropy()
    collections: Any = ()
    """What the model keeps beside its parameters, by name."""


def perceptron() -> Problem:
    """A multilayer perceptron, all of whose leaves learn."""
    params = mlp.init(jax.random.key(1), [FEATURES, HIDDEN, HIDDEN, CLASSES])
    return Problem(mlp.apply, params)


@cache
def stream() -> dict[str, jax.Array]:
    """Leaves [TASKS, STEPS, ROWS, ...]: a linear teacher a task, over shifted inputs.

    `tokens` are what a decoder reads of them, half of each an answer that is preferred to another.
    """
    keys = jax.random.split(jax.random.key(7), 3)
    shape = (TASKS, STEPS, ROWS, FEATURES)
    shift = jax.random.normal(keys[0], (TASKS, 1, 1, FEATURES))
    x = jax.random.normal(keys[1], shape) + shift
    teacher = jax.random.normal(keys[2], (TASKS, FEATURES, CLASSES))
    y = jnp.argmax(jnp.einsum("tsbi,tio->tsbo", x, teacher), axis=-1)
    task = jnp.broadcast_to(jnp.arange(TASKS)[:, None, None], y.shape)
    tokens = jnp.clip(jnp.round(2 * x[..., :6]) + CLASSES // 2, 0, CLASSES - 1).astype(jnp.int32)
    batch = {"x": x, "y": y, "task": task, "weight": jnp.ones(y.shape), "tokens": tokens}
    answer = jnp.broadcast_to(jnp.arange(5) >= 2, (*y.shape, 5)).astype(jnp.float32)
    batch |= {"segments": jnp.ones_like(tokens), "answer": answer}
    batch |= {"rejected_segments": batch["segments"], "rejected_answer": answer}
    return batch | {"rejected_tokens": tokens.at[..., 3:].set(tokens[..., :3])}


def adam() -> optax.GradientTransformation:
    """Adam divides by |g| + eps: with the usual 1e-8 the rounding of a zero gradient is a step."""
    return optax.adam(1e-2, eps=1e-3)


def exact() -> optax.GradientTransformation:
    """Products by powers of two are exact: sums have the same bits however they are fused."""
    return optax.sgd(2**-6, momentum=0.5)


def program_of(
    method: Method,
    problem: Problem,
    optimizer: optax.GradientTransformation | None = None,
    **options: Any,
) -> Program:
    """The program that trains a problem with a method, by default with `adam`."""
    options["trainable"] = problem.trainable
    return make(method, problem.apply, problem.loss, optimizer or adam(), **options)


class Loop:
    """The Python loop that a user would write: jitted `step` and `consolidate`, traces counted."""

    def __init__(
        self,
        program: Program,
        params: Any,
        shardings: Any = None,
        rows: Mapping[str, jax.Array] | None = None,
        collections: Any = (),
    ) -> None:
        """Jits a program's functions; `rows` are the stream's."""
        self.params, self.collections = params, collections
        # on the host, where cutting a batch out of them compiles nothing
        self.rows: Mapping[str, Any] = jax.tree.map(np.asarray, stream() if rows is None else rows)
        self.traces = {"step": 0, "consolidate": 0}
        out: dict[str, Any] = {} if shardings is None else {"out_shardings": shardings}
        both: dict[str, Any] = {} if shardings is None else {"out_shardings": (shardings, None)}
        self.init = jax.jit(program.init, **out)
        self.step = jax.jit(self._counted("step", program.step), **both)
        self.consolidate = jax.jit(self._counted("consolidate", program.consolidate), **out)

    def _counted(self, name: str, fn: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any) -> Any:
            self.traces[name] += 1
            return fn(*args)

        return counted

    def batch(self, task: int, step: int) -> Any:
        """The rows of a step."""
        return jax.tree.map(lambda x: x[task, step], self.rows)

    def steps(self, state: State, task: int) -> tuple[State, list[Any]]:
        """A stage's steps, and what they report."""
        reports = []
        for i in range(STEPS):
            state, aux = self.step(state, self.batch(task, i))
            reports.append(aux)
        return state, reports

    def boundary(self, state: State, task: int) -> State:
        """The state after a stage."""
        return self.consolidate(state, jax.tree.map(lambda x: x[task], self.rows))

    def stages(self, key: jax.Array | None = None) -> tuple[list[State], list[Any]]:
        """The first state and that after each stage, and what all steps report."""
        key = jax.random.key(3) if key is None else key
        states, reports = [self.init(self.params, self.batch(0, 0), key, self.collections)], []
        for task in range(TASKS):
            state, new = self.steps(states[-1], task)
            states.append(self.boundary(state, task))
            reports += new
        return states, reports


class Bench:
    """A method's compiled work on a problem, done once."""

    def __init__(
        self, make: Callable[..., Method], problem: Problem, tolerance: float = 1e-5
    ) -> None:
        """Sets up a method.

        Args:
          make: `**changes -> method`, its arguments changed.
          problem: what learns.
          tolerance: of parameters, between programs that differ in rounding only.
        """
        self.make, self.problem, self.tolerance = make, problem, tolerance
        self.program = program_of(make(), problem)
        # said where they are, as a restored state is, so that both run the same compiled step
        self.loop = self.loop_of(self.program, jax.device_put(problem.params, jax.devices()[0]))

    def loop_of(self, program: Program, params: Any = None, shardings: Any = None) -> Loop:
        """The loop of another program of the same problem, from its parameters or from others."""
        params = self.problem.params if params is None else params
        return Loop(program, params, shardings, collections=self.problem.collections)

    @cached_property
    def stages(self) -> tuple[list[State], list[Any]]:
        """What `Loop.stages` gives."""
        return self.loop.stages()

    @property
    def states(self) -> list[State]:
        """The first state and that after each stage."""
        return self.stages[0]
