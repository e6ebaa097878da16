"""ReDo: hidden units that hardly answer are renewed, so that they can learn again."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jcl.mechanisms import units
from jcl.method import Ctx, Info, Method, Params, check


class RedoState(NamedTuple):
    """The state of `redo`."""

    bounds: dict[str, jax.Array]
    """float32 [] by layer: within which new weights are drawn."""
    renewed: jax.Array
    """int32 []: how many units were renewed so far."""


def redo(threshold: float = 0.025, every: int = 1000) -> Method:
    """ReDo: every so many steps, units with s ≤ τ get new weights in, and zeros out.

    s_i = E|h_i| / mean_k E|h_k| is how much unit i of a hidden layer answers beside the others,
    over the step's fresh rows. New weights in are uniform with the spread that the layer's kernel
    had before training, and its bias is 0; as the weights out are 0, a unit that answered nothing
    leaves the model as it was. The model must be a chain of dense layers, such as a perceptron.

    Source: Sokar et al., arXiv 2302.12902, section 4, definition 3.1 and algorithm 1; the authors'
    `NeuronRecycler` (google/dopamine, labs/redo/weight_recyclers.py). There the optimizer's moments
    of the renewed weights are set to 0 too, where here they go on; with plain SGD there are none.

    Args:
      threshold: τ; may be traced. It is .1 for DQN's own Atari runs and .025 in most of the paper;
        0 renews only units that answer nothing.
      every: after how many steps units are looked at.

    Raises:
      ValueError: if an argument is out of range; at `init`, if the model is no chain of dense
        layers that all learn.
    """
    check(threshold >= 0, "threshold", threshold, "at least 0")
    check(every >= 1, "every", every, "at least 1")

    def init(ctx: Ctx, params: Params) -> tuple[Params, RedoState]:
        layers = units.hidden_layers("redo", ctx, params)
        return params, RedoState(units.bounds(layers, params), jnp.int32(0))

    def due(ctx: Ctx) -> jax.Array:
        return (ctx.step > 0) & (ctx.step % every == 0)

    def worn(ctx: Ctx, layers: tuple[units.Hidden, ...]) -> dict[str, jax.Array]:
        found = units.answers(layers, ctx, ctx.batch)
        return {path: h <= threshold * jnp.mean(h) for path, h in found.items()}

    def updates(state: RedoState, ctx: Ctx, tree: Params) -> Params:
        layers = units.hidden_layers("redo", ctx, ctx.params)

        def renewed(tree: Params) -> Params:
            return units.renew(layers, worn(ctx, layers), state.bounds, ctx.key, ctx.params, tree)

        return lax.cond(due(ctx), renewed, lambda tree: tree, tree)

    def observe(state: RedoState, ctx: Ctx, info: Info) -> RedoState:
        def counted(_: None) -> jax.Array:
            found = worn(ctx, units.hidden_layers("redo", ctx, ctx.params))
            return sum((jnp.sum(x, dtype=jnp.int32) for x in found.values()), jnp.int32(0))

        more = lax.cond(due(ctx), counted, lambda _: jnp.int32(0), None)
        return state._replace(renewed=state.renewed + more)

    def report(state: RedoState, info: Info) -> dict[str, jax.Array]:
        return {"renewed": state.renewed.astype(jnp.float32)}

    return Method("redo", init=init, updates=updates, observe=observe, report=report)
