"""Writes and reads the results in a run's folder.

`summary.json` has the measures and the mean score matrix, `matrix.csv` only the latter,
`scores.csv` every score of every seed, and `classes.csv` those of each class where classes differ
in size. `jcl.report.page` draws figures of what is read.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jcl.measures import metrics
from jcl.training.folder import whole


class Scores(NamedTuple):
    """The scores of one run, or one point of a sweep, for tables and figures."""

    label: str
    scores: np.ndarray
    """[seeds, stages + 1, tasks]; row 0 is before any training."""
    forgetting: np.ndarray
    """[seeds, tasks], positive for a loss; NaN for a task that no later stage follows."""
    learned: Sequence[int]
    """For each task the first row of `scores` after training on it."""
    stages: Sequence[str]
    tasks: Sequence[str]
    measure: str
    higher_is_better: bool

    @property
    def average(self) -> np.ndarray:
        """The mean over tasks at the end, [seeds]."""
        return np.mean(self.scores[:, -1], axis=1)

    @property
    def lost(self) -> np.ndarray:
        """Mean forgetting over tasks that could be forgotten, [seeds]; 0 where none could, NaN
        where a seed diverged."""
        some = np.isfinite(self.forgetting).any(axis=0)
        if some.any():
            return np.mean(self.forgetting[:, some], axis=1)
        return np.where(np.isfinite(self.average), 0.0, np.nan)


class Run(NamedTuple):
    """The results of one compiled run, as its folder has them."""

    folder: Path
    summary: dict[str, Any]
    points: list[dict[str, Any]]
    """The values of each point of a sweep; `[{}]` if nothing was swept."""
    labels: list[str]
    """The method with the values of each point."""
    scores: np.ndarray
    """[points, seeds, stages + 1, tasks]."""
    chosen_by: np.ndarray | None = None
    """The scores [points] on rows held out of training by which the best point is chosen; None is
    by the final test scores."""

    @property
    def probed(self) -> dict[str, Any] | None:
        """The best point's `names` of probes, `matrix` [stages + 1][probes] and
        `vertical_forgetting`; None without probes."""
        return self.summary.get("probes")

    @property
    def best(self) -> int:
        """The point with the best average, of those none of whose seeds diverged, if there are."""
        sign = 1 if self.summary["higher_is_better"] else -1
        average = sign * self.scores[:, :, -1].mean(axis=(1, 2))
        if self.chosen_by is not None:
            held_out = sign * self.chosen_by  # NaN where all seeds of a point diverged
            average = np.where(np.isfinite(average), held_out, np.nan)
        if not np.isfinite(average).any():  # then the best that some seeds make
            left = [sign * without_diverged(R)[:, -1].mean() for R in self.scores]
            average = np.array(left) if self.chosen_by is None else sign * self.chosen_by
        return int(np.argmax(np.where(np.isfinite(average), average, -np.inf)))

    def shown(self, point: int | None = None, label: str | None = None) -> Scores:
        """The scores of a point, None being the best one, for figures."""
        point = self.best if point is None else point
        facts, R = self.summary, without_diverged(self.scores[point])
        return Scores(
            label or self.labels[point],
            R,
            forgetting(R, facts["stage_tasks"], facts["higher_is_better"]),
            [_first(facts["stage_tasks"], t) for t in range(R.shape[-1])],
            facts["stages"],
            facts["tasks"],
            facts["measure"],
            facts["higher_is_better"],
        )


def without_diverged(R: np.ndarray) -> np.ndarray:
    """Of scores [seeds, ...] those of the seeds that didn't diverge; all where none is left.

    >>> without_diverged(np.array([[0.5], [np.nan]])).tolist()
    [[0.5]]
    """
    well = _well(R)
    return R[well] if well.any() else R


def _well(R: np.ndarray) -> np.ndarray:
    """Which seeds of scores [seeds], [seeds, tasks] or [seeds, rows, tasks] didn't diverge.

    The scores of one that did are NaN from there on, so in the last row; what is NaN before it
    wasn't measured, for its task wasn't known by then.
    """
    last = R[:, -1] if R.ndim == 3 else R.reshape(len(R), -1)
    return np.isfinite(last).all(axis=1)


def _first(stage_tasks: Sequence[int], task: int) -> int:
    """The first row of the matrix after training on a task; beyond the last if there is none."""
    rows = [s + 1 for s, t in enumerate(stage_tasks) if t in (task, -1)]
    return rows[0] if rows else len(stage_tasks) + 1


def forgetting(R: np.ndarray, stage_tasks: Sequence[int], higher_is_better: bool) -> np.ndarray:
    """The terms whose mean over tasks is `metrics.forgetting`, [seeds, tasks]; else NaN.

    >>> R = np.array([[[0, 0, 0], [.9, .1, .1], [.5, .8, .1], [.4, .6, .7]]])
    >>> forgetting(R, (0, 1, 2), True).round(2)
    array([[0.5, 0.2, nan]])
    """
    end = len(stage_tasks)
    out = np.full((R.shape[0], R.shape[2]), np.nan)
    for task in range(R.shape[2]):
        own = [s for s, t in enumerate(stage_tasks) if t in (task, -1)]
        if own and own[-1] + 1 < end:
            signed = R[:, :, task] if higher_is_better else -R[:, :, task]
            known = np.where(np.isnan(signed[:, 1:end]), -np.inf, signed[:, 1:end])
            out[:, task] = known.max(axis=1) - signed[:, end]
    return out


def _numbers(R: np.ndarray) -> Any:
    """An array as nested lists, without digits that float32 doesn't have; None for what is NaN."""

    def short(x: float) -> float | None:
        return float(f"{x:.7g}") if np.isfinite(x) else None

    return np.vectorize(short, otypes=[object])(R).tolist()


