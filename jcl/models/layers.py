"""Layers as plain functions over parameter dicts.

A dense layer's dict may hold adapters beside `kernel` and `bias`: `lora`, a low-rank residual `{"a"
[in, r], "b" [r, out]}`, with `magnitude` [out] for DoRA or a `router` [in, experts] that splits r
among experts; `gain` [out], which scales the output, bias included; and `input_gain` [in]. They are
leaves of the tree, so they are scanned and sharded with the layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AbstractMesh, PartitionSpec

from jcl import taps
from jcl.mechanisms import adapters
from jcl.mechanisms.adapters import column_norm, kernel_array
from jcl.method import Batch, Params, Tap, check
from jcl.outputs import LogitPieces, TokenScores
from jcl.parallel import mesh as meshes

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
}
"""Activations of an MLP, by the names that a `Config` uses."""


Remat = Literal["none", "block", "dots"]
"""What the backward pass computes again: nothing, each block, or each block but its products."""


def rematerialise(remat: Remat) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Wraps the body of a scan over layers so that its backward pass computes `remat` again.

    Raises:
      ValueError: if `remat` is unknown.
    """
    check(remat in ("none", "block", "dots"), "remat", remat, "'none', 'block' or 'dots'")
    if remat == "none":
        return lambda body: body
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "dots" else None
    return partial(jax.checkpoint, policy=policy)


def dense(
    params: Params, x: jax.Array, site: str, tap: Tap = taps.identity, layer: Any = 0
) -> jax.Array:
    """x [..., in] @ kernel [in, out], plus bias [out] and adapters if there are any.

    Args:
      params: a dict with `kernel`, and perhaps `bias`, `lora`, `gain` and `input_gain`.
      x: the input; its dtype is computed in.
      site: the path of `params` in the model's parameter tree.
      tap: called on the input as `{site}:in` and on the output as `{site}:out`.
      layer: the index in a stack of scanned layers, else the Python int 0.
    """
    x = tap(f"{site}:in", layer, x)
    flat = flattened(x)
    if "input_gain" in params:
        flat = flat * params["input_gain"].astype(x.dtype)
    y = product(flat, params["kernel"])
    if "lora" in params:
        lora = params["lora"]
        y = y + adapters.pair_outputs(lora, flat)[1]
        if "magnitude" in lora:  # the gradient takes the norm as constant: arXiv 2402.09353, 4.3
            length = column_norm(*lax.stop_gradient((params["kernel"], lora)))
            y = y * (lora["magnitude"] / length).astype(x.dtype)
    if "bias" in params:
        y = y + params["bias"].astype(x.dtype)
    if "gain" in params:
        y = y * params["gain"].astype(x.dtype)
    return tap(f"{site}:out", layer, y.reshape(*x.shape[:-1], -1))


def length_cuts() -> int:
    """Into how many parts the context's mesh cuts rows along their length."""
    return jax.sharding.get_abstract_mesh().shape.get("sequence", 1)


def flattened(x: jax.Array) -> jax.Array:
    """Flattens [..., d] to [n, d] for a product, since [B, L, d] has slow fusions in its gradient.

    Rows that a mesh cuts along their length stay as they are, since n couldn't be cut like that.
    """
    return x if length_cuts() > 1 else x.reshape(-1, x.shape[-1])


def product(
    x: jax.Array, kernel: Any, multiply: Callable[[jax.Array, jax.Array], jax.Array] = jnp.matmul
) -> jax.Array:
    """x [n, in] @ kernel [in, out] in x's dtype; the kernel may be of another, or in int8."""
    if not isinstance(kernel, dict) and kernel.dtype == x.dtype:
        return multiply(x, kernel)

    def converted(x: jax.Array, kernel: Any) -> jax.Array:
        return multiply(x, kernel_array(kernel, x.dtype))

    # the backward pass converts the kernel again, so that no layer's converted copy is held
    return jax.checkpoint(converted, prevent_cse=False)(x, kernel)


def init_dense(
    key: jax.Array, fan_in: int, fan_out: int, bias: bool = True, dtype: Any = jnp.float32
) -> Params:
    """Draws kernel [fan_in, fan_out] and bias, uniform in ±1/√fan_in (as torch.nn.Linear)."""
    limit = fan_in**-0.5
    k, b = jax.random.split(key)
    params = {"kernel": jax.random.uniform(k, (fan_in, fan_out), dtype, -limit, limit)}
    if bias:
        params["bias"] = jax.random.uniform(b, (fan_out,), dtype, -limit, limit)
    return params


