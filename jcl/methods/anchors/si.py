"""Synaptic intelligence: a quadratic anchor, weighted by what each parameter did for the loss."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jcl import trees
from jcl.mechanisms.lasting import check_lasting
from jcl.mechanisms.quadratic import Quadratic
from jcl.method import Batch, Ctx, Info, Method, Params, check


class SiState(NamedTuple):
    """The state of `si`."""

    omega: Params
    """Ω, float32."""
    path: Params
    """ω, the path integral of this stage, float32."""
    start: Params
    """θ*, the parameters that the last stage left, in their dtype; where the next one starts."""
    jumped: Any
    """Where this stage started, if another method starts stages elsewhere; else ()."""


def si(strength: float = 2.0, damping: float = 1e-3) -> Method:
    """SI: ½ λ Σ_i Ω_i (θ_i - θ*_i)² with Ω ← Ω + relu(ω / (Δ² + ξ)) at the end of a stage.

    ω_i is the sum of -g_i δθ_i over the stage's steps, with g the gradient of the unpenalised loss
    and δθ the update that was applied; for small steps Σ_i ω_i is by how much the loss fell. Δ is
    how far training took the parameters in the stage, θ* what the boundary left.

    Source: Zenke et al., arXiv 1703.04200, equations 3 to 5, whose c is half of our λ. The relu
    of each stage's share is that of the code behind Chaudhry et al. (facebookresearch/agem); the
    authors' own takes it of the running sum, so that a stage can cancel an earlier one's.

    Args:
      strength: λ; may be traced. 2 is the paper's c = 1.
      damping: ξ > 0; may be traced.

    Raises:
      ValueError: if an argument is out of range.
    """
    check(strength >= 0, "strength", strength, "at least 0")
    check(damping > 0, "damping", damping, "above 0")

    def init(ctx: Ctx, params: Params) -> tuple[Params, SiState]:
        check_lasting("si", ctx, params)
        jumped = trees.copy(params) if ctx.jumps else ()
        return params, SiState(trees.zeros(params), trees.zeros(params), trees.copy(params), jumped)

    def begin(state: SiState, ctx: Ctx, params: Params) -> tuple[Params, SiState]:
        return params, state._replace(jumped=trees.copy(params))

    def grads(state: SiState, ctx: Ctx, tree: Params) -> Params:
        return Quadratic(state.omega, state.start).pull(tree, strength, ctx.params)

    def observe(state: SiState, ctx: Ctx, info: Info) -> SiState:
        def extend(path: jax.Array, g: jax.Array, u: jax.Array) -> jax.Array:
            return path - g.astype(jnp.float32) * u

        return state._replace(path=jax.tree.map(extend, state.path, info.task_grads, info.updates))

    def consolidate(
        state: SiState, ctx: Ctx, params: Params, batches: Batch
    ) -> tuple[Params, SiState]:
        start = state.jumped if ctx.jumps else state.start
        went = trees.subtract(trees.float32(ctx.reached), trees.float32(start))
        omega = jax.tree.map(
            lambda o, w, d: o + jax.nn.relu(w / (d**2 + damping)), state.omega, state.path, went
        )
        omega = trees.choose(ctx.renewed, trees.zeros(omega), omega)
        jumped = trees.copy(params) if ctx.jumps else ()
        return params, SiState(omega, trees.zeros(params), trees.copy(params), jumped)

    def report(state: SiState, info: Info) -> dict[str, jax.Array]:
        return {"omega": trees.norm(state.omega)}

    return Method(
        "si",
        init=init,
        begin=begin,
        grads=grads,
        observe=observe,
        consolidate=consolidate,
        report=report,
        reads=("parameters", "gradients"),
        starts=1,
    )