def write(
    folder: Path,
    facts: Mapping[str, Any],
    points: Sequence[Mapping[str, Any]],
    labels: Sequence[str],
    scores: np.ndarray,
    probes: Mapping[str, np.ndarray] | None = None,
    validation: np.ndarray | None = None,
) -> Run:
    """Writes matrix.csv, scores.csv and summary.json.

    Args:
      folder: the run's folder, which exists.
      facts: what summary.json says beside the scores: `method`, `tasks`, `wall_seconds`, ....
        With `test_rows` [tasks] there is a `micro_average` too; with `class_rows` [classes] and
        `class_scores` [points * seeds][classes] classes.csv has these, and summary.json the means.
      points: values of each point of a sweep, or `[{}]`.
      labels: the method with each point's values, to be shown.
      scores: [points, seeds, stages + 1, tasks].
      probes: by name, shares of right answers [points, seeds, stages + 1].
      validation: [points, seeds], the mean score after the last stage over rows that were held out
        of training, by which the best point is then chosen.
    """
    values = [dict(point) for point in points]
    run = Run(folder, dict(facts), values, list(labels), np.asarray(scores, np.float64))
    held_out = []
    if validation is not None:
        held_out = [metrics.entry(without_diverged(v), HELD_OUT) for v in validation]
        run = run._replace(chosen_by=_chosen_by(held_out))
    sweep = []
    for point, label, R in zip(values, labels, run.scores, strict=True):
        left = without_diverged(R)
        measured = metrics.summary(left, facts["higher_is_better"], facts["stage_tasks"])
        if "test_rows" in facts:
            n = facts["test_rows"]
            measured["micro_average"] = metrics.entry(
                metrics.micro_average(left, n),
                f"mean over all {sum(n):,} test rows of the score after the last stage, where a "
                f"task has from {min(n):,} to {max(n):,} of them",
            )
        matrix = _numbers(left.mean(axis=0))
        lost = int((~_well(R)).sum())
        sweep.append(
            {"values": point, "label": label, "diverged": lost, "matrix": matrix, **measured}
        )
    for one, entry in zip(sweep, held_out, strict=bool(held_out)):
        one["validation"] = entry
    best = sweep[run.best]
    run.summary.update({k: v for k, v in best.items() if k not in ("values", "label", "diverged")})
    if "class_scores" in facts:
        run.summary["class_scores"] = _classes(run, facts["class_rows"], facts["class_scores"])
    if probes:
        run.summary["probes"] = _probes(probes, run.best)
    if any(run.points):
        run.summary["selected"] = best["values"]
        run.summary["sweep"] = sweep
    rows = ["before", *facts["stages"]]
    with whole(folder / "matrix.csv") as path, path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["after", *facts["tasks"]])
        table.writerows([name, *row] for name, row in zip(rows, best["matrix"], strict=True))
    with whole(folder / "scores.csv") as path, path.open("w", newline="") as file:
        table = csv.writer(file)
        sizes = [[n] for n in facts.get("test_rows", ())] or [[]] * len(facts["tasks"])
        size = ["test_rows"] if "test_rows" in facts else []
        table.writerow([*run.points[0], "seed", "row", "after", "task", "score", *size])
        for p, s, r, t in np.ndindex(run.scores.shape):
            score, named = f"{run.scores[p, s, r, t]:.7g}", facts["tasks"][t]
            table.writerow([*run.points[p].values(), s, r, rows[r], named, score, *sizes[t]])
    save_json(folder / "summary.json", run.summary)  # the last, which says that there is the rest
    return run


