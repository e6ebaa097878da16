"""Adapters as leaves of a parameter tree: low-rank pairs, banks of pairs, and merging.

These words are all that methods and models share of adapters; a model reads what it finds. In a
dense layer's dict stand, beside `kernel` [..., in, out], those that `jcl.models.dense` applies:
`lora`, a pair `{"a" [..., in, r], "b" [..., r, out]}`, with `magnitude` [..., out] for DoRA or
`router` [..., in, experts] for a mixture; `gain` [..., out]; `input_gain` [..., in]. In a block's
dict stand `prefix`, `{"key", "value"}` [..., P, width of all heads], keys and values that all
queries see (`models.attention.with_prefix`), and `attention_adapter` and `mlp_adapter`, `{"down",
"up"}` of dense layers through which a sublayer's output goes (`models.layers.after_sublayer`). In
the tree's own dict stands `prompt`, `{"table"}` [P, d], which a method's `forward` hands to the
model as the batch's `embeddings`. Leading axes are stacked layers.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.interpreters import partial_eval

from jcl import taps, trees
from jcl.method import Apply, Batch, Call, Ctx, Params, check

FOLDED = frozenset({"lora", "gain", "input_gain"})
"""Adapters that `merge` can fold into a kernel."""
NAMES = FOLDED | {"attention_adapter", "mlp_adapter", "prefix", "prompt"}
"""Keys under which adapters stand in a parameter tree."""


def is_adapter(path: str) -> bool:
    """Whether a leaf is an adapter's, which is what learns where a method adds any."""
    return not NAMES.isdisjoint(path.split("/"))


def is_pair(path: str) -> bool:
    """Whether a leaf is of a low-rank pair."""
    return "lora" in path.split("/")


def subtree(tree: Params, path: str) -> Params:
    """The part of a tree at a path such as `blocks/query`."""
    for key in path.split("/"):
        tree = tree[key]
    return tree


def with_subtree(tree: Params, path: str, new: Params) -> Params:
    """The tree with the keys of `new` added to the dict at `path`, which may not exist yet."""
    key, _, rest = path.partition("/")
    inner = tree.get(key, {})
    return {**tree, key: with_subtree(inner, rest, new) if rest else {**inner, **new}}


def without_adapters(params: Params) -> Params:
    """The tree without its adapters."""
    if not isinstance(params, dict):
        return params
    return {k: without_adapters(v) for k, v in params.items() if k not in NAMES}


def paths_with(tree: Params, keys: Set[str] = frozenset({"lora"}), at: str = "") -> list[str]:
    """Paths of the dicts that hold one of `keys`."""
    if not isinstance(tree, dict):
        return []
    if not keys.isdisjoint(tree):
        return [at]
    return [p for k, v in tree.items() for p in paths_with(v, keys, f"{at}/{k}" if at else k)]


def kernel_array(kernel: Any, dtype: Any) -> jax.Array:
    """A kernel [..., in, out] in the dtype to compute in.

    It may be stored as an array, or as `{"int8", "scale"}`, which stands for `int8` [..., in, out]
    times `scale` [..., out] (see `jcl.models.quantize`).
    """
    if isinstance(kernel, dict):
        return kernel["int8"].astype(dtype) * kernel["scale"].astype(dtype)[..., None, :]
    return kernel.astype(dtype)


def shape(kernel: Any) -> tuple[int, ...]:
    """The shape of a kernel, whether it is stored as an array or in int8."""
    return (kernel["int8"] if isinstance(kernel, dict) else kernel).shape


def column_norm(kernel: Any, lora: Params | None = None) -> jax.Array:
    """The norm of each column of W + AB, float32 [..., out], without ever holding W + AB."""
    wide = kernel_array(kernel, jnp.float32)
    square = jnp.sum(wide**2, axis=-2)
    if lora is not None:
        a, b = (lora[k].astype(jnp.float32) for k in ("a", "b"))
        at = jnp.swapaxes(a, -1, -2)
        square += jnp.sum((2 * (at @ wide) + (at @ a) @ b) * b, axis=-2)
    return jnp.sqrt(square)


