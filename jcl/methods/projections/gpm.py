"""Gradient projection memory: dense layers no longer change on the inputs of earlier stages."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jcl import taps, trees
from jcl.mechanisms import subspaces
from jcl.mechanisms.lasting import check_single
from jcl.method import Batch, Ctx, Info, Method, Params, check


class GpmState(NamedTuple):
    """The state of `gpm`, by the path of each dense layer; stacked layers have a leading axis."""

    basis: dict[str, jax.Array]
    """M: orthonormal input directions, float32 [..., in, rank]; columns from `used` on are 0."""
    used: dict[str, jax.Array]
    """int32 [...]: how many directions M has."""


def _extend(
    basis: jax.Array, used: jax.Array, second: jax.Array, threshold: jax.Array | float
) -> tuple[jax.Array, jax.Array]:
    """Adds the fewest directions that, with the basis, hold `threshold` of tr `second` [in, in]."""
    rank = basis.shape[1]
    outside = partial(subspaces.outside, basis)
    rest = outside(outside(second).T)
    energy, vectors = jnp.linalg.eigh((rest + rest.T) / 2)
    energy, vectors = jnp.maximum(energy[::-1], 0.0), vectors[:, ::-1]
    total = jnp.maximum(jnp.trace(second), 1e-30)
    before = 1 - jnp.sum(energy) / total + (jnp.cumsum(energy) - energy) / total
    needed = (before < threshold) & (energy > 1e-6 * total)
    new = jnp.minimum(jnp.sum(needed), rank - used).astype(jnp.int32)
    vectors = outside(vectors)  # a second time, for once loses orthogonality in float32
    vectors = vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=0), 1e-12)
    source = jnp.arange(rank) - used
    columns = vectors[:, jnp.clip(source, 0, vectors.shape[1] - 1)]
    return jnp.where((source >= 0) & (source < new), columns, basis), used + new


def gpm(
    threshold: float = 0.97,
    growth: float = 0.0,
    rank: int | None = None,
    free: Callable[[str], bool] | None = None,
    at: Literal["grads", "updates"] = "grads",
) -> Method:
    """GPM: dW ← dW - M Mᵀ dW for each dense kernel W [in, out], M spanning its past inputs.

    At the end of a stage the second moment R Rᵀ of a layer's inputs over the stage's batches is
    taken through its tap, without padding (see `taps.moments`), and M grows by its eigenvectors
    outside M, by the fewest with which M holds `threshold` of tr R Rᵀ. A layer's outputs for inputs
    in the span of M no longer change. Of a convolution W is [height · width · in, out], and its
    inputs are the patches at all places.

    Source: Saha et al., arXiv 2103.09762, equations 5, 8 and 9, and the authors' code, which in the
    first stage keeps one direction fewer than equation 5 asks for. As there all other parameters
    (biases, norms, embeddings) stop learning at the end of the first stage.

    Args:
      threshold: ε, the share of the inputs' energy that is protected; may be traced.
      growth: what ε grows by with each further stage, 0.003 for the authors' CIFAR-100; may be
        traced.
      rank: how many columns M has room for; None is as many as a layer has inputs.
      free: static predicate over paths of leaves that learn freely, such as one task's head.
      at: whether to project the gradient (`grads`, as published, there with plain SGD) or the
        optimizer's update (`updates`), which keeps the promise with momentum, Adam or weight decay.

    Raises:
      ValueError: if an argument is out of range, or the model has no dense layers with taps.
    """
    check((threshold > 0) & (threshold <= 1), "threshold", threshold, "in (0, 1]")
    check(growth >= 0, "growth", growth, "at least 0")
    check(rank is None or rank >= 1, "rank", rank, "None or at least 1")
    check(at in ("grads", "updates"), "at", at, "'grads' or 'updates'")

    def matrices(ctx: Ctx, params: Params) -> dict[str, tuple[int, ...]]:
        """Shapes of the trainable kernels of dense layers, without the `free` ones, by path."""
        leaves, there = trees.by_path(params), taps.dense_sites(ctx.apply, params, ctx.batch)
        kept = {s: leaves.get(f"{s}/kernel") for s in there if not (free and free(f"{s}/kernel"))}
        kernels = {s: kernel for s, kernel in kept.items() if kernel is not None}
        check_single("gpm", ctx, kernels)
        return {
            s: taps.matrix_shape(s, kernel.shape, there[s], ctx.structure)
            for s, kernel in kernels.items()
        }

    def init(ctx: Ctx, params: Params) -> tuple[Params, GpmState]:
        found = matrices(ctx, params)
        check(bool(found), "free", free, "one that leaves a trainable dense kernel to protect")
        shapes = {s: (*k[:-1], min(rank or k[-2], k[-2])) for s, k in found.items()}
        return params, GpmState(
            {s: jnp.zeros(shape, jnp.float32) for s, shape in shapes.items()},
            {s: jnp.zeros(shape[:-2], jnp.int32) for s, shape in shapes.items()},
        )

    def outside(state: GpmState, ctx: Ctx, tree: Params) -> Params:
        first = ctx.stage < 1

        def one(path: Any, x: jax.Array) -> jax.Array:
            name = trees.path_name(path)
            basis = state.basis.get(name.removesuffix("/kernel"))
            if free and free(name):
                return x
            if basis is None or not name.endswith("/kernel"):
                return jnp.where(first, x, jnp.zeros_like(x))
            flat = x.astype(jnp.float32).reshape(*basis.shape[:-1], -1)
            return subspaces.outside(basis, flat).reshape(x.shape).astype(x.dtype)

        return jax.tree_util.tree_map_with_path(one, tree)

    def projected(state: GpmState, ctx: Ctx, tree: Params) -> Params:
        return lax.cond(ctx.stage < 1, lambda t: t, lambda t: outside(state, ctx, t), tree)

    def consolidate(
        state: GpmState, ctx: Ctx, params: Params, batches: Batch
    ) -> tuple[Params, GpmState]:
        def layers(basis: jax.Array) -> int | None:
            return basis.shape[0] if basis.ndim == 3 else None

        wanted = {f"{s}:in": (layers(b), taps.second) for s, b in state.basis.items()}
        sums = taps.moments_of(ctx.apply, params, batches, wanted)
        share = threshold + growth * ctx.stage
        basis, used = {}, {}
        for s, old in state.basis.items():
            grow = partial(_extend, threshold=share)
            grow = jax.vmap(grow) if old.ndim == 3 else grow
            basis[s], used[s] = grow(old, state.used[s], sums[f"{s}:in"])
        return params, GpmState(basis, used)

    def report(state: GpmState, info: Info) -> dict[str, jax.Array]:
        return {"directions": jnp.sum(jnp.stack([jnp.sum(u) for u in state.used.values()]))}

    method = Method(
        "gpm", init=init, consolidate=consolidate, report=report, reads=("gradients",), starts=1
    )
    if at == "grads":
        return method._replace(grads=projected)
    return method._replace(updates=projected)
