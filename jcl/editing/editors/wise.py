"""WISE: edits live in copies of one kernel, and a router sends a text through one copy or none."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jcl import losses, taps
from jcl.editing import values
from jcl.editing.editor import Editor, Facts
from jcl.losses import weighted_mean
from jcl.mechanisms import merging
from jcl.method import Apply, Batch, Params, Tap, check


class WiseState(NamedTuple):
    """Side memories, each a change of the kernel: M merged ones, then the next one's shards."""

    deltas: jax.Array
    """float32 [M + shards, in, out]: Δ = W' - W."""
    floors: jax.Array
    """float32 [M + shards]: the least Δ_act of the edits in a memory; ∞ if it is empty."""
    held: jax.Array
    """int32 []: how many edits the present shard has."""
    shard: jax.Array
    """int32 []: which shard is the present one."""
    merged: jax.Array
    """int32 []: how often shards were merged."""
    written: jax.Array
    """int32 []: how many edits were written in all."""
    unrelated: jax.Array
    """float32 [I, T, in]: the layer's inputs for unrelated texts."""
    real: jax.Array
    """bool [I, T]: which of their tokens aren't padding."""


class Routed(NamedTuple):
    """A generation cache, and the side memory to which its prompt was routed."""

    cache: Any
    memory: jax.Array
    """int32 [B]: -1 is none."""


