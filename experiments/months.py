"""Three months on three days: a model learns files as they come, each day in a process of its own.

    python experiments/months.py         # glassllm, whole; SmolLM2 by low-rank pairs; both replay
    python experiments/months.py --optimizers    # what becomes of the optimizer between months

A month is some speeches of one era of the State of the Union, as a JSONL file. The first day is
`jcl run finetune`, the others are `jcl continue`; nothing but the folder goes from one to the next.
The figure has the score matrix as it was after each day, which grows by a row and a column: a
test's scores are the model's as it was given, right before its month, and after each month since.
Numbers stay beside the figure as JSON, from which `--redraw` draws it again.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from jcl import metrics
from jcl.data.corpora import state_of_the_union
from jcl.report.numbers import beside
from jcl.report.style import HEAT, INK, drawing

MONTHS = {"jan": slice(0, 6), "feb": slice(100, 106), "march": slice(200, 206)}
ROWS = 200
"""Rows of a month: passages of some 400 characters."""
SETTINGS = {
    "glassllm": ["--steps", "60", "--length", "128"],
    "smollm2": ["--steps", "20", "--length", "128", "--batch", "4"],
}
"""What two cores can do of each month."""
START = [sys.executable, "-c", "import sys; from jcl.cli import main; sys.exit(main())"]


def write_months(folder: Path) -> dict[str, Path]:
    """Writes a file for each month, and gives their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    speeches = state_of_the_union()
    found = {}
    for name, part in MONTHS.items():
        rows: list[str] = []
        for speech in speeches[part]:
            passage = ""
            for sentence in re.split(r"(?<=[.!?])\s+", speech.text):
                passage = f"{passage} {sentence}".strip()
                if len(passage) > 400:
                    rows.append(passage)
                    passage = ""
        found[name] = folder / f"{name}.jsonl"
        lines = [json.dumps({"text": row}) + "\n" for row in rows[:ROWS]]
        found[name].write_text("".join(lines))
    return found


def run_months(model: str, out: Path) -> list[list[list[float | None]]]:
    """The score matrix after each day; days that are done aren't done again."""
    from jcl.runs.life.life import Life

    files = write_months(out / "files")
    run = out / model
    matrices = []
    for day, (name, path) in enumerate(files.items()):
        done = Life(run).stages if (run / "book.json").exists() else []
        if name not in done:
            data = ["--data", f"{name}={path}"]
            begun = ["run", "finetune", "--model", model, *SETTINGS[model], "--out", str(run)]
            command = [*begun, *data] if day == 0 else ["continue", str(run), *data]
            subprocess.run([*START, *command], check=True)
        line = Life(run).scores[: day + 2, : day + 1]
        matrices.append([[None if np.isnan(x) else float(x) for x in row] for row in line])
    return matrices


def compare_optimizers(out: Path, seeds: int = 3) -> None:
    """Prints what a life ends with, by what becomes of the optimizer's state between its months."""
    from jcl.runs.life.begin import begin

    files = write_months(out / "files")
    rows = [json.loads(line) for line in files["jan"].read_text().splitlines()]
    for word in ("keep", "reset", "reset_moments"):
        ends = []
        for seed in range(seeds):
            life = begin(
                out / f"{word}-{seed}", "glassllm", rows, length=128, steps=60, seed=seed,
                optimizer=word,
            )  # fmt: skip
            for name, path in files.items():
                life.stage(name, path)
            R = life.scores
            forgotten = metrics.forgetting(-R)  # of losses
            ends.append([R[-1].mean(), float(np.mean(forgotten)), np.diag(R[1:]).mean()])
        parts = [metrics.interval(values) for values in np.transpose(ends).tolist()]
        named = zip(("average", "forgetting", "when learned"), parts, strict=True)
        print(f"{word:>13}:", "  ".join(f"{n} {m:.3f} ± {h:.3f}" for n, (m, h) in named))


def draw(found: dict[str, Any], to: Path) -> None:
    """A row of matrices for each model, one for each day."""
    models, names = list(found), list(MONTHS)
    with drawing(8.2, 2.6 * len(models)) as figure:
        axes = figure.subplots(len(models), len(names), squeeze=False)
        for row, model in enumerate(models):
            last = np.asarray(found[model][-1], float)
            low, high = np.nanmin(last), np.nanmax(last)
            for day, of in enumerate(found[model]):
                here, R = axes[row, day], np.full((len(names) + 1, len(names)), np.nan)
                R[: day + 2, : day + 1] = np.asarray(of, float)
                here.imshow(-R, cmap=HEAT, vmin=-high, vmax=-low, aspect="auto")
                here.grid(False)
                here.spines[:].set_visible(False)
                for r, c in zip(*np.nonzero(np.isfinite(R)), strict=True):
                    dark = (high - R[r, c]) / (high - low) > 0.55
                    here.text(c, r, f"{R[r, c]:.2f}", ha="center", va="center", fontsize=9,
                              color="white" if dark else INK)  # fmt: skip
                here.set_xticks(range(day + 1), names[: day + 1])
                here.set_yticks(
                    range(day + 2), ["given", *(f"after {n}" for n in names[: day + 1])]
                )
                here.set_title(f"{model}, day {day + 1}")
    figure.savefig(to)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=[*SETTINGS], choices=[*SETTINGS])
    parser.add_argument("--out", type=Path, default=Path("runs/months"))
    parser.add_argument("--figure", type=Path, default=Path("experiments/figures/months.png"))
    parser.add_argument("--optimizers", action="store_true", help="compare what becomes of them")
    parser.add_argument("--redraw", action="store_true", help="from the JSON beside the figure")
    given = parser.parse_args()
    if given.optimizers:
        return compare_optimizers(given.out)

    def measure() -> dict[str, Any]:
        return {model: run_months(model, given.out) for model in given.models}

    draw(beside(given.figure, given.redraw, measure), given.figure)


if __name__ == "__main__":
    main()
