"""A run's page: its figures as PNG files, and `report.html`, which has them inside.

The page needs no other file, and can be read on a phone and in the dark.
"""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jcl.measures import metrics
from jcl.parallel import signals
from jcl.report import figures
from jcl.report.folder import Run, load, load_settings
from jcl.report.format import (
    format_mean,
    interval_note,
    labelled,
    measured_in,
    measures_of,
    scale,
    title,
    unit,
)
from jcl.training.folder import whole

STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --muted: #5f6672; --line: #e3e6ea;
  --page: #ffffff; --box: #f6f8fa }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8eaed; --muted: #a3abb8; --line: #33373d; --page: #141414; --box: #1d1f22 }
  .figure img { filter: invert(.92) hue-rotate(180deg) }
}
body { margin: 0 auto; max-width: 56rem; padding: 1.5rem 1rem 4rem; background: var(--page);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif }
h1 { font-size: 1.6rem; margin: .2rem 0; overflow-wrap: anywhere }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; overflow-wrap: anywhere }
p { margin: .5rem 0 }
.muted { color: var(--muted) }
.wide { overflow-x: auto }
img { width: 100%; display: block; margin: .8rem 0 }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums }
th, td { text-align: left; vertical-align: top; padding: .4rem 1.1rem .4rem 0;
  border-bottom: 1px solid var(--line) }
th { color: var(--muted); font-weight: 500 }
td.n { white-space: nowrap }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .7rem;
  margin: 1rem 0 }
.tile { background: var(--box); border-radius: .6rem; padding: .7rem .9rem }
.tile b { font-size: 1.3rem; display: block; font-weight: 600 }
.tile span { color: var(--muted); font-size: .85rem }
pre { background: var(--box); border-radius: .6rem; padding: .8rem 1rem; overflow-x: auto;
  font: .85rem/1.45 ui-monospace, monospace }
"""


def draw(folder: Path) -> Path:
    """Draws a folder's figures and its report.html, and returns the latter's path.

    A folder of several runs gets a page that compares them, and each of them its own.

    Raises:
      ValueError: if it is no folder of a finished run.
    """
    runs = load(folder)
    settings = load_settings(folder)
    pictures = [_figures(run) for run in runs]
    for run, own in zip(runs, pictures, strict=True):
        chosen = [_points(run), _stages_end(run)]
        _write(run.folder, [run], [_one(run), *own.values(), *chosen], settings)
    if runs[0].folder != folder:
        both = _saved(folder / "comparison.png", figures.comparison(labelled(runs)))
        parts = [_several(runs), both, *_swept(folder, runs)]
        for run, own in zip(runs, pictures, strict=True):
            parts.append(_heading(run.labels[run.best]))
            parts += [image for name, image in own.items() if name != "loss"]
        _write(folder, runs, parts, settings)
    return folder / "report.html"


def _write(
    folder: Path, runs: Sequence[Run], parts: Sequence[str], settings: Mapping[str, Any]
) -> None:
    parts = [*parts, _definitions(runs[0]), _cost(runs), _again(settings)]
    with whole(folder / "report.html") as path:
        path.write_text(_html(runs, parts))


def compare(runs: Sequence[Run], path: Path) -> None:
    """Draws runs of any folders side by side, as a PNG.

    Raises:
      ValueError: if their scores aren't of one kind.
    """
    kinds = {(r.summary["measure"], r.summary["higher_is_better"]) for r in runs}
    if len(kinds) > 1:
        names = sorted({measure for measure, _ in kinds})
        raise ValueError(f"these runs measure different things, {names}, so they don't compare")
    shown = labelled(runs)
    same = len({(tuple(s.tasks), tuple(s.stages)) for s in shown}) == 1
    figure = figures.comparison(shown) if same else figures.ranking(shown)
    with whole(path) as partial:
        figure.savefig(partial, format="png")


def _saved(path: Path, figure: Figure) -> str:
    """Writes a PNG, and returns an <img> that contains it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    with whole(path) as partial:
        partial.write_bytes(buffer.getvalue())
    code = base64.b64encode(buffer.getvalue()).decode()
    wide = round(72 * figure.get_figwidth())  # narrower, its letters would be too small
    image = f'<img alt="{path.stem}" style="min-width:{wide}px" src="data:image/png;base64,{code}">'
    return f'<div class="wide figure">{image}</div>'


def _figures(run: Run) -> dict[str, str]:
    """A run's figures by name; those of a sweep show its best point."""
    best = run.shown()
    drawn: dict[str, Figure] = {}
    names = list(run.points[0])
    if len(names) == 1 and len(run.points) > 1:
        values = [point[names[0]] for point in run.points]
        points = [run.shown(p) for p in range(len(values))]
        drawn["sweep"] = figures.sweep(names[0], values, points)
    drawn["curves"] = figures.curves(best)
    drawn["forgetting"] = figures.forgetting(best)
    drawn["matrix"] = figures.matrix(best)
    log = run.folder / "metrics.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
    if len(lines) > 1:
        steps, stages = (np.asarray([line[k] for line in lines]) for k in ("step", "stage"))
        drawn["loss"] = figures.loss(steps, _losses(run, lines), stages, run.points)
    signals.look()
    return {name: _saved(run.folder / f"{name}.png", figure) for name, figure in drawn.items()}


