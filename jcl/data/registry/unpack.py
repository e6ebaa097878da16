"""Unpacks some files of an archive below one folder: no links, no way out, nothing is run."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from jcl.method import check

_LICENCE = re.compile(
    r"(?:[^/]+\.dist-info(?:/licenses)?|[^/]+|usr/share/doc/[^/]+)"
    r"/((?:LICEN[CS]E|COPYING|NOTICE|copyright)[^/]*)"
)


def unpack(archive: Path, keep: str, folder: Path) -> None:
    """Writes an archive's needed files, and its licences, below `folder` and nowhere else.

    Args:
      archive: a wheel, a Debian package or any tar.
      keep: a regular expression for paths in the archive; its group is the path in the folder.
      folder: a folder that exists.

    Raises:
      ValueError: if a path leads out of the folder, or no file matches.
    """
    wanted, root, found = re.compile(keep), folder.resolve(), 0
    for path, content in _files(archive):
        match = wanted.fullmatch(path) or _LICENCE.fullmatch(path)
        if match is None:
            continue
        place = (root / match[1]).resolve()
        inside = place.is_relative_to(root) and place != root
        check(inside, f"path in {archive.name}", match[1], "inside the folder to unpack into")
        found += match.re is wanted
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.open("wb") as out:
            shutil.copyfileobj(content, out)
    check(found > 0, f"number of files of {archive.name} that match {keep}", found, "at least 1")


def _files(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Path and content of each regular file; a content can be read until the next is taken."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as zipped:
            for info in zipped.infolist():
                with zipped.open(info) as content:
                    yield info.filename, content
        return
    file: IO[bytes]
    if archive.suffix == ".deb":
        done = subprocess.run(["dpkg-deb", "--fsys-tarfile", archive], capture_output=True)
        check(done.returncode == 0, "package", archive.name, "readable by dpkg-deb")
        file = io.BytesIO(done.stdout)
    else:
        file = archive.open("rb")
    with file, tarfile.open(fileobj=file) as packed:
        for member in packed:
            inside = packed.extractfile(member) if member.isfile() else None
            if inside is not None:  # links and devices are skipped
                yield member.name.removeprefix("./"), inside
