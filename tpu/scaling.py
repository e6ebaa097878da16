"""Weak scaling by the compiler: what a chip sends in a step as chips and batch grow together.

python tpu/scaling.py --model llama-1b --to experiments/figures/weak-scaling.png

Each point is a draft of the real step (see `plan.py`); what they found goes beside the figure as
JSON, from which it is drawn again with `--draw`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import plan
from program import Request

from jcl.models.presets import PRESETS
from jcl.report.labels import name_points
from jcl.report.style import across, drawing, hue

SIZES = {
    "v5e": ("2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    "v5p": ("2x2x2", "2x4x4", "4x4x8", "8x8x8"),
}
MESHES = {"fsdp": {"fsdp": -1}, "fsdp 16, data": {"data": -1, "fsdp": 16}}
METHODS = {
    "none": "",
    "ewc": "ewc(strength=1.)",
    "er": "er(capacity=4096, rows=64)",
    "agem": "agem(capacity=4096, rows=64)",
    "olora": "olora(stages=8)",
}
AT = "v5e:8x8"
"""Where methods are compared; replay adds a row a chip to the four that are there."""


def measure(model: str) -> dict[str, Any]:
    """Bytes and seconds of every point."""

    def point(topology: str, axes: dict[str, int], method: str = "") -> dict[str, Any]:
        found = plan.plan(Request(topology, model, method, axes), ("step",), drafts=True)
        step = found.functions["step"]
        took = step.times(found.chip)
        print(
            f"{topology} {axes} {method}: {sum(step.moved.wires.values()) / 1e9:.2f} GB", flush=True
        )
        return {
            "chips": found.chips,
            "tokens": found.tokens / found.chips,
            "sent": step.moved.wires,
            "flops": step.flops,
            "compute": took["compute"],
            "wires": took["wires"],
        }

    lines = {
        f"{kind}, {name}": [
            point(f"{kind}:{size}", axes) for size in sizes if _chips(size) >= axes["fsdp"]
        ]
        for kind, sizes in SIZES.items()
        for name, axes in MESHES.items()
    }
    methods = {name: point(AT, {"fsdp": -1}, text) for name, text in METHODS.items()}
    return {"model": model, "lines": lines, "methods": methods}


def _chips(size: str) -> int:
    return math.prod(int(n) for n in size.split("x"))


def draw(found: dict[str, Any], to: Path) -> None:
    """The figure: bytes over chips, where sending would take over, and what methods add."""
    with drawing(10, 7.6) as figure:
        grid = figure.add_gridspec(2, 2)
        bytes_, cross = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1])
        methods = figure.add_subplot(grid[1, :])
        lines = found["lines"]
        some = next(iter(lines.values()))[0]
        hues = [hue(m) for m in range(len(lines))]
        sent = [[sum(p["sent"].values()) / 1e9 for p in points] for points in lines.values()]
        even = [
            [p["tokens"] * p["wires"] / p["compute"] for p in points] for points in lines.values()
        ]
        ticks = sorted({p["chips"] for points in lines.values() for p in points})
        for axes, heights in ((bytes_, sent), (cross, even)):
            axes.set_xscale("log", base=2)
            for points, line, color in zip(lines.values(), heights, hues, strict=True):
                axes.plot([p["chips"] for p in points], line, color=color, marker="o")
            axes.set_xticks(ticks, [str(n) for n in ticks])
            axes.set_ylim(0)
            ends = [(p[-1]["chips"], h[-1]) for p, h in zip(lines.values(), heights, strict=True)]
            name_points(axes, ends, list(lines), hues)
        bytes_.set_xlabel("chips")
        bytes_.set_title(f"{found['model']}: sent by a chip in a step, GB")
        cross.set_title("Below so many tokens a chip, sending dominates")
        tera = some["flops"] / 1e12
        cross.set_xlabel(f"chips, planned with {some['tokens']:.0f} tokens each: {tera:.0f} TFLOPs")
        kinds = sorted({k for p in found["methods"].values() for k in p["sent"]})
        base = np.zeros(len(found["methods"]))
        y = np.arange(len(base))[::-1]
        for m, kind in enumerate(kinds):
            parts = np.array([p["sent"].get(kind, 0) / 1e9 for p in found["methods"].values()])
            methods.barh(y, parts, 0.6, base, color=hue(m), label=kind)
            base += parts
        methods.set_yticks(y, list(found["methods"]))
        methods.set_title(f"Sent by a chip in a step by method, on {AT}, GB")
        across(methods)
        figure.legend(*methods.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    to.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(to)


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, unless it is only to be drawn, and draws."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="llama-1b", choices=PRESETS)
    parser.add_argument("--to", type=Path, required=True, help="the figure")
    parser.add_argument("--draw", action="store_true", help="from the JSON that stands beside it")
    given = parser.parse_args(argv)
    beside = given.to.with_suffix(".json")
    if not given.draw:
        beside.write_text(json.dumps(measure(given.model), indent=1) + "\n")
    draw(json.loads(beside.read_text()), given.to)
    return 0


if __name__ == "__main__":
    sys.exit(main())
