"""How much each parameter matters, from gradients of single examples; and quadratic anchors.

The square of a batch's mean gradient is not the Fisher, for its size depends on the batch size. So
gradients are taken per example. Where all parameters belong to dense layers that call their taps,
with inputs A [B, in] and output gradients D [B, out], Σ_b (a_b d_bᵀ)² = (A²)ᵀ(D²) gives their
squares at the price of one batch gradient; where a layer is at several places of a row, as a
convolution is, a row's gradient is Σ_p a_p d_pᵀ, and one after another is squared. A language
model's examples are its predictions, many to a row; signs drawn at random make the square of one
gradient a row, on average, the sum of theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax

from jcl import taps, trees
from jcl.losses import evaluate, mean_of, square
from jcl.method import Apply, Batch, Call, Ctx, Params, Tap, check
from jcl.parallel.rows import by_slices, replica_rows

Labels = Literal["empirical", "sampled", "exact"]
Per = Literal["token", "sequence", "row"]
Scalar = Callable[..., jax.Array]
"""`(params, batch, tap) -> float32 []`, a mean over examples weighted by `batch["weight"]`."""


_FACTOR = "fisher/factor"
"""A column of a batch, float32 [B, T]: the factor of each prediction's gradient."""


def check_fisher(labels: str, per: str) -> None:
    """Refuses what `fisher` doesn't know.

    Raises:
      ValueError: if `labels` is none of `Labels`, or `per` none of `Per`.
    """
    check(labels in get_args(Labels), "labels", labels, "'empirical', 'sampled' or 'exact'")
    check(per in get_args(Per), "per", per, "'token', 'sequence' or 'row'")


def _dense_paths(apply: Apply, params: Params, batch: Batch) -> list[str] | None:
    """Paths of the dense layers that hold all of `params`, or None if a leaf isn't theirs."""
    visits: dict[str, list[bool]] = {}
    rows = batch["weight"].shape[0]

    def note(site: str, layer: object, h: jax.Array) -> jax.Array:
        if site.endswith(":in"):
            # a layer that is traced sits inside a scan, which may call it several times
            plain = h.ndim > 1 and h.shape[0] == rows and isinstance(layer, int)
            visits.setdefault(site.removesuffix(":in"), []).append(plain)
        return h

    jax.eval_shape(lambda p, b: apply(p, b, Call(note)), params, batch)
    # the gradient of a layer that is used twice is a sum of products, where the formula fails
    paths = [path for path, plain in visits.items() if plain == [True]]
    held = {f"{path}/{leaf}" for path in paths for leaf in _LEAVES}
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return paths if all(trees.path_name(p) in held for p, _ in leaves) else None


_LEAVES = ("kernel", "bias")


def _dense(scalar: Scalar, paths: list[str], params: Params, batch: Batch, power: int) -> Params:
    """Σ_b weight_b |∂ℓ_b/∂θ|^power from inputs A [B, ..., in], output gradients D [B, ..., out]."""

    def run(slots: dict[str, dict[str, jax.Array]]) -> jax.Array:
        inputs = {}

        def tap(site: str, layer: object, h: jax.Array) -> jax.Array:
            path, _, end = site.rpartition(":")
            if path in slots and end == "in":
                inputs[path] = h
            if path not in slots or end != "out":
                return h
            return taps.probe(h + slots[path]["out"], slots[path]["in"], inputs[path])

        return scalar(params, batch, tap)

    shapes = taps.sites(lambda p, b, tap: scalar(p, b, tap), params, batch)
    blank = {p: {end: shapes[f"{p}:{end}"] for end in ("in", "out")} for p in paths}
    found = jax.grad(run)(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), blank))
    weight = batch["weight"].astype(jnp.float32)
    # the mean's slope at row b is the row's own times weight_b / Σ weight, which is divided out;
    # `exact` weighs rows by probabilities, so small that Σ weight / weight_b might overflow
    total = jnp.sum(weight)
    none = weight <= 1e-30 * total
    own = jnp.where(none, 0.0, total / jnp.where(none, 1.0, weight))
    sums = {}
    for path in paths:
        a, d = (found[path][end].astype(jnp.float32) for end in ("in", "out"))
        d = d * own.reshape(-1, *[1] * (d.ndim - 1))
        places = tuple(range(1, d.ndim - 1))
        sums[f"{path}/bias"] = weight @ jnp.abs(jnp.sum(d, axis=places)) ** power
        sums[f"{path}/kernel"] = _products(a, d, weight, power)
    return jax.tree_util.tree_map_with_path(
        lambda p, x: sums[trees.path_name(p)].reshape(x.shape), params
    )


