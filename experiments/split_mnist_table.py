"""Every method × every scenario on Split-MNIST, as a table beside the published figures.

    python experiments/split_mnist_table.py --seeds 5 --out runs/split-mnist

Each cell is a run of `jcl run mnist`, whose folder stays; one that is there isn't run again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from jcl import cli, report

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
PUBLISHED = {
    "ewc": {"task": 98.64, "domain": 63.95, "class": 20.64},
    "none": {"class": 19.89},
    "si": {"class": 21.20},
    "lwf": {"class": 21.89},
    "agem": {"class": 65.10},
    "er": {"class": 88.79},
    "joint": {"class": 98.17},
}
"""Final averages: task and domain of van de Ven & Tolias 2019, class of van de Ven et al. 2022."""
NEEDS_TASK = {"packnet"}  # it predicts by task id


def cell(name: str, scenario: str, given: argparse.Namespace) -> dict | None:
    """The summary of one method in one scenario."""
    if name in NEEDS_TASK and scenario != "task":
        return None
    folder = Path(given.out) / f"{name.replace(' ', '-')}-{scenario}"
    summary = folder / "summary.json"
    if not summary.exists():
        arguments = [
            "run", "mnist", "--scenario", scenario, "--method", METHODS[name],
            "--seeds", str(given.seeds), "--steps", str(given.steps), "--out", str(folder),
        ]  # fmt: skip
        if name == "joint":
            arguments += ["--set", "joint=true", "--steps", str(5 * given.steps)]
        if cli.main(arguments):
            raise SystemExit(f"{name} in {scenario} failed")
    return json.loads(summary.read_text())


def shown(summary: dict | None) -> str:
    """Mean ± interval of the final average, in per cent."""
    if summary is None:
        return "–"
    return report.format_mean(summary["average"], 100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200, help="a task")
    parser.add_argument("--out", default="runs/split-mnist")
    given = parser.parse_args()
    rows = []
    for name in METHODS:
        cells = []
        for scenario in SCENARIOS:
            published = PUBLISHED.get(name, {}).get(scenario)
            beside = f" ({published:.1f})" if published else ""
            cells.append(shown(cell(name, scenario, given)) + beside)
        rows.append(f"| {name} | {METHODS[name]} | " + " | ".join(cells) + " |")
    print("| method | expression | " + " | ".join(SCENARIOS) + " |\n|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
