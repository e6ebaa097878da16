"""SEQ*: after a warm-up only the head learns, and of its classes only those that are not old."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jcl import trees
from jcl.method import Batch, Ctx, Info, Method, Params, check


class SeqState(NamedTuple):
    """The state of `seq`."""

    old: jax.Array
    """bool [C]: which classes were seen in a finished stage."""
    seen: jax.Array
    """bool [C]: which classes were seen so far."""


def seq(warmup: int = 100, head: str | None = None) -> Method:
    """SEQ*: train all for `warmup` steps, then the head alone; finished stages' classes are frozen.

    The head has all its classes from the start. Classes still to come learn as negatives; old ones
    take part in the softmax but no longer change, since the mask is on the update. The method is
    for class-incremental streams: if stages share their classes, nothing is left to learn after the
    first. No argument makes it plain fine-tuning over several stages; with a warm-up as long as the
    first stage it is, until that stage ends.

    Source: Zheng et al., arXiv 2312.07887, and the authors' code: the variant with warm-up,
    pre-allocated classifiers and frozen old ones. Their warm-up epochs are extra; here they are the
    stage's first.

    Args:
      warmup: for how many steps of the first stage the backbone learns; may be traced.
      head: path of the classifier's parameters, [..., C], such as `dense_2`; None is the one that
        the model says is its head (see `jcl.Structure`). All other leaves are the backbone.

    Raises:
      ValueError: if `warmup` is negative, or, at `init`, there is no such head, it is no dense
        layer (a tied one isn't), or the batch has no integer labels `y` [B].
    """
    check(warmup >= 0, "warmup", warmup, "at least 0")

    def classifier(ctx: Ctx, params: Params) -> str | None:
        """Path of the head's parameters."""
        return head or ctx.structure.head_of(trees.merge(params, ctx.frozen))

    def init(ctx: Ctx, params: Params) -> tuple[Params, SeqState]:
        at, leaves = classifier(ctx, params), trees.by_path(params)
        classes = {x.shape[-1] for name, x in leaves.items() if name.startswith(f"{at}/")}
        dense = len(classes) == 1 and f"{at}/kernel" in leaves
        check(dense, "head", at, f"the path of a classifier's kernel, one of {sorted(leaves)}")
        y = ctx.batch.get("y")
        if y is None or y.ndim != 1 or not jnp.issubdtype(y.dtype, jnp.integer):
            raise ValueError(f"the batch's y is {y!r}, but must be integer labels [B] for seq")
        none = jnp.zeros(classes.pop(), bool)
        return params, SeqState(none, jnp.zeros_like(none))

    def updates(state: SeqState, ctx: Ctx, tree: Params) -> Params:
        start = f"{classifier(ctx, ctx.params)}/"
        warm = (ctx.stage < 1) & (ctx.stage_step < warmup)

        def one(path: tuple, u: jax.Array) -> jax.Array:
            learns = ~state.old if trees.path_name(path).startswith(start) else warm
            return jnp.where(learns, u, 0)

        return jax.tree_util.tree_map_with_path(one, tree)

    def observe(state: SeqState, ctx: Ctx, info: Info) -> SeqState:
        real = jnp.where(info.batch["weight"] > 0, info.batch["y"], state.seen.size)
        return state._replace(seen=state.seen.at[real].set(True, mode="drop"))

    def consolidate(
        state: SeqState, ctx: Ctx, params: Params, batches: Batch
    ) -> tuple[Params, SeqState]:
        return params, state._replace(old=state.seen)

    def report(state: SeqState, info: Info) -> dict[str, jax.Array]:
        return {"old": jnp.mean(state.old, dtype=jnp.float32)}

    return Method(
        "seq",
        init=init,
        updates=updates,
        observe=observe,
        consolidate=consolidate,
        report=report,
    )
