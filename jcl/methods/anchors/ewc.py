"""Elastic weight consolidation: a quadratic anchor, weighted by each parameter's Fisher."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jcl import trees
from jcl.mechanisms import importance
from jcl.method import Batch, Ctx, Info, Method, Params, check, check_lasting


class EwcState(NamedTuple):
    """All past anchors as one quadratic, ½ θᵀFθ - θᵀ(Fθ*), however many stages there were."""

    fisher: Params
    """ΣF, float32."""
    anchored: Params
    """ΣFθ*, float32."""


def _method(name: str, strength: float, decay: float | None, labels: importance.Labels) -> Method:
    check(strength >= 0, "strength", strength, "at least 0")
    importance.check_labels(labels)

    def init(ctx: Ctx, params: Params) -> tuple[Params, EwcState]:
        check_lasting(name, ctx, params)
        return params, EwcState(trees.zeros(params), trees.zeros(params))

    def grads(state: EwcState, ctx: Ctx, tree: Params) -> Params:
        return importance.quadratic_pull(tree, strength, state.fisher, state.anchored, ctx.params)

    def consolidate(
        state: EwcState, ctx: Ctx, params: Params, batches: Batch
    ) -> tuple[Params, EwcState]:
        new = importance.fisher(ctx, params, batches, labels)
        theta = trees.float32(params)
        if decay is None:
            total = trees.add(state.fisher, new)
            anchored = jax.tree.map(lambda a, f, p: a + f * p, state.anchored, new, theta)
        else:
            total = trees.axpy(decay, state.fisher, new)
            anchored = jax.tree.map(jnp.multiply, total, theta)
        none = trees.zeros(params)
        total, anchored = (trees.choose(ctx.renewed, none, x) for x in (total, anchored))
        return params, EwcState(total, anchored)

    def report(state: EwcState, info: Info) -> dict[str, jax.Array]:
        return {"fisher": trees.norm(state.fisher)}

    return Method(
        name,
        init=init,
        grads=grads,
        consolidate=consolidate,
        report=report,
        reads=("parameters", "gradients"),
    )


def ewc(strength: float = 100.0, labels: importance.Labels = "empirical") -> Method:
    """EWC: ½ λ Σ_stages Σ_i F_i (θ_i - θ*_i)², its gradient added before the optimizer.

    F is the diagonal Fisher of a finished stage, θ* the parameters that it ended with.

    Source: Kirkpatrick et al., arXiv 1612.00796, equation 3, with one term for every past stage.

    Args:
      strength: λ; may be traced.
      labels: which labels the Fisher is of, see `importance.fisher`.

    Raises:
      ValueError: if an argument is out of range.
    """
    return _method("ewc", strength, None, labels)


def online_ewc(
    strength: float = 100.0, decay: float = 0.9, labels: importance.Labels = "empirical"
) -> Method:
    """Online EWC: ½ λ Σ_i F_i (θ_i - θ*_i)², F ← γF + F_stage, θ* where the last stage ended.

    Source: Schwarz et al., arXiv 1805.06370, section 4 and appendix C. Their text has the decay
    once more inside the penalty; as in van de Ven's code, that factor is left to λ.

    Args:
      strength: λ; may be traced.
      decay: γ in [0, 1]; may be traced.
      labels: which labels the Fisher is of, see `importance.fisher`.

    Raises:
      ValueError: if an argument is out of range.
    """
    check((decay >= 0) & (decay <= 1), "decay", decay, "in [0, 1]")
    return _method("online_ewc", strength, decay, labels)
