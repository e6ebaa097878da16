"""Kernels stored in int8, for a base that stays frozen."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jcl import trees
from jcl.mechanisms import adapters
from jcl.method import Params, check


def quantize(params: Params, targets: str = r"blocks/(?!router).*") -> Params:
    """The tree with kernels as `{"int8" [..., in, out], "scale" float32 [..., out]}`.

    W ≈ int8 · scale with scale = max|W| / 127 of each output, rounded to nearest, so that no entry
    is off by more than scale / 2. The model computes with W in its own dtype, one layer at a time.
    Such kernels can't learn: give `jcl.make` a `trainable` that leaves them out, such as
    `adapters.is_adapter`.

    Source: Dettmers et al., arXiv 2208.07339, section 2.1, absmax quantisation, of weights alone.

    Args:
      params: a model's parameters; each old kernel is freed once it is replaced, unless something
        else holds it.
      targets: regular expression for the whole paths of the layers whose kernels are stored so.

    Raises:
      ValueError: if `targets` matches no layer with a kernel.
    """
    there = adapters.paths_with(params, {"kernel"})
    found = [path for path in there if trees.match_path(targets)(path)]
    check(bool(found), "targets", targets, f"a regular expression that matches one of {there}")
    for path in found:
        kernel = adapters.subtree(params, path)["kernel"]
        if not isinstance(kernel, dict):
            params = adapters.with_subtree(params, path, {"kernel": _stored(kernel)})
    return params


@jax.jit
def _stored(kernel: jax.Array) -> dict[str, Any]:
    wide = kernel.astype(jnp.float32)
    scale = jnp.max(jnp.abs(wide), axis=-2) / 127
    steps = wide / jnp.where(scale > 0, scale, 1)[..., None, :]
    return {"int8": jnp.round(steps).astype(jnp.int8), "scale": scale}
