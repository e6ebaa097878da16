"""Dark experience replay: rows are replayed with the outputs that the model once had for them."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jcl import losses, memory
from jcl.method import Aux, Batch, Call, Ctx, Info, LossFn, Method, Params, check
from jcl.outputs import with_head


class DerState(NamedTuple):
    """The state of `der`."""

    buffer: memory.Buffer
    """The memory. Its rows also have `outputs`, and `indices` if only the largest are stored."""


def _method(
    name: str,
    capacity: int,
    rows: int,
    alpha: float,
    beta: float,
    draws: int,
    start: int,
    top_k: int | None,
    policy: str,
    groups: int | None,
) -> Method:
    check(rows >= 1, "rows", rows, "at least 1")
    check(alpha >= 0, "alpha", alpha, "at least 0")
    check(beta >= 0, "beta", beta, "at least 0")
    check(draws in (1, 2), "draws", draws, "1 or 2")
    check(start >= 0, "start", start, "at least 0")
    check(top_k is None or top_k >= 1, "top_k", top_k, "None or at least 1")
    check(policy != "herding", "policy", policy, "one that stores rows while it trains")
    keep = memory.policy(policy, capacity, groups)
    match = f"{name}/match"  # a column: 1 + the slot whose outputs a row has to match, 0 for none

    def answers(outputs: Any) -> Batch:
        if top_k is None:
            return {"outputs": outputs.values}
        values, indices = losses.largest(outputs, top_k)
        return {"outputs": values, "indices": indices}

    def init(ctx: Ctx, params: Params) -> tuple[Params, DerState]:
        outputs = jax.eval_shape(ctx.loss, params, ctx.batch)[1].outputs
        values = getattr(outputs, "values", None)
        one = isinstance(outputs, losses.TokenScores) or hasattr(values, "shape")
        check(one, "loss's outputs", type(values).__name__, f"one array for {name}")
        whole = not isinstance(outputs, losses.TokenScores)
        wanted = f"a number for {name} on TokenScores, whose logits are too many to store"
        check(whole or top_k is not None, "top_k", top_k, wanted)
        stored = jax.eval_shape(lambda p, b: answers(ctx.loss(p, b)[1].outputs), params, ctx.batch)
        return params, DerState(keep.empty({**ctx.batch, **stored}))

    def replay(state: DerState, ctx: Ctx) -> tuple[jax.Array, jax.Array]:
        """Whether rows are replayed now, bool [], and the factor of a batch's weights."""
        some = (memory.count_filled(state.buffer) > 0) & (ctx.stage >= start)
        return some, jnp.where(some, 1.0 + alpha + beta, 1.0)

    def batch(state: DerState, ctx: Ctx, fresh: Batch) -> Batch:
        some, _ = replay(state, ctx)
        mass = losses.total_weight(fresh)
        both = {**fresh, match: jnp.zeros(fresh["weight"].shape, jnp.int32)}
        shares = (alpha + beta,) if draws == 1 else (alpha, beta)
        for i, share in enumerate(shares):
            slots = memory.draw(state.buffer, jax.random.fold_in(ctx.key, i), rows)
            old = memory.take(state.buffer, slots)
            total = losses.total_weight(old)
            # the drawn rows together weigh `share` times as much as the fresh rows
            grow = jnp.where(some, share * mass / jnp.where(total == 0, 1.0, total), 0.0)
            old["weight"] = old["weight"] * grow
            if i == 0:
                old[match] = slots + 1
            both = memory.append(both, old)
        return both

    def loss(state: DerState, ctx: Ctx, loss_fn: LossFn) -> LossFn:
        _, growth = replay(state, ctx)

        def loss_with_memory(
            params: Params, batch: Batch, call: Call = ctx.call
        ) -> tuple[jax.Array, Aux]:
            weight, marked = batch["weight"], batch[match] > 0
            matches: float | jax.Array = 1.0
            if draws == 1:  # the same rows serve both terms
                matches = alpha / jnp.where(alpha + beta == 0, 1.0, alpha + beta)
            labelled = {**batch, "weight": jnp.where(marked, (1 - matches) * weight, weight)}
            stored = {**batch, "weight": jnp.where(marked, matches * weight, 0.0)}
            value, aux = loss_fn(params, labelled, call)
            old = memory.take(state.buffer, batch[match] - 1)
            outputs = aux.outputs
            gap = losses.squared_distance(outputs, old["outputs"], old.get("indices"))
            apart = losses.mean_of(gap, outputs._replace(weight=stored["weight"]))
            # sums over rows, not means, so that microbatches add up to the batch
            total = value * losses.total_weight(labelled) + apart * losses.total_weight(stored)
            mass = losses.total_weight(batch)
            # all of these rows count, whichever term they count in: what another method takes
            # the mean of then has the same mass as the loss, and parts of a batch add up
            counted = outputs._replace(weight=batch["weight"])
            value = growth * total / jnp.where(mass == 0, 1.0, mass)
            return value, aux._replace(outputs=counted)

        return loss_with_memory

    def observe(state: DerState, ctx: Ctx, info: Info) -> DerState:
        outputs = with_head(info.outputs, lambda: ctx.loss(ctx.params, info.batch)[1].outputs)
        rows = {**memory.finite_rows(info), **answers(outputs)}
        return DerState(keep.insert(state.buffer, ctx, rows))

    def report(state: DerState, info: Info) -> dict[str, jax.Array]:
        return {"stored": memory.count_filled(state.buffer)}

    def skips(state: DerState, ctx: Ctx) -> jax.Array:
        return (ctx.stage < start) | ((alpha == 0) & (beta == 0))

    return Method(
        name,
        init=init,
        batch=batch,
        loss=loss,
        observe=observe,
        report=report,
        skips=skips,
        reads=("samples", "logits"),
        starts=start,
        wants=(losses.Logits, losses.TokenScores, losses.Values),
        limits=keep.limits,
    )


