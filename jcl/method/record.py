"""`Method`, the record of a method's hooks, and the words that it may use of itself."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import Any, NamedTuple

import jax

from jcl import trees
from jcl.method.hooks import (
    Begin,
    Consolidate,
    Forward,
    Grads,
    Init,
    Loss,
    Observe,
    Report,
    Rows,
    Skips,
    Updates,
)
from jcl.records import record


@record
class Method(NamedTuple):
    """A continual-learning method. Every field but `name` has a default that changes nothing.

    Each hook has a Protocol of its own, by which `help(jcl.method.Loss)` says all about `loss`.

    Args:
      name: the key of its state in `State.methods`; it also seeds the method's random draws.
      init: makes the state, and may add adapters or prompts to the tree.
      begin: starts a later stage, where a method goes back or elsewhere.
      batch: makes the rows of a step: appends replayed ones, weighs them anew.
      forward: wraps the model, in training and in prediction.
      loss: wraps the loss, for distillation and for penalties that need a forward pass.
      grads: changes the gradient before the optimizer sees it, by a quadratic pull or a projection.
      updates: changes the optimizer's update before it is added, by a mask or a factor.
      observe: makes the next state from what the step produced: reservoirs, path integrals, means.
      consolidate: ends a stage with its own data; may change the parameters and the state.
      report: gives the finite scalars to log.
      skips: says that `batch` and `loss` would change nothing in a step, which then rests.
      writes: whether `consolidate` or `begin` changes the parameters; writers precede readers in a
        chain. Parameters change in a step or here, and nowhere else, so that a jump is no update:
        no schedule scales it, no mask drops it, and no path counts it.
      fixes: whether it promises that weights of finished stages never change, so that no other
        writer may be in the chain.
      renews: which leaves, by their paths, have another meaning after `consolidate`, such as a pair
        that goes into a bank and is drawn afresh; None if there are none. What later methods know
        of these leaves is void at a boundary (see `Ctx.renewed`).
      learns: which leaves are to learn, by their paths, such as adapters; None has no opinion. In a
        chain those learn that one of its methods names, and `make(trainable=...)` overrides it.
      recalls: which of `REFERENCES` it asks for at `ctx.references`. The program keeps each once,
        whatever the number of methods that share it.
      needs: names of methods in the same chain whose state this one reads.
      reads: which of `READS` it draws on, of earlier stages; adapters and schedules draw on none.
      parts: the methods that `chain` composed, in order; empty for a single method.
      chained: whether `chain` made it.
      jumps: whether `begin` changes the parameters, as of a method whose stages start elsewhere
        than at the model that was evaluated. Without such a one in the chain no `begin` runs.
      starts: the first stage in which it changes anything, 1 if it needs a finished one; `fit` and
        `run` warn where a stream ends before it.
      wants: the kinds of outputs that it can work with, such as `(losses.Logits,)`; a program
        refuses a loss that gives another. An empty one reads no outputs.
      forgets: `(state, stage) -> state`, without anything that a finished stage left in it, where
        that is exact, as of a bank whose entries were each trained alone; None where it can't be.
      routes: whether `forward` says which `task` rows are of. It then wraps outermost, wherever the
        method stands in a chain, so that all who go by the task go by what it says.
      replaces: whether its `loss` takes the place of the objective rather than adding to it; it
        then comes before all others in a chain that have one.
      limits: for which values of integer columns it has room, such as {"y": (10, "groups")}; `fit`
        refuses a stream with others (see `trees.Limits`).
    """

    name: str
    init: Init = lambda ctx, params: (params, ())
    batch: Rows = lambda state, ctx, batch: batch
    forward: Forward = lambda state, ctx, apply: apply
    loss: Loss = lambda state, ctx, loss_fn: loss_fn
    grads: Grads = lambda state, ctx, grads: grads
    updates: Updates = lambda state, ctx, updates: updates
    observe: Observe = lambda state, ctx, info: state
    consolidate: Consolidate = lambda state, ctx, params, batches: (params, state)
    report: Report = lambda state, info: {}
    skips: Skips = lambda state, ctx: False
    writes: bool = False
    needs: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    parts: tuple[Method, ...] = ()
    chained: bool = False
    jumps: bool = False
    begin: Begin = lambda state, ctx, params: (params, state)
    fixes: bool = False
    renews: trees.Trainable | None = None
    recalls: tuple[str, ...] = ()
    learns: trees.Trainable | None = None
    starts: int = 0
    wants: tuple[type, ...] = ()
    limits: trees.Limits = MappingProxyType({})
    routes: bool = False
    forgets: Callable[[Any, int], Any] | None = None
    replaces: bool = False

    def __add__(self, other: Method) -> Method:  # type: ignore[override]
        """Composes two methods, as `chain(self, other)` does."""
        from jcl.chain import chain  # imported here, for the chain is built of methods

        return chain(self, other) if isinstance(other, Method) else NotImplemented

    def _facts(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "phases": " ".join(phase for phase in PHASES if defines(self, phase)),
            "reads": self.reads,
            "needs": self.needs,
            "writes": self.writes or None,
        }


READS = ("parameters", "gradients", "logits", "samples", "proxy")
"""What a method may draw on of earlier stages: their weights; statistics of gradients or
activations on their data; outputs on it; rows of it; rows of a public stand-in for it."""

REFERENCES = ("initial", "previous")
"""The models that the program freezes where a method recalls them: the one before all training,
and the one that the last boundary left, which in the first stage is the initial one."""

PHASES = (
    "init",
    "begin",
    "skips",
    "batch",
    "forward",
    "loss",
    "grads",
    "updates",
    "observe",
    "consolidate",
    "report",
)
"""The hooks in the order in which they run: `init` once, `begin` in the first step of a later
stage, `consolidate` at the end of a stage, the others in every step."""


def defines(method: Method, phase: str) -> bool:
    """Whether `method` does anything in `phase`."""
    return getattr(method, phase) is not Method._field_defaults[phase]


def check(holds: bool | jax.Array, name: str, value: Any, wanted: str) -> None:
    """Refuses an argument with one sentence that names it, its value and what would be right.

    A traced `holds` passes, for its value isn't known yet.

    Raises:
      ValueError: if `holds` is False.
    """
    if not isinstance(holds, jax.core.Tracer) and not holds:
        raise ValueError(f"{name} is {value!r}, but must be {wanted}")
