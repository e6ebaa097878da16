"""Runs jcl and records what the devices do for a while, for XProf to show.

python tpu/profiled.py --to out/profile --after 300 --seconds 10 run eras --out out/eras
xprof --logdir out/profile
"""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import jax

from jcl import cli


def main(argv: Sequence[str]) -> int:
    """Runs `jcl COMMAND...` with a trace in the middle, and returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--to", type=Path, required=True, help="folder for the trace")
    parser.add_argument(
        "--after",
        type=float,
        default=300.0,
        help="seconds until it begins; compiling takes a while",
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="how long it lasts")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="what follows jcl")
    given = parser.parse_args(argv)
    ended = threading.Event()

    def record() -> None:
        # One process will do: its collectives show how long it waited for the others.
        if not ended.wait(given.after) and jax.process_index() == 0:
            with jax.profiler.trace(given.to):
                ended.wait(given.seconds)

    recorder = threading.Thread(target=record)
    recorder.start()
    try:
        return cli.main(given.command)
    finally:
        ended.set()
        recorder.join()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
