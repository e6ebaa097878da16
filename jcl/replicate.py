"""Many programs as one: seeds and hyper-parameters as members of a single compiled function."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from jcl.method import Batch
from jcl.program import Program, State

How = Literal["auto", "vmap", "map", "devices"]


def replicate(build: Callable[[Any], Program], values: Any, how: How = "auto") -> Program:
    """One program for many members: seeds, orders, hyper-parameters, in one compiled function.

    Every function of the result takes and returns pytrees with a leading axis [members]: states,
    batches and keys alike. Only `predict` and `read_params` take a batch without that axis.

    Args:
      build: makes a member's program from its values; these are traced, so they may be a
        strength or a learning rate, never a shape.
      values: pytree of arrays [members, ...], such as `jnp.arange(8)` for eight seeds.
      how: `vmap` vectorises over members; `map` runs them one after another in one call; `devices`
        spreads them over the local devices and runs them one after another on each. `auto` picks
        `vmap` on accelerators and one of the others on CPU, where vectorised small matrix products
        are slower than one member after another.

    Raises:
      ValueError: if the members' programs have a mesh.
    """
    members = jax.tree.leaves(values)[0].shape[0]
    first = build(jax.tree.map(lambda v: v[0], values))
    if first.layout is not None:
        raise ValueError(
            f"mesh is {dict(first.layout.mesh.shape)}, but must be None for programs with members, "
            "which are trained side by side on one device or one on each"
        )
    devices = jax.local_devices()
    if how == "auto":
        spread = len(devices) > 1 and members > 1
        how = "vmap" if devices[0].platform != "cpu" else "devices" if spread else "map"

    def each(fn: Callable[..., Any], *args: Any) -> Any:
        def member(packed: Any) -> Any:
            number, value, inner = packed
            return fn(_numbered(build(value), number), *inner)

        packed = (jnp.arange(members), values, args)
        if how == "vmap":
            return jax.vmap(member)(packed)
        if how == "map":
            return lax.map(member, packed)
        used = min(len(devices), members)
        mesh = Mesh(np.asarray(devices[:used]), ("member",))
        spec = PartitionSpec("member")
        spread = jax.shard_map(
            partial(lax.map, member), mesh=mesh, in_specs=(spec,), out_specs=spec, check_vma=False
        )
        if members % used == 0:
            return spread(packed)
        # the last member is repeated until every device has equally many
        index = np.minimum(np.arange(-(-members // used) * used), members - 1)
        return jax.tree.map(lambda x: x[:members], spread(jax.tree.map(lambda x: x[index], packed)))

    said: Any = each
    said.values = values  # by which a report tells seeds from points of a sweep

    def on_each_state(fn: Callable[..., Any], state: State, batch: Batch) -> Any:
        return each(lambda program, s: fn(program, s, batch), state)

    return Program(
        lambda params, batch, key, kept=(): each(
            lambda p, *a: p.init(*a), params, batch, key, kept
        ),
        lambda state, batch: each(lambda p, *a: p.step(*a), state, batch),
        lambda state, batches: each(lambda p, *a: p.consolidate(*a), state, batches),
        lambda state, batch: on_each_state(lambda p, s, b: p.predict(s, b), state, batch),
        lambda state, batch: on_each_state(lambda p, s, b: p.read_params(s, b), state, batch),
        each,
        first.method,
        members,
        scene=first.scene,
    )


def _numbered(program: Program, number: jax.Array) -> Program:
    """A member's program, which knows its number."""

    def alone(fn: Callable[..., Any], *args: Any) -> Any:
        return fn(numbered, *args)

    numbered = program._replace(member=number, over_members=alone)
    return numbered
