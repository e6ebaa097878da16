"""Counts a function's floating-point operations in its jaxpr; nothing is compiled or run.

XLA's own count takes the body of a scan once, whatever its length; this one takes it as often as it
runs. Products of matrices and convolutions count, as is usual for language models. The rest, which
is bound by memory, doesn't count, and neither does an operation on which no result depends.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend.core import jaxprs_in_params


def count(fn: Callable[..., Any], *args: Any) -> int:
    """How many multiplications and additions `fn(*args)` takes; a product of matrices has 2 m n k.

    Of a `cond` the dearest branch counts, and of a `while` of unknown length one round.

    Args:
      fn: anything that JAX traces.
      args: arrays, or `jax.ShapeDtypeStruct`s in their place.

    >>> import jax.numpy as jnp
    >>> count(lambda a, b: a @ b, jnp.zeros((2, 3)), jnp.zeros((3, 5)))
    60
    """
    closed = jax.make_jaxpr(fn)(*args)
    return _sum(closed.jaxpr, [True] * len(closed.jaxpr.outvars))


def _sum(jaxpr: Any, used: Sequence[bool]) -> int:
    """The operations of the equations on which the outputs marked in `used` depend."""
    needed = {id(v) for v, u in zip(jaxpr.outvars, used, strict=True) if u}
    total = 0
    for eqn in reversed(jaxpr.eqns):
        live = [id(v) in needed for v in eqn.outvars]
        if any(live) or eqn.effects:
            total += _one(eqn, live)
            needed |= {id(v) for v in eqn.invars}
    return total


def _one(eqn: Any, live: Sequence[bool]) -> int:
    kind, params = eqn.primitive.name, eqn.params
    shapes = [v.aval.shape for v in (*eqn.invars, *eqn.outvars) if hasattr(v.aval, "shape")]
    if kind == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return 2 * math.prod(shapes[-1]) * math.prod(shapes[0][i] for i in contracted)
    if kind == "conv_general_dilated":
        outputs = shapes[1][params["dimension_numbers"].rhs_spec[0]]
        return 2 * math.prod(shapes[-1]) * math.prod(shapes[1]) // outputs
    if kind.startswith("ragged_dot"):  # a row is multiplied by its own group's kernel alone
        return 2 * math.prod(shapes[0]) * shapes[-1][-1]
    if kind == "cond":
        return max(_sum(branch.jaxpr, live) for branch in params["branches"])
    total, times = 0, params.get("length", 1)
    if kind == "shard_map":  # the inner jaxpr is that of one device
        times = math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
    for inner in jaxprs_in_params(params):
        # the results of a call are its function's, so unread ones aren't computed inside either
        called = kind not in ("scan", "while") and len(inner.outvars) == len(live)
        total += _sum(inner, live if called else [True] * len(inner.outvars))
    return times * total