def dense_kernels(ctx: Ctx, params: Params, targets: str) -> dict[str, jax.Array]:
    """Kernels [..., in, out] of the dense layers whose whole path `targets` matches, by path.

    They may be in `params` or in `ctx.frozen`, and have other axes there, as a convolution's has
    (see `taps.matrix_shape`).

    Raises:
      ValueError: if `targets` is no regular expression or matches no layer that the model visits.
    """
    there = taps.dense_sites(ctx.apply, params, ctx.batch, targets)
    whole = trees.merge(params, ctx.frozen)
    kernels = {path: subtree(whole, path)["kernel"] for path in there}
    for path, kernel in kernels.items():
        if shape(kernel)[-2:] != there[path]:
            size = taps.matrix_shape(path, shape(kernel), there[path], ctx.structure)
            kernels[path] = kernel.reshape(size)
    return kernels


def check_read(name: str, ctx: Ctx, params: Params, apply: Apply) -> None:
    """Refuses adapters that no output of a model depends on, which would learn nothing.

    Args:
      name: the method that adds them.
      ctx: of `init`; its batch is an example.
      params: the leaves that learn, adapters among them.
      apply: the model, with the method's own `forward` if it has one.

    Raises:
      ValueError: if the model doesn't read one of them.
    """
    traced = jax.make_jaxpr(lambda p: apply(p, ctx.batch))(params).jaxpr
    _, read = partial_eval.dce_jaxpr(traced, [True] * len(traced.outvars))
    for path, is_read in zip(trees.by_path(params), read, strict=True):
        if is_adapter(path) and not is_read:
            raise ValueError(
                f"the model doesn't read {path}, which {name} adds, but must; the section "
                "'Adapters' of jcl/models/README.md says by which functions"
            )


def init_pair(key: jax.Array, path: str, size: tuple[int, ...], rank: int) -> Params:
    """Draws a pair for a kernel of `size` [..., in, out]: a uniform in ±1/√in, b zeros, as peft.

    Both are float32; the draw depends on `key` and `path`.
    """
    *stack, fan_in, fan_out = size
    limit = fan_in**-0.5
    a = jax.random.uniform(
        trees.path_key(key, path), (*stack, fan_in, rank), jnp.float32, -limit, limit
    )
    return {"a": a, "b": jnp.zeros((*stack, rank, fan_out))}


def refuse_pairs_of_others(name: str, ctx: Ctx, params: Params) -> None:
    """Refuses a method of pairs, which works on all in the tree, beside another one.

    Raises:
      ValueError: if an earlier method in the chain has added pairs to `params`.
    """
    for path in filter(is_pair, trees.by_path(params)):
        by = ctx.added(path)
        if by is not None:
            raise ValueError(
                f"{name} works on every pair in the tree, and the pairs at "
                f"{path.partition('/lora/')[0]} are some that {by} has added, so {name} and {by} "
                f"can't be in one chain; give {by} more targets or rank instead"
            )


def add_pairs(
    name: str, ctx: Ctx, params: Params, rank: int, targets: str, dora: bool = False
) -> Params:
    """The tree with a fresh pair at every target that has none yet, for the method `name`.

    Kernels may be in `params` or in `ctx.frozen`. With `dora`, magnitudes start at the norms of the
    kernel's columns.

    Raises:
      ValueError: see `dense_kernels`, `refuse_pairs_of_others` and `check_read`.
    """
    refuse_pairs_of_others(name, ctx, params)
    whole = trees.merge(params, ctx.frozen)
    for path, kernel in dense_kernels(ctx, params, targets).items():
        if "lora" not in subtree(whole, path):
            lora = init_pair(ctx.key, path, shape(kernel), rank)
            more = {"magnitude": column_norm(kernel)} if dora else {}
            params = with_subtree(params, path, {"lora": lora | more})
    check_read(name, ctx, params, ctx.apply)
    return params


def redraw_pairs(key: jax.Array, params: Params) -> Params:
    """The tree with every pair drawn anew."""
    for path in paths_with(params):
        a, b = (subtree(params, path)["lora"][k] for k in ("a", "b"))
        new = init_pair(key, path, (*a.shape[:-1], b.shape[-1]), a.shape[-1])
        params = with_subtree(params, path, {"lora": new})
    return params


