"""The cells of a table or a figure: each is a run of `jcl run`, whose folder stays."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jcl import cli


def run_cell(
    folder: Path, experiment: str, method: str, settings: Mapping[str, Any], seeds: int
) -> Path:
    """Runs a cell, unless its run is in `folder` already; gives the folder.

    Args:
      folder: where the run is left.
      experiment: by its name.
      method: as an expression.
      settings: fields of the experiment's `Config` and their values.
      seeds: how many.

    Raises:
      SystemExit: if the run fails.
    """
    if not (folder / "summary.json").exists():
        arguments = ["run", experiment, "--method", method, "--seeds", str(seeds)]
        arguments += [x for k, v in settings.items() for x in ("--set", f"{k}={v}")]
        if cli.main([*arguments, "--out", str(folder)]):
            raise SystemExit(f"{folder.name} failed")
    return folder