def rms_norm(params: Params, x: jax.Array, eps: float, offset: float = 0.0) -> jax.Array:
    """x / rms(x) · (scale + offset) over the last axis, in float32, back in x's dtype.

    Source: Zhang & Sennrich, arXiv 1910.07467; Gemma stores its scales less 1.
    """
    wide = x.astype(jnp.float32)
    wide = wide * lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + eps)
    return (wide * (params["scale"].astype(jnp.float32) + offset)).astype(x.dtype)


def layer_norm(params: Params, x: jax.Array, eps: float) -> jax.Array:
    """(x - mean) / std · scale + bias over the last axis, in float32, back in x's dtype.

    The bias may be left out. Source: Ba et al., arXiv 1607.06450.
    """
    wide = x.astype(jnp.float32)
    wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
    wide = wide * lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + eps)
    out = wide * params["scale"].astype(jnp.float32)
    out = out + params["bias"].astype(jnp.float32) if "bias" in params else out
    return out.astype(x.dtype)


def after_sublayer(block: Params, part: str, x: jax.Array) -> jax.Array:
    """What a sublayer adds to the residual stream, through the block's adapter for it if any.

    That is `{part}_adapter`, `{"down", "up"}` of dense layers, for x + up(relu(down(x))).

    Args:
      block: the block's parameters.
      part: `attention` or `mlp`.
      x: what the sublayer adds, [..., d].

    Source: Houlsby et al., arXiv 1902.00751, figure 2.
    """
    if f"{part}_adapter" not in block:
        return x
    adapter = block[f"{part}_adapter"]
    return x + dense(adapter["up"], jax.nn.relu(dense(adapter["down"], x, "")), "")


def token_limits(vocabulary: int) -> dict[str, tuple[int, str]]:
    """What a model of so many token ids says in its `Structure.limits` of the columns of ids."""
    return dict.fromkeys(("tokens", "inputs", "rejected_tokens"), (vocabulary, "vocabulary"))


def check_ids(tokens: jax.Array, vocabulary: int) -> None:
    """Refuses token ids that have no row in a table, which would be read as another's.

    Inside a trace they aren't known, and pass; `fit` and evaluators look at the data before.

    Raises:
      ValueError: if an id is below 0, or not below `vocabulary`.
    """
    if isinstance(tokens, jax.core.Tracer) or not tokens.size:
        return
    if not getattr(tokens, "is_fully_addressable", True):  # of other processes too
        return
    with jax.ensure_compile_time_eval():  # a constant within a trace of something else
        low, high = int(tokens.min()), int(tokens.max())
    inside = low >= 0 and high < vocabulary
    wanted = f"from 0 to {vocabulary - 1}, as the vocabulary is {vocabulary}"
    check(inside, "token ids", (low, high), wanted)


def lookup(table: jax.Array, tokens: jax.Array, dtype: Any) -> jax.Array:
    """The rows of a table [V, d] for tokens [B, L], as [B, L, d] in a dtype.

    If a mesh cuts d over an axis that also cuts the batch's rows, each device looks up its part of
    d for the tokens of the whole axis and sends every other device its own. So activations travel,
    where the compiler might gather the table.
    """
    check_ids(tokens, table.shape[0])
    mesh = jax.sharding.get_abstract_mesh()
    where = meshes.row_spec(mesh, tokens.shape)
    along = [i for i, axes in enumerate(where) if "fsdp" in (axes or ())]
    if not along or table.shape[-1] % mesh.shape["fsdp"]:
        return table[tokens].astype(dtype)
    axis = along[0]

    def shared(part: jax.Array, tokens: jax.Array) -> jax.Array:
        rows = part[lax.all_gather(tokens, "fsdp", axis=axis, tiled=True)].astype(dtype)
        return lax.all_to_all(rows, "fsdp", axis, rows.ndim - 1, tiled=True)

    return meshes.by_parts(shared, (PartitionSpec(None, "fsdp"), where), where)(table, tokens)


def token_scores(
    project: Callable[[Params, jax.Array], jax.Array],
    head: Params,
    h: jax.Array,
    batch: Batch,
    limit: int,
) -> TokenScores:
    """What a loss needs of each token's logits, without holding logits [B, L, V].

    The pieces are those of `reduce_logits`.

    Args:
      project: `(head, features [n, d]) -> logits float32 [n, V]`, the same function in each call.
      head: `kernel` [d, V], as an array or in int8, and other leaves that `project` reads.
      h: features [B, L, d].
      batch: `targets` int32 [B, L]. If it has `logits` too, the scores hold all logits as pieces,
        which other methods can go over again.
      limit: how many logits are held at once at most, on each device.

    Returns:
      The scores, float32 [B, L] each.
    """
    mesh = jax.sharding.get_abstract_mesh()
    pieces = LogitPieces(head, h, project, reduce_logits, limit, mesh)
    scores = pieces.reduce(_scores, given=(batch["targets"],))
    return scores._replace(logits=pieces) if "logits" in batch else scores


