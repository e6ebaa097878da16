"""Second moments of a layer's inputs over much text, which closed-form editors preserve."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from jcl import taps
from jcl.method import Apply, Batch, Params, check


def second_moment(
    apply: Apply,
    params: Params,
    batches: Batch,
    layers: Sequence[int],
    path: str = "blocks/down",
) -> jax.Array:
    """C = E[k kᵀ], uncentred, of the inputs k of a dense layer, float32 [L, in, in].

    The mean is over the tokens of rows with `weight` above 0, without padding, where `segments` is
    0. It is one scan, to be called inside `jax.jit`.

    Source: Meng et al., arXiv 2202.05262, section 3.1, and the authors' code
    (kmeng01/rome: `layer_stats.py`), where it is over 100,000 pages of Wikipedia.

    Args:
      apply: the model.
      params: its parameters.
      batches: `tokens` int32 [n, B, T], maybe with `segments` [n, B, T] and `weight` [n, B].
      layers: L indices into the stacked layers.
      path: the dense layer's path.

    Raises:
      ValueError: if the model has no such layer.
    """
    site = f"{path}:in"
    shapes = taps.sites(apply, params, jax.tree.map(lambda x: x[0], batches))
    known = [s.removesuffix(":in") for s in shapes if s.endswith(":in")]
    check(site in shapes, "path", path, f"one of {known}")
    width = shapes[site].shape[-1]

    def add(carry: tuple[jax.Array, jax.Array], batch: Batch) -> tuple[tuple, None]:
        total, count = carry
        found, _ = taps.read(apply, params, batch, {site: (list(layers), lambda h: h)})
        real = batch.get("segments", jnp.ones_like(batch["tokens"])) > 0
        if "weight" in batch:
            real = real & (batch["weight"] > 0)[:, None]
        flat = jnp.where(real[..., None], found[site], 0.0).reshape(len(layers), -1, width)
        gram = jnp.einsum("lti,ltj->lij", flat, flat, precision=lax.Precision.HIGHEST)
        return (total + gram, count + jnp.sum(real)), None

    start = (jnp.zeros((len(layers), width, width)), jnp.int32(0))
    (total, count), _ = lax.scan(add, start, batches)
    return total / jnp.maximum(count, 1)
