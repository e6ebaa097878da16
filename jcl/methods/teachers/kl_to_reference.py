"""A penalty on the divergence from a reference model, as RLHF keeps a policy near its start."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp

from jcl import losses
from jcl.method import Aux, Batch, Call, Ctx, LossFn, Method, Params, check


def kl_to_reference(
    strength: float = 0.1,
    reference: Literal["initial", "previous"] = "initial",
    direction: Literal["reverse", "forward"] = "reverse",
) -> Method:
    """KL to a reference: L + λ KL(π ‖ π_ref), taken at each position that the loss is over.

    With an objective over answers (see `jcl.preference`) it is taken on the preferred ones and
    summed over their tokens, which makes it a divergence between sequences; with others it is a
    mean over tokens, or over rows with classes. Unlike `lwf` it acts from the first stage on, whose
    reference is the model before training. Of token scores it is computed over a piece of the
    logits at a time. An objective over answers gives none, and costs a forward pass more.

    Source: Ziegler et al., arXiv 1909.08593, equation 2, where it is part of the reward and
    estimated from samples; here it is exact at each position, in the data's own contexts.

    Args:
      strength: λ; may be traced.
      reference: π_ref is the model before all training (`initial`), or the one with which the
        stage began (`previous`).
      direction: `reverse` is KL(π ‖ π_ref), as in RLHF; `forward` KL(π_ref ‖ π), as in
        distillation.

    Raises:
      ValueError: if an argument is out of range; at `init`, if the loss gives no outputs, or
        `Values`.
    """
    check(strength >= 0, "strength", strength, "at least 0")
    check(reference in ("initial", "previous"), "reference", reference, "'initial' or 'previous'")
    check(direction in ("reverse", "forward"), "direction", direction, "'reverse' or 'forward'")

    def loss(state: tuple[()], ctx: Ctx, loss_fn: LossFn) -> LossFn:
        def ask(rows: Batch) -> Any:
            return ctx.recall(ctx.references[reference], rows)

        def loss_with_penalty(
            params: Params, batch: Batch, call: Call = ctx.call
        ) -> tuple[jax.Array, Aux]:
            value, aux = loss_fn(params, batch, call)
            new, asking, rows = aux.outputs, ctx, batch

            def model(params: Params, rows: Batch) -> Any:
                return ctx.apply(params, rows, call)

            whole_answers = isinstance(aux.outputs, losses.LogProbs | losses.Rewards)
            if whole_answers:
                asking, rows = ctx._replace(objective=losses.fused_next_token()), _answers(batch)
                new = losses.evaluate(asking.objective, model, params, rows, ctx.stage)[1]
            old = losses.answers(asking, ask, rows)
            pair = (old, new) if direction == "reverse" else (new, old)
            apart = losses.divergence(*pair)
            if whole_answers:
                apart = jnp.sum(apart * new.mask, axis=-1)
            return value + strength * losses.mean_of(apart, new), aux

        return loss_with_penalty

    def skips(state: tuple[()], ctx: Ctx) -> jax.Array:
        return jnp.asarray(strength == 0)

    return Method(
        "kl_to_reference",
        loss=loss,
        skips=skips,
        reads=("parameters",),
        recalls=(reference,),
        wants=(losses.Logits, losses.TokenScores, losses.LogProbs, losses.Rewards),
    )


def _answers(batch: Batch) -> Batch:
    """The preferred answers of a batch of pairs as rows of text, in which the answers count."""
    kept = ("tokens", "segments", "answer", "weight", "task")
    return {**{k: batch[k] for k in kept}, "mask": batch["answer"]}
