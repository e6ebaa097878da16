"""EProj: a projector for each task that is unlike the earlier ones, found from image and question.

It is for models of images and text (`models.multimodal`).
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jcl import taps, trees
from jcl.mechanisms import adapters
from jcl.method import Apply, Batch, Call, Ctx, Info, Method, Params, as_call, check


class EProjState(NamedTuple):
    """The state of `eproj`."""

    keys: jax.Array
    """float32 [slots, d]: the sum of the features of the rows that each projector trained on."""
    slot: jax.Array
    """int32 []: the projector that learns in this stage, from its second step on."""
    last: jax.Array
    """int32 [slots]: the projector that last trained on each task, -1 before any did."""


def eproj(
    slots: int, threshold: float | jax.Array = 1.0, predict: Literal["key", "task"] = "key"
) -> Method:
    """EProj: a stage learns one projector; a row x is read through argmax_s cos(f(x), key_s).

    f(x) joins the mean of the image's features, which the projector reads, and the mean embedding
    of the question's tokens, each of length 1; of a row without an image, whose `has_image` is 0,
    the first is 0. The key of a projector minimises Σ_x 1 - cos(f(x), key) over its training rows
    x, which are those that the loss counts; it is the direction of Σ_x f(x) / |f(x)|.

    A stage begins with the projector whose key is most like its first batch's mean feature, if
    their cosine is at least τ, and with a fresh projector otherwise. So similar tasks share one,
    which no other task moves. In that first step no projector changes. Leaves of `projector` get a
    leading axis [slots], at first copies of the model's own. Only the
    projector and adapters learn, unless `jcl.make(trainable=...)` says otherwise: the features of
    an image tower that learns would drift away from the keys. In training all rows, replayed ones
    too, go through the stage's projector.

    Source: He et al., arXiv 2311.16206, whose method expands the projector by task similarity and
    finds the task by a key. Their code could not be had: that the key is in closed form, decided on
    a first batch, and that features are the model's own instead of BERT's, is our reading.

    Args:
      slots: how many projectors there are; once all are taken, a stage goes on with the most
        similar one.
      threshold: τ from -1 to 1, the cosine from which tasks share a projector; may be traced. At 1
        they share only if their features are equal.
      predict: whether a row's projector is found by its `key`, or is the last that trained on the
        row's `task` (and found by key if none did).

    Raises:
      ValueError: if an argument is out of range, or, at `init`, there is no projector that learns.
    """
    check(slots >= 1, "slots", slots, "at least 1")
    check((threshold >= -1) & (threshold <= 1), "threshold", threshold, "from -1 to 1")
    check(predict in ("key", "task"), "predict", predict, "'key' or 'task'")

    def picked(params: Params, slot: jax.Array) -> Params:
        """The parameters with the projector of a slot int32 [], or one for each row, int32 [B]."""
        return {**params, "projector": jax.tree.map(lambda x: x[slot], params["projector"])}

    def features(apply: Apply, params: Params, table: jax.Array, batch: Batch) -> jax.Array:
        """f, float32 [B, d], each row of length 1; `params` have one projector."""
        wanted = {"image": (0, lambda h: jnp.mean(h.astype(jnp.float32), axis=1))}
        seen = taps.read(apply, params, batch, wanted)[0]["image"]
        if "has_image" in batch:  # what stands in the place of an image says nothing of its row
            seen = jnp.where(batch["has_image"][:, None] > 0, seen, 0.0)
        asked = jnp.ones(batch["tokens"].shape, jnp.float32)
        if "segments" in batch:
            asked = (batch["segments"] > 0).astype(jnp.float32)
        if "mask" in batch:
            asked = asked.at[:, 1:].multiply(1 - batch["mask"])
        text = jnp.einsum("bl,bld->bd", asked, table[batch["tokens"]].astype(jnp.float32))
        return _unit(jnp.concatenate([_unit(seen), _unit(text)], axis=-1))

    def table(ctx: Ctx, params: Params) -> jax.Array:
        return trees.merge(params, ctx.frozen)["embed"]["table"]

    def init(ctx: Ctx, params: Params) -> tuple[Params, EProjState]:
        learns = bool(jax.tree.leaves(params.get("projector")))
        check(learns, "learning parameters", sorted(params), "with a projector among them")
        site = taps.sites(ctx.apply, params, ctx.batch).get("image")
        check(site is not None, "model", "without the site 'image'", "one of images and text")
        assert site is not None
        width = site.shape[-1] + table(ctx, params).shape[1]
        bank = jax.tree.map(lambda x: jnp.repeat(x[None], slots, axis=0), params["projector"])
        empty = jnp.zeros((slots, width))
        state = EProjState(empty, jnp.int32(0), jnp.full(slots, -1, jnp.int32))
        return {**params, "projector": bank}, state

    def likeness(state: EProjState, f: jax.Array) -> jax.Array:
        """Cosines of f with the keys, float32 [..., slots]; -inf for a projector without rows."""
        known = jnp.any(state.keys != 0, axis=-1)
        return jnp.where(known, _unit(f) @ _unit(state.keys).T, -jnp.inf)

    def forward(state: EProjState, ctx: Ctx, apply: Apply) -> Apply:
        def chosen(params: Params, batch: Batch, call: Call = Call()) -> Any:
            one = picked(params, state.slot)
            if call.training or "cache" in batch or "image" not in taps.sites(apply, one, batch):
                return apply(one, batch, call)
            slot = jnp.argmax(likeness(state, features(apply, one, table(ctx, params), batch)), -1)
            if predict == "task":
                own = state.last.at[batch["task"]].get(mode="fill", fill_value=-1)
                slot = jnp.where(own < 0, slot, own)
            return apply(picked(params, slot), batch, call)

        return chosen

    def updates(state: EProjState, ctx: Ctx, tree: Params) -> Params:
        learns = (jnp.arange(slots) == state.slot) & (ctx.stage_step > 0)

        def one(u: jax.Array) -> jax.Array:
            return u * learns.reshape(-1, *[1] * (u.ndim - 1)).astype(u.dtype)

        return {**tree, "projector": jax.tree.map(one, tree["projector"])}

    def observe(state: EProjState, ctx: Ctx, info: Info) -> EProjState:
        def learning(params: Params, batch: Batch, call: Call) -> Any:
            return ctx.apply(params, batch, ctx.call._replace(tap=as_call(call).tap))

        f = features(learning, ctx.params, table(ctx, ctx.params), info.batch)
        f = f * (taps.row_weight(info.batch) > 0)[:, None]
        alike = likeness(state, jnp.sum(f, axis=0))
        taken = jnp.sum(jnp.any(state.keys != 0, axis=-1))
        nearest = jnp.argmax(alike)
        shares = (jnp.max(alike) >= threshold) | (taken == slots)
        begun = jnp.where(shares, nearest, taken).astype(jnp.int32)
        slot = jnp.where(ctx.stage_step == 0, begun, state.slot)
        keys = state.keys.at[slot].add(jnp.sum(f, axis=0))
        return EProjState(keys, slot, adapters.last_stages(state.last, slot, info.batch))

    return Method(
        "eproj", init=init, forward=forward, updates=updates, observe=observe,
        reads=("parameters", "gradients"), learns=_projector_or_adapter,
    )  # fmt: skip


def _projector_or_adapter(path: str) -> bool:
    return path.startswith("projector/") or adapters.is_adapter(path)


def _unit(x: jax.Array) -> jax.Array:
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
