"""Composes methods into one, and shows in which order their hooks will run."""

from __future__ import annotations

import inspect
import zlib
from typing import Any

import jax
import jax.numpy as jnp

from jcl import trees
from jcl.method import (
    PHASES,
    READS,
    REFERENCES,
    Apply,
    Aux,
    Batch,
    Ctx,
    Info,
    LossFn,
    Method,
    Params,
    defines,
)

_PASSES = ("batch", "loss")  # the phases that `skips` leaves out


def _validate(parts: tuple[Method, ...]) -> None:
    names = [m.name for m in parts]
    for i, m in enumerate(parts):
        if m.name in names[:i]:
            raise ValueError(
                f"two methods are named {m.name!r}; rename one with method._replace(name=...)"
            )
        for needed in m.needs:
            if needed not in names:
                raise ValueError(f"{m.name} reads {needed!r}, which is not in the chain {names}")
        if m.writes:
            for reader in parts[:i]:
                acts = defines(reader, "consolidate") or defines(reader, "begin")
                if acts and not reader.writes:
                    raise ValueError(
                        f"{m.name} changes parameters at a boundary and {reader.name} reads them, "
                        f"so {m.name} must come before {reader.name}"
                    )
            for holder in parts:
                if holder.fixes and holder is not m:
                    raise ValueError(
                        f"{holder.name} promises that the weights of finished stages never change, "
                        f"and {m.name} changes them at a boundary, so they can't be in one chain"
                    )
        for one in (one for one in parts[:i] if m.replaces and defines(one, "loss")):
            raise ValueError(
                f"{m.name} replaces the objective, to which {one.name} adds, so {m.name} must come "
                f"before {one.name}"
            )
        for name in m.recalls:
            if name not in REFERENCES:
                raise ValueError(f"{m.name} recalls {name!r}, but must recall one of {REFERENCES}")


def _shapes(tree: Any) -> tuple[Any, list[Any]]:
    leaves, structure = jax.tree.flatten(tree)
    return structure, [jnp.shape(x) for x in leaves]


def _checked(method: Method, phase: str, found: Any, wanted: Any, what: str) -> Any:
    """What a hook returned.

    Raises:
      ValueError: if it isn't shaped like `wanted`, which `what` names.
    """
    if _shapes(found) == _shapes(wanted):
        return found
    shown = _named(found)
    if _shapes(found)[0] == _shapes(wanted)[0]:
        pairs = zip(trees.by_path(found).items(), jax.tree.leaves(wanted), strict=True)
        path, mine, right = next(
            (path, jnp.shape(a), jnp.shape(b))
            for (path, a), b in pairs
            if jnp.shape(a) != jnp.shape(b)
        )
        shown = f"{path or 'an array'} of shape {mine} instead of {right}"
    raise ValueError(f"{method.name}'s {phase} returned {shown}, but must return {what}")


def _named(thing: Any) -> str:
    return "None" if thing is None else f"a {type(thing).__name__}"


def _two(method: Method, phase: str, found: Any) -> tuple[Params, Any]:
    """The parameters and the state that a hook returned, in this order."""
    if not isinstance(found, tuple) or len(found) != 2:
        raise ValueError(
            f"{method.name}'s {phase} returned {_named(found)}, but must return two things, the "
            "parameters and its state"
        )
    return found


def _both(method: Method, phase: str, found: Any, params: Params, state: Any) -> tuple[Params, Any]:
    """The same, with the leaves that they had; see `_checked`."""
    new, after = _two(method, phase, found)
    _checked(method, phase, new, params, "the parameters first, with the same leaves")
    _checked(method, phase, after, state, "the state second, with the same leaves")
    return new, after


def _wrapper(method: Method, phase: str, found: Any) -> Any:
    if callable(found):
        return found
    raise ValueError(
        f"{method.name}'s {phase} returned {_named(found)}, but must return a function"
    )


