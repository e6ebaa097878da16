"""Checkpoints: atomic, checked against their own sha256 sums, and restored bit for bit.

A checkpoint is an Orbax folder `step_N` and, written last, `step_N.json` with the sum of every
file in it; both while training goes on. One without sums, or whose sums don't match, doesn't count:
a run killed in mid-save, a truncated file or a flipped bit all fall back to the checkpoint before.
Of processes that have no storage in common process 0 writes all, a numpy file a leaf.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
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

from jcl import processes, trees

_INDEX = "leaves.json"
KEEP = 2
"""How many checkpoints are kept: the last, and one to fall back to."""


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _flat(state: Any) -> dict[str, jax.Array]:
    """Leaves by path, so that what is on disk doesn't depend on how Python nests it."""
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


def shared(folder: Path) -> bool:
    """Whether all processes see one folder, rather than each one of its own."""
    if not processes.several():
        return True
    token = secrets.token_hex(8)
    name = f".seen-by-all-{processes.of_leader(lambda: token)}"

    def mark() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()

    processes.of_leader(mark)
    for _ in range(20):  # a network's file system may take its time
        lacking = processes.agreed(not (folder.is_dir() and name in os.listdir(folder)))
        if not lacking:
            break
        time.sleep(0.1)
    processes.of_leader((folder / name).unlink)
    return not lacking


class Saver:
    """Saves checkpoints in the background, one after another.

    With several processes each writes its own part of the arrays. Where they have no folder in
    common process 0 writes all, and tells the others what it reads.
    """

    def __init__(self, folder: Path) -> None:
        """`folder` is made if need be."""
        self.folder = folder.absolute()
        self.shared = shared(self.folder)
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
        from orbax.checkpoint import v1 as ocp  # 0.25 s that only those who save pay for

        self.finish()
        path = self.folder / f"step_{step:09d}"
        if not replace and processes.of_leader(path.with_suffix(".json").exists):
            return

        def clear() -> None:
            self.folder.mkdir(parents=True, exist_ok=True)
            path.with_suffix(".json").unlink(missing_ok=True)  # first: without it the rest is void
            shutil.rmtree(path, ignore_errors=True)  # left by a run that was killed before its sums

        with self._one_sentence():
            processes.of_leader(clear)
            if self.shared:
                written = ocp.save_async(path, _flat(state)).result
            else:
                written = partial(_write_whole, path, _gathered(_flat(state)))
        if self.thread is None:
            self.thread = ThreadPoolExecutor(1, "jcl-checkpoint")
        self.pending = self.thread.submit(self._complete, path, written)

    def _complete(self, path: Path, written: Callable[[], None]) -> None:
        written()
        if not processes.leader():
            return
        sums = path.with_suffix(".partial")
        sums.write_text(json.dumps(_sums(path), indent=1))
        os.replace(sums, path.with_suffix(".json"))
        for old in _steps(self.folder)[:-KEEP]:
            stale = path.with_name(f"step_{old:09d}")
            stale.with_suffix(".json").unlink()
            shutil.rmtree(stale, ignore_errors=True)

    def finish(self) -> None:
        """Waits until what was saved last is whole.

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


def save(folder: Path, step: int, state: Any) -> None:
    """Saves a pytree of arrays as checkpoint `step` and deletes all but the last two.

    Raises:
      OSError: if it can't be written; what was there before is untouched.
    """
    saver = Saver(folder)
    saver.save(step, state)
    saver.finish()


def _alone(everyone: bool) -> Any:
    """Orbax's context in which process 0 doesn't wait for the others; none if all take part."""
    from orbax.checkpoint import v1 as ocp

    if everyone:
        return contextlib.nullcontext()
    context = ocp.Context()
    context.multiprocessing.active_processes = {0}
    context.multiprocessing.barrier_sync_key_prefix = "jcl-alone"
    return context


def _write_whole(path: Path, host: dict[str, np.ndarray]) -> None:
    """What process 0 writes alone, a file a leaf, for Orbax would wait for the other processes."""
    if not processes.leader():
        return
    path.mkdir()
    index = {}
    for number, (name, x) in enumerate(host.items()):
        index[name] = {"file": f"{number:05d}.npy", "shape": x.shape}
        flat = np.ascontiguousarray(x).reshape(-1).view(np.uint8)
        np.save(path / f"{number:05d}.npy", flat, allow_pickle=False)
    (path / _INDEX).write_text(json.dumps(index))


def _gathered(flat: dict[str, Any]) -> dict[str, Any]:
    """All of each array, on the host of process 0 alone."""
    from jax.experimental import multihost_utils

    found = {}
    for name, x in flat.items():
        whole = multihost_utils.process_allgather(x, tiled=True)
        if processes.leader():
            found[name] = np.asarray(whole)
    return found


def _broken(path: Path) -> str:
    """Why a checkpoint can't be trusted, empty if it can."""
    try:
        wanted = json.loads(path.with_suffix(".json").read_text())
        found = _sums(path)
    except (OSError, ValueError) as error:
        return str(error)
    wrong = [name for name in wanted if found.get(name) != wanted[name]]
    return f"{wrong[0]} is missing or has changed" if wrong else ""


