"""Finished runs as one tidy table for pandas: `jcl.results.load("runs/*")`."""

from __future__ import annotations

import glob
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jcl import report
from jcl.data.packages import needed

if TYPE_CHECKING:
    import pandas


def load(where: str | Path) -> pandas.DataFrame:
    """Every score of finished runs, one row for each run, point, seed, row of the matrix and task.

    The columns are `run` (its folder), `experiment`, `scenario`, `family` (the method as it was
    asked for), `method` (with the point's values), `measure`, `higher_is_better`, `best` (whether
    the point is the one that a report shows), the swept values by their keys, `seed`, `row` (0 is
    before training), `after` (which stage), `task`, `seen` (whether the task was trained on by
    then) and `score` (NaN where the seed diverged). What a run didn't sweep is missing there.

    Args:
      where: a run's folder, that of several runs, or a pattern such as `runs/*`. What a pattern
        matches beside finished runs is left out, with a warning if it is a folder.

    Raises:
      ImportError: if pandas isn't installed.
      ValueError: if there is no finished run.
    """
    with needed("jcl.results.load", "pandas", "pandas"):
        import pandas

    return pandas.concat([pandas.DataFrame(_columns(r)) for r in _runs(where)], ignore_index=True)


def _runs(where: str | Path) -> list[report.Run]:
    """The runs of a folder, or of all folders that a pattern matches, each once."""
    if not glob.has_magic(str(where)) or Path(where).is_dir():
        return report.load(Path(where))
    found: dict[Path, report.Run] = {}
    unfinished = []
    for name in sorted(glob.glob(str(where), recursive=True)):
        if not Path(name).is_dir():
            continue
        try:
            found |= {run.folder: run for run in report.load(Path(name))}
        except ValueError:
            unfinished.append(name)
    if not found:
        raise ValueError(f"where is {str(where)!r}, but must match a folder of a finished run")
    if unfinished:
        warnings.warn(f"no finished runs, so left out: {', '.join(unfinished)}", stacklevel=3)
    return list(found.values())


def _columns(run: report.Run) -> dict[str, Any]:
    """A run's columns, arrays [points * seeds * rows * tasks] or what is the same in all."""
    facts = run.summary
    point, seed, row, task = (i.ravel() for i in np.indices(run.scores.shape))
    names = ["before", *facts["stages"]]
    first = run.shown().learned
    columns = {
        "run": str(run.folder),
        "experiment": facts["experiment"],
        "scenario": facts["scenario"],
        "family": facts["family"],
        "method": np.asarray(run.labels, object)[point],
        "measure": facts["measure"],
        "higher_is_better": facts["higher_is_better"],
        "best": point == run.best,
        "seed": seed,
        "row": row,
        "after": np.asarray(names, object)[row],
        "task": np.asarray(facts["tasks"], object)[task],
        "seen": row >= np.asarray(first)[task],
        "score": run.scores.ravel(),
    }
    swept = {key: [value] * len(point) for key, value in facts["outer"].items()}
    for key in run.points[0]:
        swept[key] = [run.points[p][key] for p in point]
    clear = {f"{key} (swept)" if key in columns else key: v for key, v in swept.items()}
    ends = {key: columns.pop(key) for key in ("seed", "row", "after", "task", "seen", "score")}
    return {**columns, **clear, **ends}
