"""Composes methods into one, and shows in which order their hooks will run."""

from __future__ import annotations

import zlib
from typing import Any

import jax
import jax.numpy as jnp

from jcl import trees
from jcl.method import PHASES, READS, Apply, Batch, Ctx, Info, LossFn, Method, Params, defines

_PASSES = ("batch", "loss")  # the phases that `idle` leaves out


def _own(ctx: Ctx, method: Method, phase: str) -> Ctx:
    # the key comes from the name, so that adding a method never changes another's draws
    return ctx._replace(
        key=jax.random.fold_in(ctx.key, zlib.crc32(f"{method.name}/{phase}".encode()))
    )


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
                if defines(reader, "consolidate") and not reader.writes:
                    raise ValueError(
                        f"{m.name} changes parameters at a boundary and {reader.name} reads them, "
                        f"so {m.name} must come before {reader.name}"
                    )


def _paths(params: Params) -> list[str]:
    return [trees.path_name(p) for p, _ in jax.tree_util.tree_leaves_with_path(params)]


def chain(*methods: Method) -> Method:
    """Composes methods into one, whose state is a dict of their states by name.

    `batch`, `grads`, `updates`, `observe` and `consolidate` run left to right; `forward` and
    `loss` wrap left to right, so that the last method's wrapper is the outermost. An empty chain is
    plain fine-tuning.

    Raises:
      ValueError: if two methods share a name, a method reads the state of one that is not in the
        chain, one that changes parameters at a boundary comes after one that reads them there, or
        one that adds parameters comes after one whose state has their shapes.

    >>> from jcl import methods
    >>> chain(methods.er(capacity=200, rows=32), methods.ewc(strength=100.0)).name
    'er + ewc'
    """
    parts = tuple(p for m in methods for p in (m.parts or ((m,) if m.name != "naive" else ())))
    _validate(parts)

    def init(ctx: Ctx, params: Params) -> tuple[Params, dict[str, Any]]:
        states: dict[str, Any] = {}
        for i, m in enumerate(parts):
            own = _own(ctx, m, "init")._replace(params=params, states=states)
            grown, states[m.name] = m.init(own, params)
            if _paths(grown) != _paths(params):
                for earlier in parts[:i]:
                    if defines(earlier, "init"):
                        raise ValueError(
                            f"{m.name} adds parameters, so it must come before {earlier.name}"
                        )
            params = grown
        return params, states

    def batch(states: Any, ctx: Ctx, rows: Batch) -> Batch:
        for m in parts:
            rows = m.batch(states[m.name], _own(ctx, m, "batch"), rows)
        return rows

    def forward(states: Any, ctx: Ctx, apply: Apply) -> Apply:
        for m in parts:
            apply = m.forward(states[m.name], _own(ctx, m, "forward")._replace(apply=apply), apply)
        return apply

    def loss(states: Any, ctx: Ctx, loss_fn: LossFn) -> LossFn:
        for m in parts:
            loss_fn = m.loss(states[m.name], _own(ctx, m, "loss"), loss_fn)
        return loss_fn

    def grads(states: Any, ctx: Ctx, tree: Params) -> Params:
        for m in parts:
            tree = m.grads(states[m.name], _own(ctx, m, "grads"), tree)
        return tree

    def updates(states: Any, ctx: Ctx, tree: Params) -> Params:
        for m in parts:
            tree = m.updates(states[m.name], _own(ctx, m, "updates"), tree)
        return tree

    def observe(states: Any, ctx: Ctx, info: Info) -> dict[str, Any]:
        return {m.name: m.observe(states[m.name], _own(ctx, m, "observe"), info) for m in parts}

    def consolidate(states: Any, ctx: Ctx, params: Params, batches: Batch) -> tuple[Params, Any]:
        states = dict(states)
        for m in parts:
            own = _own(ctx, m, "consolidate")._replace(params=params, states=states)
            params, states[m.name] = m.consolidate(states[m.name], own, params, batches)
        return params, states

    def report(states: Any, info: Info) -> dict[str, jax.Array]:
        return {
            f"{m.name}/{k}": v for m in parts for k, v in m.report(states[m.name], info).items()
        }

    workers = [m for m in parts if any(defines(m, phase) for phase in _PASSES)]

    def idle(states: Any, ctx: Ctx) -> jax.Array:
        return jnp.all(jnp.stack([jnp.asarray(m.idle(states[m.name], ctx)) for m in workers]))

    hooks: dict[str, Any] = {
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
    if workers and all(defines(m, "idle") for m in workers):
        used["idle"] = idle
    name = " + ".join(m.name for m in parts) or "naive"
    reads = tuple(r for r in READS if any(r in m.reads for m in parts))
    return Method(name, init=init, reads=reads, parts=parts)._replace(**used)


_WHEN = {
    "init": "once, before the first step",
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


def explain(method: Method, tx: Any = None) -> str:
    """The pipeline phase by phase, in the order in which it will run, as text to print.

    Args:
      method: one method or a `chain`.
      tx: the optimizer, an optax transformation, whose states are then named too.

    >>> from jcl import methods
    >>> print(explain(chain(methods.er(capacity=200, rows=32), methods.ewc(strength=100.0))))
    er + ewc
      init         once, before the first step      er, ewc
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
    return "\n".join(lines)