def restore(folder: Path, like: Any) -> tuple[Any, int] | None:
    """The newest checkpoint that is whole, with the structure and shardings of `like`.

    It may have been saved from other shardings, and by another number of processes.

    Args:
      folder: what was saved to.
      like: a pytree of arrays or of `jax.ShapeDtypeStruct` with shardings; typed keys as arrays.

    Returns:
      The tree and its step, or None if there is no checkpoint. Broken ones are passed over with
      a warning.

    Raises:
      ValueError: if the checkpoint is of another program: a leaf is missing or has another shape.
    """
    from orbax.checkpoint import v1 as ocp

    leaves = {trees.path_name(p): x for p, x in jax.tree_util.tree_leaves_with_path(like)}
    abstract = {name: _abstract(x) for name, x in leaves.items()}
    everyone = shared(folder)

    def newest() -> tuple[int, bool] | None:
        for step in reversed(_steps(folder)):
            path = folder.absolute() / f"step_{step:09d}"
            if why := _broken(path):
                warnings.warn(f"checkpoint {path} is broken, falling back: {why}", stacklevel=4)
                continue
            with _alone(not processes.several()):
                _check_same(path, abstract)
            return step, (path / _INDEX).exists()
        return None

    found = processes.of_leader(newest)
    if found is None:
        return None
    step, whole = found
    path = folder.absolute() / f"step_{step:09d}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a key's sharding, which we put back ourselves
        flat = ocp.load(path, abstract) if everyone and not whole else _told(path, abstract)
    restored = [_wrap(flat[name], x) for name, x in leaves.items()]
    return jax.tree.unflatten(jax.tree.structure(like), restored), step


def _told(path: Path, abstract: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """A checkpoint that process 0 reads, leaf by leaf on all."""
    read = _reader(path, abstract) if processes.leader() else lambda name: np.zeros(0, np.uint8)
    found: dict[str, jax.Array] = {}
    for name, x in abstract.items():
        host = processes.broadcast(read(name)).view(x.dtype).reshape(x.shape)
        where = x.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        found[name] = jax.make_array_from_callback(x.shape, where, host.__getitem__)
    return found


def _reader(path: Path, abstract: dict[str, jax.ShapeDtypeStruct]) -> Callable[[str], np.ndarray]:
    """`name -> bytes [n]` of a leaf, without the other processes."""
    from orbax.checkpoint import v1 as ocp

    if (path / _INDEX).exists():
        index = json.loads((path / _INDEX).read_text())
        return lambda name: np.load(path / index[name]["file"], allow_pickle=False)
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    local = {k: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here) for k, x in abstract.items()}
    with _alone(False):
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


def _check_same(path: Path, wanted: dict[str, jax.ShapeDtypeStruct]) -> None:
    from orbax.checkpoint import v1 as ocp

    if (path / _INDEX).exists():
        index = json.loads((path / _INDEX).read_text())
        found = {name: tuple(entry["shape"]) for name, entry in index.items()}
    else:
        found = {name: tuple(x.shape) for name, x in ocp.metadata(path).metadata.items()}
    for name in sorted(set(wanted) ^ set(found)):
        where = "lacks" if name in wanted else "has"
        raise ValueError(
            f"checkpoint {path} {where} {name}, so it is of another method or model; resume with "
            "the settings it was made with"
        )
    for name, x in wanted.items():
        if found[name] != tuple(x.shape):
            raise ValueError(
                f"{name} in checkpoint {path} is {found[name]}, but must be "
                f"{tuple(x.shape)}; resume with the settings it was made with"
            )
