"""Writes a pipeline's tables, figure and page, beside those of its nodes.

`pipeline.json` has each node's measures and costs, `scores.csv` all scores. A node's folder is like
that of a run, so that `jcl report` and `jcl compare` read it.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.markup import escape
from rich.table import Table

from jcl import report
from jcl.chain import explain
from jcl.measures import metrics
from jcl.report import screen
from jcl.runs import expression, pipeline
from jcl.runs.own import brief
from jcl.runs.pipeline import Gauge, Node, Result
from jcl.training.folder import whole


def _interval(values: np.ndarray) -> dict[str, Any]:
    mean, half = metrics.interval(values)
    return {"mean": mean if np.isfinite(mean) else None, "ci95": half}


def _factor(gauge: dict[str, Any]) -> int:
    return 100 if gauge["measure"] == "accuracy" else 1


def write(out: Path, name: str, nodes: Sequence[Node], result: Result) -> dict[str, Any]:
    """Writes `pipeline.json`, `scores.csv`, and each node's `summary.json`; returns the first."""
    measured = pipeline.gauges(nodes)
    lost = pipeline.forgetting(nodes, result)
    known = []
    for i, (node, costs) in enumerate(zip(nodes, result.costs, strict=True)):
        own = pipeline.gauges_of(measured, node)
        known.append({
            "name": node.name,
            "tests": pipeline.key(own),
            "after": lost[i]["after"],
            "method": brief(node.method),
            "carry": node.carry,
            "reads": list(node.reads),
            "stages": list(node.experiment.stream(0).names),
            "costs": costs._asdict(),
            "average": _interval(pipeline.table(result, own, node.name)[:, -1].mean(axis=-1)),
            "horizontal_forgetting": _interval(lost[i]["horizontal"]),
            "vertical_forgetting": {k: _interval(v) for k, v in lost[i]["vertical"].items()},
            **result.clocks[i],
        })  # fmt: skip
        _node(out / node.name, name, node, own, measured, result)
    summary = {
        "pipeline": name,
        "seeds": result.scores.shape[0],
        "nodes": known,
        "gauges": [
            {k: v for k, v in g._asdict().items() if k != "evaluate"} | {"key": pipeline.key(g)}
            for g in measured
        ],
    }
    with whole(out / "scores.csv") as path, path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["seed", "node", "row", "after", "probe", "measure", "score"])
        for place in np.argwhere(~np.isnan(result.scores)):
            seed, n, row, probe, measure = place
            after = known[n]["stages"][row - 1] if row else "before"
            where = (result.nodes[n], row, after, result.probes[probe], result.measures[measure])
            rows.writerow([seed, *where, f"{result.scores[tuple(place)]:.7g}"])
    report.save_json(out / "pipeline.json", summary)
    return summary


def _node(
    folder: Path, name: str, node: Node, own: Gauge, measured: Sequence[Gauge], result: Result
) -> None:
    """Writes a node's `summary.json`, like that of a run."""
    built, stream = node.experiment, node.experiment.stream(0)
    facts = {
        "method": brief(node.method),
        "experiment": f"{name}: {node.name}",
        "scenario": built.scenario,
        "measure": built.measure,
        "higher_is_better": built.higher_is_better,
        "seeds": result.scores.shape[0],
        "stages": list(stream.names),
        "stage_tasks": list(stream.tasks),
        "tasks": list(stream.tests),
        "family": brief(node.method),
        "outer": {},
        **result.clocks[result.nodes.index(node.name)],
        "pipeline": explain(expression.build(expression.parse(node.method))),
    }
    probes = {
        probe: pipeline.table(result, g, node.name)[None, ..., i]
        for g in measured if not g.node
        for i, probe in enumerate(g.names)
    }  # fmt: skip
    scores = pipeline.table(result, own, node.name)[None]
    report.write(folder, facts, [{}], [brief(node.method)], scores, probes)


def table(summary: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The head and the rows of the table of all nodes."""
    factors = {g["key"]: _factor(g) for g in summary["gauges"]}
    head = ["node", "after", "method", "average", "horizontal forgetting"]
    scored = {key for node in summary["nodes"] for key in node["vertical_forgetting"]}
    head += [f"lost on {key}" for key in factors if key in scored]
    rows = []
    for node in summary["nodes"]:
        own = factors[node["tests"]]
        lost = node["vertical_forgetting"]
        rows.append([
            node["name"], node["after"] or "–", node["method"],
            report.format_mean(node["average"], own),
            report.format_mean(node["horizontal_forgetting"], own),
            *(report.format_mean(lost[k], f) if k in lost else ""
              for k, f in factors.items() if k in scored),
        ])  # fmt: skip
    return head, rows


def show(summary: dict[str, Any]) -> None:
    """Prints the table of all nodes."""
    seeds = f", mean ± 95 % over {summary['seeds']} seeds" if summary["seeds"] > 1 else ""
    out = Table(
        box=box.SIMPLE_HEAD, title=f"{summary['pipeline']}{seeds}", title_justify="left",
        title_style="bold",
    )  # fmt: skip
    head, rows = table(summary)
    for i, name in enumerate(head):
        if name != "method":  # which was shown while it ran, and is wide
            out.add_column(escape(name), justify="left" if i < 2 else "right")
    for node, after, _, *rest in rows:
        out.add_row(escape(node), escape(after), *map(escape, rest))
    screen.console().print(out)


def draw(out: Path, nodes: Sequence[Node], result: Result, summary: dict[str, Any]) -> Path:
    """Draws `pipeline.png` and the pages: `report.html` here and in each node's folder."""
    from jcl.report import figures, page

    def panel(gauge: pipeline.Gauge) -> figures.Panel:
        values = [pipeline.table(result, gauge, node.name).mean(axis=-1) for node in nodes]
        in_range = all(((v >= 0) & (v <= 1)).all() for v in values)
        share = gauge.higher_is_better and in_range
        sense = "higher" if gauge.higher_is_better else "lower"
        unit = f"{gauge.measure} ({'%' if share else f'{sense} is better'})"
        return figures.Panel(pipeline.key(gauge), unit, values, share)

    panels = [panel(gauge) for gauge in pipeline.gauges(nodes)]
    figure = figures.pipeline(panels, [node.name for node in nodes])
    for node in nodes:
        page.draw(out / node.name)
    return page.pipeline(out, summary, table(summary), figure)