def wise(
    apply: Apply,
    unrelated: Batch,
    layer: int,
    *,
    site: str = "blocks/down",
    steps: int = 70,
    rate: float | jax.Array = 1.0,
    margins: tuple[float, float, float] = (5.0, 20.0, 10.0),
    ratio: float | jax.Array = 0.88,
    bound: float | jax.Array = 1.0,
    share: float = 0.2,
    shards: int = 2,
    each: int = 500,
    memories: int = 1,
    density: float = 0.53,
    seed: int = 0,
) -> Editor:
    """WISE: the kernel W stays; a text x goes through W + Δ if that changes enough, Δ_act(x) > ε.

    Δ_act(x) is the mean of ‖k Δ‖ over the tokens of a prompt, with k the layer's inputs. A shard's
    Δ learns, by plain gradient descent on a random `share` of its entries,

    L = -log p(target) + max(0, Δ_act(x_i) - α) + max(0, β - Δ_act(x_e))
        + max(0, γ - Δ_act(x_e) + Δ_act(x_i))

    for the edit's prompts x_e and an unrelated text x_i. ε is `ratio` times the least Δ_act of the
    edits that a memory holds. After `each` edits the next shard begins, at Δ = 0; when all are
    full, TIES makes one memory of them. Of several memories the one of the largest Δ_act answers
    (WISE-Retrieve). When all M are taken, the last is merged with the new shards, with weight 0.6
    to their 0.4, so that `memories=1` is WISE-Merge. For texts that no memory takes the model stays
    the same, bit for bit.

    Source: Wang et al., arXiv 2405.14768, equations 3 to 7, and the authors' code (zjunlp/EasyEdit:
    `models/wise/WISE.py`, `merge/gta.py`), whose settings for Llama are the defaults. The paper's
    Δ_act is used; the code passes both outputs through the MLP's activation first. The code decays
    W' by 1e-5 a step, which moves entries of other shards too, and is left out.

    A prompt is routed as a whole; the decision is kept in the cache and holds for the generated
    text. In one pass over a text its tokens decide together, for each document of `segments`, or
    only those where `batch["question"]` [B, L] is 1, which agrees with a cache.

    Args:
      apply: the model.
      unrelated: `tokens` and `segments` int32 [I, T], texts that no edit is about; each write takes
        the next ones in turn.
      layer: the index of the layer along stacked layers.
      site: the path of its dense layer.
      steps: how many steps of gradient descent a write takes at most; it ends early when the loss
        is at most 0.02 and moves by no more than 1e-4.
      rate: the learning rate; `rate`, `ratio` and `bound` may be traced.
      margins: α, β, γ, in units of the layer's outputs.
      ratio: ε as a share of the least Δ_act of a memory's edits.
      bound: the largest magnitude of an entry of Δ.
      share: the share of the entries that a shard may change.
      shards: how many shards make a memory.
      each: how many edits a shard takes.
      memories: M.
      density: the share of a shard's entries, the largest ones, that TIES keeps.
      seed: seeds the choice of the shards' entries.

    Raises:
      ValueError: if an argument is out of range, or, at `init`, the model has no such site.
    """
    check(layer >= 0, "layer", layer, "at least 0")
    for name, value in (("steps", steps), ("shards", shards), ("each", each)):
        check(value >= 1, name, value, "at least 1")
    check(memories >= 1, "memories", memories, "at least 1")
    check(rate > 0, "rate", rate, "above 0")
    check(bound > 0, "bound", bound, "above 0")
    check(0 < share <= 1, "share", share, "above 0 and at most 1")
    check(0 < density <= 1, "density", density, "above 0 and at most 1")
    alpha, beta, gamma = margins

    def given(params: Params, rows: Batch) -> jax.Array:
        """The layer's inputs for rows of text, float32 [B, L, in]."""
        wanted = {f"{site}:in": (layer, lambda h: h)}
        return taps.read(apply, params, rows, wanted)[0][f"{site}:in"]

    def init(params: Params, facts: Facts) -> WiseState:
        rows = values.rows(unrelated["tokens"], unrelated["segments"])
        seen = taps.sites(apply, params, rows)
        known = [s.removesuffix(":in") for s in seen if s.endswith(":in")]
        check(site in known, "site", site, f"one of {known}")
        size = tuple(seen[f"{site}:{end}"].shape[-1] for end in ("in", "out"))
        zero = jnp.int32(0)
        return WiseState(
            jnp.zeros((memories + shards, *size)),
            jnp.full(memories + shards, jnp.inf),
            zero, zero, zero, zero,
            jax.jit(given)(params, rows),
            unrelated["segments"] > 0,
        )  # fmt: skip

    def write(params: Params, state: WiseState, facts: Facts) -> tuple[Params, WiseState]:
        count, contexts, length = facts["tokens"].shape
        flat = {k: facts[k].reshape(count * contexts, -1) for k in ("tokens", "segments", "mask")}
        rows = {**values.rows(flat["tokens"], flat["segments"]), "mask": flat["mask"]}
        weight = facts["weight"]
        inside = given(params, rows)
        last = jnp.argmax(rows["mask"] > 0, axis=-1, keepdims=True)
        asked = (jnp.arange(length) <= last) & (rows["segments"] > 0)
        turn = (state.written + jnp.arange(count)) % len(state.real)
        outside, real = state.unrelated[turn], state.real[turn]

        slot = memories + state.shard
        key = jax.random.fold_in(
            jax.random.fold_in(jax.random.key(seed), state.merged), state.shard
        )
        own = jax.random.bernoulli(key, share, state.deltas.shape[1:])

        def moved(delta: jax.Array) -> tuple[jax.Array, jax.Array]:
            """Δ_act of the edits' prompts [N, P] and of the unrelated texts [N, 1]."""
            near = _shift(inside, asked, delta[None])[0].reshape(count, contexts)
            return near, _shift(outside, real, delta[None])[0][:, None]

        def cost(delta: jax.Array) -> jax.Array:
            held: list[jax.Array] = []

            def tap(at: str, index: Any, h: jax.Array) -> jax.Array:
                if at == f"{site}:in":
                    held[:] = [h]
                if at != f"{site}:out":
                    return h
                side = held.pop() @ delta.astype(h.dtype)
                return jnp.where(index == layer, h + side, h)

            nll = values.target_nll(apply(params, losses.with_targets(rows), tap), rows)
            near, far = moved(delta)
            apart = (
                jnp.maximum(far - alpha, 0)
                + jnp.maximum(beta - near, 0)
                + jnp.maximum(gamma - near + far, 0)
            )
            return weighted_mean(
                nll.reshape(near.shape) + apart, jnp.broadcast_to(weight[:, None], near.shape)
            )

        def is_going(carry: Any) -> jax.Array:
            step, done, *_ = carry
            return (step < steps) & ~done

        def improve(carry: Any) -> Any:
            step, _, before, delta = carry
            loss, slope = jax.value_and_grad(cost)(delta)
            done = (jnp.abs(loss - before) <= 1e-4) & (loss <= 0.02)
            after = jnp.clip(delta - rate * jnp.where(own, slope, 0.0), -bound, bound)
            return step + 1, done, loss, jnp.where(done, delta, after)

        nothing = jnp.sum(weight) == 0
        begin = (jnp.int32(0), nothing, jnp.float32(jnp.inf), state.deltas[slot])
        delta = lax.while_loop(is_going, improve, begin)[3]
        near = jnp.where(weight > 0, jnp.mean(moved(delta)[0], axis=-1), jnp.inf)
        asked_for = jnp.sum(weight > 0)
        held = state.held + asked_for
        full = held >= each
        state = state._replace(
            deltas=state.deltas.at[slot].set(delta),
            floors=state.floors.at[slot].min(jnp.min(near)),
            held=jnp.where(full, 0, held),
            shard=state.shard + full,
            written=state.written + asked_for,
        )
        # only arrays that merging changes go through the cond, which would copy the others
        parts = (state.deltas, state.floors, state.shard, state.merged)
        parts = lax.cond(state.shard == shards, merge, lambda *p: p, *parts)
        deltas, floors, shard, merged = parts
        return params, state._replace(deltas=deltas, floors=floors, shard=shard, merged=merged)

    def merge(
        deltas: jax.Array, floors: jax.Array, shard: jax.Array, merged: jax.Array
    ) -> tuple[jax.Array, ...]:
        """Merges all shards into one memory, together with the last memory if none is free."""
        at = jnp.minimum(merged, memories - 1)
        old = jnp.where(merged < memories, 0.0, 0.6)  # the weight of the memory there
        parts = jnp.concatenate([deltas[at][None], deltas[memories:]])
        weights = jnp.concatenate([old[None], jnp.full(shards, (1 - old) / shards)])
        floor = jnp.minimum(floors[at], jnp.min(floors[memories:]))
        return (
            deltas.at[memories:].set(0.0).at[at].set(ties(parts, weights, density)),
            floors.at[memories:].set(jnp.inf).at[at].set(floor),
            jnp.zeros_like(shard),
            merged + 1,
        )

    def forward(state: WiseState, apply: Apply) -> Apply:
        def edited(params: Params, batch: Batch, tap: Tap = taps.identity) -> Any:
            cache = batch.get("cache")
            if isinstance(cache, Routed):
                known = jnp.broadcast_to(cache.memory[:, None], batch["tokens"].shape)
                inner = {**batch, "cache": cache.cache}
                logits, after = apply(params, inner, through(known, None, tap))
                return logits, Routed(after, cache.memory)
            real = batch.get("segments", jnp.ones_like(batch["tokens"]))
            together = (real[:, :, None] == real[:, None, :]) & (real[:, None, :] > 0)
            if "question" in batch:
                together = together & (batch["question"][:, None, :] > 0)
            if "prefill" not in batch:
                return apply(params, batch, through(None, together, tap))

            def prefilled(slot: jax.Array) -> tuple[jax.Array, Any]:
                logits, after = apply(params, batch, through(None, together, tap, slot))
                return jnp.sum(logits), (logits, after)

            blank = jnp.zeros(batch["tokens"].shape[0])
            found, (logits, after) = jax.grad(prefilled, has_aux=True)(blank)
            return logits, Routed(after, found.astype(jnp.int32) - 1)

        def through(
            known: jax.Array | None, together: jax.Array | None, tap: Tap,
            slot: jax.Array | None = None,
        ) -> Tap:  # fmt: skip
            """A tap that applies the memory [B, L], `known` or else routed, and then `tap`."""
            held: list[jax.Array] = []

            def routed(at: str, index: Any, h: jax.Array) -> jax.Array:
                if at == f"{site}:in":
                    held[:] = [h]
                if at != f"{site}:out":
                    return h

                def side(x: jax.Array, h: jax.Array) -> tuple[jax.Array, jax.Array]:
                    memory = known if known is not None else route(x, together)
                    every = jnp.einsum("bli,mio->mblo", x, state.deltas.astype(x.dtype))
                    taken = jnp.maximum(memory, 0)[None, ..., None]
                    mine = jnp.take_along_axis(every, taken, axis=0)[0]
                    return jnp.where(memory[..., None] >= 0, h + mine, h), memory[:, -1]

                def main(x: jax.Array, h: jax.Array) -> tuple[jax.Array, jax.Array]:
                    return h, jnp.full(h.shape[0], -1)

                h, memory = lax.cond(jnp.equal(index, layer), side, main, held.pop(), h)
                if slot is not None:  # shifted by one, so that other layers add 0
                    h = taps.probe(h, slot, (memory + 1).astype(jnp.float32))
                return h

            return taps.compose(routed, tap)

        def route(x: jax.Array, together: Any) -> jax.Array:
            """The memory int32 [B, L] of each token, -1 for none."""
            change = jnp.einsum("bli,mio->mblo", x.astype(jnp.float32), state.deltas)
            size = jnp.linalg.norm(change, axis=-1)
            share = together / jnp.maximum(jnp.sum(together, axis=-1, keepdims=True), 1)
            mean = jnp.einsum("blt,mbt->mbl", share, size)
            over = mean > ratio * state.floors[:, None, None]
            best = jnp.argmax(jnp.where(over, mean, -jnp.inf), axis=0)
            return jnp.where(jnp.any(over, axis=0), best, -1)

        return edited

    return Editor("wise", init, write, forward)


