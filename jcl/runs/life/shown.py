"""What a life shows of itself: report, log, and what a stage made better and worse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from jcl import report
from jcl.chain import explain
from jcl.report import page
from jcl.runs import expression
from jcl.runs.life import matrix
from jcl.runs.life.book import Stage, load_rows
from jcl.runs.life.life import Life
from jcl.runs.life.plan import read_items
from jcl.runs.life.rows import Row, hash_of
from jcl.runs.life.tasks import task_of


def write(life: Life) -> Path | None:
    """Writes the scores, figures and report.html of the current state; None before any stage."""
    line = life.book.lineage()
    if not line:
        return None
    shown = matrix.tested(line)
    task = task_of(life.settings.task, None, life.settings.length, ())
    method = line[-1].facts["method"]
    facts = {
        "method": method, "experiment": life.folder.name, "scenario": "a life",
        "measure": task.measure, "higher_is_better": task.higher_is_better, "seeds": 1,
        "entries": len(life.book.entries),
        "stages": [s.name for s in shown], "stage_tasks": list(range(len(shown))),
        "tasks": [s.name for s in shown], "family": method, "outer": {},
        "wall_seconds": sum(s.facts["wall_seconds"] for s in line),
        "compile_seconds": sum(s.facts["compile_seconds"] for s in line),
        "examples_per_second": line[-1].facts["examples_per_second"],
        "step_traces": max(s.facts["step_traces"] for s in line),
        "peak_memory_bytes": max(s.facts["peak_memory_bytes"] for s in line),
        "pipeline": explain(expression.build(expression.parse(method))),
        "notes": [
            f"{s.name} was learned and rejected, for {s.facts['why']}"
            for s in life.book.stages if not s.accepted
        ],
    }  # fmt: skip
    _join_logs(life, line)
    asked = matrix.ability(line)
    report.write(life.folder, facts, [{}], [method], life.scores[None, None], asked)
    return page.draw(life.folder)


def _join_logs(life: Life, line: list[Stage]) -> None:
    """Writes the stages' logs one after another as the life's own."""
    from jcl.training.folder import whole

    lines: list[str] = []
    done = 0
    for number, stage in enumerate(line):
        log = life.book.place(stage.number) / "metrics.jsonl"
        for text in log.read_text().splitlines():
            entry = json.loads(text)
            entry |= {"stage": number, "step": done + entry["step"]}
            lines.append(json.dumps(entry) + "\n")
        done += stage.facts["steps"]
    with whole(life.folder / "metrics.jsonl") as partial:
        partial.write_text("".join(lines))


def log_lines(life: Life) -> list[str]:
    """A line for each entry of the book: when, what of which data, scores, and bytes."""
    sizes = life.book.sizes()
    line = {stage.number for stage in life.book.lineage()}
    lines: list[str] = []
    for entry in life.book.entries:
        when = entry["when"].replace("T", " ").removesuffix("Z")
        if entry["kind"] == "rollback":
            lines.append(f"{when}  rolled back to {entry['name']}")
        elif entry["kind"] == "skipped":
            lines.append(f"{when}  {entry['name']}: not trained, {entry['why']}")
        elif entry["kind"] == "purge":
            lines.append(f"{when}  {entry['said']}")
        else:
            lines.append(f"{when}  {_stage_line(life, entry, sizes, line)}")
    return lines


def _stage_line(life: Life, entry: dict[str, Any], sizes: dict[int, int], line: set[int]) -> str:
    number, counts = entry["number"], entry["counts"]
    if not entry["accepted"]:
        return f"{entry['name']}: rejected, for {entry['why']}"
    mark = "*" if number == life.book.current else "+" if number in line else "-"
    own = entry["scores"][entry["name"]]
    files = ", ".join(f"{Path(f['path']).name} {f['sha256'][:8]}"
                      for f in entry["source"].get("files", []))  # fmt: skip
    size = f"{sizes.get(number, 0) / 1e6:.1f} MB"
    return (
        f"{mark} {entry['name']}: {counts['train']} rows, {entry['steps']} steps of "
        f"{entry['method']}; {entry['before']:.3f} to {own:.3f}, average "
        f"{np.mean(list(entry['scores'].values())):.3f}; {size}{'; ' + files if files else ''}"
    )


def diff(life: Life, one: str, other: str, examples: int = 3) -> list[str]:
    """What got better and worse between the states after two stages, item by item, with examples.

    Only tests that both were scored on are compared.

    Raises:
      ValueError: if there is no such stage.
    """
    first, second = life.book.find(one), life.book.find(other)
    old, new = (read_items(life.book.place(stage.number)) for stage in (first, second))
    sign = 1 if task_of(life.settings.task, None, 2, ()).higher_is_better else -1
    lines: list[str] = []
    names = {stage.number: stage.name for stage in life.book.stages}
    for number in [test for test in old if test in new]:
        name = names[number]
        by_hash = {hash_of(row): row for row in load_rows(life.book.place(number) / "test.jsonl")}
        both = [h for h in old[number] if h in new[number] and h in by_hash]
        rows = [by_hash[h] for h in both]
        pair = np.array([[of[number][h] for h in both] for of in (old, new)])
        each = pair[..., 0] / np.where(pair[..., 1] > 0, pair[..., 1], np.nan)
        change = sign * (each[1] - each[0])
        mean = pair[..., 0].sum(1) / pair[..., 1].sum(1)
        better, worse = (int(np.nansum(x)) for x in (change > 1e-6, change < -1e-6))
        lines.append(
            f"{name}: {mean[0]:.3f} to {mean[1]:.3f}; of {len(change)} items {better} got better, "
            f"{worse} worse"
        )
        order = np.argsort(np.where(np.isnan(change), 0, change), kind="stable")
        for title, picked in (("worse", order[:examples]), ("better", order[::-1][:examples])):
            for i in picked:
                if (change[i] < -1e-6) if title == "worse" else (change[i] > 1e-6):
                    lines.append(
                        f"  {title} {each[0, i]:.3f} to {each[1, i]:.3f}: {_short(rows[i])}"
                    )
    if not lines:
        raise ValueError(f"no test was scored both after {one!r} and after {other!r}")
    return lines


def _short(row: Row, most: int = 80) -> str:
    """A row in a line."""
    text = " | ".join(" ".join(str(value).split()) for value in row.values())
    return text if len(text) <= most else text[: most - 1] + "…"
