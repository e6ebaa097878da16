"""Meshes of devices, and where everything that a run carries lies on them.

Four rules lay out a run's arrays:
- `RULES` map the paths of parameters to the mesh's axes.
- A method's state and an optimizer's moments lie like the parameter that they belong to: the one
  whose path their own path ends with, and whose shape their own shape ends with.
- A memory's rows, or any that a state keeps and says so (`jcl.method.KeepsRows`), are divided over
  the same axes as the rows of a batch.
- The rest, counters and keys, is whole on every device.

The compiler inserts the communication that follows from this; `constrain` tells it where the
activations between a model's blocks lie.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from jcl import trees
from jcl.method import Apply, Batch, Call, KeepsRows, Params, check
from jcl.parallel.storage import Int8, OnHost

AXES = ("data", "fsdp", "expert", "sequence", "tensor")
"""The axes of a mesh: `data` copies parameters, `fsdp` cuts them and gathers each layer's where it
is needed, `expert` cuts a mixture by expert, `sequence` cuts rows along their length, `tensor` cuts
products along their features. Devices along the last axes are neighbours on the machine."""
ROWS = ("data", "fsdp", "expert")
"""The axes over which the rows of a batch, and of a memory, are divided."""

Rules = Sequence[tuple[str, tuple[str | None, ...]]]
"""Regular expressions for whole paths of parameters, and the axes of their last dimensions."""
RULES: Rules = (
    (r"(.*/)?experts/(gate|up)/kernel", ("expert", "fsdp", "tensor")),
    (r"(.*/)?experts/down/kernel", ("expert", "tensor", "fsdp")),
    (r"(.*/)?(cross_)?(query|key|value)/kernel", ("fsdp", "tensor")),
    (r"(.*/)?(gate|up)/kernel", ("fsdp", "tensor")),
    (r"(.*/)?((cross_)?output|down)/kernel", ("tensor", "fsdp")),
    (r"(.*/)?embed/table", ("tensor", "fsdp")),
    (r"head/kernel", ("fsdp", "tensor")),
    (r"(.*/)?((cross_)?(query|key|value)|gate|up)/bias", ("tensor",)),
    (r"(.*/)?blocks/.*/(bias|scale|gain|input_gain|magnitude)", (None,)),
    (r"(.*/)?(bias|scale)", (None,)),
    (r"(.*/)?lora/(a|router)", ("fsdp", None)),
    (r"(.*/)?lora/b", (None, "fsdp")),
    (r"(.*/)?kernel", ("fsdp", "tensor")),
    (r"(.*/)?table", (None, "fsdp")),
)
"""The rules for every model here; the first that matches counts. `tensor` cuts the outputs of a
product that reads the residual stream, and the inputs of one that adds to it, so that the two need
one sum. The stream's norms and biases, a few parts in ten thousand, are whole on every device."""


class Layout(NamedTuple):
    """A mesh, and the rules by which parameters lie on it."""

    mesh: Mesh | AbstractMesh
    rules: Rules = RULES


def make(devices: Sequence[Any] | None = None, **axes: int) -> Mesh:
    """A mesh with all of `AXES`, such as `make(data=2, fsdp=4)`; axes not named have size 1.

    Args:
      devices: the devices that it is made of; None takes as many of all as are needed, in an order
        that suits their connections.
      axes: the axes' sizes; one may be -1, which stands for as many devices as are left.

    Raises:
      ValueError: if an axis is unknown, or the sizes don't make up the devices.
    """
    there = list(jax.devices() if devices is None else devices)
    sizes = _sizes(axes, len(there))
    # Auto, not the default Explicit, lets the compiler decide what isn't constrained
    kinds = (AxisType.Auto,) * len(AXES)
    used = there[: math.prod(sizes)]
    try:
        return jax.make_mesh(sizes, AXES, axis_types=kinds, devices=used)
    except NotImplementedError:  # an axis that is a part of one of the machine's axes
        grid = mesh_utils.create_device_mesh(sizes, used, allow_split_physical_axes=True)
        return Mesh(grid, AXES, axis_types=kinds)


def abstract(**axes: int) -> AbstractMesh:
    """A mesh of devices that aren't here, for tables and shapes but not for computing.

    Raises:
      ValueError: if an axis is unknown or has no size of its own.
    """
    sizes = _sizes(axes, None)
    return AbstractMesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _sizes(axes: dict[str, int], there: int | None) -> tuple[int, ...]:
    """The sizes of all `AXES`; `there` is how many devices there are, None for any number."""
    sizes = dict.fromkeys(AXES, 1)
    for name, size in axes.items():
        check(name in sizes, "mesh axis", name, f"one of {list(AXES)}")
        ok = size >= 1 or (size == -1 and there is not None)
        check(ok, name, size, "at least 1" + ("" if there is None else ", or -1 for what is left"))
        sizes[name] = size
    unsaid = [name for name, n in sizes.items() if n == -1]
    check(len(unsaid) <= 1, "axes of size -1", unsaid, "one at most")
    known = math.prod(n for n in sizes.values() if n != -1)
    if there is not None:
        if unsaid:
            ok = there % known == 0
            check(ok, "product of the mesh's other axes", known, f"a divisor of {there} devices")
            sizes[unsaid[0]] = there // known
        needed = math.prod(sizes.values())
        wanted = f"at most {there}, which is how many there are"
        check(needed <= there, "number of devices in the mesh", needed, wanted)
    return tuple(sizes.values())


