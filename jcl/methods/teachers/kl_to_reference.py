"""A penalty on the divergence from a reference model, as RLHF keeps a policy near its start."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp

from jcl import losses
from jcl.method import Batch, Ctx, LossFn, Method, Params, check


def kl_to_reference(
    strength: float = 0.1,
    reference: Literal["initial", "previous"] = "initial",
    direction: Literal["reverse", "forward"] = "reverse",
) -> Method:
    """KL to a reference: L + λ KL(π ‖ π_ref), taken at each position that the loss is over.

    In a batch of pairs (see `jcl.preference`) it is taken on the preferred answers and summed over
    their tokens, which makes it a divergence between sequences; in other batches it is a mean over
    tokens, or over rows with classes. Unlike `lwf` it acts from the first stage on, whose reference
    is the model before training. If the objective's outputs are no logits, it takes a forward pass
    of its own, which holds logits [B, L, V].

    Source: Ziegler et al., arXiv 1909.08593, equation 2, where it is part of the reward and
    estimated from samples; here it is exact at each position, in the data's own contexts.

    Args:
      strength: λ; may be traced.
      reference: π_ref is the model before all training (`initial`), or the one with which the
        stage began (`previous`).
      direction: `reverse` is KL(π ‖ π_ref), as in RLHF; `forward` KL(π_ref ‖ π), as in
        distillation.

    Raises:
      ValueError: if an argument is out of range.
    """
    check(strength >= 0, "strength", strength, "at least 0")
    check(reference in ("initial", "previous"), "reference", reference, "'initial' or 'previous'")
    check(direction in ("reverse", "forward"), "direction", direction, "'reverse' or 'forward'")

    def loss(state: tuple[()], ctx: Ctx, loss_fn: LossFn) -> LossFn:
        def loss_with_penalty(params: Params, batch: Batch) -> tuple[jax.Array, Any]:
            value, outputs = loss_fn(params, batch)
            new = outputs if isinstance(outputs, jax.Array) else ctx.apply(params, batch)
            old = ctx.recall(ctx.references[reference], batch)
            if direction == "reverse":
                apart = losses.distillation(old, new)
            else:
                apart = losses.distillation(new, old)
            return value + strength * _mean(apart, batch), outputs

        return loss_with_penalty

    def idle(state: tuple[()], ctx: Ctx) -> jax.Array:
        return jnp.asarray(strength == 0)

    return Method(
        "kl_to_reference", loss=loss, idle=idle, reads=("parameters",), recalls=(reference,)
    )


def _mean(apart: jax.Array, batch: Batch) -> jax.Array:
    if "answer" not in batch or apart.ndim == 1:
        return losses.batch_mean(apart, batch)
    summed = jnp.sum(apart[:, :-1] * batch["answer"], axis=-1)
    return losses.weighted_mean(summed, batch["weight"])
