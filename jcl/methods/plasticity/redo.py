"""ReDo: hidden units that hardly answer are renewed, so that they can learn again."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jcl import trees
from jcl.mechanisms import units
from jcl.method import Ctx, Info, Method, Params, check


class RedoState(NamedTuple):
    """The state of `redo`."""

    heard: dict[str, jax.Array]
    """float32 [units] by layer: the sum of their mean answers since the last look."""
    bounds: dict[str, jax.Array]
    """float32 [] by layer: within which new weights are drawn."""
    renewed: jax.Array
    """int32 []: how many units were renewed so far."""


def redo(threshold: float = 0.025, every: int = 1000, over: int = 1) -> Method:
    """ReDo: every so many steps, units with s ≤ τ get new weights in, and zeros out.

    s_i = E|h_i| / mean_k E|h_k| is how much unit i of a hidden layer answers beside the others,
    over the fresh rows of the last steps. New weights in are uniform with the spread that the
    layer's kernel had before training, and its bias is 0; as the weights out are 0, a unit that
    answered nothing leaves the model as it was. The model must be a chain of dense layers, such as
    a perceptron.

    Source: Sokar et al., arXiv 2302.12902, section 4, definition 3.1 and algorithm 1; the authors'
    `NeuronRecycler` (google/dopamine, labs/redo/weight_recyclers.py). There the optimizer's moments
    of the renewed weights are set to 0 too, where here they go on; with plain SGD there are none.

    Args:
      threshold: τ; may be traced. It is .1 for DQN's own Atari runs and .025 in most of the paper;
        0 renews only units that answer nothing.
      every: after how many steps units are looked at.
      over: of how many steps before that the answers count; 1 suits batches, for what a unit
        answers to a single row says little of it.

    Raises:
      ValueError: if an argument is out of range; at `init`, if the model is no chain of dense
        layers that all learn.
    """
    check(threshold >= 0, "threshold", threshold, "at least 0")
    check(every >= 1, "every", every, "at least 1")
    check((over >= 1) & (over <= every), "over", over, f"from 1 to every, {every}")

    def init(ctx: Ctx, params: Params) -> tuple[Params, RedoState]:
        layers = units.hidden_layers("redo", ctx, params)
        heard = {hidden.path: jnp.zeros(hidden.units) for hidden in layers}
        return params, RedoState(heard, units.bounds(layers, params), jnp.int32(0))

    def worn(state: RedoState, ctx: Ctx) -> dict[str, jax.Array]:
        """The units that are renewed in this step, bool [units]; in most steps none."""
        due = (ctx.step > 0) & (ctx.step % every == 0)
        return {path: due & (h <= threshold * jnp.mean(h)) for path, h in state.heard.items()}

    def updates(state: RedoState, ctx: Ctx, tree: Params) -> Params:
        layers = units.hidden_layers("redo", ctx, ctx.params)
        return units.renew(layers, worn(state, ctx), state.bounds, ctx.key, ctx.params, tree)

    def observe(state: RedoState, ctx: Ctx, info: Info) -> RedoState:
        layers = units.hidden_layers("redo", ctx, ctx.params)
        before = jax.tree.map(lambda h: jnp.where(ctx.step % every == 0, 0.0, h), state.heard)
        heard = lax.cond(
            ctx.step % every >= every - over,
            lambda sums: trees.add(sums, units.answers(layers, ctx, ctx.batch)),
            lambda sums: sums,
            before,
        )
        gone = worn(state, ctx).values()
        count = sum((jnp.sum(x, dtype=jnp.int32) for x in gone), jnp.int32(0))
        return RedoState(heard, state.bounds, state.renewed + count)

    def report(state: RedoState, info: Info) -> dict[str, jax.Array]:
        return {"renewed": state.renewed.astype(jnp.float32)}

    return Method("redo", init=init, updates=updates, observe=observe, report=report)
