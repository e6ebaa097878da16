"""Distillation from a given teacher, which acts from the first stage on and never changes."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

from jcl import losses, trees
from jcl.method import Batch, Ctx, LossFn, Method, Params, Reference, check


class DistilState(NamedTuple):
    """The state of `distil`."""

    teacher: Reference
    """The teacher, with the adapters and banks that the student began with."""


def distil(teacher: Params, strength: float = 1.0, temperature: float = 2.0) -> Method:
    """Distillation: (1 - λ) L + λ T² KL(softmax(z_teacher / T) ‖ softmax(z / T)), a batch's mean.

    z are the logits, L the loss that this one wraps. The teacher is the same model with other
    parameters, such as one that was tuned before its base was upgraded (see `jcl.runs.recycle`).
    Frozen leaves are the student's own.

    Source: Hinton et al., arXiv 1503.02531, section 2; as the second of two ways to recycle tuned
    weights, Qin et al., arXiv 2305.08702, section 5.2.

    Args:
      teacher: the teacher's whole parameter tree, or the part of it that learns here.
      strength: λ in [0, 1]; may be traced.
      temperature: T; may be traced.

    Raises:
      ValueError: if an argument is out of range; at `init`, if the teacher lacks a leaf or has
        another shape; in a step, if the loss returns only a scalar.
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
        def loss_with_teacher(params: Params, batch: Batch) -> tuple[jax.Array, Any]:
            value, outputs = loss_fn(params, batch)
            check(outputs is not None, "loss", None, "one that returns (scalar, outputs)")
            wanted = ctx.recall(state.teacher, batch)
            apart = losses.batch_mean(losses.distillation(outputs, wanted, temperature), batch)
            return (1 - strength) * value + strength * apart, outputs

        return loss_with_teacher

    return Method("distil", init=init, loss=loss, reads=("parameters",))
