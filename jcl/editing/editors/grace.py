"""GRACE: a codebook beside one layer, whose values replace the layer's outputs near its keys."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jcl import losses, taps
from jcl.editing import values
from jcl.editing.editor import Editor, Facts
from jcl.method import Apply, Batch, Params, Tap, check


class GraceState(NamedTuple):
    """A codebook with room for C entries."""

    keys: jax.Array
    """float32 [C, in]: the layer's input at a prompt's last token."""
    values: jax.Array
    """float32 [C, out]: the output that replaces the layer's there."""
    radii: jax.Array
    """float32 [C]: how far from its key an entry applies."""
    labels: jax.Array
    """int32 [C, L - 1]: the answer's tokens, then -1."""
    used: jax.Array
    """bool [C]: which entries are taken."""
    edit: jax.Array
    """int32 [C]: which edit made an entry, counted from 0; -1 if none did."""
    written: jax.Array
    """int32 []: how many edits were asked for."""
    refused: jax.Array
    """int32 []: for how many of them there was no room."""


def grace(
    apply: Apply,
    layer: int,
    *,
    site: str = "blocks/down",
    radius: float = 1.0,
    capacity: int = 1024,
    steps: int = 100,
    rate: float = 1.0,
    stop: float = 0.02,
) -> Editor:
    """GRACE: no weight changes; within ε of a key, the layer's output is the key's value.

    An edit's query q is the layer's input at the last token of the prompt. Let k be the nearest
    key, d its distance and ε its radius. If d is beyond ε₀ + ε, the edit makes an entry of its own,
    of radius ε₀. If it is nearer and k has the same answer, ε grows to d. If it is nearer and k has
    another answer, the edit makes an entry, and both radii become d/2. The value then learns the
    answer by Adam on its cross-entropy, starting from the layer's own output.

    For inputs outside every radius the model stays the same, bit for bit.

    Source: Hartvigsen et al., arXiv 2211.11031, algorithm 1, and the authors' code,
    `grace/editors/grace.py` (`coverage`, `warm`, and `replace_last` as EasyEdit has it). There only
    the last token looks for a key; here every token does, so that decoding with a cache and one
    pass over a whole text agree. There answers are compared by the mean of their token ids, here by
    the tokens. A query that equals a key, to rounding, replaces its answer; there both radii would
    become 0. There each value takes all its steps, here it stops when it has learned.

    A full codebook takes no new entries: such an edit is counted in `refused`, and the earlier
    ones stay. The entry of an edit can be taken out again (`remove_edit`).

    Args:
      apply: the model.
      layer: the index of the layer along stacked layers.
      site: the path of its dense layer, `blocks/down` in the authors' settings for Llama.
      radius: ε₀, in units of the layer's inputs; a larger one favours generality over locality.
      capacity: C, how many entries there is room for.
      steps: how many steps of Adam a value takes at most.
      rate: Adam's learning rate.
      stop: the nats per token of the answer at which a value has learned; 0 takes all steps.

    Raises:
      ValueError: if an argument is out of range, or, at `init`, the model has no such site.
    """
    check(layer >= 0, "layer", layer, "at least 0")
    check(radius > 0, "radius", radius, "above 0")
    check(capacity >= 1, "capacity", capacity, "at least 1")
    check(steps >= 1, "steps", steps, "at least 1")
    check(rate > 0, "rate", rate, "above 0")
    check(stop >= 0, "stop", stop, "at least 0")
    adam = optax.adam(rate)

    def init(params: Params, facts: Facts) -> GraceState:
        seen = taps.sites(apply, params, bare(facts))
        known = [s.removesuffix(":in") for s in seen if s.endswith(":in")]
        check(site in known, "site", site, f"one of {known}")
        wide, narrow = (seen[f"{site}:{end}"].shape[-1] for end in ("in", "out"))
        return GraceState(
            keys=jnp.zeros((capacity, wide)),
            values=jnp.zeros((capacity, narrow)),
            radii=jnp.zeros(capacity),
            labels=jnp.full((capacity, facts["mask"].shape[-1]), -1, jnp.int32),
            used=jnp.zeros(capacity, bool),
            edit=jnp.full(capacity, -1, jnp.int32),
            written=jnp.int32(0),
            refused=jnp.int32(0),
        )

    def enter(state: GraceState, edit: Any) -> tuple[GraceState, jax.Array]:
        """The codebook with an entry for one edit, and the entry's slot; C if there is no room."""
        query, label, asked = edit
        near, distance = _nearest(state, query)
        within = distance <= radius + state.radii[near]
        again = distance <= 1e-4 * jnp.linalg.norm(query)
        alike = within & jnp.all(state.labels[near] == label)
        known, full = alike | again, jnp.all(state.used)
        split = within & ~known & ~full
        grown = jnp.where(alike, jnp.maximum(state.radii[near], distance), state.radii[near])
        shrunk = jnp.where(split, distance / 2 - 1e-5, grown)
        slot = jnp.where(known, near, jnp.argmin(state.used))
        kept = asked & (known | ~full)
        slot = jnp.where(kept, slot, capacity)  # beyond the end, so that nothing is written
        new = jnp.where(known, capacity, slot)
        return GraceState(
            keys=state.keys.at[new].set(query, mode="drop"),
            values=state.values,
            radii=state.radii.at[jnp.where(kept, near, capacity)]
            .set(shrunk, mode="drop")
            .at[new]
            .set(jnp.where(split, distance / 2, radius), mode="drop"),
            labels=state.labels.at[slot].set(label, mode="drop"),
            used=state.used.at[slot].set(True, mode="drop"),
            edit=state.edit.at[new].set(state.written, mode="drop"),
            written=state.written + asked,
            refused=state.refused + (asked & ~kept),
        ), slot

    def write(params: Params, state: GraceState, facts: Facts) -> tuple[Params, GraceState]:
        rows, target = bare(facts), facts["mask"][:, 0] > 0
        places = jnp.argmax(target, axis=-1)  # the prompt's last tokens
        each = jnp.arange(len(places))
        pick = values.pick_at(places)
        wanted = {f"{site}:{end}": (layer, pick) for end in ("in", "out")}
        seen, _ = taps.read(apply, params, rows, wanted)

        first = jnp.argsort(~target, axis=-1, stable=True)  # the target's tokens first
        ids = jnp.where(target, rows["tokens"][:, 1:], -1)
        labels = jnp.take_along_axis(ids, first, axis=-1)
        asked = facts["weight"] > 0
        state, slots = lax.scan(enter, state, (seen[f"{site}:in"], labels, asked))
        # edits that share an entry learn one value; if they contradict, only the last one learns
        owner = jnp.argmax(slots[:, None] == slots, axis=1)
        live = (slots < capacity) & jnp.all(state.labels[slots] == labels, axis=-1)
        fresh = ~jnp.any(state.values[slots] != 0, axis=-1, keepdims=True)
        start = jnp.where(fresh, seen[f"{site}:out"], state.values[slots])

        def cost(learned: jax.Array) -> tuple[jax.Array, jax.Array]:
            def tap(at: str, index: Any, h: jax.Array) -> jax.Array:
                if at != f"{site}:out":
                    return h
                put = h.at[each, places].set(learned[owner].astype(h.dtype))
                return jnp.where(index == layer, put, h)

            nll = values.target_nll(apply(params, losses.with_targets(rows), tap), rows)
            return jnp.sum(jnp.where(live, nll, 0.0)), nll

        def is_going(carry: Any) -> jax.Array:
            step, _, _, learning = carry
            return (step < steps) & jnp.any(learning)

        def improve(carry: Any) -> Any:
            step, learned, inner, _ = carry
            (_, nll), slope = jax.value_and_grad(cost, has_aux=True)(learned)
            learning = live & (nll > stop)
            moves = jnp.zeros(len(owner), bool).at[owner].max(learning)
            updates, inner = adam.update(slope, inner)
            learned = jnp.where(moves[:, None], learned + updates, learned)
            return step + 1, learned, inner, learning

        begin = (jnp.int32(0), start, adam.init(start), live)
        learned = lax.while_loop(is_going, improve, begin)[1][owner]
        at = jnp.where(live, slots, capacity)
        return params, state._replace(values=state.values.at[at].set(learned, mode="drop"))

    def forward(state: GraceState, apply: Apply) -> Apply:
        def edited(params: Params, batch: Batch, tap: Tap = taps.identity) -> Any:
            return apply(params, batch, taps.compose(_lookup(state, site, layer), tap))

        return edited

    return Editor("grace", init, write, forward)