def pair_outputs(lora: Params, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What a pair's a and b put out for inputs x [..., in], in x's dtype: [..., r] and [..., out].

    With a `router` the first is split among the experts before the second (see `routed`).
    """
    inner = x @ lora["a"].astype(x.dtype)
    if "router" in lora:
        inner = routed(inner, x @ lora["router"].astype(x.dtype))
    return inner, inner @ lora["b"].astype(x.dtype)


def routed(inner: jax.Array, scores: jax.Array) -> jax.Array:
    """`inner` [..., r] with each expert's part of r times its share, the softmax of `scores`.

    `scores` are [..., experts]. The following product with b sums over the experts.
    """
    shares = jax.nn.softmax(scores.astype(jnp.float32)).astype(inner.dtype)
    return inner * jnp.repeat(shares, inner.shape[-1] // shares.shape[-1], axis=-1)


def scale(rank: int, alpha: Any, rslora: bool = False) -> Any:
    """The factor of a pair's product: α / r, or α / √r (rsLoRA, arXiv 2312.03732)."""
    return alpha / (rank**0.5 if rslora else rank)


def scale_pairs(params: Params, factor: Any) -> Params:
    """The tree with every b times `factor` (see `scale`), as the model is to read it."""
    for path in paths_with(params):
        lora = subtree(params, path)["lora"]
        params = with_subtree(params, path, {"lora": {**lora, "b": factor * lora["b"]}})
    return params


def join_mixed(t: Any, before: Params, after: Params) -> Params:
    """The pair of rank 2r whose product is (1 - t) A_0 B_0 + t A_1 B_1, float32."""
    a = jnp.concatenate([before["a"], after["a"]], axis=-1).astype(jnp.float32)
    b = jnp.concatenate([(1 - t) * before["b"], t * after["b"]], axis=-2).astype(jnp.float32)
    return {"a": a, "b": b}


def mix_pairs(t: Any, before: Params, after: Params) -> Params:
    """The pair whose product is nearest to (1 - t) A_0 B_0 + t A_1 B_1.

    It is the singular value decomposition's best of rank r, found in the 2r dimensions that the
    pairs span, and so exact where the sum has rank r, as where B_0 is 0; at t = 0 and t = 1 it is
    the given pair. Leading axes are stacked layers, along which t may vary ([..., 1, 1]).
    """
    rank = after["a"].shape[-1]
    joined = join_mixed(t, before, after)
    a, b = joined["a"], joined["b"]
    left, upper = jnp.linalg.qr(a)
    right, lower = jnp.linalg.qr(jnp.swapaxes(b, -1, -2))
    u, s, v = jnp.linalg.svd(upper @ jnp.swapaxes(lower, -1, -2), full_matrices=False)
    root = jnp.sqrt(s[..., :rank])
    found = {
        "a": left @ (u[..., :rank] * root[..., None, :]),
        "b": (root[..., :, None] * v[..., :rank, :]) @ jnp.swapaxes(right, -1, -2),
    }
    found = trees.like(found, {k: after[k] for k in found})
    return {k: jnp.where(t == 0, before[k], jnp.where(t == 1, after[k], found[k])) for k in found}


def scale_hook(factor: Any) -> Callable[[Any, Ctx, Apply], Apply]:
    """The `forward` hook of a method whose pairs stand in the tree: it applies `scale_pairs`."""

    def forward(state: Any, ctx: Ctx, apply: Apply) -> Apply:
        def apply_with_scale(params: Params, batch: Batch, call: Call = Call()) -> Any:
            # merged with the frozen leaves first, because some of the pairs may be frozen
            return apply(scale_pairs(trees.merge(params, ctx.frozen), factor), batch, call)

        return apply_with_scale

    return forward


def merge(params: Params, factor: Any = None) -> Params:
    """Folds low-rank pairs and gains into their kernels; outputs stay the same to rounding.

    Args:
      params: a whole tree; kernels stored in int8 become float32.
      factor: the factor of pairs (see `scale`), without which they are another function's; None if
        there are none.

    Raises:
      ValueError: if there are pairs and no factor, or adapters that no kernel can hold:
        bottlenecks, prefixes, prompts, routed pairs.
    """
    loose = NAMES - FOLDED
    left = [p for p in _paths(params) if not loose.isdisjoint(p.split("/")) or "lora/router" in p]
    check(not left, "adapter", left, "one that kernels can hold, low-rank pairs and gains")
    ok = factor is not None or not paths_with(params)
    check(ok, "factor", factor, "that of the low-rank pairs: adapters.scale(rank, alpha)")
    for path in paths_with(params, FOLDED):
        at = subtree(params, path)
        kernel = kernel_array(at["kernel"], jnp.float32)
        own = kernel.shape
        if "lora" in at:
            lora = at["lora"]
            change = lora["a"].astype(jnp.float32) @ lora["b"].astype(jnp.float32)
            kernel = kernel.reshape(change.shape) + factor * change
            if "magnitude" in lora:
                kernel *= (lora["magnitude"] / column_norm(kernel))[..., None, :]
        if "input_gain" in at:
            gain = at["input_gain"]
            kernel = kernel.reshape(*gain.shape, -1) * gain[..., :, None]
        if "gain" in at:
            gain = at["gain"]
            kernel = kernel.reshape(*gain.shape[:-1], -1, gain.shape[-1]) * gain[..., None, :]
        stored = jnp.float32 if isinstance(at["kernel"], dict) else at["kernel"].dtype
        new = {"kernel": kernel.reshape(own).astype(stored)}
        if "gain" in at and "bias" in at:
            bias = at["bias"] * at["gain"].reshape(at["bias"].shape)
            new["bias"] = bias.astype(at["bias"].dtype)
        params = with_subtree(params, path, new)
    return without_adapters(params)


def _paths(params: Params) -> list[str]:
    return [trees.path_name(p) for p, _ in jax.tree_util.tree_leaves_with_path(params)]


def bank(params: Params, slots: int) -> Params:
    """An empty bank of `slots` slots for each pair: a [..., in, slots, r], b [..., slots, r, out].

    It is a tree with the pairs' paths and no other leaves; leading axes are stacked layers.
    """
    kept: Params = {}
    for path in paths_with(params):
        a, b = (subtree(params, path)["lora"][k] for k in ("a", "b"))
        room = {
            "a": jnp.zeros((*a.shape[:-1], slots, a.shape[-1]), a.dtype),
            "b": jnp.zeros((*b.shape[:-2], slots, *b.shape[-2:]), b.dtype),
        }
        kept = with_subtree(kept, path, {"lora": room})
    return kept


def store_pairs(kept: Params, params: Params, slot: Any) -> Params:
    """The bank `kept` with the tree's pairs in a slot."""
    for path in paths_with(kept):
        room, lora = subtree(kept, path)["lora"], subtree(params, path)["lora"]
        a = room["a"].at[..., slot, :].set(lora["a"])
        b = room["b"].at[..., slot, :, :].set(lora["b"])
        kept = with_subtree(kept, path, {"lora": {"a": a, "b": b}})
    return kept


def join_pairs(params: Params, kept: Params) -> Params:
    """Joins the bank's pairs to the tree's along r, so that two products compute them all.

    An empty slot adds nothing.
    """
    for path in paths_with(kept):
        room, lora = subtree(kept, path)["lora"], subtree(params, path)["lora"]
        *stack, slots, rank, fan_out = room["b"].shape
        a = room["a"].reshape(*lora["a"].shape[:-1], slots * rank)
        b = room["b"].reshape(*stack, slots * rank, fan_out)
        joined = {
            "a": jnp.concatenate([a, lora["a"]], axis=-1),
            "b": jnp.concatenate([b, lora["b"]], axis=-2),
        }
        params = with_subtree(params, path, {"lora": joined})
    return params


def select_pairs(params: Params, kept: Params, slot: jax.Array) -> Params:
    """The tree with the pairs of a slot in place of its own; slot -1 leaves its own."""
    for path in paths_with(kept):
        room, lora = subtree(kept, path)["lora"], subtree(params, path)["lora"]
        a = jnp.where(slot < 0, lora["a"], room["a"][..., slot, :])
        b = jnp.where(slot < 0, lora["b"], room["b"][..., slot, :, :])
        params = with_subtree(params, path, {"lora": {"a": a, "b": b}})
    return params


def last_stages(last: jax.Array, stage: jax.Array, batch: Batch) -> jax.Array:
    """`last` int32 [tasks], the last stage that trained on each task, after a step of `stage`."""
    real = jnp.where(batch["weight"] > 0, batch["task"], len(last))
    return last.at[real].max(stage, mode="drop")


def overlap(params: Params, kept: Params, form: Literal["absolute", "square"]) -> jax.Array:
    """Σ |A_oldᵀ A_new| or Σ (A_oldᵀ A_new)² over entries, slots and layers, float32 [].

    A_new are the `a` of the tree's pairs, A_old those in the bank `kept`.
    """
    total = jnp.float32(0)
    for path in paths_with(kept):
        old, new = (subtree(tree, path)["lora"]["a"] for tree in (kept, params))
        inner = jnp.einsum("...isp,...iq->...spq", old, new)
        total += jnp.sum(jnp.abs(inner) if form == "absolute" else inner**2)
    return total
