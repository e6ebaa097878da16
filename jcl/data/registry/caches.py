"""The folders in which fetched and computed things are kept between runs."""

from __future__ import annotations

import os
from pathlib import Path


def folder(kind: str) -> Path:
    """The folder for one kind of things, in JCL_CACHE, or else in `jcl` in the user's cache."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("JCL_CACHE") or Path(home) / "jcl") / kind
