"""Any Flax module as a model: `linen(module, ...)` and `nnx(module, ...)` make a `Model` of it.

The model's parameters are a nested dict of arrays, as all methods know them; what the module keeps
beside them, such as the running averages of batch norms, are its collections. In training dropout
draws from the call's key, and batch norms leave padding rows out: what stands in rows of weight 0
changes no statistic, gradient or output of others.

Sites: each dense layer that flax itself has calls `PATH:in` and `PATH:out`, where PATH names its
kernel in the tree, such as `Conv_0` or `block/Dense_1`. What flows at `:in` has the width of the
kernel seen as a matrix, `kernel.reshape(in, out)`, and at `:out` is [..., out], bias included. So
`Dense`, `DenseGeneral` (`Linear`, `LinearGeneral`) and `Einsum` show their inputs with the axes
that they sum over flattened; and a `Conv` shows its patches [B, *places, Π size · in] in the order
of the kernel's own flattening. Where a tap gives back what it got, the layer computes as ever, and
XLA drops patches that nobody reads. `:out` alone is shown by embeddings and norms, for `:in`
stands for a kernel; by layers whose kernel isn't one such matrix (grouped, masked, local,
transposed and input-dilated convolutions, batch axes, other einsum equations); and by a layer that
is called with more than its input. A layer of a user's own, or a subclass with a `__call__` of its
own, has no sites, nor has the whole module; and such a batch norm must mask padding itself. A layer
that is called twice is visited twice.

Adapters beside a kernel (see `jcl.models.dense`) are applied to every layer that has an `:in`.

Layers that `nn.scan` or `nnx.scan` stacks along the leading axis of their leaves are told by
`stacks={"blocks": 1}`, and then called with their index; a scan that shares its layers, such as an
RNN's over time, and any other lifted transformation, calls with an array 0. A module under
`nn.jit` or `nnx.jit` isn't visited reliably, for what it once traced is kept; a program compiles
the whole step anyway.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp

from jcl import trees
from jcl.mechanisms import adapters
from jcl.method import Batch, Call, Params, Structure, as_call, check, with_structure
from jcl.models import flax_layers
from jcl.models.flax_layers import (
    LAYER,
    Site,
    as_dict,
    collections_of,
    keep_if_padding,
    positional,
    put,
    streams_of,
    with_index,
)
from jcl.models.pretrained import Model

Inputs = Callable[[Batch], tuple[Any, ...]]
"""`inputs(batch)` are the arguments with which a module is called."""
Training = str | Callable[[bool], dict[str, Any]] | None
"""The name of the argument that says whether a module trains; or `training(trains)`, which gives
keyword arguments; None is found in the signature."""

_SAYS = {
    "train": True,
    "training": True,
    "is_train": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
    "inference": False,
    "eval": False,
}
"""Names of arguments that say whether a module trains, and what they are if it does."""


def first_input(batch: Batch) -> tuple[Any, ...]:
    """The default of `inputs`: `batch["x"]` alone, else `batch["tokens"]`.

    Raises:
      ValueError: if the batch has neither.
    """
    for name in ("x", "tokens"):
        if name in batch:
            return (batch[name],)
    raise ValueError(
        f"the batch has {sorted(batch)}, but must have x or tokens, or inputs must be given, such "
        "as lambda batch: (batch['image'],)"
    )


def linen(
    module: Any,
    batch: Batch,
    key: jax.Array | None = None,
    *,
    variables: Mapping[str, Any] | None = None,
    inputs: Inputs = first_input,
    training: Training = None,
    streams: Sequence[str] = ("dropout",),
    head: str | None = None,
    stacks: Mapping[str, int] = MappingProxyType({}),
) -> Model:
    """A model of a `flax.linen` module, with its variables drawn anew or given.

    Args:
      module: the module, whose `__call__` gives the outputs.
      batch: an example, to read shapes from.
      key: a typed PRNG key, from which `module.init` draws the variables.
      variables: what `module.init` gave, or trained since, in place of `key`.
      inputs: `inputs(batch)` is the tuple of arguments that the module is called with.
      training: the name of its argument that says whether it trains, which may be found in the
        signature if it is a usual one (train, deterministic, ...); or `training(trains)`, a dict of
        keyword arguments.
      streams: names of the random streams that it draws from in training. Others draw from the call
        too, but inside `nn.scan`, where a stream must be known by its name.
      head: the path of the layer that makes the logits, such as `Dense_1`.
      stacks: leading axes that count layers, by the start of a path (see `Structure.stacks`).

    Raises:
      ValueError: if an argument isn't as it must be, or the module doesn't say by which of its
        arguments it is told that it trains.
    """
    from flax import linen as nn

    check((key is None) != (variables is None), "key", key, "given if variables isn't, else None")
    say = _training(type(module).__call__, training)
    arguments = _checked(inputs)
    if variables is None:
        first = jax.jit(lambda k, b: module.init(k, *arguments(b), **say(False, False)))
        variables = first(key, batch)
    found = as_dict(nn.unbox(variables))
    params = found.pop("params", {})
    names = tuple(found)
    _check_told(names, say)
    structure = _structure(params, head, stacks, names)

    def apply(params: Params, batch: Batch, call: Call = Call()) -> Any:
        call = as_call(call)
        kept = collections_of(call, names)
        visit = partial(_intercept, nn, call, batch, flax_layers.trace_state())
        with nn.intercept_methods(visit):
            result = module.apply(
                {"params": with_index(params, structure), **kept},
                *arguments(batch),
                **say(call.training, call.key is not None),
                rngs=streams_of(call, streams),
                mutable=list(names) if call.training and names else False,
            )
        if not (call.training and names):
            return result
        outputs, new = result
        return outputs, keep_if_padding(batch, {name: as_dict(new[name]) for name in names}, kept)

    return Model(module, params, None, with_structure(apply, structure), {}, found)


def _intercept(
    nn: Any,
    call: Call,
    batch: Batch,
    outside: Any,
    run: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    context: Any,
) -> Any:
    """What linen calls in place of each method of the module and of its parts."""
    layer = context.module
    if context.method_name != "__call__":
        return run(*args, **kwargs)
    args, kwargs = positional(args, kwargs)
    if isinstance(layer, nn.Dropout) and call.key is None:
        return args[0]
    path = "/".join(layer.path)
    kind = flax_layers.kind_of(type(layer), nn)
    if kind == "BatchNorm" and call.training and kwargs.get("mask") is None:
        kwargs["mask"] = flax_layers.row_mask(path, args[0], batch)
    if kind is None or not path:
        return run(*args, **kwargs)
    own = layer.variables.get("params", {})
    index = own[LAYER] if LAYER in own else flax_layers.index_of(outside)

    def promote(*arrays: Any) -> Any:
        return layer.promote_dtype(*arrays, dtype=layer.dtype)

    call_it = partial(run, **kwargs)
    return flax_layers.visit(kind, layer, Site(path, index, call.tap), own, args, call_it, promote)


def nnx(
    module: Any,
    *,
    inputs: Inputs = first_input,
    training: Training = None,
    head: str | None = None,
    stacks: Mapping[str, int] = MappingProxyType({}),
) -> Model:
    """A model of a `flax.nnx` module, with the values that it has now; the module stays as it is.

    Each call makes a module of its own from the parameters and collections, tells it by `train()`
    or `eval()` what it does, and gives every random stream a key of its own from the call's.
    Collections are the states that are neither parameters nor random, by linen's names of their
    types, such as `batch_stats`; sown intermediates are dropped.

    Args:
      module: the module, whose `__call__` gives the outputs.
      inputs: `inputs(batch)` is the tuple of arguments that the module is called with.
      training: the name of an argument that says besides whether it trains, as of `linen`.
      head: the path of the layer that makes the logits, such as `layers/1`.
      stacks: leading axes that count layers, by the start of a path (see `Structure.stacks`).

    Raises:
      ValueError: if an argument isn't as it must be.
    """
    from flax import nnx as lib

    say = _training(type(module).__call__, training)
    arguments = _checked(inputs)
    graph, state = lib.split(module)
    found: dict[str, Any] = {"params": {}}
    places: dict[tuple[Any, ...], str] = {}
    variables = dict(lib.to_flat_state(state))
    for path, variable in variables.items():
        if isinstance(variable, lib.Intermediate | lib.RngState):
            continue
        places[path] = _collection_of(lib, variable)
        put(found.setdefault(places[path], {}), _joined(path), variable[...])
        variables[path] = variable.copy(None)  # its values aren't kept twice
    params = found.pop("params")
    names = tuple(sorted(found))
    structure = _structure(params, head, stacks, names)
    watched = {type(part): _watched(type(part), lib) for _, part in lib.iter_modules(module)}

    def module_of(leaves: dict[str, Any], call: Call) -> Any:
        """A module of these leaves, which may be changed, told how it is called."""
        given = dict(variables)
        for path, name in places.items():
            given[path] = given[path].copy(adapters.subtree(leaves[name], _joined(path)))
        if call.training and call.key is not None:
            given |= _reseeded(lib, variables, call.key)
        made = lib.merge(graph, lib.from_flat_state(given))
        made.train() if call.training else made.eval()
        if call.key is None:
            made.set_attributes(deterministic=True, raise_if_not_found=False)
        return made

    def apply(params: Params, batch: Batch, call: Call = Call()) -> Any:
        call = as_call(call)
        kept = collections_of(call, names)
        made = module_of({"params": params, **kept}, call)
        visit = partial(_visit, lib, call, batch, params, flax_layers.trace_state())
        parts: list[tuple[Any, Any]] = list(lib.iter_modules(made))
        for path, part in parts:
            if path and watched.get(type(part)):
                if trees.stack_axes(_joined(path), structure) == 1:
                    stack = jax.tree.leaves(adapters.subtree(params, _joined(path)))
                    part.jcl_layer = lib.Param(jnp.arange(len(stack[0])))
                object.__setattr__(part, "__class__", watched[type(part)])
                part.jcl_visit = partial(visit, _joined(path))
        outputs = made(*arguments(batch), **say(call.training, call.key is not None))
        if not (call.training and names):
            return outputs
        after = dict(lib.to_flat_state(lib.state(made)))
        new: dict[str, Any] = {}
        for path, name in places.items():
            if name != "params":
                put(new.setdefault(name, {}), _joined(path), after[path][...])
        return outputs, keep_if_padding(batch, new, kept)

    return Model(graph, params, None, with_structure(apply, structure), {}, found)


def _joined(path: tuple[Any, ...]) -> str:
    return "/".join(map(str, path))


def _watched(layer: type, lib: Any) -> type | None:
    """A subclass whose calls go through `jcl_visit`, for a layer that has sites; else None."""
    kind = flax_layers.kind_of(layer, lib)
    if kind is None:
        return None

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self.jcl_visit(kind, self, partial(layer.__call__, self), args, kwargs)

    return type(layer)(layer.__name__, (layer,), {"__call__": __call__})


def _visit(
    lib: Any,
    call: Call,
    batch: Batch,
    params: Params,
    outside: Any,
    path: str,
    kind: str,
    layer: Any,
    run: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """What a watched nnx layer calls in place of itself."""
    args, kwargs = positional(args, kwargs)
    if kind == "BatchNorm" and call.training and kwargs.get("mask") is None:
        kwargs["mask"] = flax_layers.row_mask(path, args[0], batch)
    stacked = hasattr(layer, "jcl_layer")
    index = layer.jcl_layer[...] if stacked else flax_layers.index_of(outside)
    own: Params = {}
    if hasattr(layer, "kernel"):
        beside = adapters.subtree(params, path)
        own = {name: beside[name] for name in adapters.FOLDED if name in beside}
        own = jax.tree.map(lambda x: x[index], own) if stacked else own
        own["kernel"] = layer.kernel[...]
        own |= {} if layer.bias is None else {"bias": layer.bias[...]}

    def promote(*arrays: Any) -> Any:
        return layer.promote_dtype(arrays, dtype=layer.dtype)

    call_it = partial(run, **kwargs)
    return flax_layers.visit(kind, layer, Site(path, index, call.tap), own, args, call_it, promote)


def _collection_of(lib: Any, variable: Any) -> str:
    """linen's name for a variable's type, else the type's own."""
    if isinstance(variable, lib.Param):
        return "params"
    try:
        return lib.variablelib.variable_name_from_type(type(variable))
    except ValueError:
        return type(variable).__name__


