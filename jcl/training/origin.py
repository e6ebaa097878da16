"""What a run in a folder was begun with, so that nothing else goes on with it by mistake."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from jcl.data.stream import Stream
from jcl.parallel import processes
from jcl.training.folder import whole

FILE = "begun.json"
_MOST = 1 << 16
"""How many elements of an array are read at most: large ones are told apart by so many of them."""


def of(
    stream: Stream,
    key: jax.Array,
    programs: list[Any],
    where: str | None,
    scores: tuple[int, ...],
) -> dict[str, Any]:
    """What a run is of, as JSON.

    Args:
      stream: of its data it has the shapes, and a sum over elements spread evenly.
      key: the run's.
      programs: jaxprs of the step and the boundary. Of these it has the floating numbers that are
        written into them, as strengths and learning rates are, and the sums of floating arrays.
      where: the mesh, under which a program's own numbers may differ.
      scores: the shape of the scores that are kept beside the state. With the shapes of a batch it
        is what `load_state` needs to read a checkpoint without the stream.
    """
    numbers: set[float] = set()
    constants: set[str] = set()
    for value in (x for closed in programs for x in _values(closed)):
        if not jnp.issubdtype(jnp.result_type(value), jnp.floating):
            continue  # a shape, or how many devices there are
        if np.ndim(value) == 0:
            numbers.add(float(f"{float(value):.7g}"))
        else:
            constants.add(_sum(value))
    slices = [stream.chunk(stage, 0, 1) for stage in range(len(stream.steps))]
    return {
        "key": np.asarray(jax.random.key_data(key)).tolist(),
        "stages": [list(stream.names), list(stream.steps)],
        "data": sum_of((stream.source, slices)),
        "numbers": [f"{x:.7g}" for x in sorted(numbers)],
        "constants": sorted(constants),
        "batch": {k: [list(x.shape), str(x.dtype)] for k, x in _batch(stream).items()},
        "scores": list(scores),
        "compared under": {
            "jax": jax.__version__, "jcl": metadata.version("jcl-kit"), "mesh": where,
        },
    }  # fmt: skip


def _batch(stream: Stream) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes and dtypes of a batch, of one member."""
    axes = 1 if stream.members is None else 2
    rows = jax.tree.map(lambda x: x[(0,) * axes], stream.chunk(0, 0, 1))
    return jax.eval_shape(stream.fetch, stream.source, rows)


def check(folder: Path, now: dict[str, Any], goes_on: bool) -> None:
    """Compares what a run is of with what the folder's was begun with, or writes it down.

    Args:
      folder: the run's folder.
      now: from `of`.
      goes_on: whether there is a checkpoint from which it goes on.

    Raises:
      ValueError: if it goes on, and its key, its data, or a number in its program is another.
    """
    refusal = processes.from_leader(lambda: _checked(folder / FILE, now, goes_on))
    if refusal:
        raise ValueError(f"out is {str(folder)!r}, which holds a run {refusal}; resume it with "
                         "what it was begun with, or choose another folder")  # fmt: skip


def _checked(path: Path, now: dict[str, Any], goes_on: bool) -> str:
    now = json.loads(json.dumps(now))
    if goes_on and path.is_file():
        return _difference(json.loads(path.read_text()), now)
    with whole(path) as partial:
        partial.write_text(json.dumps(now) + "\n")
    return ""


def _difference(then: dict[str, Any], now: dict[str, Any]) -> str:
    """How two runs differ, as the end of a sentence; "" if they don't."""
    for name in ("key", "stages"):
        if then[name] != now[name]:
            return f"with {name} {then[name]}, and not {now[name]}"
    if then["data"] != now["data"]:
        return "on other data of the same stages"
    if then["compared under"] != now["compared under"]:
        return ""  # whose programs may have other numbers of their own
    gone, new = (
        ", ".join(sorted(set(a["numbers"]) - set(b["numbers"]))[:4]) or "none"
        for a, b in ((then, now), (now, then))
    )
    if gone != new:
        return f"whose method, model or optimizer has the number {gone}, where this has {new}"
    if then["constants"] != now["constants"]:
        return "whose method, model or loss holds other arrays, such as a teacher or values swept"
    return ""


def _values(closed: Any) -> Iterator[Any]:
    """The literals and constants of a jaxpr and of those within it."""
    yield from closed.consts
    pending = [closed.jaxpr]
    while pending:
        jaxpr = pending.pop()
        for equation in jaxpr.eqns:
            for atom in equation.invars:
                value = getattr(atom, "val", None)
                if value is not None:
                    yield value
            for parameter in jax.tree.leaves(
                list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
            ):
                if hasattr(parameter, "consts") and hasattr(parameter, "jaxpr"):
                    yield from parameter.consts
                    parameter = parameter.jaxpr
                if hasattr(parameter, "eqns"):
                    pending.append(parameter)


def _sum(x: Any) -> str:
    """The sha256 of an array's shape, dtype and elements, hexadecimal; see `_MOST`.

    It is the same however an array is spread; all processes that hold a part of it take part.
    """
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    shape, dtype = np.shape(x), str(x.dtype)
    digest = hashlib.sha256(f"{shape} {dtype}".encode())
    if shape:  # whole rows, for no more than these are read of a file that is mapped
        each = max(math.prod(shape[1:]), 1)
        x = x[:: max(1, shape[0] * each // _MOST)]
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        x = multihost_utils.process_allgather(x, tiled=True)
    taken = np.asarray(x).reshape(-1)
    digest.update(np.ascontiguousarray(taken[:: max(1, taken.size // _MOST)]).tobytes())
    return digest.hexdigest()


def sum_of(tree: Any) -> str:
    """The sha256 over the leaves' paths, shapes, dtypes and elements spread evenly, hexadecimal."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    text = json.dumps([[jax.tree_util.keystr(path), _sum(x)] for path, x in leaves])
    return hashlib.sha256(text.encode()).hexdigest()
