"""A witness of what a chain shows its hooks, and runs that tell what it should have been shown."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jcl import losses, trees
from jcl.method import Ctx, Method, Objective, Params, Reference, defines
from jcl.program import Program, State, advance
from jcl.records import record


class Moment(NamedTuple):
    """A model and its loss at one moment, by what they give for some rows."""

    outputs: Any
    """Of the model, as in prediction."""
    loss: jax.Array
    """float32 []: the task's."""


class Seen(NamedTuple):
    """The state of the witness."""

    first: Moment
    """In `init`."""
    begun: Moment
    """In the last `begin`, for `params` and `states`."""
    params: Params
    """The parameters that learn, in the last `begin`."""
    states: dict[str, Any]
    """The other methods' states, then."""
    ended: Moment
    """In the last `consolidate`."""
    frozen: Reference
    """The model of `init`, frozen there."""
    recalled: Any
    """The answers of frozen models in the last `consolidate`, outputs with a leading axis: of the
    initial one, of the previous one and of `frozen`."""


def witness(rows: Any) -> Method:
    """The last of a chain, which keeps what its hooks are shown for `rows`, and changes nothing."""

    def shown(ctx: Ctx, params: Params) -> Moment:
        return Moment(ctx.apply(params, rows), ctx.loss(params, rows)[0])

    def init(ctx: Ctx, params: Params) -> tuple[Params, Seen]:
        first, frozen = shown(ctx, params), ctx.freeze(params)
        recalled = jax.tree.map(lambda x: jnp.zeros((3, *x.shape), x.dtype), first.outputs)
        mine, others = trees.copy((params, ctx.states))
        return params, Seen(first, first, mine, others, first, frozen, recalled)

    def begin(state: Seen, ctx: Ctx, params: Params) -> tuple[Params, Seen]:
        others = {k: v for k, v in ctx.states.items() if k != "witness"}
        return params, state._replace(begun=shown(ctx, params), params=params, states=others)

    def consolidate(state: Seen, ctx: Ctx, params: Params, batches: Any) -> tuple[Params, Seen]:
        asked = [ctx.references["initial"], ctx.references["previous"], state.frozen]
        all_asked = jax.tree.map(lambda *x: jnp.stack(x), *asked)  # so that one model is compiled
        recalled = lax.map(lambda one: ctx.recall(one, rows), all_asked)
        return params, state._replace(ended=shown(ctx, params), recalled=recalled)

    return Method(
        "witness", init=init, begin=begin, consolidate=consolidate,
        recalls=("initial", "previous"),
    )  # fmt: skip


@record
class Found(NamedTuple):
    """What a run of a chain with a witness gives."""

    params: Params
    """At the end."""
    first: Moment
    """Before training, by `predict` and the loss over it."""
    shown_first: Moment
    """What the witness was shown of it in `init`."""
    ended: Moment
    """After each boundary, by `predict` and the finished stage's loss; leaves [stages, ...]."""
    shown_ended: Moment
    """What the witness was shown of it in `consolidate`."""
    begun: Moment
    """At the start of each stage, by `predict` and the loss; leaves [stages, ...]. Where no method
    in the chain jumps, no `begin` runs, and this is what the witness has."""
    shown_begun: Moment
    """What the witness was shown of it in `begin`."""
    recalled: Any
    """The answers of the initial, the previous and its own frozen model at each boundary: outputs
    with leading axes [stages, 3]."""


def watch(
    program: Program, objective: Objective, params: Params, key: jax.Array, stream: Any, rows: Any
) -> Found:
    """A whole run, as `jcl.run` does it, and what the model is at each moment; to be jitted.

    Args:
      program: of a chain whose last method is `witness(rows)`.
      objective: the loss that was handed to `make`.
      params: where training starts.
      key: a typed PRNG key.
      stream: leaves [stages, steps, B, ...].
      rows: a batch with `task`.
    """
    jumps = defines(program.method, "begin")

    def stage(state: State, chunk: Any) -> Any:
        state, _ = advance(program, state, chunk)
        seen: Seen = state.methods["witness"]
        begun = state._replace(
            params=trees.merge(seen.params, state.params),
            methods={**seen.states, "witness": seen},
            stage_step=jnp.zeros_like(state.stage_step),
        )
        after = program.consolidate(state, chunk)
        ended: Seen = after.methods["witness"]
        # a finished stage's loss means the references that it had
        moments = [(after, state.references, state.stage)]
        if jumps:
            moments.append((begun, state.references, state.stage))
        return after, (moments, ended.ended, seen.begun, ended.recalled)

    def truth(moment: tuple[State, dict[str, Reference], jax.Array]) -> Moment:
        state, references, stage = moment

        def apply(params: Params, batch: Any) -> Any:
            return program.predict(state._replace(references=references), batch)

        loss = losses.evaluate(objective, apply, state.params, rows, stage)[0]
        return Moment(program.predict(state, rows), loss)

    state = program.init(params, jax.tree.map(lambda x: x[0, 0], stream), key)
    shown_first = state.methods["witness"].first
    start = jax.tree.map(lambda x: x[None], (state, state.references, state.stage))
    last, (moments, shown_ended, shown_begun, recalled) = lax.scan(stage, state, stream)
    every = jax.tree.map(lambda *x: jnp.concatenate(x), start, *moments)
    found = lax.map(truth, every)  # one model is compiled for all
    stages = len(stream["task"])

    def part(first: int, last: int) -> Moment:
        return jax.tree.map(lambda x: x[first:last], found)

    ended, begun = part(1, stages + 1), part(stages + 1, 2 * stages + 1)
    first = jax.tree.map(lambda x: x[0], found)
    begun = begun if jumps else shown_begun
    return Found(last.params, first, shown_first, ended, shown_ended, begun, shown_begun, recalled)
