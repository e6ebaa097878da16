"""Methods that users bring: functions of their own files, and entry points of installed packages.

In an expression `./mine.py:pull(0.1)` calls the function `pull` of a file. A package offers methods
by the entry-point group `jcl.methods`, and they are called by their names there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from jcl.runs import files

GROUP = "jcl.methods"
_STRING = r"'[^'\n]*'|\"[^\"\n]*\""
_BARE = r"[^\s'\"()\[\]{}+,=][^'\"()\[\]{}+,=\n]*?\.py"
_TERM = re.compile(
    rf"(?P<before>(?:^|\+)\s*)(?P<path>{_STRING}|{_BARE})\s*:\s*(?P<name>[^\W\d]\w*)|{_STRING}"
)


class Named(NamedTuple):
    """A function of a file, as an expression has it."""

    path: Path
    """As it was written, without quotes."""
    name: str

    def __str__(self) -> str:
        """As one could type it, with quotes where the path needs them."""
        bare = re.fullmatch(_BARE, str(self.path)) is not None
        return f"{self.path if bare else repr(str(self.path))}:{self.name}"


def _replaced(text: str, by: Callable[[Named], str]) -> str:
    """The text with something in the place of each function of a file; strings stay."""

    def one(match: re.Match[str]) -> str:
        if match["name"] is None:  # a string among the arguments
            return match[0]
        return match["before"] + by(Named(Path(match["path"].strip("'\"")), match["name"]))

    return _TERM.sub(one, text.strip())


def split(text: str) -> tuple[str, dict[str, Named]]:
    """An expression with a plain name in the place of each function of a file.

    >>> split("./mine.py:pull(0.1) + er()")
    ('_file_0(0.1) + er()', {'_file_0': Named(path=PosixPath('mine.py'), name='pull')})
    """
    found: dict[str, Named] = {}

    def plain(named: Named) -> str:
        name = f"_file_{len(found)}"
        found[name] = named
        return name

    return _replaced(text, plain), found


def absolute(text: str, folder: Path) -> str:
    """An expression whose files are named by their whole paths, those beside `folder` too."""

    def whole(named: Named) -> str:
        path = (folder / named.path.expanduser()).resolve()
        return str(named._replace(path=path))

    return _replaced(text, whole)


def brief(text: str) -> str:
    """An expression whose files are named without their folders, to be shown."""
    return _replaced(text, lambda named: f"{named.path.name}:{named.name}")


def digests(texts: Iterable[str]) -> dict[str, str]:
    """The sha256 of each file that expressions with whole paths name.

    Raises:
      ValueError: if there is no such file.
    """
    found = [named.path for text in texts for named in split(text)[1].values()]
    return {str(path): files.digest(path) for path in found}


def check_same(saved: Mapping[str, str], folder: Path) -> None:
    """Compares the files of methods and of an experiment with what they were when a run was begun.

    Raises:
      ValueError: if one of them is gone or has changed.
    """
    for path, was in saved.items():
        begun = f"{folder} was begun with {path}"
        if not Path(path).is_file():
            raise ValueError(f"{begun}, which isn't there any more; put it back")
        if files.digest(Path(path)) != was:
            raise ValueError(f"{begun}, which has changed since; put it back, or begin a new run")


def packages() -> dict[str, list[metadata.EntryPoint]]:
    """The methods of installed packages by name, which several may share; none is imported."""
    found: dict[str, list[metadata.EntryPoint]] = {}
    for entry in metadata.entry_points(group=GROUP):
        found.setdefault(entry.name, []).append(entry)
    return dict(sorted(found.items()))


def package(entry: metadata.EntryPoint) -> str:
    """The name of the package that brings an entry point."""
    return entry.dist.name if entry.dist else entry.module.partition(".")[0]
