"""Formats the numbers and names of a run for tables in the terminal, pages and model cards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jcl.measures import metrics
from jcl.report.folder import Run, Scores

MEASURES = tuple(metrics.definitions)
"""The measures of a summary, in the order in which they are shown."""


def scale_of(run: Scores) -> int:
    """100 if a run's scores are shares, which are shown in per cent; else 1."""
    low, high = np.nanmin(run.scores, initial=0.0), np.nanmax(run.scores, initial=0.0)
    return 100 if run.higher_is_better and low >= 0 and high <= 1 else 1


def format_mean(value: Mapping[str, Any], scale: int = 1) -> str:
    """A measure as text, `mean ± interval`."""
    if value["mean"] is None:
        return "–"
    digits = 1 if scale == 100 else 3
    text = f"{scale * value['mean']:.{digits}f}"
    return text if value["ci95"] is None else f"{text} ± {scale * value['ci95']:.{digits}f}"


def scale(runs: Sequence[Run]) -> int:
    """100 if all runs' scores are shares, which are shown in per cent; else 1."""
    return min(scale_of(run.shown()) for run in runs)


def labelled(runs: Sequence[Run]) -> list[Scores]:
    """Each run's best point; runs of the same method are told apart by their folders."""
    names = [run.labels[run.best] for run in runs]
    return [
        run.shown(label=f"{name} ({run.folder.name})" if names.count(name) > 1 else name)
        for run, name in zip(runs, names, strict=True)
    ]


def title(measure: str) -> str:
    """A measure's name to print."""
    return measure.replace("_", " ")


def unit(runs: Sequence[Run]) -> str:
    """What the scores are, in which unit, and which direction is better."""
    facts = runs[0].summary
    sense = "higher" if facts["higher_is_better"] else "lower"
    return f"{facts['measure']}{' in %' if scale(runs) == 100 else ''}, {sense} is better"
