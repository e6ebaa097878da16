"""The log of a run, a line for each logged step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class Log:
    """metrics.jsonl, a line a logged step, and the same lines in memory."""

    def __init__(self, out: Path | None, done: int) -> None:
        self.lines: list[dict[str, Any]] = []
        self.path = None if out is None else out / "metrics.jsonl"
        if self.path is None:
            return
        if self.path.exists():  # a killed run's lines after its last checkpoint are logged again
            for line in self.path.read_text().splitlines():
                try:
                    entry = json.loads(line)
                except ValueError:
                    break  # cut off in mid-line
                if entry["step"] <= done:
                    self.lines.append(entry)
        self.path.write_text("".join(json.dumps(e) + "\n" for e in self.lines))

    def write(self, entry: dict[str, Any]) -> None:
        """Adds a line.

        Raises:
          OSError: if the file can't be written.
        """
        self.lines.append(entry)
        if self.path is None:
            return
        try:
            with self.path.open("a") as file:
                file.write(json.dumps(entry) + "\n")
        except OSError as error:
            raise OSError(f"can't write {self.path}: {error.strerror}") from error


def prepare(out: Path | None, resume: bool) -> None:
    """Makes the run's folder, and refuses one that can't be used, before anything is computed."""
    if out is None:
        if resume:
            raise ValueError("resume is True and out is None, but out must name the run's folder")
        return
    if out.exists() and not out.is_dir():
        raise ValueError(f"out is {str(out)!r}, which is a file, but must be a folder")
    if not resume and (out / "checkpoints").exists():
        raise ValueError(
            f"out is {str(out)!r}, which holds a run already; resume it or choose another folder"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".writable"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise ValueError(
            f"out is {str(out)!r}, which can't be written ({error.strerror}), but must be a folder "
            "that can"
        ) from error
