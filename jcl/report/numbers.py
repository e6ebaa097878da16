"""The numbers behind a figure, kept as JSON beside it, so that it can be drawn again without them.

An experiment that draws a figure of its own measures through `beside`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jcl.report.folder import save_json


def beside(figure: Path, redraw: bool, measure: Callable[[], Any]) -> Any:
    """What a figure is drawn from: measured and kept as `figure` with `.json`, or what is there.

    Args:
      figure: the picture's path, whose folder is made if need be.
      redraw: whether to take what was kept before instead of measuring.
      measure: gives dicts, lists, arrays, numbers and names, in one another.

    Returns:
      The same with lists in place of arrays, and 7 significant digits, as the JSON has it.

    Raises:
      ValueError: if it is to be drawn again but nothing was kept.
    """
    path = figure.with_suffix(".json")
    if redraw and not path.is_file():
        raise ValueError(f"redraw needs the figure's numbers, but there is no {path}")
    if not redraw:
        figure.parent.mkdir(parents=True, exist_ok=True)
        save_json(path, _plain(measure()))
    return json.loads(path.read_text())


def _plain(found: Any) -> Any:
    if isinstance(found, Mapping):
        return {str(key): _plain(value) for key, value in found.items()}
    if isinstance(found, np.ndarray | list | tuple):
        return [_plain(value) for value in found]
    if isinstance(found, float | np.floating):
        return float(f"{found:.7g}") if np.isfinite(found) else None
    return found.item() if isinstance(found, np.generic) else found