def _products(a: jax.Array, d: jax.Array, weight: jax.Array, power: int) -> jax.Array:
    """Σ_b weight_b |Σ_p a_bp d_bpᵀ|^power of a [B, ..., in] and d [B, ..., out], over places p."""
    if a.ndim == 2:
        return (jnp.abs(a) ** power).T @ (weight[:, None] * jnp.abs(d) ** power)

    def add(total: jax.Array, row: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        a, d, weight = row
        slope = jnp.tensordot(a, d, (tuple(range(a.ndim - 1)),) * 2)
        return total + weight * jnp.abs(slope) ** power, None

    return lax.scan(add, jnp.zeros((a.shape[-1], d.shape[-1])), (a, d, weight))[0]


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
    paths = None
    if "mask" not in batches and _FACTOR not in batches:  # where a row's share is its weight's
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


@jax.custom_vjp
def _steer(outputs: Any, factor: jax.Array) -> Any:
    """`outputs` [B, L, ...], whose gradient at each position is multiplied by `factor` [B, L]."""
    return outputs


def _steer_forward(outputs: Any, factor: jax.Array) -> tuple[Any, jax.Array]:
    return outputs, factor


def _steer_backward(factor: jax.Array, slopes: Any) -> tuple[Any, jax.Array]:
    def scaled(g: jax.Array) -> jax.Array:
        return (g * factor.reshape(*factor.shape, *[1] * (g.ndim - 2))).astype(g.dtype)

    return jax.tree.map(scaled, slopes), jnp.zeros_like(factor)


_steer.defvjp(_steer_forward, _steer_backward)


def _counted(objective: Any, batches: Batch) -> jax.Array | None:
    """How much each prediction counts within its row, float32 [n, B, T]; None if a row is one."""
    if hasattr(objective, "predictions"):
        return jax.vmap(objective.predictions)(batches)
    return batches["mask"].astype(jnp.float32) if "mask" in batches else None


def _beginnings(counts: jax.Array, batches: Batch) -> jax.Array:
    """Whether a prediction is the first of its document that counts, from `counts`, bool each."""
    length = counts.shape[-1]
    segments = jnp.ones(counts.shape, jnp.int32)
    if "segments" in batches:  # of the tokens that are predicted
        segments = batches["segments"][..., -length:]
    last = lax.cummax(jnp.where(counts, segments, 0), axis=counts.ndim - 1)
    before = jnp.pad(last[..., :-1], [(0, 0)] * (counts.ndim - 1) + [(1, 0)])
    return counts & (segments > before)


def _examples(objective: Any, batches: Batch, per: Per, key: jax.Array) -> Batch:
    """The batches with the weights, and the column `_FACTOR`, that make examples of `per`.

    Let a row's loss be Σ m_t ℓ_t / N with N = Σ m_t, and s be signs drawn at random, independent
    for different examples. The factors s √(N / m) make its gradient Σ_t s_t √(m_t / N) g_t, whose
    square is Σ_t m_t g_t² / N on average; the factors s N / √D make it Σ_d s_d G_d / √D, D being
    how many documents it has and G_d = Σ_{t in d} m_t g_t. The row's weight is then times N or D.

    The k-th example of the data that counts has the k-th sign, so no padding changes any.
    """
    mask = _counted(objective, batches)
    if mask is None:
        return batches
    weight = batches["weight"].astype(jnp.float32)
    total = jnp.sum(mask, axis=-1)
    if per == "row":
        return {**batches, "weight": jnp.where(total > 0, weight, 0.0)}
    counts = (mask > 0) & (weight > 0)[..., None]
    first = counts if per == "token" else _beginnings(counts, batches)
    place = jnp.cumsum(first.reshape(-1)).astype(jnp.int32) - 1
    drawn = jax.vmap(lambda i: jax.random.rademacher(jax.random.fold_in(key, i), (), jnp.float32))
    signs = jnp.where(counts, drawn(place).reshape(mask.shape), 0.0)
    if per == "token":
        share = total
        factor = signs * jnp.sqrt(total[..., None] / jnp.where(counts, mask, 1.0))
    else:
        share = jnp.sum(first, axis=-1).astype(jnp.float32)
        factor = signs * (total / jnp.sqrt(jnp.where(share == 0, 1.0, share)))[..., None]
    return {**batches, "weight": weight * share, _FACTOR: factor}


def _steered_loss(ctx: Ctx, params: Params, batch: Batch, tap: Tap) -> jax.Array:
    """The task's loss, float32 [], with the gradients of its predictions times `_FACTOR`."""
    rows = {k: v for k, v in batch.items() if k != _FACTOR}
    if _FACTOR not in batch:
        return ctx.loss(params, rows, Call(tap))[0]

    def apply(p: Params, b: Batch) -> Any:
        # of token scores alone: pieces of all logits, which nothing reads, have no place to steer
        outputs = ctx.apply(p, {k: v for k, v in b.items() if k != "logits"}, Call(tap))
        factor, (count, length) = batch[_FACTOR], rows["tokens"].shape
        for leaf in jax.tree.leaves(outputs):
            if leaf.shape[:2] != (count, length):
                raise ValueError(
                    f"the model's outputs are {leaf.shape}, but must be [{count}, {length}, ...], "
                    "one for each token, for a Fisher per token or sequence; per='row' takes any"
                )
        return _steer(outputs, jnp.pad(factor, ((0, 0), (0, length - factor.shape[1]))))

    return evaluate(ctx.objective, apply, params, rows, ctx.stage)[0]


def fisher(
    ctx: Ctx,
    params: Params,
    batches: Batch,
    labels: Labels = "empirical",
    per: Per = "token",
) -> Params:
    """Diagonal Fisher: the mean over examples of the squared gradient of an example's -log p.

    Where a row is one prediction, such as an image's class, it is the example. A language model's
    row holds many, and `per` says what its examples are:

    - `token`: each counted token, F = Σ_t m_t g_t² / Σ_t m_t, with g_t the gradient of
      -log p(token | those before). This is the Fisher of the mean over tokens that a language model
      is trained on: so λ means the same for any length of rows and documents and any packing, and
      the same as in classification.
    - `sequence`: each document, the mean of (Σ_{t in d} m_t g_t)², the -log p of a whole document.
    - `row`: the mean over rows of (Σ_t m_t g_t / Σ_t m_t)², the square of a row's mean gradient.

    Given the tokens before it, g_t has mean 0 under the model's own distribution, so that products
    of different tokens' gradients vanish on average: then `sequence` is `token` times how many
    tokens of a document count, and `row` is `token` divided by how many of a row do. With the
    data's labels they differ by more, as gradients of one document are correlated. EWC's paper has
    the Fisher of p(y | x), one label a row. Code for language models mostly squares a row's mean
    gradient, or that of a whole batch (TRACE: BeyonderXX/TRACE, `model/Regular/EWC.py`), so that
    its λ is larger by how many tokens are averaged.

    Σ_t g_t² would cost a gradient a token. Instead one gradient a row is taken, of Σ_t s_t ℓ_t with
    signs s_t drawn at random: E (Σ_t s_t g_t)² = Σ_t g_t², Hutchinson's estimator. It costs what
    `row` does; its error relative to F_i is at most √(2 / rows), as much as the choice of rows
    makes too. For `sequence` there is a sign a document, and no error where a row holds one.

    Source: Kunstner et al., arXiv 1905.12558, equations 2 (exact) and 4 (empirical); Kirkpatrick et
    al., arXiv 1612.00796, section 2; van de Ven, arXiv 2502.11756 (ICLR blog posts, 2025), which
    compares `exact`, `sampled`, `empirical` and the square of a batch's mean gradient.

    Args:
      ctx: its `loss` is differentiated; its `objective` gives `sampled` and `exact` their labels,
        and says by `predictions(batch)`, float32 [B, T], how much each of a row's predictions
        counts, as `next_token` does. Without that they are those of `mask`, and a row that has none
        is one example, whatever `per`. Its `key` draws the signs.
      params: where the gradient is taken.
      batches: leaves [n, B, ...]; rows of weight 0 don't count, nor do rows in which no token does.
      labels: the data's own (`empirical`, any loss), one drawn from the model (`sampled`), or all,
        weighted by the model (`exact`, as many gradients as classes).
      per: what an example is in a language model, `token`, `sequence` or `row`.

    Returns:
      float32, shaped like `params`.

    Raises:
      ValueError: if the loss exposes no predictive distribution and `labels` needs one, or the
        model's outputs aren't one for each token and `per` needs them.
    """
    batches = _examples(ctx.objective, batches, per, ctx.key)

    def scalar(p: Params, batch: Batch, tap: Tap = taps.identity) -> jax.Array:
        return _steered_loss(ctx, p, batch, tap)

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
        outputs = ctx.loss(p, batch, Call(tap))[1].outputs
        return mean_of(square(outputs), outputs)

    if "mask" in batches:  # rows in which no token counts are no examples
        there = jnp.sum(batches["mask"], axis=-1) > 0
        batches = {**batches, "weight": jnp.where(there, batches["weight"], 0.0)}
    return per_example(scalar, ctx, params, batches, 1)
