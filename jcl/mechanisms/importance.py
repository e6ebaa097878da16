"""How much each parameter matters, from gradients of single examples; and quadratic anchors.

The square of a batch's mean gradient is not the Fisher, for its size depends on the batch size. So
gradients are taken per example. Where all parameters belong to dense layers that call their taps,
with inputs A [B, in] and output gradients D [B, out], Σ_b (a_b d_bᵀ)² = (A²)ᵀ(D²) gives their
squares at the price of one batch gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from jcl import taps, trees
from jcl.losses import mean_of, square
from jcl.method import Apply, Batch, Ctx, Params, Tap
from jcl.parallel.rows import by_slices, replica_rows

Labels = Literal["empirical", "sampled", "exact"]
Scalar = Callable[..., jax.Array]
"""`(params, batch, tap) -> float32 []`, a mean over examples weighted by `batch["weight"]`."""


def check_labels(labels: str) -> None:
    """Refuses labels that `fisher` doesn't know.

    Raises:
      ValueError: if `labels` is none of `empirical`, `sampled`, `exact`.
    """
    if labels not in ("empirical", "sampled", "exact"):
        raise ValueError(f"labels is {labels!r}, but must be 'empirical', 'sampled' or 'exact'")


def _dense_paths(apply: Apply, params: Params, batch: Batch) -> list[str] | None:
    """Paths of the dense layers that hold all of `params`, or None if a leaf isn't theirs."""
    visits: dict[str, list[bool]] = {}

    def note(site: str, layer: object, h: jax.Array) -> jax.Array:
        if site.endswith(":in"):
            plain = h.ndim == 2 and isinstance(layer, int)  # a traced layer sits inside a scan
            visits.setdefault(site.removesuffix(":in"), []).append(plain)
        return h

    jax.eval_shape(lambda p, b: apply(p, b, note), params, batch)
    # the gradient of a layer that is used twice is a sum of products, where the formula fails
    paths = [path for path, plain in visits.items() if plain == [True]]
    held = {f"{path}/{leaf}" for path in paths for leaf in _LEAVES}
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return paths if all(trees.path_name(p) in held for p, _ in leaves) else None


_LEAVES = ("kernel", "bias")


