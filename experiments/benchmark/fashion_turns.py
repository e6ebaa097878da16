"""Ours, torch's loop and Avalanche's on `jcl run fashion`'s stream, a few steps each in turn.

    jcl fetch fashion
    bash experiments/benchmark/setup_peers.sh /opt/peers
    python experiments/benchmark/fashion_turns.py --peers /opt/peers/bin/python

All three wait in processes of their own, and each trains when it is its turn, so that what else the
machine does falls on all alike. Figures are medians over turns of examples a second of wall time,
and of processor seconds for 1,000 examples, which what else runs hardly changes; ratios are medians
of the turns' ratios with their smallest and largest. The first two turns, in which ours compiles
and memories are filled, don't count. `--lax` takes lax's own gradients of convolutions for ours.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
METHODS = {
    "naive": "naive()",
    "er": "er(capacity=500, rows=32, start=0)",
}  # turns are of the first task


def ours(given: argparse.Namespace) -> None:
    """Trains `steps` steps of the first task for every line read, and prints the seconds."""
    sys.path.insert(0, str(HERE.parent))
    import fashion
    import jax

    from jcl.program import advance
    from jcl.runs import experiment, expression

    if given.lax:
        from jcl.models import resnet

        resnet.convolve = jax.lax.conv_general_dilated  # type: ignore[assignment]
    built = fashion.build(fashion.Config(width=given.width, batch=given.batch))
    calls = expression.parse(METHODS[given.method])
    program, params, key, stream = experiment.setup(built, calls)
    first = stream.fetch(stream.source, jax.tree.map(lambda x: x[0], stream.chunk(0, 0, 1)))
    state = jax.jit(program.init)(params, first, key, built.collections)
    source = jax.device_put(stream.source)
    run = jax.jit(
        lambda state, chunk, source: advance(
            program, state, chunk, lambda rows: stream.fetch(source, rows)
        ),
        donate_argnums=0,
    )
    chunk = stream.chunk(0, 0, given.steps)
    for _ in sys.stdin:
        began, cpu = time.perf_counter(), time.process_time()
        state, _ = jax.block_until_ready(run(state, chunk, source))
        line = {"seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu}
        print(json.dumps(line), flush=True)


def spread(values: list[float]) -> str:
    """Median, with the smallest and the largest."""
    return f"{statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})"


def turns(given: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """The seconds of every turn that counts, by side."""
    options = ["--method", given.method, "--width", str(given.width), "--batch", str(given.batch)]
    steps = str(given.steps)
    own = [*options, "--steps", steps, *(["--lax"] if given.lax else [])]
    commands = {"jcl": [sys.executable, __file__, "--ours", *own]}
    for peer in ("torch", "avalanche"):
        file = str(HERE / "fashion_peers.py")
        commands[peer] = [given.peers, file, peer, *options, "--turns", steps]
    sides = {
        name: subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True,
        )
        for name, command in commands.items()
    }  # fmt: skip
    spent: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for turn in range(given.turns + 2):
        for name, side in sides.items():
            assert side.stdin is not None and side.stdout is not None
            side.stdin.write("go\n")
            side.stdin.flush()
            line = json.loads(side.stdout.readline())
            spent[name] += [line] if turn >= 2 else []
    for side in sides.values():
        assert side.stdin is not None
        side.stdin.close()
        side.wait()
    return spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", default="/opt/peers/bin/python", help="their interpreter")
    parser.add_argument("--method", choices=tuple(METHODS), default="naive")
    parser.add_argument("--steps", type=int, default=8, help="a turn")
    parser.add_argument("--turns", type=int, default=9, help="that count")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--width", type=int, default=20)
    parser.add_argument("--lax", action="store_true", help="lax's own gradients of convolutions")
    parser.add_argument("--ours", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.ours:
        return ours(given)
    spent = turns(given)
    rows = given.steps * given.batch
    print(
        "| side | examples/s | processor seconds for 1,000 | jcl's speed over it "
        "| the same, by processor seconds |\n|---|---|---|---|---|"
    )
    for name, lines in spent.items():
        pairs = list(zip(spent["jcl"], lines, strict=True))
        speed = statistics.median(rows / line["seconds"] for line in lines)
        cpu = statistics.median(1000 * line["cpu"] / rows for line in lines)
        ratios = [spread([b[key] / a[key] for a, b in pairs]) for key in ("seconds", "cpu")]
        print(f"| {given.method}, {name} | {speed:.0f} | {cpu:.1f} | " + " | ".join(ratios) + " |")


if __name__ == "__main__":
    main()
