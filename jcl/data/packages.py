"""Packages that only some of our extras bring, and what is said where one isn't installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needed(by: str, package: str, extra: str) -> Iterator[None]:
    """Around the import of an optional package: says how to install it if it isn't there.

    Args:
      by: what needs it: a function, a file or a model.
      package: that is missing.
      extra: of ours, that brings it.

    Raises:
      ImportError: if the import fails.
    """
    try:
        yield
    except ImportError as error:
        raise ImportError(
            f"{by} needs {package}, which isn't installed: pip install 'jcl-kit[{extra}]'"
        ) from error