def _scores(logits: jax.Array, wanted: jax.Array) -> TokenScores:
    chosen = jnp.take_along_axis(logits, wanted[..., None], axis=-1)[..., 0]
    return TokenScores(chosen, jax.nn.logsumexp(logits, axis=-1), jnp.mean(logits, axis=-1))


def reduce_logits(
    fn: Callable[..., Any], models: Sequence[LogitPieces], given: Sequence[jax.Array] = ()
) -> Any:
    """What `fn` makes of one or several models' logits for the same tokens, leaves [B, L, ...].

    The rows are cut along their length into pieces of at most `limit` logits (but at least one
    position), of all models together, which are projected one after another. The backward pass
    computes pieces again, unless there is only one. On a mesh each device has the pieces of its own
    rows, and the heads are gathered once for all pieces; the compiler would gather them, and sum
    their gradients, for each.

    Args:
      fn: `(logits [n, V] of each model, given [n, ...]) -> leaves [n, ...]`.
      models: the models' heads and features; the first one's `limit` counts.
      given: arrays [B, L, ...].
    """
    mesh = models[0].mesh
    if mesh.empty:
        return _reduce(fn, models, given, mesh)
    with jax.sharding.use_abstract_mesh(mesh):  # which a method's loss, unlike a model, is not in
        return _reduce(fn, models, given, mesh)


def _reduce(
    fn: Callable[..., Any],
    models: Sequence[LogitPieces],
    given: Sequence[jax.Array],
    mesh: AbstractMesh,
) -> Any:
    heads = [model.head for model in models]
    arrays = ([model.hidden for model in models], list(given))
    rows, length, _ = models[0].hidden.shape
    vocabulary = sum(adapters.shape(head["kernel"])[-1] for head in heads)

    def piece(heads: list[Params], arrays: tuple[list[jax.Array], list[jax.Array]]) -> Any:
        hidden, others = arrays
        lead = hidden[0].shape[:2]
        logits = [m.project(p, flattened(h)) for m, p, h in zip(models, heads, hidden, strict=True)]
        kept = logits[0].shape[:-1]
        found = fn(*logits, *[x.reshape(*kept, *x.shape[2:]) for x in others])
        return jax.tree.map(lambda x: x.reshape(*lead, *x.shape[len(kept) :]), found)

    def count_pieces(rows: int, length: int, devices: int) -> int:
        held = models[0].limit * devices
        return max(1, min(-(-rows * length * vocabulary // held), length))

    def cut_up(heads: list[Params], arrays: tuple[list[jax.Array], list[jax.Array]]) -> Any:
        rows, length = arrays[0][0].shape[:2]
        count = count_pieces(rows, length, mesh.shape.get("tensor", 1))
        pad = -length % count

        def cut(x: jax.Array) -> jax.Array:  # [B, L, ...] -> [count, B, l, ...]
            x = jnp.pad(x, ((0, 0), (0, pad), *[(0, 0)] * (x.ndim - 2)))
            return jnp.moveaxis(x.reshape(rows, count, -1, *x.shape[2:]), 1, 0)

        def join(x: jax.Array) -> jax.Array:
            return jnp.moveaxis(x, 0, 1).reshape(rows, -1, *x.shape[3:])[:, :length]

        if count == 1:
            return piece(heads, arrays)
        again = jax.checkpoint(lambda part: piece(heads, part))
        return jax.tree.map(join, lax.map(again, jax.tree.map(cut, arrays)))

    where = meshes.row_spec(mesh, models[0].hidden.shape)
    if not any(where):
        return cut_up(heads, arrays)
    if count_pieces(rows, length, math.prod(mesh.shape.values())) == 1:
        return piece(heads, arrays)
    split = [
        mesh.shape["fsdp"] > 1 and m.hidden.shape[-1] % mesh.shape["fsdp"] == 0 for m in models
    ]

    def shared(heads: list[Params], arrays: Any) -> Any:
        whole = []
        for head, is_cut in zip(heads, split, strict=True):
            kernel = head["kernel"]
            if is_cut:
                kernel = lax.all_gather(kernel, "fsdp", tiled=True)
            # in float32, so that the gradients of pieces are added up in float32
            whole.append({**head, "kernel": kernel.astype(jnp.float32)})
        return cut_up(whole, arrays)

    narrow, parts = [], []
    for model, is_cut in zip(models, split, strict=True):
        kernel = kernel_array(model.head["kernel"], model.hidden.dtype)
        narrow.append({**model.head, "kernel": kernel})
        spec = {name: PartitionSpec() for name in model.head}
        parts.append({**spec, "kernel": PartitionSpec("fsdp" if is_cut else None)})
    return meshes.by_parts(shared, (parts, where), where)(narrow, arrays)
