"""A run's events written for TensorBoard or Weights & Biases, through their own libraries.

In Python they are listeners, which `fit` takes as its `on_event`, alone or in a list:
`jcl.fit(..., on_event=[jcl.progress(), jcl.trackers.tensorboard("events")])`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jcl.data.packages import needed
from jcl.report.folder import without_diverged


class Tracker:
    """A listener that gives the numbers of events to somebody, by name and step."""

    def __init__(
        self,
        write: Callable[[dict[str, float], int], Any],
        close: Callable[[], Any],
        columns: Sequence[str] = (),
    ) -> None:
        """`columns` names the scores; () takes the names of the stream's tests."""
        self._write, self._close, self._columns = write, close, tuple(columns)

    def __call__(self, event: dict[str, Any]) -> None:
        """Takes an event; of scores it writes the mean over members that haven't diverged."""
        numbers = _numbers(event, self._columns)
        if numbers:
            self._write(numbers, event["step"])

    def close(self) -> None:
        """Writes what is left."""
        self._close()


def tensorboard(folder: str | Path, columns: Sequence[str] = ()) -> Tracker:
    """Writes event files for TensorBoard.

    Args:
      folder: to which they go.
      columns: names of the scores; by default those of the stream's tests.

    Raises:
      ImportError: if tensorboardX isn't installed.
    """
    with needed("jcl.trackers.tensorboard", "tensorboardX", "tensorboard"):
        from tensorboardX import SummaryWriter

    writer = SummaryWriter(str(folder))

    def write(numbers: dict[str, float], step: int) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)

    return Tracker(write, writer.close, columns)


def wandb(
    project: str,
    folder: str | Path = ".",
    *,
    name: str | None = None,
    offline: bool = False,
    config: Mapping[str, Any] | None = None,
    columns: Sequence[str] = (),
) -> Tracker:
    """Writes a run of Weights & Biases.

    Args:
      project: of W&B's, to which the run belongs.
      folder: below which W&B keeps its files.
      name: of the run; None has W&B think of one.
      offline: whether nothing leaves this machine until `wandb sync` is called on its files.
      config: what else is known of the run.
      columns: names of the scores; by default those of the stream's tests.

    Raises:
      ImportError: if wandb isn't installed.
    """
    with needed("jcl.trackers.wandb", "wandb", "wandb"):
        import wandb as library

    run = library.init(
        project=project, dir=str(folder), name=name, config=dict(config or {}),
        mode="offline" if offline else None, reinit="create_new",
    )  # fmt: skip
    return Tracker(lambda numbers, step: run.log(numbers, step=step), run.finish, columns)


def _numbers(event: Mapping[str, Any], columns: Sequence[str]) -> dict[str, float]:
    """What of an event is written, by name; nothing of kinds that have no numbers over steps."""
    if event["kind"] == "progress":
        rate = event["learning_rate"]
        return {
            "loss": event["loss"],
            "examples per second": event["examples_per_second"],
            **event["scalars"],
            **({} if rate is None else {"learning rate": rate}),
        }
    if event["kind"] in ("scores", "evaluation"):
        scores = np.asarray(event["scores"])
        mean = without_diverged(scores.reshape(-1, scores.shape[-1])).mean(axis=0)
        names = columns or event["tasks"]
        names = [*names, *(f"column {i}" for i in range(len(names), len(mean)))]
        return {f"score/{n}": float(x) for n, x in zip(names, mean, strict=False)}
    return {}
