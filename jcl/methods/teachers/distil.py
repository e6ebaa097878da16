"""Distillation from a given teacher, which acts from the first stage on and never changes."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

from jcl import losses, trees
from jcl.method import Aux, Batch, Call, Ctx, LossFn, Method, Params, Reference, check


class DistilState(NamedTuple):
    """The state of `distil`."""

    teacher: Reference
    """The teacher, with the adapters and banks that the student began with."""


def distil(teacher: Params, strength: float = 1.0, temperature: float = 2.0) -> Method:
    """Distillation: (1 - λ) L + λ T² KL(softmax(z_teacher / T) ‖ softmax(z / T)), a batch's mean.

    z are the logits, L the loss that this one wraps, whose mask says which classes compete and
    which tokens count. The teacher is the same model with other parameters, such as one that was
    tuned before its base was upgraded (see `jcl.runs.recycle`). Frozen leaves are the student's
    own. Of a loss on token scores (`losses.fused_next_token`) the term is computed over a piece of
    the logits at a time.

    Source: Hinton et al., arXiv 1503.02531, section 2; as the second of two ways to recycle tuned
    weights, Qin et al., arXiv 2305.08702, section 5.2.

    Args:
      teacher: the teacher's whole parameter tree, or the part of it that learns here.
      strength: λ in [0, 1]; may be traced.
      temperature: T; may be traced.

    Raises:
      ValueError: if an argument is out of range; at `init`, if the teacher lacks a leaf or has
        another shape, or if the loss gives neither `Logits` nor `TokenScores`.
    """
    check((strength >= 0) & (strength <= 1), "strength", strength, "in [0, 1]")
    check(temperature > 0, "temperature", temperature, "above 0")
    given = {trees.path_name(p): x for p, x in jax.tree_util.tree_leaves_with_path(teacher)}

    def init(ctx: Ctx, params: Params) -> tuple[Params, DistilState]:
        def taken(path: Any, mine: jax.Array) -> jax.Array:
            name = trees.path_name(path)
            shape = given[name].shape if name in given else None
            check(shape == mine.shape, f"teacher's {name}", shape, f"an array {mine.shape}")
            return given[name].astype(mine.dtype)

        return params, DistilState(ctx.freeze(jax.tree_util.tree_map_with_path(taken, params)))

    def loss(state: DistilState, ctx: Ctx, loss_fn: LossFn) -> LossFn:
        def ask(rows: Batch) -> Any:
            return ctx.recall(state.teacher, rows)

        def loss_with_teacher(
            params: Params, batch: Batch, call: Call = ctx.call
        ) -> tuple[jax.Array, Aux]:
            value, aux = loss_fn(params, batch, call)
            wanted = losses.answers(ctx, ask, batch)
            apart = losses.distillation(aux.outputs, wanted, temperature)
            return (1 - strength) * value + strength * losses.mean_of(apart, aux.outputs), aux

        return loss_with_teacher

    wants = (losses.Logits, losses.TokenScores)
    return Method("distil", init=init, loss=loss, reads=("parameters",), wants=wants)