HELD_OUT = "mean over tasks of the score after the last stage, on rows held out of training"
"""What `validation` is, for a report."""


def _chosen_by(entries: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """The means of measures, [points]; NaN where one is undefined."""
    return np.array([np.nan if e["mean"] is None else e["mean"] for e in entries], np.float64)


def _classes(run: Run, rows: Sequence[int], scores: Sequence[Sequence[float]]) -> Any:
    """Writes classes.csv, and gives each class's score, the mean over the best point's seeds."""
    each = np.asarray(scores, np.float64).reshape(*run.scores.shape[:2], len(rows))
    with whole(run.folder / "classes.csv") as path, path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow([*run.points[0], "seed", "class", "test_rows", "score"])
        for p, s, c in np.ndindex(each.shape):
            table.writerow([*run.points[p].values(), s, c, rows[c], f"{each[p, s, c]:.7g}"])
    well = _well(run.scores[run.best])
    return _numbers(each[run.best][well if well.any() else slice(None)].mean(axis=0))


def _probes(probes: Mapping[str, np.ndarray], best: int) -> dict[str, Any]:
    P = np.stack([np.asarray(x, np.float64)[best] for x in probes.values()], axis=-1)
    P = without_diverged(P)
    mean, ci95 = metrics.interval(metrics.vertical_forgetting(P))
    return {
        "names": list(probes),
        "matrix": _numbers(P.mean(axis=0)),
        "vertical_forgetting": {"mean": mean, "ci95": ci95, "definition": metrics.VERTICAL},
    }


def save_json(path: Path, content: Any) -> None:
    """Writes JSON that people can read too, with a line for each innermost list: all or nothing."""
    text = json.dumps(content, indent=1)

    def on_one_line(innermost: re.Match[str]) -> str:
        return "[" + re.sub(r"\n *", " ", innermost[1]).strip() + "]"

    with whole(path) as partial:  # lest half of it be taken for all
        partial.write_text(re.sub(r"\[(\n[^\[\]{}]*\n *)\]", on_one_line, text) + "\n")


def load_settings(folder: Path) -> dict[str, Any]:
    """What a folder's config.json says of how its run was begun; nothing where there is none.

    Raises:
      ValueError: if it can't be read, or is no object.
    """
    path = folder / "config.json"
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} can't be read: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__}, but must hold an object")
    return found


def group(folder: Path, runs: Sequence[Run]) -> None:
    """Writes the summary.json of a folder whose subfolders are runs."""
    shared = ("experiment", "scenario", "measure", "higher_is_better", "seeds", "stages", "tasks")
    facts = {k: runs[0].summary[k] for k in shared}
    save_json(folder / "summary.json", {**facts, "runs": {r.folder.name: r.summary for r in runs}})


def load(folder: Path) -> list[Run]:
    """The runs in a folder: the one that it is of, or those of its subfolders.

    Raises:
      ValueError: if it is no folder of a finished run.
    """
    path = folder / "summary.json"
    if not path.is_file():
        raise ValueError(f"{folder} has no summary.json, so it is no finished run of jcl")
    try:
        summary = json.loads(path.read_text())
        if "runs" in summary:
            found = [_load(folder / name, facts) for name, facts in summary["runs"].items()]
        else:
            found = [_load(folder, summary)]
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder} can't be read as a run of jcl: {error!r}") from error
    if not found:
        raise ValueError(f"{folder} can't be read as a run of jcl: its summary.json lists no runs")
    return found


def finished(folder: Path) -> Run | None:
    """The run of a folder that is finished and whole; None if a file is missing, or is cut."""
    try:
        run = load(folder)[0]
        with (folder / "matrix.csv").open(newline="") as file:
            rows = [[float(x) if x else None for x in row[1:]] for row in [*csv.reader(file)][1:]]
        return run if rows == run.summary["matrix"] else None
    except (OSError, ValueError, KeyError):
        return None


def _load(folder: Path, summary: dict[str, Any]) -> Run:
    sweep = summary.get("sweep", [{"values": {}, "label": summary["method"]}])
    points, labels = [p["values"] for p in sweep], [p["label"] for p in sweep]
    shape = (len(points), summary["seeds"], len(summary["stages"]) + 1, len(summary["tasks"]))
    with (folder / "scores.csv").open(newline="") as file:
        scores = [float(row["score"]) for row in csv.DictReader(file)]
    chosen_by = _chosen_by([p["validation"] for p in sweep]) if "validation" in sweep[0] else None
    return Run(folder, summary, points, labels, np.asarray(scores).reshape(shape), chosen_by)
