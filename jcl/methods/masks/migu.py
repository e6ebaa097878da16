"""MIGU: only those units of a dense layer learn whose outputs are large."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jcl import taps, trees
from jcl.mechanisms import adapters, merging
from jcl.mechanisms.lasting import check_single
from jcl.method import Batch, Ctx, Info, Method, Params, check

_LEAVES = ("kernel", "lora/a", "lora/b")


def _masked(params: Params, paths: Iterable[str]) -> dict[str, jax.Array]:
    """The learning kernels and low-rank factors of some dense layers, by their own paths."""
    leaves = trees.by_path(params)
    names = [f"{path}/{leaf}" for path in paths for leaf in _LEAVES]
    return {name: leaves[name] for name in names if name in leaves}


def magnitudes(ctx: Ctx, batch: Batch, per_token: bool = False) -> dict[str, jax.Array]:
    """Σ |h| over rows and tokens at the outputs of learning kernels and low-rank factors.

    Those of a pair are x A and x A B, for the layer's inputs x. Padding doesn't count: see
    `taps.moments`.

    Args:
      ctx: its `apply` is run at its `params`.
      batch: rows [B, ...].
      per_token: whether each token's |h| is first divided by its sum over the units.

    Returns:
      float32 [units] by the leaf's path, [layers, units] if layers are stacked.
    """
    whole = trees.merge(ctx.params, ctx.frozen)

    def loudness(h: jax.Array, weight: jax.Array) -> jax.Array:
        if per_token:
            total = jnp.sum(jnp.abs(h), axis=-1, keepdims=True)
            h = h / jnp.where(total == 0, 1.0, total)
        return taps.magnitude(h, weight)

    def of_kernel(h: jax.Array, weight: jax.Array, layer: Any) -> dict[str, jax.Array]:
        return {"kernel": loudness(h, weight)}

    def of_pair(
        at: Params, stacked: bool, h: jax.Array, weight: jax.Array, layer: Any
    ) -> dict[str, jax.Array]:
        pair = {k: at[k] for k in ("lora", "input_gain") if k in at}
        pair = jax.tree.map(lambda x: x[layer], pair) if stacked else pair
        inner, outer = adapters.pair_outputs(pair["lora"], h * pair.get("input_gain", 1.0))
        return {"lora/a": loudness(inner, weight), "lora/b": loudness(outer, weight)}

    wanted: dict[str, tuple[int | None, taps.Moment]] = {}
    widths = taps.dense_sites(ctx.apply, ctx.params, batch)
    found = _masked(ctx.params, widths)
    for name, leaf in found.items():
        path = name.removesuffix("/kernel").partition("/lora/")[0]
        width = widths[path] if name.endswith("/kernel") else taps.Width(*leaf.shape[-2:])
        shape = taps.matrix_shape(path, leaf.shape, width, ctx.structure)
        layers = shape[0] if len(shape) == 3 else None
        if name.endswith("/kernel"):
            wanted[f"{path}:out"] = layers, of_kernel
        else:
            at = adapters.subtree(whole, path)
            wanted[f"{path}:in"] = layers, partial(of_pair, at, layers is not None)
    sums = taps.moments(ctx.apply, ctx.params, batch, wanted)
    every = {f"{s.rpartition(':')[0]}/{leaf}": x for s, d in sums.items() for leaf, x in d.items()}
    return {name: every[name] for name in found}


def migu(
    fraction: float = 0.3, per_token: bool = False, at: Literal["grads", "updates"] = "grads"
) -> Method:
    """Magnitude-based gradient update: a kernel's column j learns only if its unit j is loud.

    The loud units of a layer are the `fraction` with the largest Σ |h_j| over the rows and tokens
    of the step's fresh batch. A low-rank pair is two kernels, A with units x A and B with units
    x A B; of a bank the pair that learns. In the first stage all units learn; biases, embeddings
    and norms always do, and so does what calls no taps, such as a decoder's head or experts. The
    statistic takes a forward pass of its own, which XLA merges with the loss's if both see the same
    rows.

    Source: Du et al., arXiv 2406.17245, and the authors' code, whose threshold T is the share that
    is frozen, 0.7: of n units those learn that reach `torch.quantile` of T, which are
    1 + ⌊(1 - T) (n - 1)⌋ as here. Its mask is before Adam, so frozen columns go on drifting by
    their momentum; `at="updates"` holds them. Padding doesn't count here, whether rows or tokens;
    ties are split; and the authors mask a head too.

    Args:
      fraction: the share of units that learn, in (0, 1]; may be traced. 1 is plain fine-tuning.
      per_token: True normalises each token's |h| to sum 1, as in the paper; False doesn't, as in
        the authors' code.
      at: whether to mask the gradient (`grads`, as published) or the applied update (`updates`).

    Raises:
      ValueError: if an argument is out of range, or, at `init`, the model has no dense layers, or
        none of which a kernel or a pair learns.
    """
    check((fraction > 0) & (fraction <= 1), "fraction", fraction, "in (0, 1]")
    check(at in ("grads", "updates"), "at", at, "'grads' or 'updates'")

    def init(ctx: Ctx, params: Params) -> tuple[Params, tuple[()]]:
        paths = list(taps.dense_sites(ctx.apply, params, ctx.batch))
        there = bool(_masked(params, paths))
        learning = list(trees.by_path(params))
        check(there, "learning parameters", learning, f"with a kernel or a pair of one of {paths}")
        check_single("migu", ctx, paths)
        return params, ()

    def count(units: jax.Array | int) -> jax.Array:
        return 1 + merging.whole_count(fraction, units - 1)

    def masked(state: tuple[()], ctx: Ctx, tree: Params) -> Params:
        loud = magnitudes(ctx, ctx.batch, per_token)
        kept = merging.mark_largest(loud, count, ctx.structure)

        def cut(path: tuple, x: jax.Array) -> jax.Array:
            name = trees.path_name(path)
            if name not in kept:
                return x
            units = kept[name]
            matrix = x.reshape(*units.shape[:-1], -1, units.shape[-1])
            return jnp.where(units[..., None, :] | (ctx.stage < 1), matrix, 0).reshape(x.shape)

        return jax.tree_util.tree_map_with_path(cut, tree)

    def report(state: tuple[()], info: Info) -> dict[str, jax.Array]:
        leaves = trees.by_path(getattr(info, at)).items()
        seen = [x for path, x in leaves if path.endswith(tuple(f"/{leaf}" for leaf in _LEAVES))]
        moved = sum((jnp.sum(g != 0, dtype=jnp.float32) for g in seen), jnp.float32(0))
        return {"moved": moved / max(sum(g.size for g in seen), 1)}

    if at == "grads":
        return Method("migu", init=init, grads=masked, report=report, starts=1)
    return Method("migu", init=init, updates=masked, report=report, starts=1)
