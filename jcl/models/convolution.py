"""A convolution whose gradients are fast inside compiled loops on a CPU too.

XLA's CPU compiler hands a convolution to its fast routine where the axes are in the one order that
this routine takes. Elsewhere it puts them into that order first, but only outside of loops and
branches (its pass goes over the entry computation alone). `lax.conv_general_dilated`'s own
gradients have their axes in other orders, so that inside `lax.scan`, and so in all that `jcl.run`
and `jcl.fit` compile, they run as naive loops, some 20 times slower. Here both gradients are
written as convolutions in that order. On other devices they are lax's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Padding = tuple[tuple[int, int], ...]


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    precision: Any = None,
) -> jax.Array:
    """`lax.conv_general_dilated`, for `flax.linen.Conv(..., conv_general_dilated=convolve)`.

    The gradients are those told above if channels come last, x [B, *places, in] and kernel
    [*window, in, out], and nothing is dilated or grouped; then it is differentiable in reverse mode
    only, as often as wanted. Every other convolution is lax's own. The arguments are lax's.

    Returns:
      [B, *places, out] if channels come last.
    """
    axes = kernel.ndim - 2
    spread = {*(lhs_dilation or ()), *(rhs_dilation or ()), feature_group_count}
    order = lax.conv_dimension_numbers(x.shape, kernel.shape, dimension_numbers)
    if spread != {1} or order != lax.conv_dimension_numbers(x.shape, kernel.shape, _order(axes)):
        return lax.conv_general_dilated(
            x, kernel, strides, padding, lhs_dilation, rhs_dilation, dimension_numbers,
            feature_group_count, precision=precision,
        )  # fmt: skip
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:-1], kernel.shape[:-2], strides, padding)
    pads = tuple((before, after) for before, after in padding)
    return _convolve(x, kernel, tuple(strides), pads, precision)


def _order(axes: int) -> tuple[str, str, str]:
    """The order of the axes of inputs, kernel and outputs that the routine takes."""
    places = "DHW"[3 - axes :]
    return f"N{places}C", f"{places}IO", f"N{places}C"


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _convolve(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, ...], padding: Padding, precision: Any
) -> jax.Array:
    return _in_order(x, kernel, strides, padding, precision)


def _in_order(
    x: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: Padding,
    precision: Any,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
) -> jax.Array:
    return lax.conv_general_dilated(
        x, kernel, strides, padding, lhs_dilation, rhs_dilation, _order(kernel.ndim - 2),
        precision=precision,
    )  # fmt: skip


def _forward(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, ...], padding: Padding, precision: Any
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _in_order(x, kernel, strides, padding, precision), (x, kernel)


def _backward(
    strides: tuple[int, ...],
    padding: Padding,
    precision: Any,
    saved: tuple[jax.Array, jax.Array],
    slope: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    def ordered(x: jax.Array, kernel: jax.Array, slope: jax.Array) -> tuple[jax.Array, jax.Array]:
        return (
            _slope_of_inputs(x, kernel, slope, strides, padding, precision),
            _slope_of_kernel(x, kernel, slope, strides, padding, precision),
        )

    def own(x: jax.Array, kernel: jax.Array, slope: jax.Array) -> tuple[jax.Array, jax.Array]:
        _, back = jax.vjp(lambda a, b: _in_order(a, b, strides, padding, precision), x, kernel)
        return back(slope)

    return lax.platform_dependent(*saved, slope, cpu=ordered, default=own)


_convolve.defvjp(_forward, _backward)


def _slope_of_inputs(
    x: jax.Array,
    kernel: jax.Array,
    slope: jax.Array,
    strides: tuple[int, ...],
    padding: Padding,
    precision: Any,
) -> jax.Array:
    """The slope, spread by the strides, under the kernel turned around."""
    places = range(len(strides))
    turned = jnp.swapaxes(jnp.flip(kernel, tuple(places)), -1, -2)
    pads = []
    for axis in places:
        before = kernel.shape[axis] - 1 - padding[axis][0]
        spread = (slope.shape[axis + 1] - 1) * strides[axis] + 1
        pads.append((before, x.shape[axis + 1] + kernel.shape[axis] - 1 - spread - before))
    ones = (1,) * len(strides)
    return _in_order(slope, turned, ones, tuple(pads), precision, lhs_dilation=strides)


def _slope_of_kernel(
    x: jax.Array,
    kernel: jax.Array,
    slope: jax.Array,
    strides: tuple[int, ...],
    padding: Padding,
    precision: Any,
) -> jax.Array:
    """The inputs under the slope, spread by the strides, as the kernel: rows are summed over."""
    ones = (1,) * len(strides)
    rows_last, rows_in = jnp.swapaxes(x, 0, -1), jnp.moveaxis(slope, 0, -2)
    found = _in_order(rows_last, rows_in, ones, padding, precision, rhs_dilation=strides)
    window = tuple(slice(size) for size in kernel.shape[:-2])  # strides may leave more places
    return jnp.moveaxis(found[:, *window], 0, -2)
