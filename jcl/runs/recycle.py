"""Reuses on an upgraded base model what was tuned on the old one.

θ₀ is the old base, θ₀→task the model tuned from it, θ₁ the new base. The change θ₀→task - θ₀ may be
applied to θ₁ without training, tuning may start there, or θ₀→task may be a teacher.
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jcl import trees
from jcl.chain import chain
from jcl.mechanisms import merging
from jcl.method import Method, Params, check
from jcl.methods import distil


def upgraded(
    base_old: Params, tuned_old: Params, base_new: Params, scale: float | jax.Array = 1.0
) -> Params:
    """θ₁ + λ (θ₀→task - θ₀), summed in float32, in θ₁'s dtypes: the old change on the new base.

    Leaves that the bases lack, such as a new task's head, are those of θ₀→task.

    Source: Qin et al., arXiv 2305.08702, section 3, and the authors' `direct_delta_finetune.py`.

    Args:
      base_old: θ₀.
      tuned_old: θ₀→task.
      base_new: θ₁, shaped like θ₀.
      scale: λ; may be traced.

    Raises:
      ValueError: if a leaf of θ₀ is missing in another tree, or has another shape there.
    """
    old, new = _leaves(base_old), _leaves(base_new)
    tuned = _leaves(tuned_old)
    for name, leaf in old.items():
        for who, tree in (("tuned_old", tuned), ("base_new", new)):
            shape = tree[name].shape if name in tree else None
            check(shape == leaf.shape, f"{who}'s {name}", shape, f"{leaf.shape}, as in base_old")

    def one(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        name = trees.path_name(path)
        if name not in old:
            return leaf
        change = merging.task_vector(leaf, old[name])
        return (new[name].astype(jnp.float32) + scale * change).astype(new[name].dtype)

    return jax.tree_util.tree_map_with_path(one, tuned_old)


def recycle(
    base_old: Params,
    tuned_old: Params,
    base_new: Params,
    how: Literal["none", "start", "distil", "both"],
    method: Method,
    strength: float = 0.5,
    temperature: float = 2.0,
) -> tuple[Params, Method]:
    """Where tuning the upgraded model starts, and the method that tunes it.

    `none` tunes θ₁ afresh; `start` begins with the old change applied (`upgraded`); `distil` also
    learns from θ₀→task's outputs; `both` does both.

    Source: Qin et al., arXiv 2305.08702, section 5.

    Args:
      base_old: θ₀.
      tuned_old: θ₀→task; every way starts with those of its leaves that θ₀ lacks, such as a head.
      base_new: θ₁.
      how: which of the four ways.
      method: the other methods of the tuning; `jcl.chain()` for none.
      strength: the distillation's strength; may be traced.
      temperature: the distillation's temperature; may be traced.

    Raises:
      ValueError: if `how` is unknown, or as `upgraded` and `methods.distil` do.
    """
    ways = ("none", "start", "distil", "both")
    check(how in ways, "how", how, f"one of {list(ways)}")
    applied = how in ("start", "both")
    start = upgraded(base_old, tuned_old, base_new, 1.0 if applied else 0.0)
    if how in ("distil", "both"):
        method = chain(method, distil(tuned_old, strength, temperature))
    return start, method


def _leaves(tree: Params) -> dict[str, jax.Array]:
    return {trees.path_name(p): x for p, x in jax.tree_util.tree_leaves_with_path(tree)}


def steps_to(curve: np.ndarray, score: float, higher_is_better: bool = True) -> int | None:
    """The first row of a curve [steps] that is as good as a score; None if none is.

    >>> steps_to(np.array([0.1, 0.5, 0.4, 0.8]), 0.5)
    1
    """
    good = curve >= score if higher_is_better else curve <= score
    return int(np.argmax(good)) if good.any() else None