def _reseeded(lib: Any, variables: dict[Any, Any], key: jax.Array) -> dict[Any, Any]:
    """The random streams of a module, each at the start of one of its own."""
    new = {}
    for i, path in enumerate(sorted(variables, key=str)):
        old = variables[path]
        if isinstance(old, lib.RngKey):
            own, shape = jax.random.fold_in(key, i), old[...].shape
            new[path] = old.copy(jax.random.split(own, shape) if shape else own)
        elif isinstance(old, lib.RngState):
            new[path] = old.copy(jnp.zeros_like(old[...]))
    return new


def _checked(inputs: Inputs) -> Inputs:
    def arguments(batch: Batch) -> tuple[Any, ...]:
        given = inputs(batch)
        wanted = "a function that gives a tuple, such as lambda batch: (batch['x'],)"
        check(isinstance(given, tuple), "inputs", inputs, wanted)
        return given

    return arguments


def _training(method: Callable[..., Any], training: Training) -> Callable[[bool, bool], dict]:
    """`(trains, draws) -> keyword arguments` that say so to a module's `__call__`."""
    if callable(training):
        return lambda trains, draws: training(trains)
    signature = inspect.signature(method).parameters
    names = [name for name in signature if name in _SAYS]
    if training is not None:
        anything = any(p.kind is p.VAR_KEYWORD for p in signature.values())
        there = training in signature or anything
        check(there, "training", training, f"one of the module's arguments {list(signature)[1:]}")
        names = [training]
    wanted = f"given, for each of {names} may say whether the module trains"
    check(len(names) < 2, "training", training, wanted)

    def say(trains: bool, draws: bool) -> dict[str, Any]:
        if names == ["deterministic"]:
            return {"deterministic": not (trains and draws)}
        return {name: trains == _SAYS.get(name, True) for name in names}

    return say


def _check_told(names: tuple[str, ...], say: Callable[[bool, bool], dict]) -> None:
    """Refuses a module that keeps something, which changes in training, but isn't told of it."""
    told = say(True, True) != say(False, False)
    wanted = (
        "the name of the module's argument that says whether it trains, for it keeps "
        f"{list(names)}, and none of its arguments is called {', '.join(_SAYS)}"
    )
    check(told or not names, "training", None, wanted)


def _structure(
    params: Params, head: str | None, stacks: Mapping[str, int], names: tuple[str, ...]
) -> Structure:
    layers = list(dict.fromkeys(path.rpartition("/")[0] for path in trees.by_path(params)))
    check(head is None or head in layers, "head", head, f"None or one of the layers {layers}")
    for start in stacks:
        there = any(path == start or path.startswith(f"{start}/") for path in layers)
        check(there, "stacks", dict(stacks), f"by the start of the path of one of {layers}")
    return Structure(head, MappingProxyType(dict(stacks)), names)
