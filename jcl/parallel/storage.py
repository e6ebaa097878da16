"""How a method's state is kept between its uses: in fewer bits, or in the host's memory.

`compress` and `offload` each wrap a method and give one that does the same. Computing stays in
float32 and on the device: a state is unpacked before a hook reads it and packed after one changes
it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jcl.method import PHASES, Batch, Ctx, Info, Method, Params, check, defines

Kind = Literal["bfloat16", "int8"]


class Int8(NamedTuple):
    """A float32 array of two or more dimensions, in little more than a quarter of its bytes."""

    values: Any
    """int8 [..., n]: the array divided by `scale`, rounded."""
    scale: Any
    """float32 [..., 1]: the largest absolute value along the last axis, over 127."""


class OnHost(NamedTuple):
    """A state in the host's memory, which `mesh.of_state` lays out as pinned."""

    state: Any


def _quantise(x: jax.Array) -> Int8:
    scale = jnp.max(jnp.abs(x), axis=-1, keepdims=True) / 127
    values = jnp.round(x / jnp.where(scale > 0, scale, 1))
    return Int8(values.astype(jnp.int8), scale)


def compress(method: Method, dtype: Kind = "bfloat16") -> Method:
    """Keeps the float32 arrays of two or more dimensions in a method's state in fewer bits.

    They are rounded when the end of a stage has made new ones: to bfloat16's 8 bits of precision,
    or to 127 steps of the largest value along the last axis (absmax quantisation; Dettmers et al.,
    arXiv 2208.07339, section 2.1).

    Args:
      method: one whose state changes at boundaries only, such as `ewc`, `mas`, `lwf` or `l2sp`.
      dtype: `bfloat16` or `int8`.

    Raises:
      ValueError: if `method` is a chain, or observes every step, since its sums would be rounded
        as often; or if `dtype` is neither.
    """
    _alone(method)
    check(dtype in ("bfloat16", "int8"), "dtype", dtype, "'bfloat16' or 'int8'")
    ok = not defines(method, "observe")
    check(ok, "method", method.name, "one that doesn't observe every step")

    def pack(x: jax.Array) -> Any:
        if x.dtype != jnp.float32 or x.ndim < 2:
            return x
        return x.astype(jnp.bfloat16) if dtype == "bfloat16" else _quantise(x)

    def unpack(x: Any) -> jax.Array:
        if isinstance(x, Int8):
            return x.values.astype(jnp.float32) * x.scale
        return x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x

    def read(state: Any) -> Any:
        return jax.tree.map(unpack, state, is_leaf=lambda x: isinstance(x, Int8))

    return _around(method, lambda state: jax.tree.map(pack, state), read)


def offload(method: Method) -> Method:
    """Keeps a method's state in the host's memory; each step copies what it reads to the device.

    Give the compiled functions the shardings of `mesh.of_state`, which put such a state into
    `pinned_host` memory. `fit` does so if the program has a mesh, which may be of one device.

    Args:
      method: one whose state is large and rarely changed: anchors, a Fisher, a teacher.

    Raises:
      ValueError: if it is a chain.
    """
    _alone(method)

    def keep(state: Any) -> OnHost:
        return OnHost(jax.device_put(state, jax.memory.Space.Host))

    def read(state: OnHost) -> Any:
        return jax.device_put(state.state, jax.memory.Space.Device)

    return _around(method, keep, read)


def _alone(method: Method) -> None:
    check(not method.parts, "method", method.name, "one method; wrap a chain's parts")


def _around(method: Method, pack: Callable[[Any], Any], read: Callable[[Any], Any]) -> Method:
    """`method` with its state packed by `pack` after a hook made it, unpacked by `read` before one.

    Hooks that the method doesn't have stay undefined, so that nothing is unpacked for them.
    """

    def init(ctx: Ctx, params: Params) -> tuple[Params, Any]:
        params, state = method.init(ctx, params)
        return params, pack(state)

    def observe(state: Any, ctx: Ctx, info: Info) -> Any:
        return pack(method.observe(read(state), ctx, info))

    def consolidate(state: Any, ctx: Ctx, params: Params, batches: Batch) -> tuple[Params, Any]:
        params, state = method.consolidate(read(state), ctx, params, batches)
        return params, pack(state)

    def begin(state: Any, ctx: Ctx, params: Params) -> tuple[Params, Any]:
        params, state = method.begin(read(state), ctx, params)
        return params, pack(state)

    def reading(phase: str) -> Callable[..., Any]:
        hook = getattr(method, phase)
        return lambda state, *rest: hook(read(state), *rest)

    own = {"init": init, "begin": begin, "observe": observe, "consolidate": consolidate}
    hooks: dict[str, Any] = {
        phase: own.get(phase) or reading(phase) for phase in PHASES if defines(method, phase)
    }
    return method._replace(**hooks)