def der(
    capacity: int = 500,
    rows: int = 32,
    alpha: float = 0.5,
    start: int = 1,
    top_k: int | None = None,
    policy: str = "reservoir",
    groups: int | None = None,
) -> Method:
    """DER: L + α mean_{rows, C} (z - f(x))², with (x, z) from memory, in one forward pass.

    z are the outputs that the step that stored x computed for it anyway, before its update.

    Source: Buzzega et al., arXiv 2004.07211, equation 5; as in the authors' code (mammoth's
    models/der.py) the square is a mean over outputs, where the paper has a sum: its α is ours
    divided by C. The mean is over the classes that the loss's mask allows, and the tokens that the
    loss counts. On token scores (`losses.fused_next_token`), of which only the `top_k` largest
    logits can be stored, it is computed over a piece of the logits at a time.

    Args:
      capacity: how many slots the memory has.
      rows: how many rows are drawn for each step.
      alpha: α; may be traced.
      start: the first stage in which rows are replayed; it is 0 in the authors' code, and must be
        in a stream without boundaries (see `er`).
      top_k: how many of the largest outputs are stored and matched, for large vocabularies; None
        stores all.
      policy: which rows are kept, see `memory.policy`.
      groups: how many groups that policy tells apart, see `memory.policy`.

    Raises:
      ValueError: if an argument is out of range; at `init`, if the loss gives no logits, token
        scores or values, or gives token scores and `top_k` is None.
    """
    return _method("der", capacity, rows, alpha, 0.0, 1, start, top_k, policy, groups)


def derpp(
    capacity: int = 500,
    rows: int = 32,
    alpha: float = 0.5,
    beta: float = 0.5,
    draws: int = 2,
    start: int = 1,
    top_k: int | None = None,
    policy: str = "reservoir",
    groups: int | None = None,
) -> Method:
    """DER++: L + α mean (z - f(x))² + β ℓ(x', y'), all in one forward pass.

    Source: Buzzega et al., arXiv 2004.07211, equation 6, as in mammoth's models/derpp.py: x and x'
    are independent draws, so a step costs (B + 2 rows) / B of a plain one. With `draws=1` the same
    rows serve both terms (as in Avalanche), (B + rows) / B.

    Args:
      capacity: how many slots the memory has.
      rows: how many rows each draw has.
      alpha: α, the weight of matching stored outputs (see `der`); may be traced.
      beta: β, the weight of the loss on stored labels; may be traced.
      draws: 2, or 1 if one draw serves both terms.
      start: the first stage in which rows are replayed; it is 0 in the authors' code, and must be
        in a stream without boundaries (see `er`).
      top_k: how many of the largest outputs are stored and matched; None stores all.
      policy: which rows are kept, see `memory.policy`.
      groups: how many groups that policy tells apart, see `memory.policy`.

    Raises:
      ValueError: if an argument is out of range; at `init`, if the loss gives no logits, token
        scores or values, or gives token scores and `top_k` is None.
    """
    return _method("derpp", capacity, rows, alpha, beta, draws, start, top_k, policy, groups)
