"""The log of a run, a line for each logged step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jcl.training.folder import whole


class Log:
    """metrics.jsonl, a line a logged step, and the same lines in memory."""

    def __init__(self, out: Path | None, done: int, name: str = "metrics.jsonl") -> None:
        """Begins with the lines up to step `done` of the file `name`, if `out` has it."""
        self.lines: list[dict[str, Any]] = []
        self.path = None if out is None else out / name
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
        with whole(self.path) as partial:
            partial.write_text("".join(json.dumps(e) + "\n" for e in self.lines))

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
