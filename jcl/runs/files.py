"""Python files that a user names, experiments and methods: they run only because they are named."""

from __future__ import annotations

import ast
import hashlib
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from jcl.parallel import signals


def digest(path: Path) -> str:
    """The sha256 of a file, hexadecimal.

    Raises:
      ValueError: if it can't be read.
    """
    return hashlib.sha256(_read(path)).hexdigest()


def run(path: Path, name: str) -> ModuleType:
    """Runs a Python file as the module `name`; it may import files beside it.

    Raises:
      ValueError: if it can't be read, is no Python, or raises anything, whose line is said.
    """
    content = _read(path)
    module = ModuleType(name)
    module.__file__ = str(path)
    before = sys.modules.get(name)
    sys.modules[name] = module  # dataclasses look their annotations up there
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        # compiled from what was read, lest Python's cache give an older version
        exec(compile(content, str(path), "exec"), module.__dict__)
    except (KeyboardInterrupt, signals.Preempted):
        raise
    except BaseException as error:  # SystemExit too, for a file has no say in when a command ends
        del sys.modules[name]
        if before is not None:
            sys.modules[name] = before
        kind = type(error).__name__
        raise ValueError(f"{path} can't be run: {_line(error, path)}{kind}: {error}") from error
    finally:
        sys.path.remove(str(path.parent.resolve()))
    return module


def call(module: ModuleType, name: str, *given: Any) -> Any:
    """Calls a function of a file's module.

    Raises:
      ValueError: if it raises anything that is no sentence already, whose line is said.
      OSError, ImportError: as it raises them.
    """
    try:
        return getattr(module, name)(*given)
    except (ValueError, OSError, ImportError, signals.Preempted):
        raise
    except Exception as error:
        path, kind = Path(str(module.__file__)), type(error).__name__
        said = f"{name} of {path} can't be run: {_line(error, path)}{kind}: {error}"
        raise ValueError(said) from error


def once(path: Path) -> ModuleType:
    """A file's module as `run` gives it, which runs again only after the file has changed.

    Raises:
      ValueError: as `run` does.
    """
    name = f"jcl_file_{path.stem}_{hashlib.sha256(str(path).encode() + _read(path)).hexdigest()}"
    return sys.modules.get(name) or run(path, name)


def functions(path: Path) -> list[str]:
    """The public functions that a file defines, without running it; none if it is no Python."""
    try:
        body = ast.parse(_read(path)).body
    except (SyntaxError, ValueError):
        return []
    return [n.name for n in body if isinstance(n, ast.FunctionDef) and not n.name.startswith("_")]


def _read(path: Path) -> bytes:
    if path.suffix != ".py":
        raise ValueError(f"{path} is no Python file, whose name ends in .py")
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}") from error


def _line(error: BaseException, path: Path) -> str:
    """Where in the file an error came from, to stand before it; "" if that isn't known."""
    if isinstance(error, SyntaxError):  # which says it itself
        return ""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    return f"line {lines[-1]}: " if lines else ""
