"""MIGU: only those units of a dense layer learn whose outputs are large."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp

from jcl import taps, trees
from jcl.mechanisms import merging
from jcl.method import Batch, Ctx, Info, Method, Params, check


def _kernels(params: Params) -> dict[str, jax.Array]:
    """The trainable kernels by the path of their layer."""
    leaves = {trees.path_name(p): x for p, x in jax.tree_util.tree_leaves_with_path(params)}
    return {k.removesuffix("/kernel"): x for k, x in leaves.items() if k.endswith("/kernel")}


def magnitudes(ctx: Ctx, batch: Batch, per_token: bool = False) -> dict[str, jax.Array]:
    """Σ |h| over rows and tokens at the output of every dense layer, weighted by `batch["weight"]`.

    Args:
      ctx: its `apply` is run at its `params`.
      batch: rows [B, ...].
      per_token: whether each token's |h| is first divided by its sum over the units.

    Returns:
      float32 [units] by the layer's path, [layers, units] if layers are stacked.
    """
    kernels = _kernels(ctx.params)
    slots = {p: jnp.zeros((*k.shape[:-2], k.shape[-1])) for p, k in kernels.items()}

    def run(slots: dict[str, jax.Array]) -> jax.Array:
        def tap(site: str, layer: Any, h: jax.Array) -> jax.Array:
            path = site.removesuffix(":out")
            if path == site or path not in slots:
                return h
            size = jnp.abs(h.astype(jnp.float32))
            if per_token:
                total = jnp.sum(size, axis=-1, keepdims=True)
                size = size / jnp.where(total == 0, 1.0, total)
            size = size * batch["weight"].reshape(-1, *[1] * (h.ndim - 1))
            slot = slots[path] if slots[path].ndim == 1 else slots[path][layer]
            return taps.probe(h, slot, jnp.sum(size, axis=tuple(range(h.ndim - 1))))

        outputs = ctx.apply(ctx.params, batch, tap)
        parts = [jnp.sum(o.astype(jnp.float32)) for o in jax.tree.leaves(outputs)]
        return sum(parts, jnp.float32(0))

    return jax.grad(run)(slots)


def migu(
    fraction: float = 0.3, per_token: bool = False, at: Literal["grads", "updates"] = "grads"
) -> Method:
    """Magnitude-based gradient update: a kernel's column j learns only if its unit j is loud.

    The loud units of a layer are the `fraction` with the largest Σ |h_j| over the rows and tokens
    of the step's fresh batch. In the first stage all units learn; biases, embeddings and norms
    always do. The statistic takes a forward pass of its own, which XLA merges with the loss's if
    both see the same rows.

    Source: Du et al., arXiv 2406.17245, and the authors' code, whose threshold T is the share that
    is frozen, 0.7. Its mask is before Adam, so frozen columns go on drifting by their momentum;
    `at="updates"` holds them. Padding rows don't count here; ties are split.

    Args:
      fraction: the share of units that learn, in (0, 1]; may be traced. 1 is plain fine-tuning.
      per_token: True normalises each token's |h| to sum 1, as in the paper; False doesn't, as in
        the authors' code.
      at: whether to mask the gradient (`grads`, as published) or the applied update (`updates`).

    Raises:
      ValueError: if an argument is out of range, or, at `init`, the model has no dense layers.
    """
    check((fraction > 0) & (fraction <= 1), "fraction", fraction, "in (0, 1]")
    check(at in ("grads", "updates"), "at", at, "'grads' or 'updates'")

    def init(ctx: Ctx, params: Params) -> tuple[Params, tuple[()]]:
        taps.dense_sites(ctx.apply, params, ctx.batch)  # for its error
        return params, ()

    def masked(state: tuple[()], ctx: Ctx, tree: Params) -> Params:
        loud = magnitudes(ctx, ctx.batch, per_token)

        def choose(size: jax.Array) -> jax.Array:
            kept = merging.largest(size, jnp.maximum(merging.count_of(fraction, size.size), 1))
            return kept | (ctx.stage < 1)

        def cut(path: tuple, x: jax.Array) -> jax.Array:
            layer = trees.path_name(path).removesuffix("/kernel")
            if layer not in loud:
                return x
            size = loud[layer]
            kept = jax.vmap(choose)(size) if size.ndim == 2 else choose(size)
            return jnp.where(kept[..., None, :], x, 0)

        return jax.tree_util.tree_map_with_path(cut, tree)

    def report(state: tuple[()], info: Info) -> dict[str, jax.Array]:
        seen = list(_kernels(getattr(info, at)).values())
        moved = sum((jnp.sum(g != 0, dtype=jnp.float32) for g in seen), jnp.float32(0))
        return {"moved": moved / max(sum(g.size for g in seen), 1)}

    if at == "grads":
        return Method("migu", init=init, grads=masked, report=report)
    return Method("migu", init=init, updates=masked, report=report)
