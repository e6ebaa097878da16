"""Safetensors on disk, in one file or several: read one tensor at a time, written in shards."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jcl.method import check


class Tensors(NamedTuple):
    """Named tensors on disk."""

    names: frozenset[str]
    read: Callable[[str], np.ndarray]
    """Reads one tensor into memory."""
    file: Callable[[str], Path]
    """Gives the file of a tensor, to name it in errors."""


def open_folder(folder: Path) -> Tensors:
    """The tensors of a folder, in the files that transformers reads.

    They are those in `model.safetensors`, else those in the files that its index names, else those
    in all `*.safetensors`.

    Raises:
      ValueError: if there is no file, one is missing or damaged, or two hold the same tensor.
    """
    from safetensors import SafetensorError, safe_open

    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.exists():
        files = [whole]
    elif index.exists():
        files = _indexed(index)
    else:
        files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder} has no *.safetensors, which the weights must be stored in")
    where: dict[str, Any] = {}
    for file in files:
        if not file.exists():
            raise ValueError(f"{file} is missing, but {index.name} names it")
        try:
            handle = safe_open(file, "np")
        except SafetensorError as error:
            raise ValueError(
                f"{file} is damaged ({error}), but must be a whole safetensors file"
            ) from error
        for name in [*handle.keys()]:
            if name in where:
                raise ValueError(
                    f"tensor {name!r} is in {where[name][1]} and in {file}, but must be in one file"
                )
            where[name] = (handle, file)

    def read(name: str) -> np.ndarray:
        handle, file = where[name]
        kind = handle.get_slice(name).get_dtype()
        return _read_small(file, name, kind) if kind in _SMALL else handle.get_tensor(name)

    return Tensors(frozenset(where), read, lambda name: where[name][1])


def _indexed(index: Path) -> list[Path]:
    """The files that an index names."""
    try:
        named = set(json.loads(index.read_text())["weight_map"].values())
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{index} is no index of tensors ({error!r})") from error
    return sorted(index.parent / name for name in named)


_SMALL = {"F8_E4M3": np.dtype(jnp.float8_e4m3fn), "F8_E5M2": np.dtype(jnp.float8_e5m2)}
"""Dtypes that safetensors' reader for numpy doesn't know, by their names in a file."""


def _read_small(file: Path, name: str, kind: str) -> np.ndarray:
    """A tensor of 8-bit floats: the header is its length in 8 bytes, then JSON, then the data."""
    with file.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        found = json.loads(opened.read(size))[name]
        start, stop = found["data_offsets"]
        opened.seek(8 + size + start)
        return np.frombuffer(opened.read(stop - start), _SMALL[kind]).reshape(found["shape"])


def check_free(folder: Path) -> None:
    """Refuses to write a model or an adapter over what is there.

    Raises:
      ValueError: if it is a file, or a folder that holds something.
    """
    free = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    check(free, "folder", str(folder), "new or empty")


def write_folder(folder: Path, tensors: Iterator[tuple[str, np.ndarray]], shard_bytes: int) -> None:
    """Writes tensors as they come to files of at most `shard_bytes`, with an index if several.

    A tensor that is larger gets a file of its own.
    """
    from safetensors.numpy import save_file

    shards: list[list[str]] = []
    held: dict[str, np.ndarray] = {}

    def flush() -> None:
        shards.append(list(held))
        save_file(held, folder / _shard(len(shards), 0), metadata={"format": "pt"})
        held.clear()

    size = total = 0
    for name, tensor in tensors:
        if held and size + tensor.nbytes > shard_bytes:
            flush()
            size = 0
        held[name] = np.ascontiguousarray(tensor)
        size += tensor.nbytes
        total += tensor.nbytes
    flush()
    make_readable(folder)
    if len(shards) == 1:
        (folder / _shard(1, 0)).rename(folder / "model.safetensors")
        return
    index: Mapping[str, Any] = {"metadata": {"total_size": total}, "weight_map": {}}
    for i, names in enumerate(shards, 1):
        final = _shard(i, len(shards))
        (folder / _shard(i, 0)).rename(folder / final)
        index["weight_map"].update(dict.fromkeys(names, final))
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def make_readable(folder: Path) -> None:
    """Gives a folder's safetensors files the mode of any new file, where theirs is 0600.

    So a server that runs under another user can read them.
    """
    probe = folder / ".mode"
    probe.touch()
    for path in folder.glob("*.safetensors"):
        path.chmod(probe.stat().st_mode)
    probe.unlink()


def _shard(number: int, count: int) -> str:
    return f"model-{number:05d}-of-{count:05d}.safetensors"
