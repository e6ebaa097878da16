"""Elastic weight consolidation: a quadratic anchor, weighted by each parameter's Fisher."""

from __future__ import annotations

from typing import NamedTuple

import jax

from jcl import trees
from jcl.mechanisms import importance
from jcl.mechanisms.lasting import check_lasting
from jcl.mechanisms.quadratic import Quadratic, no_anchor
from jcl.method import Batch, Ctx, Info, Method, Params, check


class EwcState(NamedTuple):
    """The state of `ewc` and `online_ewc`."""

    past: Quadratic
    """All past anchors as one quadratic, however many stages there were."""

    @property
    def fisher(self) -> Params:
        """ΣF, float32."""
        return self.past.curvature


def _method(
    name: str,
    strength: float,
    decay: float | None,
    labels: importance.Labels,
    per: importance.Per,
) -> Method:
    check(strength >= 0, "strength", strength, "at least 0")
    importance.check_fisher(labels, per)

    def init(ctx: Ctx, params: Params) -> tuple[Params, EwcState]:
        check_lasting(name, ctx, params)
        single = Quadratic(trees.zeros(params), trees.copy(params))
        return params, EwcState(no_anchor(params) if decay is None else single)

    def grads(state: EwcState, ctx: Ctx, tree: Params) -> Params:
        return state.past.pull(tree, strength, ctx.params)

    def consolidate(
        state: EwcState, ctx: Ctx, params: Params, batches: Batch
    ) -> tuple[Params, EwcState]:
        new = importance.fisher(ctx, params, batches, labels, per)
        if decay is None:
            past = state.past.add(new, params)
        else:
            total = trees.axpy(decay, state.past.curvature, new)
            past = Quadratic(total, trees.copy(params))
        return params, EwcState(past.without(ctx.renewed))

    def report(state: EwcState, info: Info) -> dict[str, jax.Array]:
        return {"fisher": trees.norm(state.fisher)}

    return Method(
        name,
        init=init,
        grads=grads,
        consolidate=consolidate,
        report=report,
        reads=("parameters", "gradients"),
        starts=1,
    )


def ewc(
    strength: float = 100.0, labels: importance.Labels = "empirical", per: importance.Per = "token"
) -> Method:
    """EWC: ½ λ Σ_stages Σ_i F_i (θ_i - θ*_i)², its gradient added before the optimizer.

    F is the diagonal Fisher of a finished stage, θ* the parameters that it ended with.

    Source: Kirkpatrick et al., arXiv 1612.00796, equation 3, with one term for every past stage.

    Args:
      strength: λ; may be traced.
      labels: which labels the Fisher is of, see `importance.fisher`.
      per: what the Fisher's examples are in a language model, `token`, `sequence` or `row`; with
        `token` λ means the same for any length and packing, see `importance.fisher`.

    Raises:
      ValueError: if an argument is out of range.
    """
    return _method("ewc", strength, None, labels, per)


def online_ewc(
    strength: float = 100.0,
    decay: float = 0.9,
    labels: importance.Labels = "empirical",
    per: importance.Per = "token",
) -> Method:
    """Online EWC: ½ λ Σ_i F_i (θ_i - θ*_i)², F ← γF + F_stage, θ* where the last stage ended.

    Source: Schwarz et al., arXiv 1805.06370, section 4 and appendix C. Their text has the decay
    once more inside the penalty; as in van de Ven's code, that factor is left to λ.

    Args:
      strength: λ; may be traced.
      decay: γ in [0, 1]; may be traced.
      labels: which labels the Fisher is of, see `importance.fisher`.
      per: what the Fisher's examples are in a language model, see `ewc`.

    Raises:
      ValueError: if an argument is out of range.
    """
    check((decay >= 0) & (decay <= 1), "decay", decay, "in [0, 1]")
    return _method("online_ewc", strength, decay, labels, per)
