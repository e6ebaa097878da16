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
    text = f"{scale * value['mean']:z.{digits}f}"
    return text if value["ci95"] is None else f"{text} ± {scale * value['ci95']:.{digits}f}"


def format_samples(values: np.ndarray, digits: int = 3) -> str:
    """`mean ± interval` of numbers [seeds]; of a single one just it.

    >>> format_samples(np.array([1.0, 2.0, 3.0])), format_samples(np.array([2.0]))
    ('2.000 ± 2.484', '2.000')
    """
    mean, half = metrics.interval(values)
    return f"{mean:z.{digits}f}" + ("" if half is None else f" ± {half:.{digits}f}")


def scale(runs: Sequence[Run]) -> int:
    """100 if all runs' scores are shares, which are shown in per cent; else 1."""
    return min(scale_of(run.shown()) for run in runs)


def labelled(runs: Sequence[Run]) -> list[Scores]:
    """Each run's best point; runs of the same method are told apart by their folders.

    Where the runs' numbers of seeds differ, each label says its own.
    """
    names = [run.labels[run.best] for run in runs]
    differ = len({run.summary["seeds"] for run in runs}) > 1

    def label(run: Run, name: str) -> str:
        facts = [run.folder.name] if names.count(name) > 1 else []
        facts += [count_seeds(run)] if differ else []
        return f"{name} ({', '.join(facts)})" if facts else name

    return [run.shown(label=label(run, name)) for run, name in zip(runs, names, strict=True)]


def count_seeds(run: Run) -> str:
    """`1 seed` or `3 seeds`."""
    number = run.summary["seeds"]
    return f"{number} seed{'' if number == 1 else 's'}"


def interval_note(runs: Sequence[Run]) -> str:
    """What stands after ±, such as `± 95 % over 3 seeds`; empty where every run has one seed."""
    numbers = {run.summary["seeds"] for run in runs}
    if numbers == {1}:
        return ""
    return f"± 95 % over {count_seeds(runs[0]) if len(numbers) == 1 else 'the seeds of a row'}"


def measures_of(runs: Sequence[Run]) -> tuple[str, ...]:
    """The measures that every run's summary has, in the order in which they are shown.

    Beside the average there is a micro-average where tests differ in size; older folders have none.
    """
    if not all("micro_average" in run.summary for run in runs):
        return MEASURES
    first, *rest = MEASURES
    return (first, "micro_average", *rest)


def title(measure: str) -> str:
    """A measure's name to print."""
    return measure.replace("_", " ")


def measured_in(runs: Sequence[Run]) -> str:
    """What the scores are, and in which unit."""
    return f"{runs[0].summary['measure']}{' in %' if scale(runs) == 100 else ''}"


def unit(runs: Sequence[Run]) -> str:
    """What the scores are, in which unit, and which direction is better."""
    sense = "higher" if runs[0].summary["higher_is_better"] else "lower"
    return f"{measured_in(runs)}, {sense} is better"


def replace_between(page: str, begin: str, end: str, text: str) -> str:
    """A page with this text between two marks, each of which it has once.

    Raises:
      ValueError: if it lacks one.

    >>> replace_between("a <b> old <e> c", "<b>", "<e>", "new")
    'a <b>\\n\\nnew\\n<e> c'
    """
    before, mark, rest = page.partition(begin)
    _, last, after = rest.partition(end)
    if not (mark and last):
        raise ValueError(f"the page must have the marks {begin} and {end}")
    return f"{before}{begin}\n\n{text}\n{end}{after}"