def parse(text: str) -> dict[str, int]:
    """The axes and sizes in a text such as `fsdp=16,tensor=4`.

    Raises:
      ValueError: if the text is not written like that.

    >>> parse("fsdp=16, tensor=4")
    {'fsdp': 16, 'tensor': 4}
    """
    found = {}
    for part in text.split(","):
        name, _, size = (x.strip() for x in part.partition("="))
        ok = name in AXES and re.fullmatch(r"-?\d+", size) is not None and name not in found
        check(ok, "mesh", text, f"like 'fsdp=16,tensor=4', with axes of {list(AXES)}")
        found[name] = int(size)
    return found


def dividing_axes(mesh: Mesh | AbstractMesh, axes: Sequence[str], size: int) -> tuple[str, ...]:
    """The axes, taken in order, over all of which together `size` can be cut evenly."""
    taken: list[str] = []
    for axis in axes:
        count = math.prod(mesh.shape.get(a, 1) for a in (*taken, axis))
        free = mesh.shape.get(axis, 1) > 1 and axis not in mesh.manual_axes
        if free and size % count == 0:
            taken.append(axis)
    return tuple(taken)


def spec(path: str, shape: Sequence[int], layout: Layout) -> PartitionSpec:
    """Where a parameter lies: for each dimension the axis that cuts it, if it divides it evenly.

    Args:
      path: its path, such as `blocks/query/kernel`.
      shape: its shape; dimensions before those that the rule names, such as layers, aren't cut.
      layout: the mesh and its rules.
    """
    mesh = layout.mesh
    for pattern, axes in layout.rules:
        if re.fullmatch(pattern, path):
            named = axes[-len(shape) :] if shape else ()
            axes = (None,) * (len(shape) - len(named)) + tuple(named)
            break
    else:  # a parameter that no rule matches is cut along its longest dimension
        longest = max(range(len(shape)), key=lambda i: shape[i], default=0)
        axes = tuple("fsdp" if i == longest else None for i in range(len(shape)))
    cut = [
        axis if axis and dividing_axes(mesh, (axis,), size) else None
        for axis, size in zip(axes, shape, strict=True)
    ]
    return PartitionSpec(*cut)


def of_params(params: Params, layout: Layout) -> Params:
    """The shardings of a tree of parameters, from their paths and shapes."""
    return jax.tree_util.tree_map_with_path(
        lambda p, x: NamedSharding(layout.mesh, spec(trees.path_name(p), x.shape, layout)), params
    )


def of_batch(batch: Any, layout: Layout, leading: int = 0) -> Any:
    """The shardings of a batch: its rows are cut over `ROWS`, each row's length over `sequence`.

    Args:
      batch: leaves [..., B, L, ...], read for their shapes.
      layout: the mesh.
      leading: how many dimensions come before B, such as steps.
    """

    def place(x: Any) -> NamedSharding:
        return NamedSharding(layout.mesh, row_spec(layout.mesh, x.shape, leading))

    return jax.tree.map(place, batch)


def row_spec(mesh: Mesh | AbstractMesh, shape: Sequence[int], leading: int = 0) -> PartitionSpec:
    """Where [B, L, ...] lies. Axes that don't divide B cut L, so that one long row is divided too.

    `shape` has `leading` dimensions before B, which aren't cut.
    """
    own = shape[leading:]
    if not own:
        return PartitionSpec()
    rows = dividing_axes(mesh, ROWS, own[0])
    if len(own) == 1:
        return PartitionSpec(*[None] * leading, rows or None)
    length = dividing_axes(mesh, (*(a for a in ROWS if a not in rows), "sequence"), own[1])
    return PartitionSpec(*[None] * leading, rows or None, length or None)


