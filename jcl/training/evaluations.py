"""Evaluations within stages: when they are due, which is a stage's best, and when it is enough.

All that a resumed run must know of them, the best state included, is in its checkpoints.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jcl import trees
from jcl.data.stream import Stream
from jcl.method import check
from jcl.program import Evaluate, State
from jcl.training.feed import place

Keep = Literal["last", "best"]
"""In which state a stage ends: its last, or that of its best evaluation."""
BESIDE = "best"
"""Under which name a checkpoint has beside the state what is kept of a stage's evaluations."""


class Asked(NamedTuple):
    """What a caller asks for."""

    every: int | None
    """Steps of a stage from one evaluation to the next; None evaluates between stages alone."""
    keep: Keep
    """In which state a stage ends."""
    patience: int | None
    """After how many evaluations in a row without a better one a stage ends; None is never."""
    higher_is_better: bool
    """Which scores are good."""
    validation: int = 0
    """From which column on there is a score for each task by which states are chosen."""


def asked(
    evaluate: Evaluate | None,
    every: int | None,
    keep: Keep,
    patience: int | None,
    higher_is_better: bool | None,
) -> Asked:
    """The arguments of `fit`, checked.

    Raises:
      ValueError: if one is out of range, or needs another that isn't given.
    """
    check(keep in ("last", "best"), "keep", keep, "'last' or 'best'")
    check(every is None or every >= 1, "evaluate_every", every, "at least 1, or None")
    check(patience is None or patience >= 1, "patience", patience, "at least 1, or None")
    if every is None:
        check(
            keep == "last", "keep", keep, "'last' without evaluate_every, by which a best is found"
        )
        check(patience is None, "patience", patience, "None without evaluate_every")
    elif evaluate is None:
        raise ValueError(f"evaluate_every is {every}, but there is no evaluate to be called")
    if higher_is_better is None:
        higher_is_better = getattr(evaluate, "higher_is_better", True)
    return Asked(every, keep, patience, higher_is_better, getattr(evaluate, "validation", 0))


class Evaluations:
    """The evaluations of the stage that a run is in."""

    def __init__(self, wanted: Asked, stream: Stream, members: tuple[int, ...]) -> None:
        """`members` is () for a single program, else (members,)."""
        self.wanted, self.stream, self.members = wanted, stream, members
        self.forget()

    def forget(self) -> None:
        """Begins a stage, in which nothing is evaluated as yet."""
        sign = 1.0 if self.wanted.higher_is_better else -1.0
        self.score = np.full(self.members, -sign * np.inf, np.float32)
        self.waited = np.zeros(self.members, np.int32)
        self.state: State | None = None

    def tree(self, state: State) -> dict[str, Any]:
        """What of it is checkpointed beside the state; nothing where nothing is asked for."""
        if self.wanted.keep == "last" and self.wanted.patience is None:
            return {}
        where = state.step.sharding  # on a mesh, whole on every device
        kept = {"score": place(self.score, where), "waited": place(self.waited, where)}
        if self.wanted.keep == "best":
            kept["state"] = state if self.state is None else self.state
        return {BESIDE: kept}

    def restore(self, tree: dict[str, Any]) -> None:
        """Goes on from what `tree` gave."""
        if BESIDE in tree:
            self.score, self.waited = (np.array(tree[BESIDE][k]) for k in ("score", "waited"))
            if np.isfinite(self.score).any():
                self.state = tree[BESIDE].get("state")

    def limit(self, at: int) -> int:
        """How many steps may follow the first `at` of a stage before an evaluation."""
        every = self.wanted.every
        return 2**31 if every is None else every - at % every

    def due(self, at: int, steps: int) -> bool:
        """Whether one is due after `at` steps of a stage that has `steps`."""
        every = self.wanted.every
        return every is not None and (at % every == 0 or at == steps)

    def take(self, state: State, row: np.ndarray, stage: int) -> bool:
        """Takes the scores [..., columns] of a state within a stage; whether it is the best so far.

        Compared is the mean over the tasks seen so far. Members are compared each with itself.
        """
        value = row[..., self._seen(stage, row.shape[-1])].mean(-1)
        better = value > self.score if self.wanted.higher_is_better else value < self.score
        self.score = np.where(better, value, self.score).astype(np.float32)
        self.waited = np.where(better, 0, self.waited + 1).astype(np.int32)
        if self.wanted.keep == "best":
            if self.state is None:
                self.state = trees.copy(state)  # for the next step writes into its buffers
            elif better.any():
                self.state = _choose(jnp.asarray(better), state, self.state)
        return bool(better.any())

    def _seen(self, stage: int, columns: int) -> list[int]:
        tasks, first = set(self.stream.tasks[: stage + 1]), self.wanted.validation
        known = min(len(self.stream.tests) or columns, columns - first)  # beside them are probes
        seen = [t for t in range(known) if t in tasks or -1 in tasks] or range(known)
        return [first + t for t in seen]

    @property
    def enough(self) -> bool:
        """Whether the stage should end: no member has got better for so long."""
        return self.wanted.patience is not None and bool(
            (self.waited >= self.wanted.patience).all()
        )

    def best(self, state: State) -> State:
        """The state of the best evaluation, with the counts of steps of `state`; or `state`."""
        if self.state is None:
            return state
        # where a compiled function expects it
        found = jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), self.state, state)
        return found._replace(step=state.step, stage_step=state.stage_step)


def as_json(row: np.ndarray) -> list[Any]:
    """Scores as nested lists, None where one isn't finite."""
    numbers = row.astype(object)
    numbers[~np.isfinite(row)] = None
    return numbers.tolist()


@jax.jit
def _choose(better: jax.Array, new: State, old: State) -> State:
    """Of each member the new state where it is better [members] or [], else the old one."""

    def pick(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.where(better.reshape(better.shape + (1,) * (a.ndim - better.ndim)), a, b)

    return jax.tree.map(pick, new, old)
