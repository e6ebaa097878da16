"""Learning-rate schedules by stage, as factors on the update.

A factor on the update equals a factor on the learning rate if the optimizer multiplies by the rate
last, as optax's sgd, adam, adamw (with its weight decay) and most others do. So give the optimizer
a constant rate, the highest one wanted, and chain the schedule after the methods whose updates it
should scale.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jcl import trees
from jcl.method import Ctx, Method, Params, check

Steps = int | jax.Array


def _scaled(name: str, factor: Callable[[Any, Ctx], jax.Array]) -> Method:
    def updates(state: Any, ctx: Ctx, tree: Params) -> Params:
        # a weakly typed factor would be rounded to the dtype of bfloat16 updates
        return trees.scale(jnp.asarray(factor(state, ctx), jnp.float32), tree)

    return Method(name, updates=updates)


def _progress(t: jax.Array, steps: Steps) -> jax.Array:
    """t / steps, clipped to [0, 1], float32 []; 1 from the first step on if `steps` is 0."""
    return jnp.where(t < steps, jnp.maximum(t, 0) / jnp.maximum(steps, 1), 1.0)


def _cosine(high: float | jax.Array, low: float | jax.Array, u: jax.Array) -> jax.Array:
    return low + 0.5 * (high - low) * (1 + jnp.cos(jnp.pi * u))


def rewarm(
    warmup: Steps, steps: Steps, initial: float = 0.0, peak: float = 1.0, final: float = 0.1
) -> Method:
    """Re-warming and re-decaying: the same warm-up and cosine decay in every stage.

    The factor rises linearly from `initial` to `peak` in `warmup` steps, then falls along a cosine
    to `final` at `steps`, where it stays: optax's `warmup_cosine_decay_schedule` of the stage's
    step. `warmup=0` only re-decays.

    Source: Ibrahim et al., arXiv 2403.08763: 1 % of warm-up, and a decay to a tenth of the peak.

    Args:
      warmup: for how many steps of a stage the factor rises; may be traced.
      steps: how many steps a stage has, at least `warmup`; may be traced.
      initial: the factor in a stage's first step; may be traced.
      peak: the factor after the warm-up; may be traced.
      final: the factor at the end; may be traced.

    Raises:
      ValueError: if an argument is out of range.
    """
    check(warmup >= 0, "warmup", warmup, "at least 0")
    check(steps >= warmup, "steps", steps, f"at least warmup, {warmup}")
    for name, value in (("initial", initial), ("peak", peak), ("final", final)):
        check(value >= 0, name, value, "at least 0")

    def factor(state: Any, ctx: Ctx) -> jax.Array:
        rising = initial + (peak - initial) * _progress(ctx.stage_step, warmup)
        falling = _cosine(peak, final, _progress(ctx.stage_step - warmup, steps - warmup))
        return jnp.where(ctx.stage_step < warmup, rising, falling)

    return _scaled("rewarm", factor)


def constant(value: float = 0.1, start: int = 1) -> Method:
    """A constant factor from stage `start` on, and 1 before: later stages without re-warming.

    Args:
      value: the factor; may be traced.
      start: the first stage in which it applies.

    Raises:
      ValueError: if an argument is out of range.
    """
    check(value >= 0, "value", value, "at least 0")
    check(start >= 0, "start", start, "at least 0")
    method = _scaled("constant", lambda state, ctx: jnp.where(ctx.stage < start, 1.0, value))
    return method._replace(starts=start)


class InfiniteState(NamedTuple):
    """The state of `infinite`."""

    branched: jax.Array
    """int32 []: the step at which annealing began; the highest int32 before `branch`."""


def infinite(
    warmup: Steps,
    cooldown: Steps,
    anneal: Steps,
    level: float = 0.55,
    final: float = 0.1,
    curve: Literal["cosine", "inverse_sqrt"] = "cosine",
) -> Method:
    """The infinite schedule: one warm-up and cool-down over all stages, then constant for ever.

    The factor rises linearly from 0 to 1 in `warmup` steps, falls to `level` in `cooldown` more,
    and stays; no stage re-warms. To get a model for use, `branch` a state off this trunk: its steps
    anneal exponentially to `final`, by level · (final / level)^(t / anneal), while the next stage
    goes on from the trunk.

    Source: Ibrahim et al., arXiv 2403.08763, on infinite schedules; the formulas are those of a
    port of the authors' code, with its timescale of 10 for the inverse square root.

    Args:
      warmup: how many steps the warm-up takes; may be traced.
      cooldown: how many steps the cool-down takes; may be traced.
      anneal: how many steps a branch takes from `level` to `final`; may be traced.
      level: the factor of the constant phase; may be traced.
      final: the factor at the end of a branch; may be traced.
      curve: the shape of the cool-down.

    Raises:
      ValueError: if an argument is out of range.
    """
    check(warmup >= 0, "warmup", warmup, "at least 0")
    check(cooldown >= 0, "cooldown", cooldown, "at least 0")
    check(anneal >= 1, "anneal", anneal, "at least 1")
    check(level > 0, "level", level, "above 0")
    check(final > 0, "final", final, "above 0")
    check(curve in ("cosine", "inverse_sqrt"), "curve", curve, "'cosine' or 'inverse_sqrt'")

    def init(ctx: Ctx, params: Params) -> tuple[Params, InfiniteState]:
        return params, InfiniteState(jnp.int32(jnp.iinfo(jnp.int32).max))

    def factor(state: InfiniteState, ctx: Ctx) -> jax.Array:
        u = _progress(ctx.step - warmup, cooldown)
        if curve == "cosine":
            cooled = _cosine(1.0, level, u)
        else:
            cooled = 1 + (level - 1) * (1 / jnp.sqrt(1 + 10 * u) - 1) / (1 / jnp.sqrt(11.0) - 1)
        trunk = jnp.where(ctx.step < warmup, _progress(ctx.step, warmup), cooled)
        return trunk * jnp.power(final / level, _progress(ctx.step - state.branched, anneal))

    return _scaled("infinite", factor)._replace(init=init)


def branch(state: Any) -> Any:
    """A `jcl.State` like the given one, with the annealing of `infinite` begun.

    The given state, the trunk, stays as it was, and the same compiled step serves both.

    Raises:
      ValueError: if `infinite` is not among the state's methods.
    """
    mine = [name for name, kept in state.methods.items() if isinstance(kept, InfiniteState)]
    check(bool(mine), "state.methods", sorted(state.methods), "one with 'infinite'")
    begun = {name: InfiniteState(jnp.array(state.step, copy=True)) for name in mine}
    return state._replace(methods={**state.methods, **begun})
