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

import plan
from program import Request

from jcl.models.presets import PRESETS

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
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from jcl.report.figures import HUES, STYLE

    with rc_context(STYLE):
        figure = Figure((13.0, 4.2), layout="constrained")
        bytes_, cross, methods = figure.subplots(1, 3, width_ratios=(1, 1, 0.9))
        some = next(iter(found["lines"].values()))[0]
        for (name, points), hue in zip(found["lines"].items(), HUES, strict=False):
            chips = [p["chips"] for p in points]
            style: Any = {"color": hue, "marker": "o", "markersize": 4, "label": name}
            bytes_.plot(chips, [sum(p["sent"].values()) / 1e9 for p in points], **style)
            even = [p["tokens"] * p["wires"] / p["compute"] for p in points]
            cross.plot(chips, even, **style)
        for axes in (bytes_, cross):
            axes.set_xscale("log", base=2)
            ticks = sorted({p["chips"] for points in found["lines"].values() for p in points})
            axes.set_xticks(ticks, [str(n) for n in ticks])
            axes.set_xlabel("chips")
            axes.set_ylim(0)
        bytes_.set_title(f"{found['model']}: sent by a chip in a step, GB")
        cross.set_title("Below so many tokens a chip, sending dominates")
        tera = some["flops"] / 1e12
        cross.set_xlabel(f"chips, planned with {some['tokens']:.0f} tokens each: {tera:.0f} TFLOPs")
        bytes_.legend()
        kinds = sorted({k for p in found["methods"].values() for k in p["sent"]})
        base = [0.0] * len(found["methods"])
        for kind, hue in zip(kinds, HUES, strict=False):
            sent = [p["sent"].get(kind, 0) / 1e9 for p in found["methods"].values()]
            methods.bar(list(found["methods"]), sent, bottom=base, color=hue, label=kind, width=0.6)
            base = [a + b for a, b in zip(base, sent, strict=True)]
        methods.set_title(f"By method on {AT}, GB")
        methods.legend()
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
