"""OPLoRA: low-rank pairs that leave a kernel's largest singular directions exactly as they are."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

from jcl import trees
from jcl.mechanisms import adapters, subspaces
from jcl.method import Apply, Batch, Call, Ctx, Method, Params, check


class OploraState(NamedTuple):
    """The state of `oplora`, by the path of each adapted layer; stacked layers lead."""

    inputs: dict[str, jax.Array]
    """U_k, float32 [..., in, k]: the kernel's singular vectors among its inputs."""
    outputs: dict[str, jax.Array]
    """V_k, float32 [..., out, k]: those among its outputs."""


def oplora(
    rank: int = 8,
    alpha: float = 16.0,
    targets: str = r"blocks/(query|value)",
    preserved: int = 16,
    rslora: bool = False,
) -> Method:
    """OPLoRA: `lora` with the change (I - U_k U_kᵀ) A B (I - V_k V_kᵀ) of a kernel W = U S Vᵀ.

    U_k and V_k are W's singular vectors of its k largest singular values, which the adapted kernel
    keeps with their values, exactly, whatever the pair learns. The kernel here is [in, out].

    Source: Xiong & Xie, arXiv 2510.13003, whose abstract has the formula and the promise; the
    authors' code wasn't found.

    Args:
      rank: r of every pair.
      alpha: α, with s = α / r; may be traced.
      targets: regular expression for the whole paths of the dense layers that are adapted.
      preserved: k, how many singular directions are kept.
      rslora: whether s is α / √r instead.

    Raises:
      ValueError: if an argument is out of range; at `init`, if `targets` matches no dense layer, or
        k is not below the size of a kernel, which would leave nothing to learn.
    """
    check(rank >= 1, "rank", rank, "at least 1")
    check(preserved >= 1, "preserved", preserved, "at least 1")
    factor = adapters.scale(rank, alpha, rslora)

    def init(ctx: Ctx, params: Params) -> tuple[Params, OploraState]:
        kernels = adapters.dense_kernels(ctx, params, targets)
        least = subspaces.smaller_side(kernels)
        wanted = f"below {least}, the smaller side of a kernel"
        check(preserved < least, "preserved", preserved, wanted)
        params = adapters.add_pairs("oplora", ctx, params, rank, targets)
        kept = {path: subspaces.leading(kernel, preserved) for path, kernel in kernels.items()}
        return params, OploraState(
            {path: u for path, (u, _) in kept.items()}, {path: v for path, (_, v) in kept.items()}
        )

    def forward(state: OploraState, ctx: Ctx, apply: Apply) -> Apply:
        def apply_outside(params: Params, batch: Batch, call: Call = Call()) -> Any:
            whole = trees.merge(params, ctx.frozen)
            for path, basis in state.inputs.items():
                lora = adapters.subtree(whole, path)["lora"]
                pair = subspaces.pair_outside(lora, basis, state.outputs[path])
                whole = adapters.with_subtree(whole, path, {"lora": pair})
            return apply(adapters.scale_pairs(whole, factor), batch, call)

        return apply_outside

    return Method("oplora", init=init, forward=forward, learns=adapters.is_adapter)