def remove_edit(state: GraceState, edit: int | jax.Array) -> GraceState:
    """The codebook without the entry that an edit, counted from 0, made; its slot is free again.

    A radius that the edit changed in another entry stays changed.
    """
    gone = state.used & (state.edit == edit)
    return state._replace(
        used=state.used & ~gone,
        values=jnp.where(gone[:, None], 0.0, state.values),
        labels=jnp.where(gone[:, None], -1, state.labels),
        edit=jnp.where(gone, -1, state.edit),
    )


def bare(facts: Facts) -> Batch:
    """The prompts without context as a batch of N rows, with the `mask` of their targets."""
    rows = values.rows(facts["tokens"][:, 0], facts["segments"][:, 0])
    return {**rows, "mask": facts["mask"][:, 0]}


def _nearest(state: GraceState, query: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Index and distance of the nearest key, [...] each, for queries [..., in]; ∞ if empty."""
    query = query.astype(jnp.float32)
    # ½‖k‖² - q·k is least where ‖q - k‖ is; the distance itself is computed for that key alone
    far = 0.5 * jnp.sum(state.keys**2, axis=-1) - jnp.matmul(
        query, state.keys.T, precision=lax.Precision.HIGHEST
    )
    near = jnp.argmin(jnp.where(state.used, far, jnp.inf), axis=-1)
    distance = jnp.linalg.norm(query - state.keys[near], axis=-1)
    return near, jnp.where(state.used[near], distance, jnp.inf)


def _lookup(state: GraceState, site: str, layer: int) -> Tap:
    """A tap that replaces the layer's outputs by values, for each token that is near a key."""
    given: list[jax.Array] = []  # the layer's input, from one call of the tap to the next

    def tap(at: str, index: Any, h: jax.Array) -> jax.Array:
        if at == f"{site}:in":
            given[:] = [h]
        if at != f"{site}:out":
            return h

        def replaced(x: jax.Array, h: jax.Array) -> jax.Array:
            near, distance = _nearest(state, x)
            inside = distance <= state.radii[near]
            return jnp.where(inside[..., None], state.values[near].astype(h.dtype), h)

        return lax.cond(jnp.equal(index, layer), replaced, lambda x, h: h, given.pop(), h)

    return tap
