"""Singular subspaces of kernels and of their inputs, where adapters start or which they avoid."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from jcl import taps, trees
from jcl.mechanisms.adapters import (
    dense_kernels,
    kernel_array,
    paths_with,
    refuse_pairs_of_others,
    shape,
    subtree,
)
from jcl.method import Apply, Batch, Ctx, Params, check

Start = Literal["principal", "minor", "previewed", "preserved", "null"]
"""Where a pair may start, see `part_of`."""
DAMPING = 0.01
"""What is added to the diagonal of a second moment, as a share of the diagonal's mean."""


def bare_kernels(name: str, ctx: Ctx, params: Params, targets: str) -> dict[str, jax.Array]:
    """Kernels [..., in, out] of the dense layers that the method `name` begins pairs for, by path.

    Raises:
      ValueError: as `adapters.dense_kernels`, or if one of them has a pair already.
    """
    kernels = dense_kernels(ctx, params, targets)
    refuse_pairs_of_others(name, ctx, params)
    adapted = [path for path in paths_with(trees.merge(params, ctx.frozen)) if path in kernels]
    check(not adapted, "targets", targets, f"layers without a pair, unlike {adapted}")
    return kernels


def smaller_side(kernels: dict[str, jax.Array]) -> int:
    """How many singular values the smallest of some kernels [..., in, out] has."""
    return min(min(shape(kernel)[-2:]) for kernel in kernels.values())


def matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    """a @ b in full float32 on every platform."""
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def outside(basis: jax.Array, x: jax.Array) -> jax.Array:
    """x [..., n, m] less its part in the span of the orthonormal columns of `basis` [..., n, k]."""
    return x - matmul(basis, matmul(jnp.swapaxes(basis, -1, -2), x))


def pair_outside(lora: Params, inputs: jax.Array, outputs: jax.Array) -> Params:
    """A pair whose product A B has no part in the span of `inputs`, nor its outputs of `outputs`.

    Args:
      lora: a [..., in, r] and b [..., r, out], and what else stays as it is.
      inputs: orthonormal columns, [..., in, k].
      outputs: orthonormal columns, [..., out, k].
    """
    b = outside(outputs, jnp.swapaxes(lora["b"], -1, -2))
    return {**lora, "a": outside(inputs, lora["a"]), "b": jnp.swapaxes(b, -1, -2)}


def leading(kernel: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """The singular vectors of a kernel [..., in, out] of its `count` largest singular values.

    They are orthonormal columns, float32 [..., in, count] and [..., out, count].
    """
    u, _, v = jnp.linalg.svd(kernel_array(kernel, jnp.float32), full_matrices=False)
    return u[..., :count], jnp.swapaxes(v, -1, -2)[..., :count]


def part_of(
    kernel: jax.Array, start: Start, rank: int, moment: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Two thin matrices, float32 [..., in, r] and [..., r, out], whose product is a part of W.

    With W = U S Vᵀ the two are P √S and √S Qᵀ of these r components P S Qᵀ:
    - `principal` has the largest of W, `minor` the smallest.
    - `previewed` and `preserved` have the largest and the smallest of C W, times C⁻¹, where C is
      the second moment of the inputs, its diagonal raised by 1 % of its mean.
    - `null` has all of N Nᵀ W, where N are the r directions in which the inputs are smallest.

    Args:
      kernel: W [..., in, out]; leading axes are stacked layers.
      start: which part.
      rank: r.
      moment: C, float32 [..., in, in], for the last three.
    """
    wide = kernel_array(kernel, jnp.float32)
    if start == "null":
        assert moment is not None
        # eigenvalues rise, so that the first vectors are the inputs' smallest directions
        basis = jnp.linalg.eigh(moment)[1][..., :rank]
        u, s, v = jnp.linalg.svd(matmul(jnp.swapaxes(basis, -1, -2), wide), full_matrices=False)
        u = matmul(basis, u)
    elif start in ("previewed", "preserved"):
        assert moment is not None
        size = moment.shape[-1]
        mean = jnp.trace(moment, axis1=-2, axis2=-1)[..., None, None] / size
        raised = moment + DAMPING * mean * jnp.eye(size)
        u, s, v = jnp.linalg.svd(matmul(raised, wide), full_matrices=False)
        u = jnp.linalg.solve(raised, u)
    else:
        u, s, v = jnp.linalg.svd(wide, full_matrices=False)
    last = start in ("minor", "preserved")
    some = slice(-rank, None) if last else slice(None, rank)
    root = jnp.sqrt(s[..., some])
    return u[..., some] * root[..., None, :], root[..., :, None] * v[..., some, :]


def input_moments(
    apply: Apply, params: Params, batches: Batch, targets: str = r"blocks/(query|value)"
) -> dict[str, jax.Array]:
    """C = E[x xᵀ] of the inputs of dense layers, uncentred, float32 [..., in, in], by path.

    The mean is over rows, or tokens, without padding (see `taps.moments`). Stacked layers lead. It
    is one scan, to be called inside `jax.jit`.

    Args:
      apply: the model.
      params: its parameters.
      batches: leaves [n, B, ...], with `weight` [n, B].
      targets: regular expression for the whole paths of the layers.

    Raises:
      ValueError: if `targets` is no regular expression or matches no layer that the model visits.
    """
    first = jax.tree.map(lambda x: x[0], batches)
    found = taps.dense_sites(apply, params, first, targets)
    stacks = {path: shape(subtree(params, path)["kernel"])[:-2] for path in found}
    wanted = {
        f"{path}:in": (stack[0] if stack else None, with_count) for path, stack in stacks.items()
    }
    sums = taps.moments_of(apply, params, batches, wanted)
    return {
        path: second / jnp.maximum(count, 1e-30)[..., None, None]
        for path, (second, count) in ((path, sums[f"{path}:in"]) for path in stacks)
    }


def with_count(h: jax.Array, weight: jax.Array, layer: Any = 0) -> tuple[jax.Array, jax.Array]:
    """Σ weight · h hᵀ, and Σ weight: a `taps.Moment`."""
    return taps.second(h, weight, layer), jnp.sum(weight)
