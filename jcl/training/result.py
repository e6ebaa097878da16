"""What a run gives back, and what it cost."""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jcl.program import State
from jcl.records import record


@record
class Result(NamedTuple):
    """The results of a run, with a leading axis [members] if `replicate` made the program."""

    state: State
    """The last state."""
    scores: np.ndarray | None
    """float32 [stages + 1, tasks], row 0 before training; None without `evaluate`."""
    history: list[dict[str, Any]]
    """The lines of metrics.jsonl: `stage`, `name`, `step`, `loss` and what the methods report, as
    means over members; where there are many, also `losses` of each, None once it has diverged."""
    wall_seconds: float
    """Seconds that the whole call took."""
    compile_seconds: float
    """Those of them in which it was compiled."""
    examples_per_second: float
    """Fresh rows trained on, all members together, per second of training; compiling and
    evaluation excluded, work at boundaries included."""
    step_traces: int
    """How often a step was traced: once, unless something is wrong."""
    peak_memory_bytes: int
    """The most memory that the first device held, or this process where the device can't say."""
    out: Path | None
    """The run's folder; None where it wrote nothing."""
    diverged: dict[int, int]
    """At which step, counted from 1, the loss of which member was no longer finite. Its scores are
    NaN from there on, and the other members' are what they would have been."""
    evaluations: list[dict[str, Any]] | tuple[()] = ()
    """The evaluations within stages: `stage`, `name`, `step` and `scores`, as lists."""
    stopped: bool = False
    """Whether `on_event` stopped it before the end of its last stage."""

    def _facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = {}
        if self.scores is not None:
            *members, rows, tasks = self.scores.shape
            last = self.scores[..., -1, :].reshape(-1, tasks).mean(axis=0)
            facts["members"] = members[0] if members else None
            facts["stages"] = rows - 1
            facts["final_scores"] = tuple(round(float(score), 3) for score in last)
            facts["mean"] = round(float(last.mean()), 3)
        if self.history:
            facts["steps"] = self.history[-1]["step"]
            facts["loss"] = round(self.history[-1]["loss"], 4)
        facts["wall_seconds"] = round(self.wall_seconds, 1)
        facts["out"] = None if self.out is None else str(self.out)
        return facts


def peak_memory() -> int:
    """The most bytes that the first device held, or this process where the device can't say."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
