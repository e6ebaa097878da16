"""How a run goes on from the last state of another: what of that state it takes over."""

from __future__ import annotations

from typing import Any, Literal

import jax

from jcl import trees
from jcl.method import check
from jcl.program import State

Carry = Literal["methods", "whole"]
"""`methods`: the methods' states and the counts of stages and steps; optimizer, key and references
start anew. `whole`: all of it, so that stages to come are as if the first run had known them."""

_METHODS = ("methods", "stage", "step")


def take_over(state: State, carried: State, what: Carry = "methods") -> State:
    """`state`, which a program has just made, with what it takes over of another run's last state.

    Args:
      state: a first state.
      carried: the other's, between two stages.
      what: which fields of it.

    Raises:
      ValueError: if `what` is neither word, `carried` is within a stage, or a field that is taken
        over has other leaves or shapes.
    """
    check(what in ("methods", "whole"), "carry", what, "'methods' or 'whole'")
    at = int(jax.device_get(carried.stage_step).reshape(-1)[0])
    check(what == "methods" or at == 0, "stage_step of carried", at, "0, that of a finished stage")
    fields = _METHODS if what == "methods" else State._fields
    mine, theirs = ({f: getattr(s, f) for f in fields} for s in (state, carried))
    _check_same(mine, theirs)
    # copied, for a step is given its state's buffers to write into
    where = jax.tree.map(lambda x: x.sharding, mine)
    return state._replace(**jax.tree.map(jax.device_put, trees.copy(theirs), where))


def change_methods(fresh: State, carried: State) -> State:
    """A state that goes on under other methods: those that were there go on, new ones begin now.

    The counts, the key and what a model keeps are the old ones, and so is the optimizer's state
    where the same leaves learn as before; else it begins anew.

    Args:
      fresh: what the new program makes of the old one's parameters.
      carried: the old program's state, between two stages.

    Raises:
      ValueError: if a method that is in both has another state than before, or one that was left
        out has leaves among the parameters.
    """
    before, now = trees.kinds(carried.params), trees.kinds(fresh.params)
    for name in sorted(carried.methods.keys() & fresh.methods.keys()):
        if trees.kinds(carried.methods[name]) != trees.kinds(fresh.methods[name]):
            raise ValueError(
                f"{name} keeps other arrays than before, so it can't go on with them; give it the "
                "arguments that it had"
            )
    moved = sorted(path for path in before if now.get(path) != before[path])
    if moved:
        raise ValueError(
            f"params has {moved[0]!r} of a method that is left out, but the model can't do without "
            "it; keep the method in the chain"
        )
    same = trees.kinds(carried.optimizer) == trees.kinds(fresh.optimizer)
    kept = {}
    for name, made in fresh.references.items():
        old = carried.references.get(name, made)
        kept[name] = old if trees.kinds(old) == trees.kinds(made) else made
    return fresh._replace(
        optimizer=carried.optimizer if same else fresh.optimizer,
        methods={name: carried.methods.get(name, made) for name, made in fresh.methods.items()},
        references=kept,
        **{f: getattr(carried, f) for f in ("stage", "stage_step", "step", "key", "collections")},
    )


def widen(fresh: State, carried: State) -> State:
    """A state with room for more, such as more columns of a head, where all stays in its place.

    A leaf of another shape is the fresh one with the old one in its first rows and columns, so that
    what is new begins now and what was predicted before is predicted still.

    Args:
      fresh: what a program of wider parameters makes of them; the same methods and leaves.
      carried: the state of the narrower one.

    Raises:
      ValueError: if a leaf is narrower than before, or has other axes.
    """

    def one(path: Any, wide: Any, old: Any) -> Any:
        if wide.shape == old.shape:
            return old
        fits = wide.ndim == old.ndim and all(
            a >= b for a, b in zip(wide.shape, old.shape, strict=True)
        )
        check(fits, f"shape of {trees.path_name(path)}", wide.shape, f"{old.shape} or wider")
        return wide.at[tuple(slice(n) for n in old.shape)].set(old)

    return jax.tree_util.tree_map_with_path(one, fresh, carried)


def _check_same(mine: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Refuses fields of a state with other leaves than the program's."""
    for field in mine:
        here, there = trees.kinds(mine[field]), trees.kinds(theirs[field])
        of = "the methods' states" if field == "methods" else f"its {field}"
        for path in sorted(here.keys() | there.keys()):
            if here.get(path) != there.get(path):
                raise ValueError(
                    f"carried has {there.get(path)} at {path!r} of {of}, where this run has "
                    f"{here.get(path)}; both must have the same methods, parameters and batches"
                )
