"""Every method × every scenario on Split-MNIST, as a table beside the published figures.

    jcl fetch mnist
    python experiments/split_mnist_table.py --out runs/split-mnist

The protocol is van de Ven's (GMvandeVen/continual-learning): all of MNIST, 2,000 steps a task,
batches of 128, Adam at 1e-3 whose moments are kept, and the classes dealt to the tasks anew for
each seed. `--images mnist5k --steps 100` is the short form, on 5,000 images, with the digits in
order. Each cell is a run of `jcl run mnist`, whose folder stays; one that is finished isn't run
again, and one that was stopped goes on. The finished cells are kept as JSON beside the figures.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

from jcl import cli, report

SHORT = {
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
"""The methods of the short form."""
WHOLE = {
    "lwf": SHORT["lwf"],
    "agem": "agem(capacity=1000, rows=128, policy='ring', groups=5)",
    "none": SHORT["none"],
    "er": "er(capacity=1000, rows=128, policy='ring', groups=5)",
    "joint": SHORT["joint"],
}
"""The methods on all of MNIST. Memories hold 200 rows of each task, as the published ones hold 100
of each class."""
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


def cell(name: str, scenario: str, given: argparse.Namespace) -> dict[str, Any] | None:
    """The summary of one method in one scenario, which is run unless it was; None without one."""
    if name in NEEDS_TASK and scenario != "task":
        return None
    folder = Path(given.out) / f"{name.replace(' ', '-')}-{scenario}"
    summary = folder / "summary.json"
    if not summary.exists() and not given.show:
        arguments = ["run", "mnist", "--out", str(folder)]
        if (folder / "config.json").exists():
            arguments += ["--resume"]
        else:
            steps = given.steps * (5 if name == "joint" else 1)
            arguments += ["--scenario", scenario, "--method", methods(given)[name]]
            arguments += ["--seeds", str(given.seeds), "--steps", str(steps)]
            arguments += ["--set", f"images={given.images}"]
            arguments += ["--set", f"draw_classes={str(given.images == 'mnist').lower()}"]
            arguments += ["--set", "joint=true"] if name == "joint" else []
        if cli.main(arguments):
            raise SystemExit(f"{name} in {scenario} failed")
        keep(given.json, f"{name} {scenario} {given.images}", folder)
    return json.loads(summary.read_text()) if summary.exists() else None


def methods(given: argparse.Namespace) -> dict[str, str]:
    """The methods' expressions by name."""
    return WHOLE if given.images == "mnist" else SHORT


def keep(path: Path, key: str, folder: Path) -> None:
    """Adds a cell that was just finished to the JSON, with every seed's final average."""
    cells = json.loads(path.read_text()) if path.exists() else {}
    settings = json.loads((folder / "config.json").read_text())
    run = report.load(folder)[0]
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    cells[key] = {
        "command": settings["command"],
        "commit": done.stdout.strip(),
        "versions": settings["versions"],
        "wall_seconds": round(run.summary["wall_seconds"]),
        "average": run.summary["average"],
        "each_seed": run.shown().average.round(5).tolist(),
    }
    path.write_text(json.dumps(cells, indent=1, ensure_ascii=False) + "\n")


def shown(summary: dict[str, Any] | None) -> str:
    """Mean ± interval of the final average, in per cent."""
    return "–" if summary is None else report.format_mean(summary["average"], 100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", choices=("mnist", "mnist5k"), default="mnist")
    parser.add_argument("--methods", nargs="+", help="rows of the table; all by default")
    parser.add_argument("--scenarios", nargs="+", choices=SCENARIOS, default=SCENARIOS)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=2000, help="a task")
    parser.add_argument("--out", default="runs/split-mnist")
    parser.add_argument("--json", type=Path, default=Path("experiments/figures/split-mnist.json"))
    parser.add_argument("--show", action="store_true", help="the cells that are there; run none")
    given = parser.parse_args()
    rows = []
    for name in given.methods or methods(given):
        cells = []
        for scenario in SCENARIOS:
            found = cell(name, scenario, given) if scenario in given.scenarios else None
            published = PUBLISHED.get(name, {}).get(scenario)
            cells.append(shown(found) + (f" ({published:.1f})" if published else ""))
        rows.append(f"| {name} | {methods(given)[name]} | " + " | ".join(cells) + " |")
    print("| method | expression | " + " | ".join(SCENARIOS) + " |\n|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
