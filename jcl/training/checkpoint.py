"""Checkpoints: atomic, checked against their own sha256 sums, and restored bit for bit.

A checkpoint is an Orbax folder `step_N` and, written last, `step_N.json` with the sum of every
file in it. Both are written while training goes on. A checkpoint without sums, or whose sums don't
match, doesn't count: after a save cut short, a truncated file or a flipped bit a run falls back to
the checkpoint before. If the processes share no folder, process 0 writes all, a numpy file a leaf.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import secrets
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcl import trees
from jcl.parallel import processes

_INDEX = "leaves.json"
_OLD = {"opt": "optimizer", "method": "methods", "task": "stage", "task_step": "stage_step"}
"""The fields of `State` by the names that version 0.1 wrote into paths, and their present names."""
KEEP = 2
"""How many checkpoints are kept: the last, and one to fall back to."""


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _flat(state: Any) -> dict[str, jax.Array]:
    """The leaves by path, so that files don't depend on Python's nesting; PRNG keys as data."""
    return {
        trees.path_name(path): jax.random.key_data(x) if _is_key(x) else x
        for path, x in jax.tree_util.tree_leaves_with_path(state)
    }


def _sums(folder: Path) -> dict[str, str]:
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as file:
            found[str(path.relative_to(folder))] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _steps(folder: Path) -> list[int]:
    """Steps that have a finished checkpoint, oldest first."""
    return sorted(int(p.stem.removeprefix("step_")) for p in folder.glob("step_*.json"))


def is_shared(folder: Path) -> bool:
    """Whether all processes see the same folder at this path, and not each its own."""
    if not processes.has_peers():
        return True
    token = secrets.token_hex(8)
    name = f".seen-by-all-{processes.from_leader(lambda: token)}"

    def mark() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()

    processes.from_leader(mark)
    for _ in range(20):  # a network's file system may show it late
        lacking = processes.largest_of_all(not (folder.is_dir() and name in os.listdir(folder)))
        if not lacking:
            break
        time.sleep(0.1)
    processes.from_leader((folder / name).unlink)
    return not lacking


class Saver:
    """Saves checkpoints in the background, one after another.

    With several processes each writes its own part of the arrays. If they share no folder, process
    0 writes and reads all, and sends the others what it reads.
    """

    def __init__(self, folder: Path) -> None:
        """`folder` need not exist yet."""
        self.folder = folder.absolute()
        self.shared = is_shared(self.folder)
        self.thread: ThreadPoolExecutor | None = None
        self.pending: Future[None] | None = None

    def save(self, step: int, state: Any, replace: bool = False) -> None:
        """Saves a pytree of arrays as checkpoint `step`; returns once it is copied to the host.

        Args:
          step: how many were taken.
          state: what to save.
          replace: whether a checkpoint of this step gives way; else it stays, for determinism makes
            the same step the same state.

        Raises:
          OSError: if this or the one before can't be written; what was there before is untouched.
        """
        from orbax.checkpoint import v1 as ocp  # imported here, for it takes 0.25 s

        logging.getLogger("absl").addFilter(_is_news)
        self.finish()
        path = self.folder / f"step_{step:09d}"
        if not replace and processes.from_leader(path.with_suffix(".json").exists):
            return

        def clear() -> None:
            self.folder.mkdir(parents=True, exist_ok=True)
            path.with_suffix(".json").unlink(missing_ok=True)  # first: without it the rest is void
            shutil.rmtree(path, ignore_errors=True)  # a killed run left it without sums

        with self._one_sentence():
            processes.from_leader(clear)
            if self.shared:
                written = ocp.save_async(path, _flat(state)).result
            else:
                written = partial(_write_whole, path, _gathered(_flat(state)))
        if self.thread is None:
            self.thread = ThreadPoolExecutor(1, "jcl-checkpoint")
        self.pending = self.thread.submit(self._complete, path, written)

    def _complete(self, path: Path, written: Callable[[], None]) -> None:
        written()
        if not processes.is_leader():
            return
        sums = path.with_suffix(".partial")
        sums.write_text(json.dumps(_sums(path), indent=1))
        os.replace(sums, path.with_suffix(".json"))
        for old in _steps(self.folder)[:-KEEP]:
            stale = path.with_name(f"step_{old:09d}")
            stale.with_suffix(".json").unlink()
            shutil.rmtree(stale, ignore_errors=True)

    def finish(self) -> None:
        """Waits until the last checkpoint is written completely.

        Raises:
          OSError: if it can't be written; what was there before is untouched.
        """
        pending, self.pending = self.pending, None
        if pending is not None:
            with self._one_sentence():
                pending.result()

    @contextlib.contextmanager
    def _one_sentence(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # tensorstore reports a full disk as ValueError
            done = _steps(self.folder)
            last = f"the last good one is step {done[-1]}" if done else "there is none yet"
            reason = str(error).splitlines()[0]
            raise OSError(f"can't save a checkpoint in {self.folder}: {reason}; {last}") from error


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a line of the log says what nobody else does.

    Orbax logs what is raised in its threads with a traceback of a hundred lines, and raises it
    again where it is waited for, which gets one sentence.
    """
    return not (record.exc_info and "orbax" in Path(record.pathname).parts)


