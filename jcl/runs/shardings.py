"""The command `jcl shardings`: where parameters lie on a mesh, and what a device holds."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jcl import losses, models, trees
from jcl.data.registry.fetch import SOURCES, fetch
from jcl.method import Method, check
from jcl.models.presets import PRESETS
from jcl.parallel import mesh
from jcl.program import make


class Plan(NamedTuple):
    """A model's layout on a mesh."""

    model: str
    axes: str
    """The mesh's axes, such as `fsdp=16, tensor=4`."""
    rows: list[mesh.Placed]
    """Where each parameter lies."""
    totals: list[tuple[str, int, int]]
    """Parameters, optimizer and each method: name, bytes in all, and bytes on a device."""


def plan(name: str, axes: dict[str, int], method: Method | None) -> Plan:
    """Lays a model out over a mesh, which needs neither its weights nor devices.

    Args:
      name: one of `models.presets.PRESETS`, a name that `fetch` knows, a folder, or a Hugging Face
        id.
      axes: the axes' sizes, as `mesh.parse` gives them.
      method: a method whose state is counted, with AdamW's, for a decoder; None counts only the
        parameters.

    Raises:
      ValueError: if the model or an axis is unknown, or a method is asked for with no decoder.
    """
    if name in PRESETS:
        config: Any = PRESETS[name]
        params = jax.eval_shape(lambda: models.decoder.init(jax.random.key(0), config))
    else:
        known = name in SOURCES
        config, params = models.shapes(
            fetch(name, say=lambda s: print(s, file=sys.stderr)) if known else name
        )
    layout = mesh.Layout(mesh.abstract(**axes))
    rows = mesh.table(params, layout)
    whole = [("parameters", trees.nbytes(params), sum(row.bytes_per_device for row in rows))]
    shown = ", ".join(f"{axis}={size}" for axis, size in axes.items())
    if method is None:
        return Plan(name, shown, rows, whole)
    ok = isinstance(config, models.decoder.Config)
    check(ok, "model", name, "a decoder for a method to be counted")
    apply = models.decoder.apply_fn(config)
    program = make(method, apply, losses.next_token, optax.adamw(1e-4))
    tokens = jax.ShapeDtypeStruct((8, 128), jnp.int32)
    batch = {"tokens": tokens, "segments": tokens}
    state = jax.eval_shape(program.init, params, batch, jax.random.key(0))
    placed = mesh.of_state(state, layout)
    parts = [("optimizer", state.optimizer, placed.optimizer)]
    parts += [(part, kept, placed.methods[part]) for part, kept in state.methods.items()]
    totals = [(part, trees.nbytes(kept), mesh.device_bytes(kept, to)) for part, kept, to in parts]
    return Plan(name, shown, mesh.table(state.params, layout), whole + totals)


def facts(found: Plan) -> dict[str, Any]:
    """A plan's contents for a JSON file."""
    rows = [{**row._asdict(), "spec": [axis or None for axis in row.spec]} for row in found.rows]
    keys = ("part", "bytes", "bytes_per_device")
    totals = [dict(zip(keys, total, strict=True)) for total in found.totals]
    return {"model": found.model, "mesh": found.axes, "parameters": rows, "totals": totals}
