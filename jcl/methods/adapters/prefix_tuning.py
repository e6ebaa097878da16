"""Prefix tuning: in every layer, learned keys and values that all tokens see."""

from __future__ import annotations

import jax

from jcl import trees
from jcl.mechanisms import adapters
from jcl.method import Ctx, Method, Params, check


def prefix_tuning(length: int = 20) -> Method:
    """Prefix tuning: attention over [P_k; K] and [P_v; V], with prefixes P that each layer learns.

    They are the leaves `blocks/prefix/{key,value}` [layers, length, kv_heads · head_width],
    float32, drawn small; no positions are applied to them. Only
    adapters learn, unless `jcl.make(trainable=...)` says otherwise.

    Source: Li and Liang, arXiv 2101.00190, section 4, without the reparametrising network of
    section 4.3, which is dropped after training there.

    Args:
      length: how many tokens long the prefix is.

    Raises:
      ValueError: if `length` is out of range, or, at `init`, the model has no stacked `blocks` with
        a `key`, or doesn't read a prefix.
    """
    check(length >= 1, "length", length, "at least 1")

    def init(ctx: Ctx, params: Params) -> tuple[Params, tuple[()]]:
        blocks = trees.merge(params, ctx.frozen).get("blocks", {})
        check("key" in blocks, "parameters", sorted(blocks), "with blocks/key")
        if "prefix" in blocks:
            return params, ()
        layers, _, width = adapters.shape(blocks["key"]["kernel"])
        drawn = 0.02 * jax.random.normal(ctx.key, (2, layers, length, width))
        new = {"key": drawn[0], "value": drawn[1]}
        params = adapters.with_subtree(params, "blocks/prefix", new)
        adapters.check_read("prefix_tuning", ctx, params, ctx.apply)
        return params, ()

    return Method("prefix_tuning", init=init, learns=adapters.is_adapter)