def tidy(folder: Path) -> None:
    """Removes what saves that were cut short have left; nobody else may be saving."""
    if not folder.is_dir():
        return
    done = {f"step_{step:09d}" for step in _steps(folder)}
    for path in folder.iterdir():
        if path.is_dir() and path.name not in done:
            shutil.rmtree(path, ignore_errors=True)
        elif path.suffix == ".partial":
            path.unlink(missing_ok=True)


def newest(folder: Path) -> int:
    """The step of the newest finished checkpoint of a folder; -1 if there is none."""
    return max(_steps(folder), default=-1)


def drop_older(folder: Path) -> None:
    """Removes all checkpoints of a folder but the newest, so that no byte of theirs is left."""
    for step in _steps(folder)[:-1]:
        stale = folder / f"step_{step:09d}"
        stale.with_suffix(".json").unlink()
        shutil.rmtree(stale)


def save(folder: Path, step: int, state: Any) -> None:
    """Saves a pytree of arrays as checkpoint `step` and deletes all but the last two.

    Raises:
      OSError: if it can't be written; what was there before is untouched.
    """
    saver = Saver(folder)
    saver.save(step, state)
    saver.finish()


def _reading(everyone: bool) -> Any:
    """Orbax's context that reads no more than is asked for.

    In it process 0 doesn't wait for the others, unless all take part.
    """
    from orbax.checkpoint import v1 as ocp

    context = ocp.Context()
    context.pytree.loading.partial_load = True
    if not everyone:
        context.multiprocessing.active_processes = {0}
        context.multiprocessing.barrier_sync_key_prefix = "jcl-alone"
    return context


def _write_whole(path: Path, host: dict[str, np.ndarray]) -> None:
    """Writes a checkpoint on process 0 alone, a numpy file a leaf; Orbax would wait for all."""
    if not processes.is_leader():
        return
    path.mkdir()
    index = {}
    for number, (name, x) in enumerate(host.items()):
        index[name] = {"file": f"{number:05d}.npy", "shape": x.shape}
        flat = np.ascontiguousarray(x).reshape(-1).view(np.uint8)
        np.save(path / f"{number:05d}.npy", flat, allow_pickle=False)
    (path / _INDEX).write_text(json.dumps(index))


def _gathered(flat: dict[str, Any]) -> dict[str, Any]:
    """The whole of each array as numpy on process 0; empty on the others."""
    from jax.experimental import multihost_utils

    found = {}
    for name, x in flat.items():
        whole = multihost_utils.process_allgather(x, tiled=True)
        if processes.is_leader():
            found[name] = np.asarray(whole)
    return found


def _why_broken(path: Path) -> str:
    """Why a checkpoint can't be trusted, empty if it can."""
    try:
        wanted = json.loads(path.with_suffix(".json").read_text())
        found = _sums(path)
    except (OSError, ValueError) as error:
        return str(error)
    wrong = [name for name in wanted if found.get(name) != wanted[name]]
    return f"{wrong[0]} is missing or has changed" if wrong else ""


