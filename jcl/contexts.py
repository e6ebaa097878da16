"""Contexts: what hooks may read of a moment, with the model and the loss as they are then."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh

from jcl import losses, trees
from jcl.method import (
    REFERENCES,
    Apply,
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
    defines,
)
from jcl.records import record

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

        def base(params: Params, rows: Batch, call: Call | Tap = Call()) -> Any:
            return model(trees.merge(params, frozen), rows, as_call(call))

        phase_call = Call()
        if phase == STEP:
            phase_call = Call(key=jax.random.fold_in(key, 0), training=True)

        def moment(
            params: Params,
            states: dict[str, Any],
            finished: tuple[str, ...] = (),
            stage: jax.Array = state.stage,
            stage_step: jax.Array = state.stage_step,
        ) -> Ctx:
            def freeze(params: Params) -> Reference:
                kept = {name: states[name] for name in wrappers if name in states}
                _check_flat(kept)
                ended = bool(finished) and all(name in finished for name in kept)
                then = (stage + 1, jnp.zeros_like(stage_step)) if ended else (stage, stage_step)
                return Reference(*trees.copy((params, kept, *then)))

            # before there are any, a hook of `init` is shown the model of the moment
            known = state.references or {
                name: Reference(params, states, stage, stage_step) for name in self.method.recalls
            }

            def recall(reference: Reference, rows: Batch) -> Any:
                there = (reference.stage, reference.stage_step)
                then = moment(reference.params, reference.states, (), *there)
                return lax.stop_gradient(then.apply(reference.params, rows))

            ctx = Ctx(
                params=params, frozen=frozen, stage=stage, stage_step=stage_step, step=state.step,
                key=key, batch=batch, apply=base, loss=lambda *_: (jnp.float32(0), None),
                objective=self.objective, states=states, references=known, call=phase_call,
                freeze=freeze, recall=recall, anew=moment, finished=finished,
                reached=learning if phase in (BOUNDARY, BEGINNING) else None,
                axis_name=self.axis_name, mesh=self.mesh, structure=self.structure,
            )  # fmt: skip
            forward = self.method.forward(states, ctx, base)

            def apply(params: Params, rows: Batch, call: Call | Tap = Call()) -> Any:
                return forward(params, rows, as_call(call))

            def task_loss(params: Params, rows: Batch, call: Call | Tap = phase_call) -> Any:
                def called(params: Params, rows: Batch) -> Any:
                    return apply(params, rows, call)

                rows = {**rows, "stage": jnp.full_like(rows["task"], stage)}
                return losses.evaluate(self.objective, called, params, rows)

            return ctx._replace(apply=apply, loss=task_loss)

        return moment(learning, state.methods)


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
