"""A model that lives: a folder to which months of data come one by one, unknown until they do."""

from pathlib import Path

from jcl.runs.life.life import Life
from jcl.runs.life.watching import watch

__all__ = ["Life", "open", "watch"]


def open(folder: str | Path) -> Life:
    """Opens the folder of a life, which `jcl run finetune` or `jcl.runs.life.begin` made.

    Raises:
      ValueError: if it is none.
    """
    return Life(folder)
