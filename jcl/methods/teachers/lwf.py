"""Learning without forgetting: the new model keeps the old one's outputs for new inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jcl import losses
from jcl.method import Aux, Batch, Call, Ctx, LossFn, Method, Params, check


def lwf(
    strength: float | Callable[[Ctx], jax.Array] = 1.0,
    temperature: float = 2.0,
    classes: Any = None,
    rescale: bool = False,
) -> Method:
    """LwF: L + λ KL(softmax(z_old / T) ‖ softmax(z / T)), the mean over what the loss counts.

    z_old are the logits of the model as the last stage left it, z those of the loss's own forward
    pass. The added term is 0 in the first stage, and for rows whose logits have not changed.

    The softmax is over the classes that the loss's mask allowed in earlier stages. Where the loss
    takes a softmax over each task's own classes (`mask="task"`), the old model is asked for all
    earlier tasks' answers, and the term is the sum of their divergences, one for each head. Without
    a mask it is over all outputs, which suits domain-incremental streams and language models. Of a
    loss on token scores (`losses.fused_next_token`) the term is computed over a piece of the logits
    at a time, at the price of multiplying with the head once more.

    Every row of the batch counts by its weight, replayed rows too, for the old model knows more
    about these. With a loss over tokens every position that the loss counts is distilled.

    Source: Li and Hoiem, arXiv 1606.09282, equations 2 to 4 and section 3, there as a
    cross-entropy, which differs by a constant. As there, and in van de Ven's (`loss_fn_kd`) and
    mammoth's code, the term isn't multiplied by T²; old heads are summed as in the paper and in van
    de Ven's code with `lwf_weighting`. Of a single head van de Ven's student has the new classes in
    its softmax too, mammoth's, as ours, has not.

    Args:
      strength: λ; may be traced. It is 1 in the paper and .5 in mammoth. It may be a function of
        `Ctx`, such as `lambda ctx: ctx.stage`, as van de Ven's code has it in a domain-incremental
        stream.
      temperature: T; may be traced.
      classes: bool [stages, C], which classes a stage brought, in place of the loss's mask.
      rescale: whether the term is multiplied by T², which keeps its gradient's size as T grows
        (Hinton et al., arXiv 1503.02531); with T = 2 that is four times the paper's λ.

    Raises:
      ValueError: if an argument is out of range; at `init`, if the loss gives neither `Logits` nor
        `TokenScores`.
    """
    ok = callable(strength) or strength >= 0
    check(ok, "strength", strength, "at least 0, or a function of Ctx")
    check(temperature > 0, "temperature", temperature, "above 0")

    def old_softmaxes(ctx: Ctx, outputs: Any) -> jax.Array | None:
        """Sets of classes with a softmax each, bool [G, C]; None leaves them to the mask."""
        heads = getattr(outputs, "heads", None)
        table = heads if classes is None else jnp.asarray(classes)
        if table is None:
            return None
        earlier = table & (jnp.arange(len(table)) < ctx.stage)[:, None]
        return jnp.any(earlier, axis=0, keepdims=True) if heads is None else earlier

    def loss(state: tuple[()], ctx: Ctx, loss_fn: LossFn) -> LossFn:
        def teacher(rows: Batch) -> Any:
            return ctx.recall(ctx.references["previous"], rows)

        def loss_with_teacher(
            params: Params, batch: Batch, call: Call = ctx.call
        ) -> tuple[jax.Array, Aux]:
            value, aux = loss_fn(params, batch, call)
            old = losses.answers(ctx, teacher, batch, ctx.stage - 1)
            groups = old_softmaxes(ctx, aux.outputs)
            apart = losses.divergence(aux.outputs, old, temperature, groups)
            scale = jnp.asarray(temperature) ** 2 if rescale else 1.0
            factor = strength(ctx) if callable(strength) else strength
            active = jnp.where(ctx.stage > 0, factor * scale, 0.0)
            return value + active * losses.mean_of(apart, aux.outputs), aux

        return loss_with_teacher

    def skips(state: tuple[()], ctx: Ctx) -> jax.Array:
        neutral = False if callable(strength) else strength == 0
        return (ctx.stage < 1) | neutral

    return Method(
        "lwf",
        loss=loss,
        skips=skips,
        reads=("parameters",),
        recalls=("previous",),
        wants=(losses.Logits, losses.TokenScores),
        starts=1,
    )