def _loss_of(method: Method, loss_fn: Any) -> LossFn:
    """The loss that a hook made, which may take no `Call`, as it did before there were any.

    Raises:
      ValueError: in a trace, if it doesn't give a scalar and the `Aux` of the loss that it wraps.
    """
    taken = inspect.signature(loss_fn).parameters.values()
    takes_call = len(taken) > 2 or any(one.kind is one.VAR_POSITIONAL for one in taken)

    def checked(params: Params, batch: Batch, *call: Any) -> tuple[jax.Array, Aux]:
        found = loss_fn(params, batch, *(call if takes_call else ()))
        if not isinstance(found, tuple) or len(found) != 2 or not isinstance(found[1], Aux):
            raise ValueError(
                f"{method.name}'s loss gives {_named(found)}, but must give a scalar and the aux "
                "of the loss that it wraps: value, aux = loss_fn(params, batch, call)"
            )
        return found

    return checked


def chain(*methods: Method) -> Method:
    """Composes methods into one, whose state is a dict of their states by name.

    `batch`, `grads`, `updates`, `observe` and `consolidate` run left to right; `forward` and
    `loss` wrap left to right, so that the last method's wrapper is the outermost (but for one that
    `routes` rows). An empty chain is plain fine-tuning. What the model keeps is the third thing
    that `consolidate` of a chain gives.

    Raises:
      ValueError: if two methods share a name, a method reads the state of one that is not in the
        chain, one that changes parameters at a boundary comes after one that reads them there or
        beside one that fixes them, or one that adds parameters comes after one whose state has
        their shapes. In a trace, if a hook returns what it must not.

    >>> from jcl import methods
    >>> chain(methods.er(capacity=200, rows=32), methods.ewc(strength=100.0)).name
    'er + ewc'
    """
    for m in methods:
        if not isinstance(m, Method):
            raise ValueError(
                f"chain got {m!r}, but takes methods one by one: chain(*methods) for a list of them"
            )
    parts = tuple(p for m in methods for p in (m.parts if m.chained else (m,)))
    _validate(parts)

    def own(ctx: Ctx, method: Method, phase: str) -> Ctx:
        """A context as one of the methods sees it."""
        earlier = parts[: parts.index(method)]

        def renewed(path: str) -> str | None:
            return next((m.name for m in earlier if m.renews and m.renews(path)), None)

        # the key comes from the name, so that adding a method never changes another's draws
        salt = zlib.crc32(f"{method.name}/{phase}".encode())
        own_key, jumps = jax.random.fold_in(ctx.key, salt), any(m.jumps for m in earlier)
        return ctx._replace(key=own_key, renewed=renewed, jumps=jumps)

    def init(ctx: Ctx, params: Params) -> tuple[Params, dict[str, Any]]:
        states: dict[str, Any] = {}
        added: dict[str, str] = {}  # the leaves that methods added, and by which
        grown: dict[str, str] = {}  # and those that they gave more axes

        def begun(m: Method, params: Params, known: dict[str, Any]) -> Any:
            mine = own(ctx.anew(params, dict(known)), m, "init")
            return m.init(mine._replace(added=added.get, grown=grown.get), params)

        def grows(m: Method, known: dict[str, Any]) -> bool:
            """Whether a method changes the tree, if it begins where these states are known."""
            try:
                return trees.shapes(begun(m, params, known)[0]) != trees.shapes(params)
            except ValueError:
                return False

        def check_follows(m: Method, earlier: tuple[Method, ...]) -> None:
            """Refuses a method that adds leaves after one whose state has the tree's shape."""
            for one in earlier:
                # who added leaves of its own and knows no others doesn't mind more of them
                kept, adds = trees.by_path(states.get(one.name)), one.name in added.values()
                knows = not adds or any(k.endswith(path) for k in kept for path in added)
                if defines(one, "init") and knows:
                    raise ValueError(f"{m.name} adds parameters, so it must come before {one.name}")

        for i, m in enumerate(parts):
            try:
                made = begun(m, params, states)
            except ValueError:
                if not jax.tree.leaves(params):  # nothing learns yet: does a later one add some?
                    for later in parts[i + 1 :]:
                        if defines(later, "init") and grows(later, states):
                            check_follows(later, (m,))
                # or does it add some, which an earlier one that wraps the model doesn't know?
                elif not m.needs and grows(m, {}):
                    check_follows(m, parts[:i])
                raise
            larger, states[m.name] = _two(m, "init", made)
            before, after = trees.shapes(params), trees.shapes(larger)
            if after != before:
                check_follows(m, parts[:i])
            added.update((path, m.name) for path in after if path not in before)
            grown.update((p, m.name) for p in after if p in before and after[p] != before[p])
            params = larger
        return params, states

    def batch(states: Any, ctx: Ctx, rows: Batch) -> Batch:
        for m in parts:
            before, rows = rows, m.batch(states[m.name], own(ctx, m, "batch"), rows)
            if not isinstance(rows, dict) or not before.keys() <= rows.keys():
                raise ValueError(
                    f"{m.name}'s batch returned {_named(rows)}, but must return a dict with the "
                    f"batch's keys {sorted(before)}"
                )
        return rows

    def forward(states: Any, ctx: Ctx, apply: Apply) -> Apply:
        for m in sorted(parts, key=lambda m: m.routes):
            if m.name not in states:  # it isn't made yet, or wraps no model that is frozen
                continue
            mine = own(ctx, m, "forward")._replace(apply=apply)
            if m.name in ctx.finished:
                mine = mine._replace(stage=ctx.stage + 1, stage_step=jnp.zeros_like(ctx.stage_step))
            apply = _wrapper(m, "forward", m.forward(states[m.name], mine, apply))
        return apply

    def begin(states: Any, ctx: Ctx, params: Params) -> tuple[Params, dict[str, Any]]:
        states = dict(states)
        # who jumps comes first, so that all others see where the stage starts
        for m in sorted(parts, key=lambda m: not m.jumps):
            mine = own(ctx.anew(params, dict(states)), m, "begin")
            begun = m.begin(states[m.name], mine, params)
            params, states[m.name] = _both(m, "begin", begun, params, states[m.name])
        return params, states

    def loss(states: Any, ctx: Ctx, loss_fn: LossFn) -> LossFn:
        for m in parts:
            wrapped = m.loss(states[m.name], own(ctx, m, "loss"), loss_fn)
            if wrapped is not loss_fn:
                loss_fn = _loss_of(m, _wrapper(m, "loss", wrapped))
        return loss_fn

    def grads(states: Any, ctx: Ctx, tree: Params) -> Params:
        for m in parts:
            new = m.grads(states[m.name], own(ctx, m, "grads"), tree)
            tree = _checked(m, "grads", new, tree, "a gradient, shaped like the parameters")
        return tree

    def updates(states: Any, ctx: Ctx, tree: Params) -> Params:
        for m in parts:
            new = m.updates(states[m.name], own(ctx, m, "updates"), tree)
            tree = _checked(m, "updates", new, tree, "an update, shaped like the parameters")
        return tree

    def observe(states: Any, ctx: Ctx, info: Info) -> dict[str, Any]:
        after = {}
        for m in parts:
            new = m.observe(states[m.name], own(ctx, m, "observe"), info)
            what = "its next state, with the same leaves"
            after[m.name] = _checked(m, "observe", new, states[m.name], what)
        return after

    def consolidate(states: Any, ctx: Ctx, params: Params, batches: Batch) -> Any:
        states, kept = dict(states), ctx.collections
        for i, m in enumerate(parts):
            finished = tuple(earlier.name for earlier in parts[:i])
            there = ctx.anew(params, dict(states), finished, collections=kept)
            ended: Any = m.consolidate(
                states[m.name], own(there, m, "consolidate"), params, batches
            )
            averaged = None
            if m.writes and isinstance(ended, tuple) and len(ended) == 3:
                ended, averaged = ended[:2], ended[2]
            params, states[m.name] = _both(m, "consolidate", ended, params, states[m.name])
            if m.writes and kept:
                left = ctx.anew(params, dict(states), (*finished, m.name), collections=kept)
                kept = ctx.settle(m.name, left, batches, averaged)
        return params, states, kept

    def report(states: Any, info: Info) -> dict[str, jax.Array]:
        return {
            f"{m.name}/{k}": v for m in parts for k, v in m.report(states[m.name], info).items()
        }

    workers = [m for m in parts if any(defines(m, phase) for phase in _PASSES)]

    def skips(states: Any, ctx: Ctx) -> jax.Array:
        return jnp.all(jnp.stack([jnp.asarray(m.skips(states[m.name], ctx)) for m in workers]))

    hooks: dict[str, Any] = {
        "begin": begin,
        "batch": batch,
        "forward": forward,
        "loss": loss,
        "grads": grads,
        "updates": updates,
        "observe": observe,
        "consolidate": consolidate,
        "report": report,
    }
    used = {k: v for k, v in hooks.items() if any(defines(m, k) for m in parts)}
    if not any(m.jumps for m in parts):
        used.pop("begin", None)  # nobody jumps, so a stage starts where `consolidate` left it
    if workers and all(defines(m, "skips") for m in workers):
        used["skips"] = skips
    name = " + ".join(m.name for m in parts) or "naive"
    reads = tuple(r for r in READS if any(r in m.reads for m in parts))
    recalls = tuple(r for r in REFERENCES if any(r in m.recalls for m in parts))
    opinions = [m.learns for m in parts if m.learns is not None]
    used["learns"] = (lambda path: any(one(path) for one in opinions)) if opinions else None
    used |= {"reads": reads, "recalls": recalls, "parts": parts, "chained": True}
    return Method(name, init=init)._replace(**used)


