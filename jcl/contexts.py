"""Contexts: what hooks may read of a moment, with the model and the loss as they are then."""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.extend
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh

from jcl import losses, trees
from jcl.method import (
    REFERENCES,
    Apply,
    Aux,
    Batch,
    Call,
    Ctx,
    Method,
    Objective,
    Params,
    Reference,
    Structure,
    Tap,
    as_call,
    check,
    defines,
)
from jcl.records import record

Boundary = Literal["keep", "reset", "reset_moments"]
Settling = Literal["recompute", "keep", "average"]

START, STEP, BOUNDARY, PREDICTION, BEGINNING = range(5)
"""The phases of a program, which make its draws differ."""


@record
class State(NamedTuple):
    """All that changes in a run. It is the one pytree that is checkpointed."""

    params: Params
    """The whole tree, trainable and frozen leaves."""
    optimizer: optax.OptState
    """The optimizer's state."""
    methods: dict[str, Any]
    """Each method's state, by its name."""
    stage: jax.Array
    """int32 []: how many stages are finished, which is the index of the stage in progress."""
    stage_step: jax.Array
    """int32 []: how many steps are taken in this stage."""
    step: jax.Array
    """int32 []: how many steps are taken in all."""
    key: jax.Array
    """A typed PRNG key, constant through the run; draws fold in `step`."""
    references: dict[str, Reference]
    """The frozen models that methods recall, by their names in `REFERENCES`."""
    collections: Any = ()
    """What the model keeps beside its parameters, by name; () if it keeps nothing."""


@record
class Scene(NamedTuple):
    """What stays through a run, of what contexts are made from."""

    method: Method
    """The chain."""
    objective: Objective
    """The loss object that was handed to `make`."""
    structure: Structure
    """The model's own word about itself."""
    axis_name: str | None
    """The axis of replicas, if any."""
    mesh: Mesh | None
    """The mesh, if any."""
    settling: Settling = "recompute"
    """What becomes of what the model keeps beside parameters that a method has moved."""

    def settle(self, name: str, left: Ctx, batches: Batch, averaged: Any) -> Any:
        """What the model keeps after the method `name` has moved the parameters at a boundary.

        Args:
          name: the writer's.
          left: the context that it left.
          batches: the finished stage's, leaves [n, B, ...].
          averaged: what it averaged as it did the parameters, None if it can't.

        Raises:
          ValueError: if that is asked for, and it can't.
        """
        if self.settling == "average":
            able = averaged is not None
            check(able, "collections", "average", f"'recompute' or 'keep' with {name}")
            return averaged
        return left.collections if self.settling == "keep" else recompute(left, batches)

    def context(
        self,
        state: State,
        halves: tuple[Params, Params],
        batch: Batch,
        phase: int,
        model: Apply,
    ) -> Ctx:
        """What a hook may read in a phase; the one place where contexts are made.

        Args:
          state: the `jcl.State` of the moment.
          halves: its parameters that learn, and the others.
          batch: fresh rows.
          phase: one of those above.
          model: `(whole parameters, batch, call) -> outputs`.
        """
        learning, frozen = halves
        key = jax.random.fold_in(jax.random.fold_in(state.key, phase), state.step)
        wrappers = [m.name for m in self.method.parts if defines(m, "forward")]

        phase_call = Call()
        if phase == STEP:
            phase_call = Call(key=jax.random.fold_in(key, 0), training=True)

        def moment(
            params: Params,
            states: dict[str, Any],
            finished: tuple[str, ...] = (),
            stage: jax.Array = state.stage,
            stage_step: jax.Array = state.stage_step,
            collections: Any = state.collections,
        ) -> Ctx:
            kept = _Kept(collections)

            def base(params: Params, rows: Batch, call: Call | Tap = Call()) -> Any:
                whole = trees.merge(params, frozen)
                return kept.call(self.structure, model, whole, rows, as_call(call))

            def freeze(params: Params) -> Reference:
                shaping = {name: states[name] for name in wrappers if name in states}
                _check_flat(shaping)
                ended = bool(finished) and all(name in finished for name in shaping)
                then = (stage + 1, jnp.zeros_like(stage_step)) if ended else (stage, stage_step)
                return Reference(*trees.copy((params, shaping, *then, collections)))

            # before there are any, a hook of `init` is shown the model of the moment
            known = state.references or {
                name: Reference(params, states, stage, stage_step, collections)
                for name in self.method.recalls
            }

            def recall(reference: Reference, rows: Batch) -> Any:
                there = (reference.stage, reference.stage_step, reference.collections)
                then = moment(reference.params, reference.states, (), *there)
                return lax.stop_gradient(then.apply(reference.params, rows))

            ctx = Ctx(
                params=params, frozen=frozen, stage=stage, stage_step=stage_step, step=state.step,
                key=key, batch=batch, apply=base, loss=lambda *_: (jnp.float32(0), Aux(None)),
                objective=self.objective, states=states, references=known, call=phase_call,
                freeze=freeze, recall=recall, anew=moment, finished=finished,
                reached=learning if phase in (BOUNDARY, BEGINNING) else None,
                axis_name=self.axis_name, mesh=self.mesh, structure=self.structure,
                collections=collections, settle=self.settle,
            )  # fmt: skip
            forward = self.method.forward(states, ctx, base)

            def apply(params: Params, rows: Batch, call: Call | Tap = Call()) -> Any:
                return forward(params, rows, as_call(call))

            def task_loss(params: Params, rows: Batch, call: Call | Tap = phase_call) -> Any:
                def called(params: Params, rows: Batch) -> Any:
                    return apply(params, rows, call)

                with kept.noting() as left:
                    value, outputs = losses.evaluate(self.objective, called, params, rows, stage)
                return value, Aux(outputs, left[-1])

            return ctx._replace(apply=apply, loss=task_loss)

        return moment(learning, state.methods)


