"""The works of a life: one for each method, labels and columns that its stages had, built once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jcl import models
from jcl.runs import own
from jcl.runs.life.book import Stage
from jcl.runs.life.settings import Settings
from jcl.runs.life.work import Work, load_model


class Works:
    """Builds what a life computes with, and keeps it, so that a further stage compiles nothing."""

    def __init__(
        self, folder: Path, settings: Settings, saved: Mapping[str, Any],
        model: models.Model | None = None,
    ) -> None:  # fmt: skip
        """`saved` is what config.json says; `model` is the one that it names, if it is loaded."""
        self.folder, self.settings, self.saved = folder, settings, saved
        self._model = model
        self._found: dict[tuple[str, tuple[str, ...], int], Work] = {}

    @property
    def base(self) -> models.Model:
        """The model that the life began with.

        Raises:
          ValueError: if it can't be loaded any more.
        """
        if self._model is None:
            self._model = load_model(self.settings)
        return self._model

    def of(
        self, method: str, labels: Sequence[str], room: int, files: Mapping[str, str] | None = None
    ) -> Work:
        """The work under a method.

        Args:
          method: an expression whose files are named by whole paths.
          labels: the names of the classes, in the order of the head's columns.
          room: how many columns the head has, where rows have labels.
          files: what the files of users' methods must be, by path; None is as config.json says.

        Raises:
          ValueError: if a file of a method or the model has changed, or the method can't be
            composed.
        """
        own.check_same(self.saved.get("files", {}) if files is None else files, self.folder)
        key = method, tuple(labels), room
        if key not in self._found:
            work = Work(self.settings, self.base, method, labels, room)
            if work.fingerprint != self.saved["weights"]:
                raise ValueError(
                    f"the weights of {self.settings.model} are others than those that "
                    f"{self.folder} began with, to which its states belong; put these back"
                )
            self._found[key] = work
        return self._found[key]

    def at(self, stage: Stage, labels: Sequence[str]) -> Work:
        """What the state after a stage belongs to, for rows of these labels.

        Raises:
          ValueError: as `of` does.
        """
        facts = stage.facts
        return self.of(facts["method"], labels, facts["room"], facts["files"])