_WHEN = {
    "init": "once, before the first step",
    "begin": "in a later stage's first step",
    "skips": "whether the next two may rest",
    "batch": "the batch",
    "forward": "the model",
    "loss": "the loss",
    "grads": "gradient, before the optimizer",
    "updates": "update, after the optimizer",
    "observe": "after the step",
    "consolidate": "at a boundary",
    "report": "what is logged",
}


def _state_names(tx: Any) -> str:
    """The names of the states that an optimizer carries, as text to append; "" without one."""
    if tx is None:
        return ""
    states = jax.tree.leaves(
        jax.eval_shape(tx.init, {"w": jnp.zeros(1)}), is_leaf=lambda x: hasattr(x, "_fields")
    )
    return "  " + ", ".join(type(s).__name__ for s in states if jax.tree.leaves(s))


def _kept(method: Method, state: Any) -> str:
    """How many bytes each method keeps, and each model that they recall, as text."""
    sizes = {m.name: trees.nbytes(state.methods[m.name]) for m in method.parts}
    for name, reference in state.references.items():
        readers = ", ".join(m.name for m in method.parts if name in m.recalls)
        sizes[f"the {name} model, for {readers},"] = trees.nbytes(reference)
    return ", ".join(f"{name} {size:,}" for name, size in sizes.items() if size) or "nothing"


