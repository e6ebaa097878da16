"""Riemannian walk: a quadratic anchor, weighted by a running Fisher and scores along the path."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jcl import trees
from jcl.mechanisms import importance, merging
from jcl.mechanisms.lasting import check_lasting
from jcl.mechanisms.quadratic import Quadratic
from jcl.method import Batch, Ctx, Info, Method, Params, check


class Walk(NamedTuple):
    """The part that changes with every interval; float32 but for `mark`."""

    fisher: Params
    """F, the running average over intervals, carried on through the stages."""
    path: Params
    """ω, the path integral of this interval."""
    mark: Params
    """The parameters with which this interval began, in their dtype."""
    gained: Params
    """The sum of the scores of this stage's intervals so far."""


class RwalkState(NamedTuple):
    """The state of `rwalk`."""

    walk: Walk
    """The present interval."""
    scores: Params
    """s, averaged over the finished stages, float32."""
    importance: Params
    """Ω as the last stage left it, float32."""
    anchor: Params
    """θ*, in the parameters' dtype."""


def _unit(tree: Params) -> Params:
    """A tree shifted and scaled so that all its leaves together span [0, 1]."""
    low = jax.tree.reduce(jnp.minimum, jax.tree.map(jnp.min, tree))
    high = jax.tree.reduce(jnp.maximum, jax.tree.map(jnp.max, tree))
    return jax.tree.map(lambda x: (x - low) / (high - low + 1e-32), tree)


def rwalk(
    strength: float = 2.0,
    interval: int = 10,
    mix: float = 0.9,
    path: float = 1.0,
    damping: float = 1e-3,
    labels: importance.Labels = "empirical",
    per: importance.Per = "token",
) -> Method:
    """RWalk: ½ λ Σ_i Ω_i (θ_i - θ*_i)² with Ω = unit(F) + unit(s), each scaled to [0, 1].

    Every `interval` steps: gained ← gained + relu(ω / (F Δ² + ξ)), then F ← (1-α) F + α F_now, with
    ω = Σ -g δθ over the interval's steps, Δ how far training took the parameters in it, g the
    gradient of the unpenalised loss and δθ the update that was applied. At the end of a stage
    s ← (s + gained) / 2; after the first, s is `gained`.

    F_now is the mean of squared per-example gradients at the end of an interval: over its last
    batch, or over the stage's data if the stage ends before the interval. The authors' code squares
    the mean gradient of every batch, so that its F depends on the batch size; ours costs no more,
    for it takes one batch an interval. With `path=0` and intervals longer than a stage, this is
    online EWC of decay 1-α, but for the scale of Ω.

    Source: Chaudhry et al., arXiv 1801.10112, whose λ is half of ours. As in the authors' code
    (facebookresearch/agem) the score has no ½ from the KL, scaling is over all parameters
    together and F is not reset at a boundary; unlike there, s is the paper's average (the code adds
    it to what it was) and steps after a stage's last full interval count.

    Args:
      strength: λ; may be traced. 2 is the paper's 1.
      interval: steps between updates of F and of the scores.
      mix: α in [0, 1], the weight of the newest Fisher; may be traced.
      path: weight of unit(s) in Ω; 0 leaves the paper's EWC++. May be traced.
      damping: ξ > 0; may be traced.
      labels: which labels the Fisher is of, see `importance.fisher`.
      per: what the Fisher's examples are in a language model, see `ewc`.

    Raises:
      ValueError: if an argument is out of range.
    """
    check(strength >= 0, "strength", strength, "at least 0")
    check(interval >= 1, "interval", interval, "at least 1")
    check((mix >= 0) & (mix <= 1), "mix", mix, "in [0, 1]")
    check(path >= 0, "path", path, "at least 0")
    check(damping > 0, "damping", damping, "above 0")
    importance.check_fisher(labels, per)

    def init(ctx: Ctx, params: Params) -> tuple[Params, RwalkState]:
        fisher, integral, gained, scores, omega = (trees.zeros(params) for _ in range(5))
        check_lasting("rwalk", ctx, params)
        walk = Walk(fisher, integral, trees.copy(params), gained)
        return params, RwalkState(walk, scores, omega, trees.copy(params))

    def begin(state: RwalkState, ctx: Ctx, params: Params) -> tuple[Params, RwalkState]:
        return params, state._replace(walk=state.walk._replace(mark=trees.copy(params)))

    def grads(state: RwalkState, ctx: Ctx, tree: Params) -> Params:
        return Quadratic(state.importance, state.anchor).pull(tree, strength, ctx.params)

    def close(walk: Walk, ctx: Ctx, reached: Params, params: Params, batches: Batch) -> Walk:
        """The walk after an interval in which training reached `reached`.

        A new one begins at `params`, where the Fisher is taken.
        """
        went = trees.subtract(trees.float32(reached), trees.float32(walk.mark))
        gained = jax.tree.map(
            lambda s, w, f, d: s + jax.nn.relu(w / (f * d**2 + damping)),
            walk.gained, walk.path, walk.fisher, went,
        )  # fmt: skip
        now = importance.fisher(ctx, params, batches, labels, per)
        fisher = merging.lerp(mix, walk.fisher, now)
        return Walk(fisher, trees.zeros(params), trees.copy(params), gained)

    def observe(state: RwalkState, ctx: Ctx, info: Info) -> RwalkState:
        def extend(w: jax.Array, g: jax.Array, u: jax.Array) -> jax.Array:
            return w - g.astype(jnp.float32) * u

        integral = jax.tree.map(extend, state.walk.path, info.task_grads, info.updates)
        batches = jax.tree.map(lambda x: x[None], info.batch)
        walk = lax.cond(
            (ctx.stage_step + 1) % interval == 0,
            lambda w: close(w, ctx, info.params, info.params, batches),
            lambda w: w,
            state.walk._replace(path=integral),
        )
        return state._replace(walk=walk)

    def consolidate(
        state: RwalkState, ctx: Ctx, params: Params, batches: Batch
    ) -> tuple[Params, RwalkState]:
        walk = lax.cond(
            ctx.stage_step % interval > 0,
            lambda w: close(w, ctx, ctx.reached, params, batches),
            lambda w: w,
            state.walk,
        )
        scores = merging.lerp(jnp.where(ctx.stage < 1, 1.0, 0.5), state.scores, walk.gained)
        omega = trees.axpy(path, _unit(scores), _unit(walk.fisher))
        none = trees.zeros(params)
        omega, scores = (trees.choose(ctx.renewed, none, x) for x in (omega, scores))
        walk = walk._replace(fisher=trees.choose(ctx.renewed, none, walk.fisher))
        # marked anew, for another method may have moved the parameters at this boundary
        walk = walk._replace(mark=trees.copy(params), gained=trees.zeros(params))
        return params, RwalkState(walk, scores, omega, trees.copy(params))

    def report(state: RwalkState, info: Info) -> dict[str, jax.Array]:
        return {"fisher": trees.norm(state.walk.fisher), "scores": trees.norm(state.scores)}

    return Method(
        "rwalk",
        init=init,
        begin=begin,
        grads=grads,
        observe=observe,
        consolidate=consolidate,
        report=report,
        reads=("parameters", "gradients"),
        starts=1,
    )
