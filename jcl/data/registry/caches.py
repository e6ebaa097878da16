"""The folders in which fetched and computed things are kept between runs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def folder(kind: str) -> Path:
    """The folder for one kind of things, in JCL_CACHE, or else in `jcl` in the user's cache."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("JCL_CACHE") or Path(home) / "jcl") / kind


def size(folder: Path) -> int:
    """Bytes of the files in a folder. A link holds nothing: what it leads to lies elsewhere."""
    if folder.is_symlink():
        return 0
    files = (Path(at) / name for at, _, names in os.walk(folder) for name in names)
    return sum(file.lstat().st_size for file in files if not file.is_symlink())


def remove(folder: Path) -> None:
    """Removes a folder of a cache, whole or, if this is interrupted, from its place at least.

    Of a link, be it the folder itself or somewhere in it, the link goes and what it leads to stays.
    """
    gone = folder.with_name(f".{folder.name}-removed-{os.getpid()}")
    folder.rename(gone)  # so that no one finds half of it
    if gone.is_symlink():
        gone.unlink()
    else:
        shutil.rmtree(gone)  # which follows no links
