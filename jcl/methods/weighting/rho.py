"""Rho-1 and RHO-LOSS: learn the tokens or rows whose loss exceeds a reference model's most."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jcl import losses, memory
from jcl.mechanisms import merging
from jcl.method import Apply, Batch, Ctx, LossFn, Method, Params, Reference, check

NOISE = 1e-5
"""Two forward passes of the same weights give losses that differ by less than this share."""


class RhoState(NamedTuple):
    """The state of `rho`."""

    reference: Any
    """A given model, as a `Reference`; () if it is the previous one, or the batch brings losses."""


def rho(
    share: float = 0.6,
    reference: Params | Literal["batch", "previous"] = "previous",
    unit: Literal["token", "row"] = "token",
) -> Method:
    """Selective language modelling: L = Σ ℓ_i over the share k of tokens with the highest excess.

    The excess is ℓ_θ(x_i) - ℓ_ref(x_i). It is high where the model is bad at what can be learned,
    and low for what it knows and for noise, at which the reference is bad too. Of a batch's n
    predicted tokens exactly n - round((1 - k) n) are learned, the earliest of equal ones, where
    equal is what differs by the rounding of a forward pass only; their mean is the loss.

    The choice is made over the whole batch before the step, with the rows that methods before this
    one replay, by setting `mask` (or, for rows, `weight`). So it means the same with any
    microbatches and any loss. It costs two forward passes, or one if the batch brings the
    reference's losses; a model that knows `targets` never holds logits for it.

    Source: Lin et al., arXiv 2404.07965, equations 3 to 5: ranked in a batch, k of 60 to 70 %; the
    reference is the base model after training on selected data. `unit="row"` is RHO-LOSS
    (Mindermann et al., arXiv 2206.07137), where the reference saw held-out rows.

    Args:
      share: k in (0, 1]; may be traced. 1 is plain training.
      reference: the reference's parameters, as a tree of those that are trainable here; or `batch`,
        if `batch["reference"]` float32 [B, L - 1] (for rows [B]) holds its losses; or `previous`,
        the model as the last stage left it. The first stage then learns all, so that
        `from_scratch() + rho()` on selected data, then on all data, is the paper's procedure.
      unit: whether a `token` or a `row` is chosen.

    Raises:
      ValueError: if an argument is out of range, or the batch has no `reference`.
    """
    check((share > 0) & (share <= 1), "share", share, "in (0, 1]")
    source = reference if isinstance(reference, str) else "given"
    known = source in ("given", "batch", "previous")
    check(known, "reference", reference, "parameters, 'batch' or 'previous'")
    check(unit in ("token", "row"), "unit", unit, "'token' or 'row'")

    def init(ctx: Ctx, params: Params) -> tuple[Params, RhoState]:
        return params, RhoState(ctx.freeze(reference) if source == "given" else ())

    def cost(model: Apply, loss: LossFn, params: Params, rows: Batch) -> jax.Array:
        """The loss of each predicted token, float32 [B, L - 1], or of each row, float32 [B]."""
        if unit == "row":
            return memory.row_losses(loss, params, rows)
        outputs = model(params, losses.with_targets(rows))
        if isinstance(outputs, losses.TokenScores):
            return outputs.nll[:, :-1]
        return losses.next_token_nll(outputs, rows["tokens"])

    def cost_of(ctx: Ctx, frozen: Reference, rows: Batch) -> jax.Array:
        def model(_: Params, rows: Batch) -> Any:
            return ctx.recall(frozen, rows)

        def loss(_: Params, rows: Batch) -> tuple[jax.Array, Any]:
            return losses.evaluate(ctx.objective, model, (), rows, ctx.stage)

        return cost(model, loss, (), rows)

    def batch(state: RhoState, ctx: Ctx, rows: Batch) -> Batch:
        if source == "batch":
            check("reference" in rows, "batch", sorted(rows), "one with 'reference' for rho")
            best = rows["reference"]
        else:
            known = source == "previous"
            best = cost_of(ctx, ctx.references["previous"] if known else state.reference, rows)
        excess = cost(ctx.apply, ctx.loss, ctx.params, rows) - best
        # a model that is its reference, as at the first step of a stage, exceeds it nowhere; how
        # its two passes were rounded, which differs from mesh to mesh, is nothing to choose by
        excess = jnp.where(jnp.abs(excess) > NOISE * jnp.maximum(best, 1), excess, 0)
        weight = rows["weight"] if unit == "row" else losses.token_weight(rows)
        there = weight > 0
        order = jnp.argsort(jnp.where(there, -excess, jnp.inf).reshape(-1))
        rank = jnp.zeros_like(order).at[order].set(jnp.arange(order.size))
        count = jnp.maximum(merging.count_of(share, jnp.sum(there)), 1)
        chosen = (rank < count).reshape(there.shape) | is_waiting(ctx)
        if unit == "row":
            return {**rows, "weight": jnp.where(chosen, weight, 0)}
        return {**rows, "mask": jnp.where(chosen, rows.get("mask", 1.0), 0.0)}

    def is_waiting(ctx: Ctx) -> jax.Array:
        return (ctx.stage < 1) & (source == "previous")

    def skips(state: RhoState, ctx: Ctx) -> jax.Array:
        return is_waiting(ctx) | (share == 1)

    method = Method("rho", init=init, batch=batch, skips=skips)
    if source == "previous":
        return method._replace(reads=("parameters",), recalls=("previous",), starts=1)
    return method
