"""A mixture of low-rank experts, which a router weighs for every token."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jcl import trees
from jcl.mechanisms import adapters
from jcl.method import Ctx, Method, Params, check


def moelora(
    experts: int = 4,
    rank: int = 8,
    alpha: float = 16.0,
    targets: str = r"blocks/(query|value)",
) -> Method:
    """MoELoRA: W x + s Σ_e g_e(x) B_e A_e x, g = softmax(G x), s = α / r, with B = 0 at the start.

    The r of a layer is split evenly among its E experts. All experts and routers G learn in every
    stage, without balancing. They are leaves `<target>/lora/{a,b,router}`; one expert is `lora`.
    Only adapters learn, unless `jcl.make(trainable=...)` says otherwise. Routed pairs depend on the
    token, so that no kernel can hold them, and `adapters.merge` refuses them.

    Source: Chen et al., arXiv 2403.08350 (CoIN), and the authors' `coinmoelora.py`: normal A of
    deviation 0.01, and a router as torch draws a linear layer.

    Args:
      experts: E, how many experts a layer has.
      rank: r of all experts of a layer together, a multiple of `experts`.
      alpha: α; may be traced.
      targets: regular expression for the whole paths of the dense layers that are adapted.

    Raises:
      ValueError: if an argument is out of range, or, at `init`, `targets` matches no dense layer.
    """
    check(experts >= 1, "experts", experts, "at least 1")
    check(rank >= 1 and rank % experts == 0, "rank", rank, f"a multiple of experts, {experts}")
    factor = adapters.scale(rank, alpha)

    def init(ctx: Ctx, params: Params) -> tuple[Params, tuple[()]]:
        adapters.refuse_pairs_of_others("moelora", ctx, params)
        whole = trees.merge(params, ctx.frozen)
        for path, kernel in adapters.dense_kernels(ctx, params, targets).items():
            if "lora" in adapters.subtree(whole, path):
                continue
            *stack, fan_in, fan_out = adapters.shape(kernel)
            a, gate = jax.random.split(trees.path_key(ctx.key, path))
            limit = fan_in**-0.5
            new = {
                "a": 0.01 * jax.random.normal(a, (*stack, fan_in, rank)),
                "b": jnp.zeros((*stack, rank, fan_out)),
                "router": jax.random.uniform(
                    gate, (*stack, fan_in, experts), jnp.float32, -limit, limit
                ),
            }
            params = adapters.with_subtree(params, path, {"lora": new})
        adapters.check_read("moelora", ctx, params, ctx.apply)
        return params, ()

    return Method(
        "moelora", init=init, forward=adapters.scale_hook(factor), learns=adapters.is_adapter
    )
