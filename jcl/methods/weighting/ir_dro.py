"""IR-DRO: a batch's harder rows weigh more, within a penalty on their divergence from even."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from jcl import memory
from jcl.method import Batch, Ctx, Method, check


def ir_dro(temperature: float = 1.0) -> Method:
    """Instance re-weighting: w_i ← w_i e_i Σw / Σ w e, e_i = exp(ℓ_i / τ), ℓ_i a row's own loss.

    Of all weights these maximise the loss minus τ times their KL divergence from even ones. The
    gradient takes them as constants. They are computed over the whole batch, whatever the
    microbatches, at a forward pass. Rows still also count by how many tokens they predict.

    Source: Chen et al., arXiv 2402.14270, and the authors' batch_training.py: a softmax of the
    rows' mean losses over `kl_reg`, which is τ.

    Args:
      temperature: τ; may be traced. ∞ is plain training.

    Raises:
      ValueError: if `temperature` is not above 0.
    """
    check(temperature > 0, "temperature", temperature, "above 0")

    def batch(state: Any, ctx: Ctx, rows: Batch) -> Batch:
        weight = rows["weight"]
        cost = jnp.where(weight > 0, memory.row_losses(ctx.loss, ctx.params, rows), -jnp.inf)
        hard = jnp.where(weight > 0, jnp.exp((cost - jnp.max(cost)) / temperature), 0.0)
        total = jnp.sum(weight * hard)
        scale = jnp.sum(weight) / jnp.where(total == 0, 1.0, total)
        return {**rows, "weight": weight * hard * scale}

    def skips(state: Any, ctx: Ctx) -> jax.Array | bool:
        return temperature == math.inf

    return Method("ir_dro", batch=batch, skips=skips)
