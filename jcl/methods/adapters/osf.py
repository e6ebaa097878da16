"""OSF: a kernel's largest singular directions rest, and all others learn beside them."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jcl import trees
from jcl.mechanisms import adapters, subspaces
from jcl.method import Apply, Batch, Call, Ctx, Method, Params, check


class OsfState(NamedTuple):
    """The state of `osf`, by the path of each adapted layer; stacked layers lead."""

    resting: dict[str, jax.Array]
    """U_h S_h V_hᵀ, float32 [..., in, out]: the part of the kernel that rests."""
    inputs: dict[str, jax.Array]
    """U_h, float32 [..., in, k]."""
    outputs: dict[str, jax.Array]
    """V_h, float32 [..., out, k]."""


def osf(preserved: float = 0.5, targets: str = r"blocks/(query|key|value|output)") -> Method:
    """OSF: W = U_h S_h V_hᵀ + U S Vᵀ, of which U, S and V learn outside of the first part.

    At the start of each stage a kernel W [in, out] is split by its singular values. The k largest
    with their vectors, U_h and V_h, rest. The others learn as three factors, which are not held to
    be orthonormal: dU ← dU - U_h U_hᵀ dU, and dV likewise by V_h, before the optimizer. It is full
    tuning in what it can reach, and keeps three factors and the resting part for each kernel. The
    factors are leaves `<target>/lora/{a,b,s}`, a being U, b Vᵀ and s S; nothing else learns. The
    optimizer's moments remain those of the last stage's factors, unless `boundary` resets them.

    Source: Nayak et al., arXiv 2504.07097, and peft's `tuners/osf`, to which a stage is equal. As
    there k is the same share of every kernel's smaller side, where the paper's differs by how much
    a layer changes its input. With Adam, or weight decay, the update isn't outside of U_h and V_h
    even where the gradient is, as with peft.

    Args:
      preserved: the share of a kernel's singular directions that rest, in (0, 1); k is at least 1
        and leaves at least one to learn.
      targets: regular expression for the whole paths of the dense layers that learn.

    Raises:
      ValueError: if `preserved` is out of range; at `init`, if `targets` matches no dense layer, or
        a layer has a pair already.
    """
    check(0 < preserved < 1, "preserved", preserved, "in (0, 1)")

    def split(kernel: jax.Array) -> tuple[dict[str, jax.Array], tuple[jax.Array, ...]]:
        """The factors that learn, and what rests: the product, U_h and V_h."""
        u, s, v = jnp.linalg.svd(kernel, full_matrices=False)
        k = min(max(int(preserved * s.shape[-1]), 1), s.shape[-1] - 1)
        resting = subspaces.matmul(u[..., :k] * s[..., None, :k], v[..., :k, :])
        learns = {"a": u[..., k:], "b": v[..., k:, :], "s": s[..., k:]}
        return learns, (resting, u[..., :k], jnp.swapaxes(v[..., :k, :], -1, -2))

    def begun(params: Params, kernels: dict[str, jax.Array]) -> tuple[Params, OsfState]:
        """The tree with the factors of some kernels, and the state."""
        state = OsfState({}, {}, {})
        for path, kernel in kernels.items():
            learns, rests = split(kernel)
            params = adapters.with_subtree(params, path, {"lora": learns})
            for field, x in zip(state, rests, strict=True):
                field[path] = x
        return params, state

    def init(ctx: Ctx, params: Params) -> tuple[Params, OsfState]:
        kernels = subspaces.bare_kernels("osf", ctx, params, targets)
        wide = {path: adapters.kernel_array(k, jnp.float32) for path, k in kernels.items()}
        params, state = begun(params, wide)
        adapters.check_read("osf", ctx, params, forward(state, ctx, ctx.apply))
        return params, state

    def forward(state: OsfState, ctx: Ctx, apply: Apply) -> Apply:
        def apply_split(params: Params, batch: Batch, call: Call = Call()) -> Any:
            whole = trees.merge(params, ctx.frozen)
            for path, resting in state.resting.items():
                at = adapters.subtree(whole, path)
                lora = {**at["lora"], "b": at["lora"]["s"][..., :, None] * at["lora"]["b"]}
                kernel = resting.reshape(adapters.shape(at["kernel"]))
                whole = adapters.with_subtree(whole, path, {"kernel": kernel, "lora": lora})
            return apply(whole, batch, call)

        return apply_split

    def grads(state: OsfState, ctx: Ctx, tree: Params) -> Params:
        for path, basis in state.inputs.items():
            lora = adapters.subtree(tree, path)["lora"]
            pair = subspaces.pair_outside(lora, basis, state.outputs[path])
            tree = adapters.with_subtree(tree, path, {"lora": pair})
        return tree

    def consolidate(
        state: OsfState, ctx: Ctx, params: Params, batches: Batch
    ) -> tuple[Params, OsfState]:
        return begun(params, kernels_of(state, params))

    return Method(
        "osf",
        init=init,
        forward=forward,
        grads=grads,
        consolidate=consolidate,
        writes=True,
        learns=adapters.is_adapter,
        renews=adapters.is_pair,
    )


def kernels_of(state: OsfState, params: Params) -> dict[str, jax.Array]:
    """The kernels as they are now, float32 [..., in, out], by path."""
    found = {}
    for path, resting in state.resting.items():
        lora = adapters.subtree(params, path)["lora"]
        found[path] = resting + subspaces.matmul(lora["a"] * lora["s"][..., None, :], lora["b"])
    return found
