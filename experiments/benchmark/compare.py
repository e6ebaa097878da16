"""All sides of the speed benchmark in turn, on one pinned core, as a table.

    bash experiments/benchmark/setup_peers.sh /opt/peers
    python experiments/benchmark/compare.py --peers /opt/peers/bin/python --rounds 3

A round runs every side of a method one after another, so that what else the machine does falls on
all of them; figures are medians over rounds, ratios are medians of the rounds' ratios with their
smallest and largest. `bound` is the plain step's share of this core's measured rate of float32
matrix products of the network's own sizes: what no method and no library can exceed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
METHODS = ("naive", "ewc", "er", "lwf", "agem", "si", "der++", "packnet")
FLOPS = 4 * 784 * 400 + 6 * (400 * 400 + 400 * 10)  # an example: no gradient of the first input


def pinned(command: list[str], threads: int) -> str:
    """Runs a command on the first `threads` cores and returns what it printed last."""
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))[:threads]))
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(
        ["taskset", "-c", cores, *command],
        capture_output=True, text=True, env=environment, cwd=HERE,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return done.stdout.splitlines()[-1]


def spread(ratios: list[float]) -> str:
    """Median, with the smallest and the largest."""
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", default="/opt/peers/bin/python", help="their interpreter")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=100, help="a task")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--out", help="a file for every line, as JSON")
    given = parser.parse_args()
    sides = {
        "jcl": [sys.executable, "ours.py"],
        "torch": [given.peers, "peers_torch.py"],
        "avalanche": [given.peers, "peers_avalanche.py"],
    }
    options = [
        "--batch", str(given.batch), "--steps", str(given.steps), "--threads", str(given.threads)
    ]  # fmt: skip
    lines: list[dict[str, Any]] = []
    print(f"batch {given.batch}, {given.threads} thread(s), {given.steps} steps a task, examples/s")
    print("| method | jcl | torch | Avalanche | jcl / torch | jcl / Avalanche | jcl / its naive |")
    print("|---|---|---|---|---|---|---|")
    plain: list[float] = []
    for method in given.methods:
        rates: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(given.rounds):
            for side, command in sides.items():
                line = json.loads(pinned([*command, "--method", method, *options], given.threads))
                lines.append(line)
                rates[side].append(line["examples_per_second"])
        ours, torch, avalanche = rates.values()
        plain = plain or ours
        print(
            f"| {method} | " + " | ".join(f"{statistics.median(r):,.0f}" for r in rates.values())
            + f" | {spread([a / b for a, b in zip(ours, torch, strict=True)])}"
            + f" | {spread([a / b for a, b in zip(ours, avalanche, strict=True)])}"
            + f" | {statistics.median(plain) / statistics.median(ours):.2f}× slower |",
            flush=True,
        )  # fmt: skip
    products = [*sides["jcl"], "--method", "products", *options]
    bound = json.loads(pinned(products, given.threads))["examples_per_second"]
    print(
        f"bound: {bound:,.0f} examples/s are this network's matrix products alone "
        f"({bound * FLOPS / 1e9:.0f} GFLOP/s)"
    )
    if given.out:
        Path(given.out).write_text("".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    main()
