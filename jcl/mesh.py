"""Meshes, and shardings for everything that a run carries.

A method's state and an optimizer's moments are sharded like the parameter that they shadow: a leaf
belongs to the parameter whose path its own path ends with and whose shape its own shape ends with.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jcl import trees
from jcl.method import Batch, Params
from jcl.program import Program


def make(**axes: int) -> Mesh:
    """A mesh with the named axes over the first devices there are, such as `make(data=2, fsdp=4)`.

    Raises:
      ValueError: if the axes need more devices than there are.
    """
    needed = int(np.prod(list(axes.values())))
    devices = jax.devices()
    if needed > len(devices) or needed < 1:
        raise ValueError(
            f"axes are {axes!r}, {needed} devices in all, but must be 1 to {len(devices)} here"
        )
    # Mesh's axes are Auto, where jax.make_mesh's are Explicit
    return Mesh(np.asarray(devices[:needed]).reshape(*axes.values()), tuple(axes))


def fsdp(params: Params, mesh: Mesh, axis: str = "fsdp") -> Params:
    """Shards each leaf over `axis` along its first dimension that divides, else replicates it."""
    size = mesh.shape[axis]

    def place(x: Any) -> NamedSharding:
        for i, d in enumerate(x.shape):
            if d % size == 0 and d > 0:
                return NamedSharding(mesh, PartitionSpec(*[None] * i, axis))
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree.map(place, params)


def of_state(program: Program, params: Params, batch: Batch, shardings: Params) -> Any:
    """Shardings for `program.init(params, batch, key)`, leaf by leaf, given those of `params`.

    Give them to `jax.jit(program.init, out_shardings=...)`, and with `(…, None)` to `step`.
    Leaves that shadow no parameter are replicated on the same mesh.
    """
    mesh = jax.tree.leaves(shardings)[0].mesh
    known = {
        trees.path_name(path): (leaf.shape, sharding.spec)
        for (path, leaf), sharding in zip(
            jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(shardings), strict=True
        )
    }
    state = jax.eval_shape(program.init, params, batch, jax.random.key(0))

    def place(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        name = trees.path_name(path).split("/")
        for start in range(len(name)):  # the longest suffix first
            shape, spec = known.get("/".join(name[start:]), (None, None))
            if shape is not None and leaf.shape[len(leaf.shape) - len(shape) :] == shape:
                lead = [None] * (len(leaf.shape) - len(shape))
                return NamedSharding(mesh, PartitionSpec(*lead, *spec))
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree_util.tree_map_with_path(place, state)
