"""Loads what a folder has of a run: its program, its stream and its last state."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax

from jcl import report
from jcl.data import Stream
from jcl.method import Params
from jcl.program import Program, State
from jcl.records import record
from jcl.runs import experiment, expression, own, plan
from jcl.training import load


@record
class Loaded(NamedTuple):
    """A run as it was begun, and its last state."""

    program: Program
    """Of as many members as the run has."""
    params: Params
    """Where training started."""
    key: jax.Array
    """The run's."""
    stream: Stream
    """Of the first seed, or of all members."""
    state: State
    """That of the newest whole checkpoint, or the current one of a life."""
    experiment: experiment.Experiment
    """What the experiment's file built."""
    settings: dict[str, Any]
    """What `config.json` says."""
    numbers: list[int]
    """Which task the rows of each test are of."""


def load_run(folder: str | Path) -> Loaded:
    """What `jcl run` or `jcl run finetune` left in a folder, finished or not, on one device.

    Args:
      folder: a run's, or that of one of several side by side, or that of a pipeline's node.

    Raises:
      ValueError: if it was begun by no command, its experiment or methods have changed since, or it
        has no whole checkpoint.
    """
    from jcl.runs import flags  # tyro, which Python shouldn't wait for

    folder = Path(folder)
    top = next(
        (p for p in (folder, folder.absolute().parent) if (p / "config.json").is_file()), None
    )
    if top is None:
        raise ValueError(
            f"{folder} has no config.json, so no command began it; give load_state the program and "
            "params of what was trained from Python"
        )
    settings = report.load_settings(top)
    if "life" in settings:
        from jcl.runs.life import served

        lived, setup, state, numbers = served.parts(folder)
        return Loaded(*setup, state, lived, settings, numbers)
    flags.check_settings(settings, top)
    own.check_same(settings.get("files", {}), top)
    module = experiment.load(Path(settings["file"]))
    config = flags.restored(module, settings)
    if hasattr(module, "nodes"):
        built, calls, points = _node(module, config, folder)
    else:
        one = _planned(settings, config, folder)
        built, calls, points = experiment.build(module, one.config), one.calls, one.points
    setup = experiment.setup(built, calls, settings["seeds"], points)
    kept = experiment.collections_of(built, setup.program)
    state = load.load_state(folder, setup.program, setup.params, kept)
    return Loaded(*setup, state, built, settings, list(range(len(setup.stream.tests))))


def _planned(settings: dict[str, Any], config: Any, folder: Path) -> plan.Plan:
    planned = plan.plans(settings["methods"], settings["sweep"], config)
    names = [""] if len(planned) == 1 else plan.folders(planned)
    name = "" if len(planned) == 1 else folder.absolute().name
    if name not in names:
        several = ", ".join(str(folder / name) for name in names)
        raise ValueError(f"{folder} holds {len(names)} runs, so name one of them: {several}")
    return planned[names.index(name)]


def _node(module: Any, config: Any, folder: Path) -> tuple[experiment.Experiment, Any, Any]:
    from jcl.runs import pipeline

    nodes = {node.name: node for node in pipeline.nodes_of(module, config)}
    if folder.absolute().name not in nodes:
        several = ", ".join(str(folder / name) for name in nodes)
        raise ValueError(f"{folder} holds a pipeline's nodes, so name one of them: {several}")
    node = nodes[folder.absolute().name]
    method = own.absolute(node.method, Path(module.__file__).parent)
    return node.experiment, expression.parse(method), ({},)


def load_state(
    folder: str | Path,
    program: Program | None = None,
    params: Params = None,
    collections: Any = (),
) -> State:
    """The state of the newest whole checkpoint in a folder, for which its stream isn't needed.

    Args:
      folder: of `jcl run`, of a life, or `out` of a `jcl.fit`.
      program: the run's, if it was begun from Python; None is for what a command began, whose
        folder says how the program is made (see `load_run`, which gives that too).
      params: where it started, or others of the same shapes, which are not read; with `program`.
      collections: as for the run; with `program`.

    Raises:
      ValueError: if it is no such folder, has no whole checkpoint, or is of another program.
    """
    if program is None:
        return load_run(folder).state
    return load.load_state(folder, program, params, collections)
