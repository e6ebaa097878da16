"""Searches the output of a layer at the subject for which the model gives the new answer.

It also reads the present inputs and outputs there. Editors share this that write into an MLP's last
kernel, which they regard as a memory: key [in] -> value [out].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jcl import losses, taps
from jcl.editing import solve
from jcl.editing.editor import Facts
from jcl.method import Apply, Batch, Params, check


class Search(NamedTuple):
    """The settings of the search for a value, see `find`.

    Args:
      steps: one more than Adam takes at most.
      rate: Adam's learning rate.
      decay: β, the weight of ‖δ‖ / ‖h‖².
      kl: the weight of the divergence at the essence prompt.
      clamp: ‖δ‖ is at most this times ‖h‖.
      enough: the loss at which the search ends early.
    """

    steps: int
    rate: float | jax.Array
    decay: float | jax.Array
    kl: float | jax.Array
    clamp: float | jax.Array
    enough: float | jax.Array

    def checked(self) -> Search:
        """Returns these settings.

        Raises:
          ValueError: if an argument is out of range.
        """
        check(self.steps >= 2, "steps", self.steps, "at least 2")
        for name in ("rate", "clamp"):
            value = getattr(self, name)
            check(value > 0, name, value, "above 0")
        for name in ("decay", "kl", "enough"):
            value = getattr(self, name)
            check(value >= 0, name, value, "at least 0")
        return self


def rows(tokens: jax.Array, segments: jax.Array) -> Batch:
    """A batch of prompts, from `tokens` and `segments` int32 [B, L]."""
    count = tokens.shape[0]
    weight, task = jnp.ones(count, jnp.float32), jnp.zeros(count, jnp.int32)
    return {"tokens": tokens, "segments": segments, "weight": weight, "task": task}


def target_nll(outputs: Any, rows: Batch) -> jax.Array:
    """Mean nats over each row's target tokens, float32 [N], from `TokenScores` or logits."""
    if isinstance(outputs, losses.TokenScores):
        nll = outputs.nll[:, :-1]
    else:
        nll = losses.next_token_nll(outputs, rows["tokens"])
    return jnp.sum(nll * rows["mask"], axis=-1) / jnp.maximum(jnp.sum(rows["mask"], axis=-1), 1)


