"""A run's folder: one process at a time, and files that are whole or not there."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

LOCK, HOLDER = ".lock", ".holder.json"
"""The file that is locked, and beside it the words of who holds it."""


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of `path` once all is written.

    So `path` is the old file or the new one, whole, whenever the process ends.

    Raises:
      OSError: in one sentence with the path, if it can't be written.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        os.replace(partial, path)
    except OSError as error:
        raise OSError(f"can't write {path}: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Holds a folder that exists against other processes, and other runs in this one.

    The system ends the hold with the process, however that ends. A run that holds a folder may
    hold it once more.

    Raises:
      ValueError: if another holds it; the sentence says who.
    """
    lock = FileLock(folder / LOCK, timeout=0, is_singleton=True)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"{folder} is in use by {_holder(folder)}; wait until that ends, or choose another out"
        ) from None
    try:
        about = {"pid": os.getpid(), "host": socket.gethostname()}
        with whole(folder / HOLDER) as path:
            path.write_text(json.dumps(about))
        yield
    finally:
        lock.release()
        if not lock.is_locked:
            with contextlib.suppress(OSError):
                (folder / HOLDER).unlink(missing_ok=True)


def _holder(folder: Path) -> str:
    try:
        about = json.loads((folder / HOLDER).read_text())
        return f"process {about['pid']} on {about['host']}"
    except (OSError, ValueError, KeyError):
        return "another process"


def is_empty(folder: Path) -> bool:
    """Whether a folder has nothing in it, but for what `hold` puts there."""
    return all(path.name in (LOCK, HOLDER) for path in folder.iterdir())


def prepare(out: Path | None, resume: bool) -> None:
    """Makes the folder of `fit`, and refuses one that can't be used, before anything is computed.

    Raises:
      ValueError: if it can't be written, is a file, or holds a run that isn't to be resumed.
    """
    if out is None:
        if resume:
            raise ValueError("resume is True and out is None, but out must name the run's folder")
        return
    if out.exists() and not out.is_dir():
        raise ValueError(f"out is {str(out)!r}, which is a file, but must be a folder")
    if not resume and (out / "checkpoints").exists():
        raise ValueError(
            f"out is {str(out)!r}, which holds a run already; resume it or choose another folder"
        )
    try:
        make(out)
    except OSError as error:
        raise ValueError(
            f"out is {str(out)!r}, which can't be written ({error.strerror}), but must be a folder "
            "that can"
        ) from error


def make(folder: Path) -> None:
    """Makes a folder if it isn't there.

    Raises:
      OSError: if that can't be done, or nothing can be written into it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".writable-{os.getpid()}"
    probe.write_text("")
    probe.unlink()