def restore(folder: Path, like: Any, beside: str = "") -> tuple[Any, int] | None:
    """Loads the newest checkpoint whose sums match, with the structure and shardings of `like`.

    It may have been saved from other shardings, and by another number of processes.

    Args:
      folder: the folder of the checkpoints.
      like: a pytree of arrays or of `jax.ShapeDtypeStruct` with shardings; typed keys as arrays.
      beside: the root of what it may have besides, which isn't read; "" is for none.

    Returns:
      The tree and its step, or None if there is no checkpoint. Broken ones are passed over with
      a warning.

    Raises:
      ValueError: if the checkpoint is of another program: a leaf is missing or has another shape.
    """
    from orbax.checkpoint import v1 as ocp

    leaves = {trees.path_name(p): x for p, x in jax.tree_util.tree_leaves_with_path(like)}
    abstract = {name: _abstract(x) for name, x in leaves.items()}
    everyone = is_shared(folder)

    def newest() -> tuple[int, bool, dict[str, str]] | None:
        for step in reversed(_steps(folder)):
            path = folder.absolute() / f"step_{step:09d}"
            if why := _why_broken(path):
                warnings.warn(f"checkpoint {path} is broken, falling back: {why}", stacklevel=4)
                continue
            with _reading(not processes.has_peers()):
                names = _check_same(path, abstract, beside)
            return step, (path / _INDEX).exists(), names
        return None

    found = processes.from_leader(newest)
    if found is None:
        return None
    step, whole, names = found
    stored = {names[name]: x for name, x in abstract.items()}
    path = folder.absolute() / f"step_{step:09d}"
    with warnings.catch_warnings(), _reading(True):
        warnings.simplefilter("ignore")  # Orbax warns of keys without shardings, which we set
        flat = ocp.load(path, stored) if everyone and not whole else _broadcast(path, stored)
    restored = [_wrap(flat[names[name]], x) for name, x in leaves.items()]
    return jax.tree.unflatten(jax.tree.structure(like), restored), step


def _broadcast(path: Path, abstract: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """A checkpoint that process 0 reads and sends to all processes, leaf by leaf."""
    read = _reader(path, abstract) if processes.is_leader() else lambda name: np.zeros(0, np.uint8)
    found: dict[str, jax.Array] = {}
    for name, x in abstract.items():
        host = processes.broadcast(read(name)).view(x.dtype).reshape(x.shape)
        where = x.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        found[name] = jax.make_array_from_callback(x.shape, where, host.__getitem__)
    return found


def _reader(path: Path, abstract: dict[str, jax.ShapeDtypeStruct]) -> Callable[[str], np.ndarray]:
    """A function from a leaf's name to its bytes, uint8 [n], read on this process alone."""
    from orbax.checkpoint import v1 as ocp

    if (path / _INDEX).exists():
        index = json.loads((path / _INDEX).read_text())
        return lambda name: np.load(path / index[name]["file"], allow_pickle=False)
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    local = {k: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here) for k, x in abstract.items()}
    with _reading(False):
        leaves = ocp.load(path, local)
    return lambda name: np.asarray(leaves[name]).reshape(-1).view(np.uint8)


def _abstract(x: Any) -> jax.ShapeDtypeStruct:
    if not _is_key(x):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
    data = jax.eval_shape(jax.random.key_data, x)
    everywhere = x.sharding if x.sharding.is_fully_replicated else None
    return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=everywhere)


def _wrap(x: jax.Array, like: Any) -> jax.Array:
    if not _is_key(like):
        return x
    key = jax.random.wrap_key_data(x, impl=jax.random.key_impl(like))
    return key if key.sharding == like.sharding else jax.device_put(key, like.sharding)


def _present_name(name: str) -> str:
    """A stored leaf's path with the present names of the fields of `State`."""
    root = "state/" if name.startswith("state/") else ""
    field, slash, below = name.removeprefix(root).partition("/")
    return root + _OLD.get(field, field) + slash + below


def _check_same(path: Path, wanted: dict[str, jax.ShapeDtypeStruct], beside: str) -> dict[str, str]:
    """The name that each wanted leaf was stored under, by its present name.

    Raises:
      ValueError: if the checkpoint has other leaves or other shapes than are wanted.
    """
    from orbax.checkpoint import v1 as ocp

    if (path / _INDEX).exists():
        index = json.loads((path / _INDEX).read_text())
        found = {name: tuple(entry["shape"]) for name, entry in index.items()}
    else:
        found = {name: tuple(x.shape) for name, x in ocp.metadata(path).metadata.items()}
    stored = {name if name in wanted else _present_name(name): name for name in found}
    if beside:
        stored = {n: name for n, name in stored.items() if not n.startswith(f"{beside}/")}
    for name in sorted(set(wanted) ^ set(stored)):
        where = "lacks" if name in wanted else "has"
        raise ValueError(
            f"checkpoint {path} {where} {name}, so it is of another method or model; resume with "
            "the settings it was made with"
        )
    for name, x in wanted.items():
        if found[stored[name]] != tuple(x.shape):
            raise ValueError(
                f"{name} in checkpoint {path} is {found[stored[name]]}, but must be "
                f"{tuple(x.shape)}; resume with the settings it was made with"
            )
    return stored
