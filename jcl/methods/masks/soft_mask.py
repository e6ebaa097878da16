"""Soft-masking: the more a unit mattered to earlier stages, the more slowly it learns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jcl import taps, trees
from jcl.losses import total_weight
from jcl.mechanisms.lasting import check_single
from jcl.method import Batch, Call, Ctx, Info, Method, Params, check

Importance = dict[str, jax.Array]
"""float32 [units] by the layer's path, [layers, units] if layers are stacked."""


class SoftMaskState(NamedTuple):
    """The state of `soft_mask`."""

    importance: Importance
    """I in [0, 1), the largest that any finished stage found."""


def gate_gradients(ctx: Ctx, params: Params, batches: Batch, units: Importance) -> Importance:
    """Mean over examples of |∂ℓ/∂g_j|, where g = 1 is a factor on the outputs of some layers.

    Args:
      ctx: its `loss` is differentiated.
      params: where the gradient is taken.
      batches: leaves [n, B, ...].
      units: names the layers, and is read for its shapes.
    """

    def add(total: Importance, batch: Batch) -> tuple[Importance, None]:
        rows = batch["weight"].shape[0]

        def gated(gates: Importance) -> jax.Array:
            def tap(site: str, layer: Any, h: jax.Array) -> jax.Array:
                path = site.removesuffix(":out")
                if path == site or path not in gates:
                    return h
                g = gates[path] if gates[path].ndim == 2 else gates[path][layer]
                # a loss may ask for several answers to a row, all rows one after another
                g = jnp.tile(g, (h.shape[0] // rows, 1))
                return h * g.reshape(len(g), *[1] * (h.ndim - 2), -1).astype(h.dtype)

            return ctx.loss(params, batch, Call(tap))[0]

        ones = {p: jnp.ones((*u.shape[:-1], rows, u.shape[-1])) for p, u in units.items()}
        # a row's slope is its own loss's times its share of the mass, which `mass` takes out again
        slopes = jax.grad(gated)(ones)
        mass = total_weight(batch)
        return {p: t + mass * jnp.sum(jnp.abs(slopes[p]), -2) for p, t in total.items()}, None

    summed, _ = lax.scan(add, trees.zeros(units), batches)
    mass = jnp.sum(jax.vmap(total_weight)(batches))
    return trees.scale(1 / jnp.where(mass == 0, 1.0, mass), summed)


def normalised(importance: jax.Array) -> jax.Array:
    """|tanh(z)|, with z the score standardised over the last axis, float32; 0 if all are equal."""
    spare = max(importance.shape[-1] - 1, 1)
    away = importance - jnp.mean(importance, axis=-1, keepdims=True)
    deviation = jnp.sqrt(jnp.sum(away**2, axis=-1, keepdims=True) / spare)
    return jnp.abs(jnp.tanh(away / jnp.where(deviation == 0, 1.0, deviation)))


def soft_mask(
    strength: float = 1.0,
    at: Literal["updates", "grads"] = "updates",
    masked: Callable[[str], bool] | None = None,
) -> Method:
    """Soft-masking: δ_j ← (1 - λ I_j) δ_j for weights into a dense layer's unit j, and its bias.

    δ is the update, or the gradient. After a stage, I = |tanh(z(E|∂L/∂g|))| with virtual gates
    g = 1 on a layer's outputs, the gradient taken per example and z standardised over the layer's
    units; the largest I of all stages is kept.

    Source: Ke et al., arXiv 2302.03241 (DAS), section 3, and 2301.08986 (DGA). The equations are
    the papers', in which |tanh| protects units far below the layer's mean as well as far above it;
    the authors' code sums signed gradients. Differences: gates on every dense output in place of
    whole attention heads; no proxy for general knowledge before the first stage (make the general
    data the first stage); and the mask is on the update, for Adam undoes any constant factor on a
    gradient. `at="grads"` is as published.

    Args:
      strength: λ in [0, 1]; may be traced. 0 is plain fine-tuning (to rounding on updates, where
        even a factor of 1 keeps XLA from fusing p + a·b), 1 is the papers'.
      at: whether to mask the applied update (`updates`) or the gradient (`grads`).
      masked: static predicate over paths of dense layers such as `blocks/up`; None masks all but
        the model's head (see `jcl.Structure`).

    Raises:
      ValueError: if an argument is out of range, or, at `init`, no layer is masked, or `masked` is
        None and the model doesn't say which layer is its head.
    """
    check((strength >= 0) & (strength <= 1), "strength", strength, "in [0, 1]")
    check(at in ("updates", "grads"), "at", at, "'updates' or 'grads'")

    def init(ctx: Ctx, params: Params) -> tuple[Params, SoftMaskState]:
        sites = taps.dense_sites(ctx.apply, params, ctx.batch)
        head = ctx.structure.head_of(trees.merge(params, ctx.frozen))
        told = masked is not None or head is not None
        check(told, "masked", None, "given, for the model doesn't say which layer is its head")
        chosen = [s for s in sites if (masked(s) if masked else s != head)]
        leaves = trees.by_path(params)
        kernels = {s: leaves[f"{s}/kernel"] for s in chosen if f"{s}/kernel" in leaves}
        check(bool(kernels), "masked", masked, f"true of a trainable layer among {list(sites)}")
        check_single("soft_mask", ctx, kernels)
        shapes = {
            s: taps.matrix_shape(s, k.shape, sites[s], ctx.structure) for s, k in kernels.items()
        }
        return params, SoftMaskState(
            {s: jnp.zeros((*shape[:-2], shape[-1])) for s, shape in shapes.items()}
        )

    def slowed(state: SoftMaskState, ctx: Ctx, tree: Params) -> Params:
        def one(path: tuple, x: jax.Array) -> jax.Array:
            layer, _, leaf = trees.path_name(path).rpartition("/")
            if layer not in state.importance or leaf not in ("kernel", "bias"):
                return x
            rate = 1 - strength * state.importance[layer]
            if leaf == "bias":
                return (x * rate.reshape(x.shape)).astype(x.dtype)
            matrix = x.reshape(*rate.shape[:-1], -1, rate.shape[-1])
            return (matrix * rate[..., None, :]).astype(x.dtype).reshape(x.shape)

        return jax.tree_util.tree_map_with_path(one, tree)

    def consolidate(
        state: SoftMaskState, ctx: Ctx, params: Params, batches: Batch
    ) -> tuple[Params, SoftMaskState]:
        new = gate_gradients(ctx, params, batches, state.importance)
        most = jax.tree.map(lambda i, n: jnp.maximum(i, normalised(n)), state.importance, new)
        return params, SoftMaskState(most)

    def report(state: SoftMaskState, info: Info) -> dict[str, jax.Array]:
        total = sum((jnp.sum(i) for i in state.importance.values()), jnp.float32(0))
        return {"importance": total / trees.size(state.importance)}

    method = Method(
        "soft_mask", init=init, consolidate=consolidate, report=report, reads=("gradients",)
    )
    return method._replace(grads=slowed) if at == "grads" else method._replace(updates=slowed)