def with_call(apply: Apply) -> Apply:
    """A model that takes a `Call`, which is a tap too; one that takes neither visits no sites."""
    if {"call", "tap"} & set(inspect.signature(apply).parameters):
        return apply
    return lambda params, batch, call: apply(params, batch)


class _Kept:
    """What a model keeps beside its parameters, through the calls of one loss.

    Such a model gives its new collections beside its outputs, but objectives and hooks know of
    outputs alone. So a call in training notes them here, and the loss that is computed takes them
    out. It is the one thing in a trace that isn't pure, and lives no longer than the loss.
    """

    def __init__(self, now: Any) -> None:
        """`now` is what the model keeps at the moment, a dict of trees; () if it keeps nothing."""
        self.now = now
        self.losses: list[tuple[list[Any], Any]] = []

    @contextlib.contextmanager
    def noting(self) -> Iterator[list[Any]]:
        """What was kept at first and after each call in training, while a loss is computed."""
        left = [self.now]
        self.losses.append((left, _trace()))
        try:
            yield left
        finally:
            self.losses.pop()

    def call(
        self, structure: Structure, model: Apply, params: Params, rows: Batch, call: Call
    ) -> Any:
        """The outputs of a model that declares collections, or of one that has none.

        Raises:
          ValueError: if the model gives other things than it declares; or if it is called in
            training within a loss, but inside of a transformation that what it keeps can't leave.
        """
        names = structure.collections
        if not names:
            return model(params, rows, call)
        if call.collections is None:
            call = call._replace(collections=self.losses[-1][0][-1] if self.losses else self.now)
        found = model(params, rows, call)
        if not call.training:
            return found
        two = isinstance(found, tuple) and len(found) == 2
        if not (two and trees.kinds(found[1]) == trees.kinds(call.collections)):
            raise ValueError(
                f"the model returned {type(found).__name__} in training, but must return its "
                f"outputs and its collections {list(names)}, with the leaves that it was given"
            )
        if self.losses:
            left, trace = self.losses[-1]
            if trace != _trace():
                raise ValueError(
                    f"the loss calls a model that keeps {list(names)} inside a transformation "
                    "such as scan, vmap or grad, but must call it directly"
                )
            left.append(found[1])
        return found[0]


def _trace() -> Any:
    return jax.extend.core.get_opaque_trace_state(convention="jcl")


def _check_flat(states: dict[str, Any]) -> None:
    """Refuses to freeze states that hold a frozen model, which would grow with every freeze.

    Raises:
      ValueError: if one of `states`, of methods that wrap the model, holds a `Reference`.
    """
    for name, state in states.items():
        held = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, Reference))
        if any(isinstance(x, Reference) for x in held):
            raise ValueError(
                f"{name} wraps the model and keeps a Reference in its state; it must ask for one "
                f"by recalls, which is one of {REFERENCES}"
            )


def check_arguments(
    method: Any, apply: Any, loss: Any, tx: Any, boundary: str, collections: str
) -> None:
    """Refuses what `make` can't work with.

    Raises:
      ValueError: in one sentence that names the argument.
    """
    if not isinstance(method, Method):
        raise ValueError(f"method is {method!r}, but must be a jcl.Method such as methods.ewc(...)")
    named = getattr(tx, "__name__", type(tx).__name__)
    ready = hasattr(tx, "init") and hasattr(tx, "update")
    check(ready, "tx", named, "an optax transformation such as optax.adam(1e-3), called already")
    check(callable(apply), "apply", type(apply).__name__, "(params, batch) -> outputs")
    check(callable(loss), "loss", type(loss).__name__, "(apply, params, batch) -> scalar")
    known = boundary in get_args(Boundary)
    check(known, "boundary", boundary, "'keep', 'reset' or 'reset_moments'")
    known = collections in get_args(Settling)
    check(known, "collections", collections, "'recompute', 'keep' or 'average'")


