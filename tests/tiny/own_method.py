"""A user's own file, and a package that brings a method, as the tests of both write them."""

from __future__ import annotations

from pathlib import Path

MINE = '''"""My own methods."""

import jax
import jax.numpy as jnp

import jcl
from jcl.method import check


def pull(strength: float = 1.0) -> jcl.Method:
    """½ λ ‖θ - θ*‖², θ* the parameters at the last boundary."""
    check(strength >= 0, "strength", strength, "at least 0")

    def grads(anchor, ctx, grads):
        active = jnp.where(ctx.stage > 0, strength, 0.0)
        return jax.tree.map(lambda g, p, a: g + active * (p - a), grads, ctx.params, anchor)

    return jcl.Method(
        "pull",
        init=lambda ctx, params: (params, jcl.trees.copy(params)),
        grads=grads,
        consolidate=lambda anchor, ctx, params, batches: (params, params),
        reads=("parameters",),
    )


def bare(strength=0.5, **more):
    return pull(strength)


def needs(strength: float, count: int):
    return pull(strength * count)


def number():
    return 3


def fails():
    raise RuntimeError("oh no")


def branches(strength: float = 1.0) -> jcl.Method:
    return pull(strength) if strength > 0.5 else jcl.methods.naive()


ready = pull()
'''


def write_mine(folder: Path, text: str = MINE) -> Path:
    """The file, written into a folder."""
    path = folder / "mine.py"
    path.write_text(text)
    return path


def install(folder: Path, package: str, entries: str, text: str = MINE) -> None:
    """A package of one module, laid out as an installer leaves it; `entries` are `name = place`."""
    (folder / f"{package}.py").write_text(text)
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[jcl.methods]\n{entries}\n")