def _losses(run: Run, lines: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """The training losses [points, lines] of a log, means over seeds; NaN where all diverged."""
    if len(run.points) == 1 or "losses" not in lines[0]:
        return np.asarray([[line["loss"] for line in lines]], float)
    each = np.asarray([line["losses"] for line in lines], float)  # None becomes NaN
    each = each.T.reshape(len(run.points), -1, len(lines))
    some = np.isfinite(each)
    total = np.where(some, each, 0.0).sum(axis=1)
    count = some.sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _swept(folder: Path, runs: Sequence[Run]) -> list[str]:
    """The curve over the one argument that was swept, with the other runs as levels."""
    traced = [run for run in runs if len(run.points) > 1 and len(run.points[0]) == 1]
    outer = [run for run in runs if len(run.summary["outer"]) == 1]
    if len(traced) == 1 and not outer:
        run = traced[0]
        (key,) = run.points[0]
        values = [point[key] for point in run.points]
        points = [run.shown(p) for p in range(len(values))]
    elif outer and not traced:
        keys = {(*run.summary["outer"], run.summary["family"]) for run in outer}
        key = next(iter(outer[0].summary["outer"]))
        values = [run.summary["outer"].get(key) for run in outer]
        if len(keys) > 1 or not all(isinstance(v, int | float) for v in values):
            return []
        points = [run.shown() for run in outer]
    else:
        return []
    others = [run.shown() for run in runs if run not in [*traced, *outer]]
    return [_saved(folder / "sweep.png", figures.sweep(key, values, points, others))]


def _heading(text: str) -> str:
    return f"<h2>{html.escape(text)}</h2>"


def _note(text: str) -> str:
    return f'<p class="muted">{html.escape(text)}</p>'


def _table(head: Iterable[str], rows: Iterable[Iterable[str]], tight: bool = True) -> str:
    """A table that can scroll sideways; with `tight`, only the first column's cells wrap."""
    cell = "<td class=n>" if tight else "<td>"
    top = "".join(f"<th>{html.escape(h)}" for h in head)
    body = ""
    for row in rows:
        first, *rest = (html.escape(c) for c in row)
        body += f"<tr><td>{first}" + "".join(cell + c for c in rest)
    return f'<div class="wide"><table><tr>{top}{body}</table></div>'


def _sub(runs: Sequence[Run]) -> str:
    facts = runs[0].summary
    note = interval_note(runs)
    seeds = f"mean {note} (Student's t)" if note else "1 seed"
    return f"{facts['experiment']} · {facts['scenario']} · {unit(runs)} · {seeds}"


def _one(run: Run) -> str:
    factor = scale([run])
    tiles = "".join(
        f'<div class="tile"><span>{title(m)}</span>'
        f"<b>{format_mean(run.summary[m], factor)}</b></div>"
        for m in measures_of([run])
    )
    name = html.escape(run.labels[run.best])
    tiles = f'<div class="tiles">{tiles}</div>'
    notes = "".join(map(_note, run.summary.get("notes", ())))
    return f"<h1>{name}</h1>{_note(_sub([run]))}{tiles}{notes}{_classes(run)}{_ability([run])}"


def _classes(run: Run) -> str:
    """The table of each class's score in the end, where classes differ in size."""
    if "class_scores" not in run.summary:
        return ""
    factor = scale([run])
    each = zip(run.summary["class_rows"], run.summary["class_scores"], strict=True)
    rows = [
        [f"{label}", f"{count:,}", format_mean({"mean": x, "ci95": None}, factor)]
        for label, (count, x) in enumerate(each)
    ]
    head = ["class", "test rows", measured_in([run])]
    return _heading("Each class in the end") + _table(head, rows)


def _ability(runs: Sequence[Run]) -> str:
    """The table of general ability on the probes, before training and after each stage."""
    parts = []
    for run in runs:
        if run.probed is None:
            continue
        when = ["before", *(f"after {s}" for s in run.summary["stages"])]
        matrix = run.probed["matrix"]
        rows = [
            [name, *(f"{100 * x:.1f}" for x in row)] for name, row in zip(when, matrix, strict=True)
        ]
        lost = format_mean(run.probed["vertical_forgetting"], 100)
        note = f"vertical forgetting {lost} points: {metrics.VERTICAL}"
        parts.append(
            _heading(f"General ability: {run.labels[run.best]}")
            + _table(["right answers in %", *run.probed["names"]], rows)
            + _note(note)
        )
    return "".join(parts)


def _several(runs: Sequence[Run]) -> str:
    factor = scale(runs)
    measures = measures_of(runs)
    rows = [
        [shown.label, *(format_mean(run.summary[m], factor) for m in measures)]
        for run, shown in zip(runs, labelled(runs), strict=True)
    ]
    table = _table(["method", *map(title, measures)], rows)
    name = html.escape(runs[0].summary["experiment"])
    return f"<h1>{name}</h1>{_note(_sub(runs))}{table}{_ability(runs)}"


def _points(run: Run) -> str:
    """A sweep's table."""
    if "sweep" not in run.summary:
        return ""
    factor = scale([run])
    names, measures = list(run.points[0]), measures_of([run])
    rows = [
        [
            *(f"{point['values'][n]:g}" for n in names),
            *(format_mean(point[m], factor) for m in measures),
            f"{point['diverged']} diverged" if point.get("diverged") else "",
        ]
        for point in run.summary["sweep"]
    ]
    honest = (
        "What is shown of the best point was chosen by the very scores that are shown, so it is "
        "optimistic."
    )
    if run.chosen_by is not None:
        honest = "The best point was chosen by rows held out of training, not by the test."
    return (
        _heading("The sweep")
        + _table([*names, *map(title, measures), "seeds"], rows)
        + _note(honest)
    )


def _stages_end(run: Run) -> str:
    """A note where stages end by their evaluations."""
    said = run.summary.get("stages_end")
    return "" if said is None else _note(f"Each stage ends {said}.")


def _definitions(run: Run) -> str:
    rows = [[title(m), run.summary[m]["definition"]] for m in measures_of([run])]
    return _heading("What the measures are") + _table(["", "definition"], rows, tight=False)


def _cost(runs: Sequence[Run]) -> str:
    rows = [
        [
            run.summary["method"],
            f"{run.summary['wall_seconds']:.1f} s",
            f"{run.summary['compile_seconds']:.1f} s",
            f"{run.summary['examples_per_second']:,.0f}",
            f"{run.summary['peak_memory_bytes'] / 2**20:,.0f} MiB",
        ]
        for run in runs
    ]
    head = ["", "in all", "compiling", "examples/s", "peak memory"]
    pipelines = "".join(f"<pre>{html.escape(run.summary['pipeline'])}</pre>" for run in runs)
    return _heading("Time and memory") + _table(head, rows) + _heading("Each step") + pipelines


def _again(settings: Mapping[str, Any]) -> str:
    if not settings:
        return ""
    rest = json.dumps({k: v for k, v in settings.items() if k != "command"}, indent=1)
    return (
        f"{_heading('To run it again')}<pre>{html.escape(settings['command'])}</pre><details>"
        f'<summary class="muted">settings and versions</summary><pre>{html.escape(rest)}</pre>'
        "</details>"
    )


def pipeline(
    out: Path, summary: Mapping[str, Any], table: tuple[list[str], list[list[str]]], figure: Figure
) -> Path:
    """Writes a pipeline's `pipeline.png` and `report.html`, and returns the latter's path."""
    settings = load_settings(out)
    seeds = f"{summary['seeds']} seeds, ± 95 %" if summary["seeds"] > 1 else "1 seed"
    unit = "per cent where a score is an accuracy, else the score's own unit"
    costs = [
        [
            node["name"],
            f"{node['costs']['examples']:,}",
            f"{node['costs']['bytes'] / 2**20:,.1f} MiB",
            f"{node['costs']['parameters']:,}",
            f"{100 * node['costs']['flops']:+.0f} %",
            f"{node['wall_seconds']:.1f} s",
        ]
        for node in summary["nodes"]
    ]
    head = ["", "stored examples", "methods' state", "added parameters", "FLOPs", "in all"]
    links = " · ".join(
        f'<a href="{html.escape(n["name"])}/report.html">{html.escape(n["name"])}</a>'
        for n in summary["nodes"]
    )
    lost = (
        "Lost: how much worse the tests of an earlier node, or the general probes, are after a "
        f"node than before it ({metrics.VERTICAL})."
    )
    parts = [
        f"<h1>{html.escape(summary['pipeline'])}</h1>", _note(f"{seeds}; {unit}"),
        _table(*table), _note(lost), f"<p>Each node: {links}</p>",
        _saved(out / "pipeline.png", figure),
        _heading("What the methods keep and cost"), _table(head, costs),
        _note("FLOPs beside plain fine-tuning of all parameters, counted in the program."),
        _again(settings),
    ]  # fmt: skip
    with whole(out / "report.html") as path:
        path.write_text(_document(summary["pipeline"], parts))
    return out / "report.html"


def _html(runs: Sequence[Run], parts: Iterable[str]) -> str:
    facts = runs[0].summary
    name = f"{facts['experiment']}: {', '.join(run.summary['method'] for run in runs)}"
    return _document(name, parts)


def _document(name: str, parts: Iterable[str]) -> str:
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(name)}</title>\n<style>{STYLE}</style>\n"
        + "\n".join(parts)
        + "\n</html>\n"
    )
