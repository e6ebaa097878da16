"""Orthogonal gradient descent: to first order, steps don't change outputs on past examples."""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jcl import losses, trees
from jcl.mechanisms.lasting import check_lasting
from jcl.method import Batch, Ctx, Info, Method, Params, check


class OgdState(NamedTuple):
    """The state of `ogd`."""

    basis: Params
    """V: orthonormal directions, leaves float32 [directions, ...]; 0 from `used` on."""
    used: jax.Array
    """int32 []: how many directions V has."""


def ogd(
    directions: int = 200,
    per_stage: int = 50,
    of: Literal["label", "loss"] = "label",
    at: Literal["grads", "updates"] = "grads",
) -> Method:
    """OGD: g ← g - V Vᵀg, V an orthonormal basis of stored gradients over all parameters.

    At the end of a stage `per_stage` examples are drawn, and the parts of their gradients outside
    the span of V are added to V, until it has `directions`. A step costs the reading of V.

    Source: Farajtabar et al., arXiv 1910.07104, algorithm 1, the variant OGD-GTL: gradients of the
    true label's logit. V spans all trainable parameters, where Bennani's code leaves out the heads
    that belong to one task.

    Args:
      directions: how many directions V has room for, each as large as the parameters.
      per_stage: how many examples are drawn at the end of each stage.
      of: what is differentiated: the true `label`'s output, for outputs [B, C] and `batch["y"]`, or
        the `loss`, which any model has.
      at: whether to project the gradient (`grads`, as published, there with plain SGD) or the
        optimizer's update (`updates`), which stays orthogonal with momentum, Adam or weight decay.

    Raises:
      ValueError: if an argument is out of range; at `init`, if there is no label to differentiate.
    """
    check(directions >= 1, "directions", directions, "at least 1")
    check(1 <= per_stage <= directions, "per_stage", per_stage, "in [1, directions]")
    check(of in ("label", "loss"), "of", of, "'label' or 'loss'")
    check(at in ("grads", "updates"), "at", at, "'grads' or 'updates'")

    def init(ctx: Ctx, params: Params) -> tuple[Params, OgdState]:
        check_lasting("ogd", ctx, params)
        if of == "label":
            logits = jax.eval_shape(ctx.loss, params, ctx.batch)[1].outputs.values
            labelled = "y" in ctx.batch and logits.ndim == 2
            check(labelled, "of", of, "'loss' where logits aren't [B, C] with labels y [B]")
        basis = jax.tree.map(lambda x: jnp.zeros((directions, *x.shape), jnp.float32), params)
        return params, OgdState(basis, jnp.int32(0))

    def outside(basis: Params, tree: Params) -> Params:
        """`tree` less its part in the span, each leaf in its dtype."""

        def along(v: jax.Array, x: jax.Array) -> jax.Array:
            return jnp.tensordot(v, x.astype(jnp.float32), x.ndim, precision=lax.Precision.HIGHEST)

        c = jax.tree.reduce(jnp.add, jax.tree.map(along, basis, tree))

        def less(v: jax.Array, x: jax.Array) -> jax.Array:
            part = jnp.tensordot(c, v, 1, precision=lax.Precision.HIGHEST)
            return (x - part).astype(x.dtype)

        return jax.tree.map(less, basis, tree)

    def projected(state: OgdState, ctx: Ctx, tree: Params) -> Params:
        return lax.cond(ctx.stage < 1, lambda t: t, lambda t: outside(state.basis, t), tree)

    def consolidate(
        state: OgdState, ctx: Ctx, params: Params, batches: Batch
    ) -> tuple[Params, OgdState]:
        def value(p: Params, row: Batch) -> jax.Array:
            if of == "loss":
                return ctx.loss(p, row)[0]
            logits = ctx.loss(p, row)[1].outputs.values
            return logits[0, row["y"][0]].astype(jnp.float32)

        def add(state: OgdState, row: Batch) -> tuple[OgdState, None]:
            slope = trees.float32(jax.grad(value)(params, jax.tree.map(lambda x: x[None], row)))
            # of a leaf that was renewed no direction is worth keeping
            slope = trees.choose(ctx.renewed, trees.zeros(slope), slope)
            # projected twice, for once loses orthogonality in float32
            rest = outside(state.basis, outside(state.basis, slope))
            size = trees.norm(rest)
            new = (row["weight"] > 0) & (size > 1e-4 * trees.norm(slope))
            new &= state.used < directions
            slot = jnp.where(new, state.used, directions)
            scale = 1 / jnp.where(size > 0, size, 1.0)
            basis = jax.tree.map(
                lambda v, x: v.at[slot].set(scale * x, mode="drop"), state.basis, rest
            )
            return OgdState(basis, state.used + new.astype(jnp.int32)), None

        rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batches)
        # real rows come first, in random order, and padding only if there are too few; the n-th of
        # the real rows has the n-th draw, so that who is drawn doesn't hang on the padding
        real = rows["weight"] > 0
        noise = jax.random.uniform(ctx.key, real.shape)[jnp.cumsum(real) - 1] + ~real
        _, chosen = lax.top_k(-noise, min(per_stage, noise.shape[0]))
        return params, lax.scan(add, state, jax.tree.map(lambda x: x[chosen], rows))[0]

    def report(state: OgdState, info: Info) -> dict[str, jax.Array]:
        return {"directions": state.used}

    method = Method(
        "ogd", init=init, consolidate=consolidate, report=report, reads=("gradients",), starts=1
    )
    if of == "label":
        method = method._replace(wants=(losses.Logits,))
    if at == "grads":
        return method._replace(grads=projected)
    return method._replace(updates=projected)
