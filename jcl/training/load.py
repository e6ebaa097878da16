"""Loads the last state of a run's folder, for which its stream isn't needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jcl.data.stream import Stream
from jcl.method import Params
from jcl.program import Program, State
from jcl.training import checkpoint, origin
from jcl.training.compiled import start
from jcl.training.evaluations import BESIDE
from jcl.training.feed import Feed
from jcl.training.fit import tree_of


def load_state(
    folder: str | Path, program: Program, params: Params, collections: Any = ()
) -> State:
    """The state of the newest whole checkpoint in a folder of `jcl.fit`.

    Args:
      folder: `out` of the run.
      program: the run's.
      params: where it started, or others of the same shapes, which are not read.
      collections: as for the run.

    Raises:
      ValueError: if it is no such folder, has no whole checkpoint, or is of another program.
    """
    folder = Path(folder)
    try:
        told = json.loads((folder / origin.FILE).read_text())
        batch, scores = told["batch"], told["scores"]
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"folder is {str(folder)!r}, but must be out of a jcl.fit, whose {origin.FILE} says "
            "what a batch is"
        ) from error
    axes = (1,) if program.members is None else (program.members, 1)

    def rows(*where: int) -> Any:
        return {k: np.zeros((*axes, *shape), kind) for k, (shape, kind) in batch.items()}

    stream = Stream(
        ("",), (0,), (1,), rows, rows, (), lambda source, one: one, ("",), (), program.members
    )
    feed = Feed(stream, program.layout, 1)
    key = jax.random.key(0)
    key = key if program.members is None else jax.random.split(key, program.members)
    begun = start(program, params, key, feed, None, collections)
    empty = np.full(scores, np.nan, np.float32)
    found = checkpoint.restore(folder / "checkpoints", tree_of(begun.like, empty), BESIDE)
    if found is None:
        raise ValueError(f"folder is {str(folder)!r}, which has no whole checkpoint, but must")
    return found[0]["state"]