def explain(method: Method, tx: Any = None, state: Any = None) -> str:
    """The pipeline phase by phase, in the order in which it will run, as text to print.

    Args:
      method: one method or a `chain`.
      tx: the optimizer, an optax transformation, whose states are then named too.
      state: a `jcl.State`, or its shapes from `jax.eval_shape`, of whose methods the bytes are
        then told.

    >>> from jcl import methods
    >>> print(explain(chain(methods.er(capacity=200, rows=32), methods.ewc(strength=100.0))))
    er + ewc
      init         once, before the first step      er, ewc
      skips        whether the next two may rest    er
      batch        the batch                        er
      grads        gradient, before the optimizer   ewc
      (optimizer)
      observe      after the step                   er
      consolidate  at a boundary                    ewc
      report       what is logged                   er, ewc
    """
    method = chain(method)
    lines = [method.name]
    for phase in PHASES:
        if phase == "updates":
            lines.append(f"  (optimizer){_state_names(tx)}")
        names = ", ".join(m.name for m in method.parts if defines(m, phase))
        if names:
            lines.append(f"  {phase:<12} {_WHEN[phase]:<32} {names}")
    if state is not None:
        lines.append(f"  {'':<12} {'bytes that are kept':<32} {_kept(method, state)}")
    return "\n".join(lines)
