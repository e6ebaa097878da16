"""What a run tells while it goes on, and the word by which it may be asked to stop.

An event is a dict; `kind` says which:

- `progress`, after a chunk of steps: `stage`, `name`, `step`, `steps` (in all), `loss`,
  `examples_per_second`, `seconds_left`, `scalars` (what the methods report, by name) and
  `learning_rate` (None where the optimizer's state doesn't have it).
- `scores`, before training and after each stage: `stage` (how many are finished), `name`, `step`,
  `scores` [..., tasks] and `tasks`, the names of the stream's tests.
- `evaluation`, within a stage: the same of the stage it is in, and `best`, whether it is the
  stage's best so far.
- `diverged`, where one of many members has: `member`, `step`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jcl.parallel import processes

Event = dict[str, Any]
STOP = "stop"
"""What a listener returns for the run to save, and to return what it has."""


class Listener:
    """Who listens to a run: functions of events on process 0, or nobody."""

    def __init__(
        self, on_event: Callable[[Event], Any] | Sequence[Callable[[Event], Any]] | None
    ) -> None:
        given = [on_event] if callable(on_event) else list(on_event or [])
        self._told = given if processes.is_leader() else []
        self._asked = False
        self._somebody = bool(processes.largest_of_all(int(bool(self._told))))

    def __call__(self, event: Event) -> None:
        """Tells an event."""
        for told in self._told:
            answer = told(event)
            self._asked |= isinstance(answer, str) and answer == STOP

    @property
    def listens(self) -> bool:
        """Whether anybody does, so that there is a use in reading the state for an event."""
        return bool(self._told)

    def asks_to_stop(self) -> bool:
        """Whether the listener has asked for it, on all processes alike."""
        return self._somebody and bool(processes.largest_of_all(int(self._asked)))

    def close(self) -> None:
        """Says that the run is over, however it ended, to listeners that have a `close`."""
        for told in self._told:
            getattr(told, "close", lambda: None)()


def learning_rate(optimizer: Any) -> float | None:
    """The learning rate in an optimizer's state, the mean over members; None if it has none.

    It is there where `optax.inject_hyperparams` made the optimizer.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(optimizer):
        if path and getattr(path[-1], "key", None) == "learning_rate":
            return float(np.mean(np.asarray(leaf)))
    return None
