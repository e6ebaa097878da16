"""A table of runs in which paired tests over seeds say which differences are more than chance."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from jcl.measures import metrics
from jcl.measures.significance import holm, paired_t
from jcl.report.folder import Run
from jcl.report.format import (
    format_mean,
    interval_note,
    labelled,
    measured_in,
    measures_of,
    scale,
)

LEVEL = 0.05
"""Below which adjusted p a difference is called one."""


class Cell(NamedTuple):
    """A measure of a run."""

    text: str
    """`mean ± interval`."""
    best: bool = False
    """Whether it is better than in every other row, as the tests say."""
    apart: bool = False
    """Whether it differs from the baseline's, as the tests say."""


class Comparison(NamedTuple):
    """What a table shows of several runs, in the terminal or in a paper."""

    measures: tuple[str, ...]
    """Names of the columns."""
    rising: tuple[bool, ...]
    """For each column whether higher is better."""
    labels: list[str]
    """Names of the rows."""
    cells: list[list[Cell]]
    """[rows][columns]."""
    notes: list[str]
    """Sentences that belong below: what is shown, and which tests were made."""


def compare(runs: Sequence[Run], baseline: str = "") -> Comparison:
    """The best points of runs side by side, tested against each other over seeds.

    A column's best is `best` where Student's paired t test tells it from every other row, with
    Holm's correction over all pairs of rows. With a baseline, a cell is `apart` where the test
    tells it from the baseline's, with Holm's correction over the other rows. Each column is a
    question of its own.

    Args:
      runs: of the same stages and tasks, whose seeds then are pairs.
      baseline: a row's label, or the name of its method without arguments; "" for none.

    Raises:
      ValueError: if the runs differ in their stages, tasks or measure, or not exactly one is the
        baseline.
    """
    _check_alike(runs)
    shown, factor, measures = labelled(runs), scale(runs), measures_of(runs)
    labels = [one.label for one in shown]
    base = _find(baseline, labels) if baseline else None
    values = [_values(run) for run in runs]
    rising = [_rises(m, runs[0]) for m in measures]
    cells = [[Cell(format_mean(run.summary[m], factor)) for m in measures] for run in runs]
    tested = 0
    for column, measure in enumerate(measures):
        sign = 1 if rising[column] else -1
        each = [sign * found[measure] for found in values]
        best = _best(each)
        if best is not None:
            cells[best][column] = cells[best][column]._replace(best=True)
        others = [] if base is None else [r for r in range(len(runs)) if r != base]
        for row in _apart([(row, base) for row in others if base is not None], each):
            cells[row][column] = cells[row][column]._replace(apart=True)
        tested = max(tested, sum(_p(pair, each) is not None for pair in _pairs(each)))
    notes = [_what(runs), *_tests(runs, tested, None if base is None else labels[base])]
    return Comparison(measures, tuple(rising), labels, cells, [*notes, *_chosen(runs)])


def _check_alike(runs: Sequence[Run]) -> None:
    for run in runs[1:]:
        for fact in ("experiment", "stages", "tasks", "measure", "higher_is_better"):
            mine, other = runs[0].summary[fact], run.summary[fact]
            if mine != other:
                raise ValueError(
                    f"{fact} is {other!r} in {run.folder}, but must be {mine!r}, as in "
                    f"{runs[0].folder}, for only then are their seeds pairs to be tested"
                )


def _find(baseline: str, labels: Sequence[str]) -> int:
    """The row that is meant: by its label, or by its method's name where that has no `+`."""
    named = [baseline in (x, x.partition("(")[0] if " + " not in x else x) for x in labels]
    if sum(named) != 1:
        raise ValueError(
            f"baseline is {baseline!r}, which {sum(named) or 'none'} of the rows are called, but "
            f"must be one of {', '.join(labels)}"
        )
    return named.index(True)


def _rises(measure: str, run: Run) -> bool:
    if measure == "forgetting":
        return False
    transfers = measure in ("backward_transfer", "forward_transfer")
    return transfers or bool(run.summary["higher_is_better"])


def _values(run: Run) -> dict[str, np.ndarray]:
    """The measures of a run's best point, [seeds], NaN where a seed diverged."""
    facts, R = run.summary, run.scores[run.best]
    found = metrics.per_seed(R, facts["higher_is_better"], facts["stage_tasks"])
    if "test_rows" in facts:
        found["micro_average"] = metrics.micro_average(R, facts["test_rows"])
    return found


Pairs = list[tuple[int, int]]


def _pairs(each: Sequence[np.ndarray]) -> Pairs:
    return list(combinations(range(len(each)), 2))


def _p(pair: tuple[int, int], each: Sequence[np.ndarray]) -> float | None:
    """The paired test of two rows over the seeds that both have; they are numbered from 0."""
    a, b = (each[row] for row in pair)
    common = min(len(a), len(b))
    return paired_t(a[:common], b[:common])


def _apart(pairs: Pairs, each: Sequence[np.ndarray]) -> set[int]:
    """The first rows of those pairs that differ, all looked at together."""
    p = [_p(pair, each) for pair in pairs]
    adjusted = holm([1.0 if x is None else x for x in p])
    return {row for (row, _), x in zip(pairs, adjusted, strict=True) if x < LEVEL}


def _best(each: Sequence[np.ndarray]) -> int | None:
    """The row that is better than every other; None where the tests don't say so."""
    if len(each) < 2:
        return None
    means = [np.nanmean(x) if np.isfinite(x).any() else -np.inf for x in each]
    top = int(np.argmax(means))
    pairs = _pairs(each)
    p = [_p(pair, each) for pair in pairs]
    adjusted = holm([1.0 if x is None else x for x in p])
    mine = [x for pair, x in zip(pairs, adjusted, strict=True) if top in pair]
    return top if max(mine) < LEVEL else None


def _what(runs: Sequence[Run]) -> str:
    note = interval_note(runs)
    return f"{measured_in(runs)}, " + (f"mean {note} (Student's t)" if note else "1 seed")


def _tests(runs: Sequence[Run], tested: int, baseline: str | None) -> list[str]:
    if not tested:
        return ["nothing is tested, for no two rows have two seeds in common"]
    pairs, others = len(runs) * (len(runs) - 1) // 2, len(runs) - 1
    test = "paired t test over seeds, Holm's correction over the column's"
    said = [f"bold: better than every other row ({test} {pairs} pairs of rows, p < {LEVEL})"]
    if baseline is not None:
        said.append(f"†: differs from {baseline} ({test} {others} other rows, p < {LEVEL})")
    return said


def _chosen(runs: Sequence[Run]) -> list[str]:
    """What must be said of points of a sweep, and of states: what they were chosen by."""
    said = []
    for run in runs:
        if "stages_end" in run.summary:
            label = run.labels[run.best]
            said.append(f"each stage of {label} ends {run.summary['stages_end']}")
        if len(run.points) < 2:
            continue
        name = f"{run.labels[run.best]} was chosen among {len(run.points)} points"
        if run.chosen_by is None:
            said.append(f"{name} by the final test scores themselves, so it is optimistic")
        else:
            said.append(f"{name} by rows held out of training, not by the test")
    return said
