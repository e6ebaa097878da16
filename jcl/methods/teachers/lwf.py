"""Learning without forgetting: the new model keeps the old one's outputs for new inputs."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jcl import losses
from jcl.method import Batch, Ctx, LossFn, Method, Params, check


def lwf(strength: float = 1.0, temperature: float = 2.0, classes: Any = None) -> Method:
    """LwF: L + λ T² KL(softmax(z_old / T) ‖ softmax(z / T)), mean over the batch.

    z_old are the outputs of the model as the last stage left it, z those of the loss's own forward
    pass. The added term is 0 in the first stage, and for rows whose outputs have not changed.

    Source: Li and Hoiem, arXiv 1606.09282, equations 2 to 4, there as a cross-entropy, which
    differs by a constant, and without T² (van de Ven's and mammoth's code have none either): their
    λ is ours times T².

    Every row of the batch counts by its weight, replayed rows too, for the old model knows more
    about these. With a loss over tokens every position that `mask` counts is distilled.

    Args:
      strength: λ; may be traced.
      temperature: T; may be traced.
      classes: bool [stages, C], which classes a stage brought; the softmax is then over those of
        earlier stages only (as in mammoth). None takes all outputs, also those of classes that the
        old model never saw, which suits domain-incremental streams and language models.

    Raises:
      ValueError: if an argument is out of range, or the loss returns only a scalar.
    """
    check(strength >= 0, "strength", strength, "at least 0")
    check(temperature > 0, "temperature", temperature, "above 0")

    def loss(state: tuple[()], ctx: Ctx, loss_fn: LossFn) -> LossFn:
        def known(outputs: jax.Array) -> jax.Array:
            if classes is None:
                return outputs
            seen = jnp.cumsum(jnp.asarray(classes), axis=0) > 0
            keep = seen[jnp.clip(ctx.stage - 1, 0, len(seen) - 1)]
            return jnp.where(keep, outputs.astype(jnp.float32), -1e9)

        def loss_with_teacher(params: Params, batch: Batch) -> tuple[jax.Array, Any]:
            value, outputs = loss_fn(params, batch)
            check(outputs is not None, "loss", None, "one that returns (scalar, outputs) for lwf")
            whole = not isinstance(outputs, losses.TokenScores)
            check(whole, "loss's outputs", "TokenScores", "all logits for lwf, as of next_token")
            teacher = ctx.recall(ctx.references["previous"], batch)
            apart = losses.distillation(known(outputs), known(teacher), temperature)
            active = jnp.where(ctx.stage > 0, strength, 0.0)
            return value + active * losses.batch_mean(apart, batch), outputs

        return loss_with_teacher

    def idle(state: tuple[()], ctx: Ctx) -> jax.Array:
        return (ctx.stage < 1) | (strength == 0)

    return Method("lwf", loss=loss, idle=idle, reads=("parameters",), recalls=("previous",))