def of_state(state: Any, layout: Layout) -> Any:
    """The shardings of a run's state, leaf by leaf.

    Args:
      state: a `jcl.State`, or its shapes from `jax.eval_shape`. A leaf outside `params` lies like
        the parameter that it belongs to, like a batch if it is a memory's, else on every device.
      layout: the mesh and its rules.
    """
    mesh = layout.mesh
    known = {
        trees.path_name(path): (leaf.shape, spec(trees.path_name(path), leaf.shape, layout))
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.params)
    }

    def shadow(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = trees.path_name(path).split("/")
        for start in range(len(name)):  # the longest end of the path first
            shape, found = known.get("/".join(name[start:]), (None, PartitionSpec()))
            if shape is not None and leaf.shape[len(leaf.shape) - len(shape) :] == shape:
                lead = [None] * (len(leaf.shape) - len(shape))
                return NamedSharding(mesh, PartitionSpec(*lead, *found))
        return NamedSharding(mesh, PartitionSpec())

    def place(path: tuple[Any, ...], node: Any) -> Any:
        if isinstance(node, OnHost):
            inner = _mapped(lambda p, x: place((*path, *p), x), node.state)
            return OnHost(jax.tree.map(lambda s: s.with_memory_kind("pinned_host"), inner))
        if isinstance(node, Int8):
            values = shadow(path, node.values)
            rest = PartitionSpec(*[*values.spec, *[None] * node.scale.ndim][: node.scale.ndim - 1])
            return Int8(values, NamedSharding(mesh, rest))
        if isinstance(node, KeepsRows):
            kept: Any = node  # a NamedTuple
            everywhere = jax.tree.map(lambda x: NamedSharding(mesh, PartitionSpec()), kept)
            rows = {name: of_batch(getattr(kept, name), layout) for name in kept.row_fields}
            return everywhere._replace(**rows)
        return shadow(path, node)

    return _mapped(place, state)


def _mapped(place: Callable[[tuple[Any, ...], Any], Any], tree: Any) -> Any:
    """`place(path, node)` for each leaf, and for each node as a whole that lies in its own way."""
    return jax.tree_util.tree_map_with_path(
        place, tree, is_leaf=lambda node: isinstance(node, KeepsRows | Int8 | OnHost)
    )


def constrain_batch(batch: Batch, layout: Layout | None, leading: int = 0) -> Batch:
    """Constrains a batch to the sharding of `of_batch`, inside a compiled function.

    Without a layout the batch stays as it is.
    """
    if layout is None:
        return batch
    here = layout._replace(mesh=_automatic_mesh(layout.mesh))
    return jax.lax.with_sharding_constraint(batch, of_batch(batch, here, leading))


def _automatic_mesh(mesh: Mesh | AbstractMesh) -> Mesh | AbstractMesh:
    """The program's mesh, or inside a `shard_map` the axes that are still automatic."""
    context = jax.sharding.get_abstract_mesh()
    return context if context.manual_axes else mesh


_CUT = ("query:out", "gate:out", "up:out", "output:in", "down:in", "cross_query:out")
"""Sites inside a block whose features, and thus attention heads, `tensor` cuts."""
_SEEN = ("key:out", "value:out", "cross_key:out", "cross_value:out")
"""Sites that attention needs along a row's whole length."""


def constrain(apply: Apply, layout: Layout | None) -> Apply:
    """The same model, its activations [B, L, d] constrained to lie as the batch's rows do.

    Without this the compiler might gather activations where weights are smaller.
    """
    if layout is None:
        return apply
    whole = layout.mesh

    def pin(mesh: Mesh | AbstractMesh, site: str, h: jax.Array) -> jax.Array:
        rows: list[Any] = [*row_spec(mesh, h.shape), *[None] * h.ndim][: h.ndim]
        end = site.rpartition("/")[2]
        if h.ndim == 3 and end in _CUT + _SEEN:
            rows[-1] = dividing_axes(mesh, ("tensor",), h.shape[-1]) or None
            rows[1] = None if end in _SEEN else rows[1]
        return jax.lax.with_sharding_constraint(h, NamedSharding(mesh, PartitionSpec(*rows)))

    def pinned(params: Params, batch: Batch, call: Call = Call()) -> Any:
        mesh = _automatic_mesh(whole)
        # models read from the context which axes there are: see `layers.dense`, `moe.mix`
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return apply(
                params, batch, call._replace(tap=lambda s, i, h: pin(mesh, s, call.tap(s, i, h)))
            )

    return pinned


def by_parts(
    fn: Callable[..., Any],
    in_specs: Any,
    out_specs: Any,
    axes: Sequence[str] = (*ROWS, "sequence"),
) -> Callable[..., Any]:
    """`fn` mapped over each device's part of its arguments, inside a model on the context's mesh.

    It is for a computation that the compiler would cut badly. `in_specs` and `out_specs` cut the
    arguments and results by `axes`; the mesh's other axes are left to the compiler.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return jax.shard_map(
        fn,
        mesh=mesh,
        in_specs=in_specs,
        out_specs=out_specs,
        axis_names={*axes} - {*mesh.manual_axes},
        check_vma=False,
    )


class Placed(NamedTuple):
    """A row of the table that `jcl shardings` shows: a parameter and where it lies."""

    path: str
    shape: tuple[int, ...]
    spec: PartitionSpec
    bytes_per_device: int


def device_bytes(tree: Any, shardings: Any) -> int:
    """How many bytes of a tree one device holds."""

    def here(x: Any, where: NamedSharding) -> int:
        return math.prod(where.shard_shape(x.shape)) * x.dtype.itemsize

    return sum(jax.tree.leaves(jax.tree.map(here, tree, shardings)))


def table(params: Params, layout: Layout) -> list[Placed]:
    """Where each parameter lies, and how many bytes of it a device holds."""

    def row(path: tuple[Any, ...], x: Any) -> Placed:
        name = trees.path_name(path)
        where = NamedSharding(layout.mesh, spec(name, x.shape, layout))
        return Placed(name, tuple(x.shape), where.spec, device_bytes(x, where))

    return [row(path, x) for path, x in jax.tree_util.tree_leaves_with_path(params)]
