"""PackNet: each stage keeps the largest of the weights that it trained; the others become free."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jcl import moved, trees
from jcl.mechanisms import merging
from jcl.method import Apply, Batch, Call, Ctx, Info, Method, Params, check


class PacknetState(NamedTuple):
    """The state of `packnet`."""

    owner: Params
    """int8, shaped like the parameters: which stage owns an entry, -1 while it is free."""
    last: jax.Array
    """int32 [tasks]: the last stage that trained on each task, -1 before any did."""
    free: jax.Array
    """float32 []: the share of entries that are free."""


def kernels(path: str) -> bool:
    """The default `prunable`: every leaf but biases and scales is pruned."""
    return path.rpartition("/")[2] not in ("bias", "scale")


@moved.arguments
def packnet(
    prune: float = 0.5,
    stages: int = 127,
    retrain_steps: int = 0,
    learning_rate: float = 1e-2,
    momentum: float = 0.9,
    prunable: trees.Trainable = kernels,
) -> Method:
    """PackNet: prune each layer's free weights by magnitude, freeze the rest, train the zeros.

    At the end of a stage round(p · free) of the free weights of each layer's tensor, the smallest,
    are set to 0; the others belong to the stage for ever. A task is predicted with the weights of
    the stages up to the last that trained on it, so that its outputs never change again. The mask
    is on the update, so this holds with any optimizer. Training sees all weights. No argument makes
    it plain fine-tuning, for a finished stage keeps something, or the model is zero. In the first
    stage it is plain fine-tuning to rounding, for even an empty mask keeps XLA from fusing p + a·b.

    Source: Mallya & Lazebnik, arXiv 1711.05769, section 3, and the authors' code; differences: ties
    are split, so that exactly p is pruned; a shared head is pruned like any other leaf; biases and
    scales, and whatever has fewer than two axes in a layer, train in the first stage and then stay.

    A batch is predicted as one task: the weights are those of its first row's `task`. A task that
    has not been trained on gets all weights, and so do all rows where the data names no tasks.

    Args:
      prune: p in [0, 1), the share of the free weights that a stage gives back; may be traced.
      stages: how many stages there will be, at most 127; the last of them keeps all that is free.
      retrain_steps: how many steps of SGD the kept weights get after pruning, over the batches
        that `consolidate` gets in turn; the paper has half as many epochs as in training.
      learning_rate: the learning rate of these steps; may be traced.
      momentum: the momentum of these steps; may be traced.
      prunable: static predicate over leaf paths; the other leaves belong whole to the first stage.

    Raises:
      ValueError: if an argument is out of range, or, at `init`, no leaf is pruned.
    """
    check((prune >= 0) & (prune < 1), "prune", prune, "in [0, 1)")
    check(1 <= stages <= 127, "stages", stages, "from 1 to 127")
    check(retrain_steps >= 0, "retrain_steps", retrain_steps, "at least 0")
    check(learning_rate > 0, "learning_rate", learning_rate, "above 0")
    check((momentum >= 0) & (momentum < 1), "momentum", momentum, "in [0, 1)")

    def pruned(ctx: Ctx, params: Params) -> set[str]:
        """Paths of the leaves that are pruned, which are matrices in each layer."""

        def is_matrix(path: str) -> bool:
            return leaves[path].ndim - trees.stack_axes(path, ctx.structure) > 1

        leaves = trees.by_path(params)
        matrices, _ = trees.partition(params, is_matrix)
        return set(trees.chosen(matrices, prunable, "prunable"))

    def init(ctx: Ctx, params: Params) -> tuple[Params, PacknetState]:
        pruned(ctx, params)  # for its error
        owner = jax.tree.map(lambda p: jnp.full_like(p, -1, dtype=jnp.int8), params)
        return params, PacknetState(owner, jnp.full(stages, -1, jnp.int32), jnp.float32(1))

    def forward(state: PacknetState, ctx: Ctx, apply: Apply) -> Apply:
        def apply_with_mask(params: Params, batch: Batch, call: Call = Call()) -> Any:
            if call.training:
                return apply(params, batch, call)
            last = state.last.at[batch["task"][0]].get(mode="fill", fill_value=-1)
            stage = jnp.where(last < 0, stages, last)
            # the stage in progress sees the free weights too
            lowest = jnp.where(stage >= ctx.stage, -1, 0)

            def visible(p: jax.Array, o: jax.Array) -> jax.Array:
                return jnp.where((o >= lowest) & (o <= stage), p, 0)

            return apply(jax.tree.map(visible, params, state.owner), batch, call)

        return apply_with_mask

    def updates(state: PacknetState, ctx: Ctx, tree: Params) -> Params:
        return jax.tree.map(lambda u, o: jnp.where(o < 0, u, 0), tree, state.owner)

    def observe(state: PacknetState, ctx: Ctx, info: Info) -> PacknetState:
        real = jnp.where(info.batch["weight"] > 0, info.batch["task"], stages)
        return state._replace(last=state.last.at[real].max(ctx.stage, mode="drop"))

    def retrain(ctx: Ctx, params: Params, mine: Params, batches: Batch) -> Params:
        count = batches["weight"].shape[0]

        def one(carry: tuple[Params, Params], i: jax.Array) -> tuple[tuple[Params, Params], None]:
            params, velocity = carry
            rows = jax.tree.map(lambda x: x[i % count], batches)
            slope = jax.grad(lambda p: ctx.loss(p, rows)[0])(params)
            velocity = jax.tree.map(
                lambda v, g, m: jnp.where(m, momentum * v + g, 0), velocity, slope, mine
            )
            return (trees.axpy(-learning_rate, velocity, params), velocity), None

        start = (params, trees.zeros(params))
        return lax.scan(one, start, jnp.arange(retrain_steps))[0][0]

    def consolidate(
        state: PacknetState, ctx: Ctx, params: Params, batches: Batch
    ) -> tuple[Params, PacknetState]:
        final = ctx.stage >= stages - 1
        stage = jnp.minimum(ctx.stage, stages - 1).astype(jnp.int8)

        def count(free: jax.Array | int) -> jax.Array:
            return free - jnp.where(final, 0, jnp.round(prune * free).astype(jnp.int32))

        names = pruned(ctx, params)
        free = jax.tree.map(lambda o: o < 0, state.owner)
        may, whole = trees.partition(free, names.__contains__)
        sizes, _ = trees.partition(params, names.__contains__)
        kept = trees.merge(merging.mark_largest(sizes, count, ctx.structure, among=may), whole)
        owner = jax.tree.map(lambda k, o: jnp.where(k, stage, o), kept, state.owner)
        params = jax.tree.map(lambda p, o: jnp.where(o < 0, 0, p), params, owner)
        if retrain_steps:
            mine = jax.tree.map(lambda new, old: (new >= 0) & (old < 0), owner, state.owner)
            params = lax.cond(
                final, lambda: params, lambda: retrain(ctx, params, mine, batches)
            )  # the last stage prunes nothing, so there is nothing to recover
        unowned = jax.tree.map(lambda o: jnp.sum(o < 0, dtype=jnp.float32), owner)
        share = jax.tree.reduce(jnp.add, unowned) / trees.size(owner)
        return params, state._replace(owner=owner, free=share)

    def report(state: PacknetState, info: Info) -> dict[str, jax.Array]:
        return {"free": state.free}

    return Method(
        "packnet",
        init=init,
        forward=forward,
        updates=updates,
        observe=observe,
        consolidate=consolidate,
        report=report,
        writes=True,
        fixes=True,
        reads=("parameters",),
    )