def descend(tx: Any, grads: Params, state: Any, params: Params, value: jax.Array) -> Any:
    """The optimizer's update and its next state; one that asks for the loss gets it as `value`.

    Raises:
      ValueError: if it asks for more, such as the function to call again in a line search.
    """
    try:
        return tx.update(grads, state, params, value=value)
    except TypeError as error:
        asked = re.findall(r"'(\w+)'", str(error))
        if "missing" not in str(error) or not asked:
            raise
        raise ValueError(
            f"tx asks for {', '.join(asked)}, as a line search does, but must be an optimizer that "
            "takes one gradient a step, with at most the loss as value"
        ) from error


def check_start(
    params: Params, learns: trees.Trainable, given: Any, method: Method, said: Structure
) -> None:
    """Refuses parameters that can't learn, and collections that nobody declares or can't be kept.

    Raises:
      ValueError: in one sentence, also if Flax's collections are among the parameters.
    """
    for path, leaf in trees.by_path(params).items():
        kind = jnp.result_type(leaf)
        if learns(path) and not jnp.issubdtype(kind, jnp.inexact):
            raise ValueError(
                f"params at {path!r} is {kind}, but what learns must be floating: cast it, or "
                "leave it out by make(trainable=...)"
            )
    names = list(given) if isinstance(given, Mapping) else []
    wanted = list(said.collections)
    check(sorted(names) == sorted(wanted), "collections", names,
          f"{wanted}, those that the model declares in its structure")  # fmt: skip
    mixed = isinstance(params, Mapping) and "batch_stats" in params
    check(not mixed, "params", sorted(params) if mixed else "", "parameters alone; batch_stats are "
          "given as collections, and the model declares them in its structure")  # fmt: skip
    for part in method.parts:
        promise = f"none for {part.name}, which promises that finished stages never change"
        check(not (part.fixes and names), "the model's collections", names, promise)


_LARGE = 2.0**20  # so that m is exact to rounding, whatever s is


def recompute(ctx: Ctx, batches: Batch) -> Any:
    """What the model keeps beside its parameters, as its own training calls would on some batches.

    Writers move parameters at a boundary, and running averages of activations that other weights
    made don't fit them (Izmailov et al., arXiv 1803.05407, section 3.2, recompute those of a batch
    norm in one more pass). Here a floating leaf is taken for a moving average: a call in training
    makes m·c + (1 - m)·s of it, with 0 ≤ m < 1, where s is what the call measured and depends on c
    no further. Two calls, from c = 0 and from a large c, give m and s, and the mean of s over
    the batches, by their weight, takes its place. Any other leaf stays as it is.

    Args:
      ctx: the model that was left, and what it keeps.
      batches: leaves [n, B, ...].
    """
    now, key = ctx.collections, jax.random.fold_in(ctx.key, 1)

    def start(value: float) -> Any:
        floating = lambda c: jnp.issubdtype(c.dtype, jnp.floating)  # noqa: E731
        return jax.tree.map(lambda c: jnp.full_like(c, value) if floating(c) else c, now)

    def measured(batch: Batch) -> tuple[jax.Array, Any, Any]:
        def called(value: float) -> Any:
            call = Call(key=key, training=True, collections=start(value))
            return ctx.loss(ctx.params, batch, call)[1].collections

        low, high = called(0.0), called(_LARGE)
        kept = jax.tree.map(
            lambda a, b: (b.astype(jnp.float32) - a.astype(jnp.float32)) / _LARGE, low, high
        )
        return losses.total_weight(batch), low, kept

    weight, low, kept = lax.map(measured, batches)
    share = weight / jnp.where(jnp.sum(weight) == 0, 1.0, jnp.sum(weight))

    def settle(c: jax.Array, low: jax.Array, m: jax.Array) -> jax.Array:
        if not jnp.issubdtype(c.dtype, jnp.floating):
            return c
        moving = jnp.all((m >= 0) & (m < 1), axis=0) & (jnp.sum(weight) > 0)
        own = low.astype(jnp.float32) / jnp.where(m < 1, 1 - m, 1.0)
        return jnp.where(moving, jnp.tensordot(share, own, 1), c).astype(c.dtype)

    return jax.tree.map(settle, now, low, kept)
