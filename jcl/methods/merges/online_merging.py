"""Online merging: every update is merged with the direction of all earlier learning."""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from jcl import trees
from jcl.mechanisms import merging
from jcl.mechanisms.lasting import check_lasting
from jcl.method import Batch, Ctx, Info, Method, Params, check


class OnlineMergingState(NamedTuple):
    """The state of `online_merging`."""

    base: Params
    """θ₀, in the parameters' dtype."""
    vector: Params
    """τ_ref, made sparse already, float32; zeros in the first stage."""
    length: jax.Array
    """float32 []: ‖τ_ref‖."""


def online_merging(
    alpha: float = 1e-3, density: float = 0.5, form: Literal["dare", "ties"] = "dare"
) -> Method:
    """Online merging: each update Δ of the optimizer becomes a merge of it with τ_ref.

    OnDARE: α τ_ref + (1 - α) D(Δ), where D drops entries at random and rescales the others. OnTIES:
    Δ and τ_ref keep int(density · n) of the n entries of each layer's tensor, the largest (or all,
    if that is none), then those whose sign is that of their sum, and the same weighted sum is taken
    of these.

    τ_ref is θ - θ₀ as the last stage left it, made sparse once. It holds all that earlier stages
    taught; in the paper, what instruction tuning taught the pre-trained model before its alignment.
    It is 0 in the first stage. It is added in every step, so α should be as small as an update is
    beside τ_ref: the authors have 1e-7 at a learning rate of 1e-6. α = 0 with density 1 leaves the
    update as it is, and α = 1 repeats τ_ref.

    Source: Lu et al., arXiv 2405.17931, section 3, and the authors' `online_merging/optimizers.py`.
    There Adam's update is merged before weight decay, which here is part of the update, and OnDARE
    clips τ_ref to ±1, which is left out here.

    Args:
      alpha: α in [0, 1]; may be traced.
      density: the share of the entries that are kept, in (0, 1]; may be traced.
      form: `dare` or `ties`.

    Raises:
      ValueError: if an argument is out of range.
    """
    check((alpha >= 0) & (alpha <= 1), "alpha", alpha, "in [0, 1]")
    check((density > 0) & (density <= 1), "density", density, "in (0, 1]")
    check(form in ("dare", "ties"), "form", form, "'dare' or 'ties'")

    def sparse(ctx: Ctx, vector: Params) -> Params:
        if form == "dare":
            return merging.dare(ctx.key, vector, 1 - density)
        return merging.trim_layers(vector, density, ctx.structure, spare_small=True)

    def init(ctx: Ctx, params: Params) -> tuple[Params, OnlineMergingState]:
        check_lasting("online_merging", ctx, params)
        return params, OnlineMergingState(trees.copy(params), trees.zeros(params), jnp.float32(0))

    def updates(state: OnlineMergingState, ctx: Ctx, tree: Params) -> Params:
        def merge(old: jax.Array, new: jax.Array) -> jax.Array:
            if form == "ties":  # a sum of 0 counts as positive, as in the authors' code
                sign = jnp.where(old + new >= 0, 1.0, -1.0)
                old, new = (jnp.where(jnp.sign(x) == sign, x, 0) for x in (old, new))
            return alpha * old + (1 - alpha) * new

        kept = sparse(ctx, trees.float32(tree))
        return trees.like(jax.tree.map(merge, state.vector, kept), tree)

    def consolidate(
        state: OnlineMergingState, ctx: Ctx, params: Params, batches: Batch
    ) -> tuple[Params, OnlineMergingState]:
        vector = sparse(ctx, merging.task_vector(params, state.base))
        vector = trees.choose(ctx.renewed, trees.zeros(vector), vector)
        return params, OnlineMergingState(state.base, vector, trees.norm(vector))

    def report(state: OnlineMergingState, info: Info) -> dict[str, jax.Array]:
        return {"length": state.length}

    return Method(
        "online_merging",
        init=init,
        updates=updates,
        consolidate=consolidate,
        report=report,
        reads=("parameters",),
    )
