"""Continual backpropagation: the least useful hidden units are renewed, a few at a time."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jcl import trees
from jcl.mechanisms import units
from jcl.method import Ctx, Info, Method, Params, check


class ContinualBackpropState(NamedTuple):
    """The state of `continual_backprop`; each field by the layer's path."""

    utility: dict[str, jax.Array]
    """u, float32 [units]."""
    age: dict[str, jax.Array]
    """int32 [units]: for how many steps a unit has been what it is."""
    owed: dict[str, jax.Array]
    """float32 []: how many units are still to be renewed."""
    bounds: dict[str, jax.Array]
    """float32 []: within which new weights are drawn."""
    renewed: jax.Array
    """int32 []: how many units of all layers were renewed so far."""


def continual_backprop(
    replacement: float = 1e-4, decay: float = 0.99, maturity: int = 100
) -> Method:
    """Continual backpropagation: ρ of a layer's mature units are renewed a step, the least useful.

    A unit's utility is u ← ηu + (1 - η) E|h| Σ_k |w_k|, with h its answers to the step's fresh rows
    and w_k its weights out. A unit is mature after more than m steps. In every step ρ times the
    number of a layer's mature units is added to what the layer owes, and while that is 1 or more
    the mature unit of the lowest utility is renewed, one a step: new weights in, uniform with the
    spread that the layer's kernel had before training, no bias, and weights out of 0; its utility
    and age begin anew. The model must be a chain of dense layers, such as a perceptron.

    Source: Dohare et al., Loss of plasticity in deep continual learning, Nature 632 (2024),
    equation 1 and algorithm 1, and the authors' `GnT` (shibhansh/loss-of-plasticity,
    lop/algos/gnt.py). There a step's own answers count before its unit is chosen, here from the
    next step on. Their code adds a renewed unit's mean answer to the next layer's bias, corrects u
    for its beginning at 0, knows other utilities, and sets Adam's moments of the renewed weights to
    0, all of which the paper's algorithm or this one leaves out.

    Args:
      replacement: ρ in [0, 1]; may be traced.
      decay: η in [0, 1); may be traced.
      maturity: m; may be traced.

    Raises:
      ValueError: if an argument is out of range; at `init`, if the model is no chain of dense
        layers that all learn.
    """
    check((replacement >= 0) & (replacement <= 1), "replacement", replacement, "in [0, 1]")
    check((decay >= 0) & (decay < 1), "decay", decay, "in [0, 1)")
    check(maturity >= 0, "maturity", maturity, "at least 0")

    def init(ctx: Ctx, params: Params) -> tuple[Params, ContinualBackpropState]:
        layers = units.hidden_layers("continual_backprop", ctx, params)
        state = ContinualBackpropState(
            {hidden.path: jnp.zeros(hidden.units) for hidden in layers},
            {hidden.path: jnp.zeros(hidden.units, jnp.int32) for hidden in layers},
            {hidden.path: jnp.float32(0) for hidden in layers},
            units.bounds(layers, params),
            jnp.int32(0),
        )
        return params, state

    def owed(state: ContinualBackpropState) -> dict[str, jax.Array]:
        """What each layer owes in this step, float32 []."""
        return {
            path: state.owed[path] + replacement * jnp.sum(age > maturity)
            for path, age in state.age.items()
        }

    def worn(state: ContinualBackpropState) -> dict[str, jax.Array]:
        """The unit of each layer that is renewed in this step, bool [units]; often none."""
        found = {}
        for path, debt in owed(state).items():
            mature = state.age[path] > maturity
            least = jnp.argmin(jnp.where(mature, state.utility[path], jnp.inf))
            found[path] = (jnp.arange(len(mature)) == least) & mature & (debt >= 1)
        return found

    def updates(state: ContinualBackpropState, ctx: Ctx, tree: Params) -> Params:
        layers = units.hidden_layers("continual_backprop", ctx, ctx.params)
        return units.renew(layers, worn(state), state.bounds, ctx.key, ctx.params, tree)

    def observe(state: ContinualBackpropState, ctx: Ctx, info: Info) -> ContinualBackpropState:
        layers = units.hidden_layers("continual_backprop", ctx, ctx.params)
        heard, kernels = units.answers(layers, ctx, ctx.batch), trees.by_path(ctx.params)
        gone, debts = worn(state), owed(state)
        utility, age, left = {}, {}, {}
        for hidden in layers:
            out = jnp.sum(jnp.abs(kernels[f"{hidden.reader}/kernel"].astype(jnp.float32)), axis=1)
            new = decay * state.utility[hidden.path] + (1 - decay) * heard[hidden.path] * out
            path, leaves = hidden.path, gone[hidden.path]
            utility[path] = jnp.where(leaves, 0.0, new)
            age[path] = jnp.where(leaves, 0, state.age[path] + 1)
            left[path] = debts[path] - jnp.any(leaves)
        count = sum((jnp.sum(x, dtype=jnp.int32) for x in gone.values()), jnp.int32(0))
        return ContinualBackpropState(utility, age, left, state.bounds, state.renewed + count)

    def report(state: ContinualBackpropState, info: Info) -> dict[str, jax.Array]:
        return {"renewed": state.renewed.astype(jnp.float32)}

    return Method("continual_backprop", init=init, updates=updates, observe=observe, report=report)
