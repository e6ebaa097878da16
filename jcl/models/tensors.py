"""Safetensors on disk, in one file or several: read one tensor at a time, written in shards."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Tensors(NamedTuple):
    """Named tensors on disk."""

    names: frozenset[str]
    read: Callable[[str], np.ndarray]
    """Reads one tensor into memory."""
    file: Callable[[str], Path]
    """Gives the file of a tensor, to name it in errors."""


def open_folder(folder: Path) -> Tensors:
    """The tensors in all `*.safetensors` of a folder, or in those that its index names.

    Raises:
      ValueError: if there is no file, or one is missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    index = folder / "model.safetensors.index.json"
    if index.exists():
        files = sorted({folder / f for f in json.loads(index.read_text())["weight_map"].values()})
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
        where |= dict.fromkeys(handle.keys(), (handle, file))
    return Tensors(
        frozenset(where), lambda name: where[name][0].get_tensor(name), lambda name: where[name][1]
    )


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
    if len(shards) == 1:
        (folder / _shard(1, 0)).rename(folder / "model.safetensors")
        return
    index: Mapping[str, Any] = {"metadata": {"total_size": total}, "weight_map": {}}
    for i, names in enumerate(shards, 1):
        final = _shard(i, len(shards))
        (folder / _shard(i, 0)).rename(folder / final)
        index["weight_map"].update(dict.fromkeys(names, final))
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def _shard(number: int, count: int) -> str:
    return f"model-{number:05d}-of-{count:05d}.safetensors"
