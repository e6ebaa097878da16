"""The closed form of editors that write into a kernel, and the writing of a kernel."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import cho_factor, cho_solve

from jcl.mechanisms import adapters
from jcl.method import Params, check


def product(a: jax.Array, b: jax.Array) -> jax.Array:
    """a @ b in full float32 on every platform."""
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def factor(moment: jax.Array) -> jax.Array:
    """The upper Cholesky factor [..., d, d] of a symmetric matrix without negative eigenvalues.

    The trace times float32's 1e-7 is added to the diagonal, so that directions without any key
    don't make the matrix singular.
    """
    trace = jnp.trace(moment, axis1=-2, axis2=-1)[..., None, None]
    eye = jnp.eye(moment.shape[-1], dtype=moment.dtype)
    return cho_factor(moment + jnp.finfo(moment.dtype).eps * trace * eye)[0]


def least_change(
    root: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    slack: float | jax.Array,
    met: jax.Array | None = None,
) -> jax.Array:
    """ΔW [d, out] = A (slack · I + M A)⁻¹ V with A = C⁻¹ Kᵀ: the values are added at the keys.

    With M = K it minimises slack · tr(ΔWᵀ C ΔW) + ‖K ΔW - V‖², so it solves the normal equations
    (slack · C + Kᵀ K) ΔW = Kᵀ V; a slack of 0 gives K ΔW = V, with M instead M ΔW = V.

    Args:
      root: the `factor` of C [d, d].
      keys: K [n, d].
      values: V [n, out].
      slack: weighs the change against the error at the keys; may be traced.
      met: M [n, d], the inputs at which the values should be met; None is K.
    """
    spread = cho_solve((root, False), keys.T)
    gram = product(keys if met is None else met, spread)
    return product(spread, jnp.linalg.solve(gram + slack * jnp.eye(len(keys)), values))


def kernel(params: Params, path: str, layers: tuple[int, ...]) -> jax.Array:
    """The kernel [all layers, in, out] at `path`; one that isn't stacked is that of layer 0.

    Raises:
      ValueError: if there is no plain kernel at `path`, or it has no such layers.
    """
    try:
        found = adapters.subtree(params, path)["kernel"]
    except (KeyError, TypeError):
        raise ValueError(f"path is {path!r}, but must be that of a dense layer") from None
    whole = not isinstance(found, dict) and found.ndim in (2, 3)
    wanted = "whole, not quantised, and [in, out] or stacked over layers"
    check(whole, "kernel at path", path, wanted)
    found = found if found.ndim == 3 else found[None]
    inside = bool(layers) and all(0 <= i < len(found) for i in layers)
    check(inside, "layers", layers, f"from 0 to {len(found) - 1}")
    return found


def put(params: Params, path: str, kernel: jax.Array) -> Params:
    """The tree with another kernel [layers, in, out] at `path`, in the shape that it has there."""
    shape = adapters.subtree(params, path)["kernel"].shape
    return adapters.with_subtree(params, path, {"kernel": kernel.reshape(shape)})


def add(kernel: jax.Array, layer: Any, change: jax.Array) -> jax.Array:
    """The kernel [layers, in, out] with `change` [in, out] added to one of them."""
    wide = kernel[layer].astype(jnp.float32) + change
    return kernel.at[layer].set(wide.astype(kernel.dtype))


def check_moment(moment: jax.Array, kernel: jax.Array, layers: int) -> None:
    """Refuses second moments whose shape doesn't fit a kernel's inputs.

    Raises:
      ValueError: if the shape isn't [layers, in, in].
    """
    wanted = (layers, kernel.shape[1], kernel.shape[1])
    check(moment.shape == wanted, "shape of moment", moment.shape, f"{wanted}")
