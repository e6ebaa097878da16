"""What a compiler makes of a function: the module's text, and bytes on each chip."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax


class TooLarge(Exception):
    """The compiler found that a function doesn't fit: bytes that it needs, and that there are."""

    def __init__(self, used: float, capacity: float) -> None:
        super().__init__(used, capacity)
        self.used, self.capacity = used, capacity


class Memory(NamedTuple):
    """Bytes on each chip."""

    arguments: int
    outputs: int
    aliased: int
    """Of the outputs, those that take an argument's place."""
    temporaries: int
    code: int
    live: int | None = None
    """Of all that, what is in use at the moment when most is: the rest are gaps between temporaries
    as they are packed. Known of drafts for TPUs."""

    @property
    def peak(self) -> int:
        """All at once."""
        return self.arguments + self.outputs - self.aliased + self.temporaries + self.code


def whole(lowered: jax.stages.Lowered) -> tuple[str, Memory]:
    """Compiles it to the end.

    Raises:
      TooLarge: if it doesn't fit.
    """
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        _too_large(str(error))
        raise
    found = compiled.memory_analysis()
    parts = ("argument", "output", "alias", "temp", "generated_code")
    return compiled.as_text() or "", Memory(*(getattr(found, f"{p}_size_in_bytes") for p in parts))


class Dumped(NamedTuple):
    """What a compiler leaves in a folder before it writes code."""

    text: str
    total: int
    """Bytes of arguments, outputs and temporaries together."""
    live: int | None
    """Of which are in use at once; GPUs' compiler doesn't say."""


def draft(command: Sequence[str], module: str) -> Dumped:
    """Has a child process compile it, which is ended when the compiler begins to write code.

    The text and the bytes are final by then, and writing code is what takes a TPU's compiler long.

    Args:
      command: a child that compiles, and needn't do more.
      module: its name, such as `jit_step`.

    Raises:
      TooLarge: if it doesn't fit.
    """
    with tempfile.TemporaryDirectory() as folder:
        dump = f"--xla_dump_to={folder} --xla_dump_hlo_as_text --xla_dump_hlo_module_re={module}"
        env = {**os.environ, "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {dump}"}
        log = Path(folder, "log")
        with log.open("w") as errors:
            child = subprocess.Popen(command, env=env, stdout=errors, stderr=errors)
            try:
                found = _dumped(Path(folder), child)
            finally:
                child.kill()
                child.wait()
        if found is None:
            said = log.read_text()
            _too_large(said)
            raise RuntimeError(said[-2000:])
    return found


def _dumped(folder: Path, child: subprocess.Popen[Any]) -> Dumped | None:
    """What the compiler leaves in a folder once it has stopped growing; None if it never came."""
    before: dict[Path, int] = {}
    while True:
        running = child.poll() is None
        files = {f: f.stat().st_size for f in folder.glob("*after_optimizations*")}
        module = [f for f in files if f.name.endswith("after_optimizations.txt")]
        report = [f for f in files if f.name.endswith("memory-usage-report.txt")]
        if module and report and files == before:
            total = re.search(r"Total bytes(?: used)?: (\d+)", report[0].read_text())
            ranges = "".join(f.read_text() for f in files if f.name.endswith("live-range.txt"))
            live = re.search(r"for peak usage: ([\d ]+) bytes", ranges)
            used = int(live[1].replace(" ", "")) if live else None
            return Dumped(module[0].read_text(), int(total[1]), used) if total else None
        if not running and files == before:
            return None
        before = files
        time.sleep(0.5)


_SAID = (
    r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm",
    r"\(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)",  # temporaries alone
)


def _too_large(said: str) -> None:
    """Raises `TooLarge` if that is what the compiler says."""
    for pattern in _SAID:
        if used := re.search(pattern, said):
            unit = {"": 1.0, "K": 2.0**10, "M": 2.0**20, "G": 2.0**30, "T": 2.0**40}
            raise TooLarge(float(used[1]) * unit[used[2]], float(used[3]) * unit[used[4]])