def pick_at(places: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """A function that picks the value at each row's place int32 [B]: [B, L, d] -> [B, d]."""
    return lambda h: h[jnp.arange(len(places)), places]


def find(
    apply: Apply, params: Params, fact: Facts, site: str, layer: int | jax.Array, search: Search
) -> tuple[jax.Array, jax.Array]:
    """δ and h, float32 [d]: h is the value at `site` at an edit's subject, δ what to add to it.

    δ = argmin mean_p [-log p(target | context_p, prompt; h + δ) / tokens] + kl · KL + β ‖δ‖ / ‖h‖²,
    by Adam from 0, with ‖δ‖ ≤ clamp · ‖h‖, h being what the bare prompt has at the subject's last
    token. The KL is from the unedited to the edited prediction of the token after the subject in
    `{subject} is a`.

    Source: Meng et al., arXiv 2202.05262, equation 4, and 2210.07229, section 4.3, with the details
    of the authors' code (`compute_v.py`, `compute_z.py`): the decay's form, the clamp, the early
    end, the KL's direction and its place (the papers read it after the whole essence prompt).

    Args:
      apply: the model, giving logits [B, L, V].
      params: its parameters.
      fact: leaves of `Facts` without their first axis; one of weight 0 isn't searched for.
      site: the site of the value, such as `blocks:out`.
      layer: the index of the layer; may be traced.
      search: see `Search`.
    """
    tokens = jnp.concatenate([fact["tokens"], fact["essence"][None]])
    segments = jnp.concatenate([fact["segments"], fact["essence_segments"][None]])
    places = jnp.append(fact["subject"], fact["essence_subject"])
    index, batch = jnp.arange(len(places)), rows(tokens, segments)
    pick = pick_at(places)
    found, logits = taps.read(apply, params, batch, {site: (layer, lambda h: pick(h)[0])})
    old = found[site]
    length = jnp.linalg.norm(old)
    mask = fact["mask"] / jnp.maximum(jnp.sum(fact["mask"], axis=-1, keepdims=True), 1)

    def essence(logits: jax.Array) -> jax.Array:
        return jax.nn.log_softmax(logits[-1, places[-1]].astype(jnp.float32))

    held = essence(logits)

    def cost(delta: jax.Array) -> jax.Array:
        def tap(name: str, at: Any, h: jax.Array) -> jax.Array:
            if name != site:
                return h
            return h.at[index, places].add(jnp.where(at == layer, delta, 0.0).astype(h.dtype))

        logits = apply(params, batch, tap)
        wide = jax.nn.log_softmax(logits[:-1, :-1].astype(jnp.float32))
        chosen = jnp.take_along_axis(wide, fact["tokens"][:, 1:, None], axis=-1)[..., 0]
        nll = -jnp.mean(jnp.sum(chosen * mask, axis=-1))
        now = essence(logits)
        divergence = jnp.sum(jnp.exp(now) * (now - held))
        square = jnp.sum(delta**2)  # the root has no slope at 0
        size = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
        return nll + search.kl * divergence + search.decay * size / length**2

    adam = optax.adam(search.rate)

    def is_going(carry: Any) -> jax.Array:
        step, done, *_ = carry
        return (step < search.steps - 1) & ~done

    def improve(carry: Any) -> Any:
        step, _, delta, state = carry
        loss, slope = jax.value_and_grad(cost)(delta)
        move, after = adam.update(slope, state)
        moved = delta + move
        size = jnp.linalg.norm(moved)
        moved = moved * jnp.minimum(1.0, search.clamp * length / jnp.maximum(size, 1e-30))
        done = loss < search.enough
        return step + 1, done, jnp.where(done, delta, moved), after

    delta = jnp.zeros_like(old)
    start = (jnp.int32(0), fact["weight"] == 0, delta, adam.init(delta))
    return lax.while_loop(is_going, improve, start)[2], old


def at_subjects(
    apply: Apply, params: Params, facts: Facts, wanted: Mapping[str, Any], together: int
) -> dict[str, jax.Array]:
    """The values at each subject's last token, float32 [N, *shape of layers, P, d] by site.

    Args:
      apply: the model.
      params: its parameters.
      facts: the edits.
      wanted: layers by site, as `taps.read` takes them.
      together: how many edits are read at once.
    """

    def one(fact: Facts) -> dict[str, jax.Array]:
        pick = pick_at(fact["subject"])
        batch = rows(fact["tokens"], fact["segments"])
        return taps.read(apply, params, batch, {s: (at, pick) for s, at in wanted.items()})[0]

    return lax.map(one, facts, batch_size=together)


def mean_key(keys: jax.Array) -> jax.Array:
    """MEMIT's key of an edit: half the key of the bare prompt, half the mean of the others.

    `keys` are [..., P, in], the result is [..., in].
    """
    bare = keys[..., 0, :]
    return bare if keys.shape[-2] == 1 else (bare + jnp.mean(keys[..., 1:, :], axis=-2)) / 2


def aims(
    apply: Apply, params: Params, facts: Facts, layer: int, search: Search, together: int
) -> jax.Array:
    """z = h + δ of each edit at `blocks:out` of a layer, float32 [N, d]; see `find`."""

    def one(fact: Facts) -> jax.Array:
        delta, old = find(apply, params, fact, "blocks:out", layer, search)
        return old + delta

    return lax.map(one, facts, batch_size=together)


Solver = Callable[[Any, jax.Array, jax.Array], jax.Array]
"""`(need, keys [N, in], values [N, out]) -> change [in, out]`; `need` is the layer's own."""


def write_layers(
    apply: Apply,
    params: Params,
    facts: Facts,
    layers: tuple[int, ...],
    search: Search,
    solver: Solver,
    needs: Any,
    path: str,
    together: int,
) -> Params:
    """The parameters after the edits are written into several layers, first to last.

    What is wanted are the `aims` at the last of the layers. What its `blocks:out` lacks of them,
    after what the layers before have written, is divided by the number of layers that are left, and
    written at the layer's keys. An edit of weight 0 has key 0, at which nothing can be written.

    Source: Meng et al., arXiv 2210.07229, section 4.3 and algorithm 1, and the authors' code
    (kmeng01/memit: `memit_main.py`, `compute_ks.py`).

    Args:
      apply: the model.
      params: its parameters.
      facts: the edits.
      layers: that are written, in order.
      search: for the aims.
      solver: gives a layer's change.
      needs: what it needs, leaves [layers, ...].
      path: of the dense layer whose kernel is written.
      together: edits that are searched for, or read, at once.
    """
    wanted = aims(apply, params, facts, layers[-1], search, together)
    site, inside = "blocks:out", f"{path}:in"
    weight = facts["weight"][:, None]

    def write(kernel: jax.Array, xs: Any) -> tuple[jax.Array, None]:
        layer, left, need = xs
        now = solve.put(params, path, kernel)
        seen = at_subjects(apply, now, facts, {inside: layer, site: layers[-1]}, together)
        missing = (wanted - seen[site][:, 0]) / left
        change = solver(need, weight * mean_key(seen[inside]), missing)
        return solve.add(kernel, layer, change), None

    left = jnp.arange(len(layers), 0, -1)
    start = solve.kernel(params, path, layers)
    kernel, _ = lax.scan(write, start, (jnp.asarray(layers), left, needs))
    return solve.put(params, path, kernel)
