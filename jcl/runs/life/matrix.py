"""The score matrix of a life, and its measures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jcl.measures import metrics
from jcl.runs.life.book import Stage

MEASURES = tuple(metrics.definitions)
"""The measures that a condition may ask for, beside tests by their names."""


def tested(line: Sequence[Stage]) -> list[Stage]:
    """The stages that led to a state and whose tests were scored in it.

    A stage of whose test no row is left, for all were forgotten, is not among them.
    """
    return [stage for stage in line if stage.name in line[-1].facts["scores"]]


def scores(line: Sequence[Stage]) -> np.ndarray:
    """The matrix [stages + 1, tests] of the stages that are `tested`, NaN where none was scored.

    Row 0 is the model as it was given; above the diagonal only the entry right above it is there,
    a test's score before its own stage, for earlier a test wasn't known.
    """
    line = tested(line)
    names = [stage.name for stage in line]
    found = np.full((len(line) + 1, len(line)), np.nan)
    for i, stage in enumerate(line):
        found[0, i] = stage.facts["base"]
        found[i, i] = stage.facts["before"]
        found[i + 1, : i + 1] = [stage.facts["scores"][name] for name in names[: i + 1]]
    return found


def measured(line: Sequence[Stage], higher_is_better: bool) -> dict[str, float | None]:
    """Measures, last scores and probes by name, None if undefined.

    Scores are in per cent where they are shares. A probe, as `probe.boolq`, is by how many points
    the last stage has changed it.
    """
    R = scores(line)
    # a share's measure is asked for in points, a log perplexity as it is
    scale = 100 if higher_is_better else 1
    found = {
        name: None if entry["mean"] is None else scale * entry["mean"]
        for name, entry in metrics.summary(R, higher_is_better).items()
    }
    last = zip((stage.name for stage in tested(line)), R[-1], strict=True)
    asked = line[-1].facts.get("probes", {"before": {}, "after": {}})
    moved = {
        f"probe.{name}": 100 * (after - asked["before"][name])
        for name, after in asked["after"].items()
    }
    return {**found, **{name: scale * float(score) for name, score in last}, **moved}


def ability(line: Sequence[Stage]) -> dict[str, np.ndarray]:
    """The shares of right answers by probe, [1, 1, stages + 1]: as it was given, and after each."""
    after = [stage.facts["probes"]["after"] for stage in tested(line)]
    told = [line[0].facts["probes"]["before"], *after]
    return {name: np.array([[[one[name] for one in told]]]) for name in told[0]}