def ties(deltas: jax.Array, weights: jax.Array, density: float | jax.Array) -> jax.Array:
    """Merges several changes [S, in, out] into one [in, out] by TIES with weights [S].

    Each change keeps int(density · n) of its n entries, the largest. An entry's sign is that of
    the weighted sum (+ where it is 0), its value the weighted mean of the values of that sign.

    Source: Yadav et al., arXiv 2306.01708, as in EasyEdit's `merge/gta.py`, `get_mask` and `GTA`,
    and `merge/utils.py`, `magnitude`.
    """
    kept = lax.map(lambda d: merging.trim(d, density), deltas)
    weights = weights[:, None, None]
    sign = jnp.where(jnp.sum(weights * kept, axis=0) >= 0, 1.0, -1.0)
    agreeing = weights * (jnp.sign(kept) == sign)
    total = jnp.sum(agreeing, axis=0)
    return jnp.sum(agreeing * kept, axis=0) / jnp.where(total == 0, 1.0, total)


def _shift(given: jax.Array, real: jax.Array, deltas: jax.Array) -> jax.Array:
    """Mean over a row's tokens of ‖k Δ‖, float32 [S, B], from k [B, L, in], Δ [S, in, out].

    `real` [B, L] says which tokens count.
    """
    square = jnp.sum(jnp.einsum("bli,mio->mblo", given, deltas) ** 2, axis=-1)
    # the root has no slope at 0, where every shard begins
    size = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
    return jnp.sum(size * real, axis=-1) / jnp.maximum(jnp.sum(real, axis=-1), 1)