def _dense(scalar: Scalar, paths: list[str], params: Params, batch: Batch, power: int) -> Params:
    """Σ_b weight_b |∂ℓ_b/∂θ|^power from layer inputs A [B, in] and output gradients D [B, out]."""

    def run(nudges: dict[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
        inputs = {}

        def tap(site: str, layer: object, h: jax.Array) -> jax.Array:
            path, _, end = site.rpartition(":")
            if path in nudges and end == "in":
                inputs[path] = h
            return h + nudges[path] if path in nudges and end == "out" else h

        return scalar(params, batch, tap), inputs

    outs = taps.sites(lambda p, b, tap: scalar(p, b, tap), params, batch)
    nudges = {p: jnp.zeros(outs[f"{p}:out"].shape, outs[f"{p}:out"].dtype) for p in paths}
    slopes, inputs = jax.grad(run, has_aux=True)(nudges)
    weight = batch["weight"].astype(jnp.float32)[:, None]
    # the mean's slope at row b is the row's own times weight_b / Σ weight, which is divided out;
    # `exact` weighs rows by probabilities, so small that Σ weight / weight_b might overflow
    total = jnp.sum(weight)
    none = weight <= 1e-30 * total
    own = jnp.where(none, 0.0, total / jnp.where(none, 1.0, weight))
    found = {}
    for path in paths:
        d = weight * jnp.abs(slopes[path].astype(jnp.float32) * own) ** power
        a = jnp.abs(inputs[path].astype(jnp.float32)) ** power
        found[f"{path}/kernel"] = a.T @ d
        found[f"{path}/bias"] = jnp.sum(d, axis=0)
    return jax.tree_util.tree_map_with_path(
        lambda p, x: found[trees.path_name(p)].reshape(x.shape), params
    )


def _rows(scalar: Scalar, params: Params, batch: Batch, power: int) -> Params:
    """Σ_b weight_b |∂ℓ_b/∂θ|^power of any model: a scan over rows, which holds one gradient."""
    slope = jax.grad(lambda p, row: scalar(p, row, taps.identity))

    def add(total: Params, row: Batch) -> tuple[Params, None]:
        grads = slope(params, jax.tree.map(lambda x: x[None], row))
        grown = jax.tree.map(
            lambda t, g: t + row["weight"] * jnp.abs(g.astype(jnp.float32)) ** power, total, grads
        )
        return grown, None

    return lax.scan(add, trees.zeros(params), batch)[0]


def per_example(
    scalar: Scalar, ctx: Ctx, params: Params, batches: Batch, power: int, mass: bool = True
) -> Params:
    """Mean over examples of |∂ℓ/∂θ|^power, float32, shaped like `params`.

    Replicas, and the slices of a mesh along `data`, divide the examples among them.

    Args:
      scalar: gives the weighted mean of ℓ over a batch.
      ctx: its `apply` is run once by shapes alone, to find the model's dense layers.
      params: where the gradient is taken.
      batches: leaves [n, B, ...].
      power: 2 for a Fisher, 1 for MAS.
      mass: whether to divide by Σ weight; False gives the weighted sum.
    """
    if ctx.mesh is not None and ctx.mesh.shape["data"] > 1:
        slice_ = ctx._replace(axis_name="data", mesh=None)
        return by_slices(lambda p, b: per_example(scalar, slice_, p, b, power, mass), ctx.mesh)(
            params, batches
        )
    paths = _dense_paths(ctx.apply, params, jax.tree.map(lambda x: x[0], batches))
    name, own = ctx.axis_name, batches
    if name is not None:
        own = jax.tree.map(lambda x: x[:, 0], jax.vmap(lambda b: replica_rows(b, name))(batches))

    def add(total: Params, batch: Batch) -> tuple[Params, None]:
        if paths:
            part = _dense(scalar, paths, params, batch, power)
        else:
            part = _rows(scalar, params, batch, power)
        return trees.add(total, part), None

    total, _ = lax.scan(add, trees.zeros(params), own)
    total = total if name is None else lax.psum(total, name)
    return trees.scale(_per_weight(batches), total) if mass else total


def _per_weight(batches: Batch) -> jax.Array:
    """1 / Σ weight, float32 []; 1 where there is none."""
    weight = jnp.sum(batches["weight"].astype(jnp.float32))
    return 1 / jnp.where(weight == 0, 1.0, weight)


def fisher(ctx: Ctx, params: Params, batches: Batch, labels: Labels = "empirical") -> Params:
    """Diagonal Fisher: the mean over examples of the squared per-example gradient of -log p.

    Source: Kunstner et al., arXiv 1905.12558, equations 2 (exact) and 4 (empirical).

    Args:
      ctx: its `loss` is differentiated; its `objective` gives `sampled` and `exact` their labels.
      params: where the gradient is taken.
      batches: leaves [n, B, ...]; rows of weight 0 don't count.
      labels: the data's own (`empirical`, any loss), one drawn from the model (`sampled`), or all,
        weighted by the model (`exact`, as many gradients as classes).

    Returns:
      float32, shaped like `params`.

    Raises:
      ValueError: if the loss exposes no predictive distribution and `labels` needs one.
    """

    def scalar(p: Params, batch: Batch, tap: Tap = taps.identity) -> jax.Array:
        return ctx.loss(p, batch, tap)[0]

    if labels == "empirical":
        return per_example(scalar, ctx, params, batches, 2)
    if not hasattr(ctx.objective, "log_probs"):
        raise ValueError(
            f"labels is {labels!r}, but the loss exposes no log_probs, so it must be 'empirical'"
        )
    objective: Any = ctx.objective  # which has `relabel` too
    stage = ctx.stage

    def log_probs(batch: Batch) -> jax.Array:
        batch = {**batch, "stage": jnp.full_like(batch["task"], stage)}
        return objective.log_probs(ctx.apply(params, batch), batch)

    if labels == "sampled":
        keys = jax.random.split(ctx.key, jax.tree.leaves(batches)[0].shape[0])

        def draw(xs: tuple[jax.Array, Batch]) -> Batch:
            key, batch = xs
            return objective.relabel(batch, jax.random.categorical(key, log_probs(batch)))

        drawn = lax.map(draw, (keys, batches))
        return per_example(scalar, ctx, params, drawn, 2)

    chances = lax.map(lambda batch: jnp.exp(log_probs(batch)), batches)  # [n, B, C]

    def one(total: Params, label: jax.Array) -> tuple[Params, None]:
        relabelled = jax.vmap(
            lambda b: objective.relabel(b, jnp.full(b["weight"].shape, label, jnp.int32))
        )(batches)
        relabelled["weight"] = batches["weight"] * chances[..., label]
        part = per_example(scalar, ctx, params, relabelled, 2, False)
        return trees.add(total, part), None

    total, _ = lax.scan(one, trees.zeros(params), jnp.arange(chances.shape[-1]))
    return trees.scale(_per_weight(batches), total)


def sensitivity(ctx: Ctx, params: Params, batches: Batch) -> Params:
    """MAS: the mean over examples of |∂‖f(x)‖²/∂θ|, float32, shaped like `params`.

    f(x) are the model's outputs for an example of `batches` [n, B, ...]: of the tokens that the
    loss counts, and of the classes that it allows. Labels play no part.

    Source: Aljundi et al., arXiv 1711.09601, equations 2 and 3.
    """

    def scalar(p: Params, batch: Batch, tap: Tap = taps.identity) -> jax.Array:
        outputs = ctx.loss(p, batch, tap)[1]
        return mean_of(square(outputs), outputs)

    return per_example(scalar, ctx, params, batches, 1)


def quadratic_pull(
    grads: Params,
    strength: float | jax.Array,
    curvature: Params,
    anchored: Params,
    params: Params,
) -> Params:
    """grads + λ (ΣΩ θ - ΣΩθ*): adds the gradient of ½ λ Σ_i Ω_i (θ_i - θ*_i)², summed over anchors.

    The quadratics of several anchors add up to a single one, so that only ΣΩ and ΣΩθ* are kept.

    Args:
      grads: the gradient to add to; the result has its dtypes.
      strength: λ.
      curvature: ΣΩ, float32.
      anchored: ΣΩθ*, float32.
      params: θ.
    """

    def pull(g: jax.Array, c: jax.Array, a: jax.Array, p: jax.Array) -> jax.Array:
        return (g + strength * (c * p.astype(jnp.float32) - a)).astype(g.dtype)

    return jax.tree.map(pull, grads, curvature, anchored, params)
