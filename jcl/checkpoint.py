"""Checkpoints: atomic, checked against their own sha256 sums, and restored bit for bit.

A checkpoint is an Orbax folder `step_N` and, written last, `step_N.json` with the sum of every
file in it. One without sums, or whose sums don't match, doesn't count: a run killed in mid-save, a
truncated file or a flipped bit all fall back to the checkpoint before.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jcl import trees

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
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def _steps(folder: Path) -> list[int]:
    """Steps that have a finished checkpoint, oldest first."""
    return sorted(int(p.stem.removeprefix("step_")) for p in folder.glob("step_*.json"))


def save(folder: Path, step: int, state: Any) -> None:
    """Saves a pytree of arrays as checkpoint `step` and deletes all but the last two.

    Raises:
      OSError: if it can't be written; what was there before is untouched.
    """
    from orbax.checkpoint import v1 as ocp  # 0.25 s that only those who save pay for

    path = folder.absolute() / f"step_{step:09d}"
    manifest = path.with_suffix(".json")
    if manifest.exists():
        return  # determinism makes the same step the same state
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(path, ignore_errors=True)  # left by a run that was killed before its sums
        ocp.save(path, _flat(state))
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(_sums(path), indent=1))
        os.replace(partial, manifest)
    except (OSError, ValueError) as error:  # tensorstore reports a full disk as ValueError
        done = _steps(folder)
        last = f"the last good one is step {done[-1]}" if done else "there is none yet"
        reason = str(error).splitlines()[0]
        raise OSError(f"can't save a checkpoint in {folder}: {reason}; {last}") from error
    for old in _steps(folder)[:-KEEP]:
        stale = path.with_name(f"step_{old:09d}")
        stale.with_suffix(".json").unlink()
        shutil.rmtree(stale, ignore_errors=True)


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

    Args:
      folder: what `save` wrote to.
      like: a pytree of arrays or of `jax.ShapeDtypeStruct`.

    Returns:
      The tree and its step, or None if there is no checkpoint. Broken ones are passed over with
      a warning.

    Raises:
      ValueError: if the checkpoint is of another program: a leaf is missing or has another shape.
    """
    from orbax.checkpoint import v1 as ocp

    for step in reversed(_steps(folder)):
        path = folder.absolute() / f"step_{step:09d}"
        if why := _broken(path):
            warnings.warn(f"checkpoint {path} is broken, falling back: {why}", stacklevel=2)
            continue
        leaves = {trees.path_name(p): x for p, x in jax.tree_util.tree_leaves_with_path(like)}
        abstract = {name: _abstract(x) for name, x in leaves.items()}
        _check_same(path, abstract)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a key's sharding, which we put back ourselves
            flat = ocp.load(path, abstract)
        restored = [_wrap(flat[name], x) for name, x in leaves.items()]
        return jax.tree.unflatten(jax.tree.structure(like), restored), step
    return None


def _abstract(x: Any) -> jax.ShapeDtypeStruct:
    if not _is_key(x):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
    return jax.eval_shape(jax.random.key_data, x)


def _wrap(x: jax.Array, like: Any) -> jax.Array:
    if not _is_key(like):
        return x
    key = jax.random.wrap_key_data(x, impl=jax.random.key_impl(like))
    return key if like.sharding is None else jax.device_put(key, like.sharding)


def _check_same(path: Path, wanted: dict[str, jax.ShapeDtypeStruct]) -> None:
    from orbax.checkpoint import v1 as ocp

    found = ocp.metadata(path).metadata
    for name in sorted(set(wanted) ^ set(found)):
        where = "lacks" if name in wanted else "has"
        raise ValueError(
            f"checkpoint {path} {where} {name}, so it is of another method or model; resume with "
            "the settings it was made with"
        )
    for name, x in wanted.items():
        if tuple(found[name].shape) != tuple(x.shape):
            raise ValueError(
                f"{name} in checkpoint {path} is {tuple(found[name].shape)}, but must be "
                f"{tuple(x.shape)}; resume with the settings it was made with"
            )
