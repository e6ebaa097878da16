"""Finds boundaries between stages that nobody announces, by drift of the running loss.

A detector is a pair of pure functions with a small state, so it runs inside a scan. `watch_drift`
makes a program consolidate by itself where its detector finds a drift.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jcl.method import Batch, Params, check
from jcl.program import Program, State, fill_batch


class Detector(NamedTuple):
    """`init() -> state`, and `update(state, value) -> (state, since)` for each float32 [] value.

    `since` int32 [] is 0 while there is no drift. Where one is found, it is how many of the last
    values, this one included, are taken to come after the drift.
    """

    init: Callable[[], Any]
    update: Callable[[Any, jax.Array], tuple[Any, jax.Array]]


class PageHinkleyState(NamedTuple):
    """The state of the Page-Hinkley test, which starts anew after each drift."""

    seen: jax.Array
    """int32 []: how many values it has seen."""
    mean: jax.Array
    """float32 []: their mean."""
    excess: jax.Array
    """float32 []: Σ (x_i - mean_i - tolerance)."""
    lowest: jax.Array
    """float32 []: the least that `excess` has been."""
    turn: jax.Array
    """int32 []: after how many values `excess` was least, where a drift would have begun."""


def page_hinkley(threshold: float = 5.0, tolerance: float = 0.05, warm_up: int = 30) -> Detector:
    """The Page-Hinkley test for a rise of the mean: m_t - min m > threshold.

    m_t = Σ_{i ≤ t} (x_i - mean_i - tolerance), with mean_i the mean of the values up to i. A
    falling loss, which is learning, keeps m_t at its minimum. A drift is taken to have begun where
    m_t was least. After a drift the test starts anew.

    Args:
      threshold: which excess counts as a drift, in the values' unit times steps; may be traced.
      tolerance: which rise per step doesn't count; may be traced.
      warm_up: how many values must be seen before a drift can be found; may be traced.

    Raises:
      ValueError: if an argument is out of range.

    Source: Page, Biometrika 41, 1954; Hinkley, Biometrika 58, 1971; as in Gama et al., "A survey on
    concept drift adaptation", 2014.

    >>> detector = page_hinkley(threshold=3.0)
    >>> losses = jnp.concatenate([jnp.full(50, 0.2), jnp.full(50, 1.2)])
    >>> _, since = lax.scan(detector.update, detector.init(), losses)
    >>> [(int(i), int(since[i])) for i in jnp.flatnonzero(since)]
    [(53, 4)]
    """
    check(threshold > 0, "threshold", threshold, "above 0")
    check(tolerance >= 0, "tolerance", tolerance, "at least 0")
    check(warm_up >= 1, "warm_up", warm_up, "at least 1")

    def init() -> PageHinkleyState:
        none, zero = jnp.int32(0), jnp.float32(0)
        return PageHinkleyState(none, zero, zero, zero, none)

    def update(state: PageHinkleyState, value: jax.Array) -> tuple[PageHinkleyState, jax.Array]:
        seen = state.seen + 1
        mean = state.mean + (value - state.mean) / seen
        excess = state.excess + value - mean - tolerance
        lowest = jnp.minimum(state.lowest, excess)
        turn = jnp.where(excess <= state.lowest, seen, state.turn)
        found = (excess - lowest > threshold) & (seen > warm_up)
        after = PageHinkleyState(seen, mean, excess, lowest, turn)
        after = jax.tree.map(lambda new, old: jnp.where(found, new, old), init(), after)
        return after, jnp.where(found, seen - turn, 0)

    return Detector(init, update)


class Watch(NamedTuple):
    """What `watch_drift` adds to `State.methods`, under `drift`."""

    detector: Any
    """The detector's state."""
    recent: Batch
    """Leaves [recent, B, ...]: a ring of the last batches; of weight 0 before there are any."""
    found: jax.Array
    """int32 []: how many drifts were found."""


def watch_drift(program: Program, detector: Detector, recent: int = 16) -> Program:
    """A program that calls `consolidate` by itself where the detector finds a drift of its loss.

    `run`, `fit` or a loop of one's own drive it over one long stage. At a drift the last `recent`
    batches stand for the stage that ended, with weight 0 for those that the detector takes to
    belong to the next one; so `recent` should be several times the detector's delay. `State.stage`
    counts the drifts found, and each step reports `drift/found`.

    Under `vmap` the consolidation is computed in every step, otherwise only at a drift.

    Args:
      program: a single program, from `make`.
      detector: such as `page_hinkley()`; it sees the loss that was descended.
      recent: how many batches are kept.

    Raises:
      ValueError: if `recent` is below 1 or `program` has members.
    """
    check(recent >= 1, "recent", recent, "at least 1")
    check(program.members is None, "program.members", program.members, "None, a single program")

    def parts(state: State) -> tuple[State, Watch]:
        methods = dict(state.methods)
        watch = methods.pop("drift")
        return state._replace(methods=methods), watch

    def joined(state: State, watch: Watch) -> State:
        return state._replace(methods={**state.methods, "drift": watch})

    def init(params: Params, batch: Batch, key: jax.Array, collections: Any = ()) -> State:
        state = program.init(params, batch, key, collections)
        rows = fill_batch(batch)
        empty = jax.tree.map(lambda x: jnp.zeros((recent, *x.shape), x.dtype), rows)
        return joined(state, Watch(detector.init(), empty, jnp.int32(0)))

    def step(state: State, batch: Batch) -> tuple[State, dict[str, jax.Array]]:
        inner, watch = parts(state)
        slot = inner.step % recent
        inner, aux = program.step(inner, batch)
        kept = jax.tree.map(lambda old, new: old.at[slot].set(new), watch.recent, fill_batch(batch))
        seen, since = detector.update(watch.detector, aux["loss"])

        def ended(inner: State) -> State:
            age = (slot - jnp.arange(recent)) % recent  # 0 is the newest
            old = age >= jnp.minimum(since, recent - 1)
            weight = kept["weight"] * old[:, None]
            return program.consolidate(inner, {**kept, "weight": weight})

        inner = lax.cond(since > 0, ended, lambda s: s, inner)
        watch = Watch(seen, kept, watch.found + (since > 0))
        return joined(inner, watch), {**aux, "drift/found": (since > 0).astype(jnp.float32)}

    def consolidate(state: State, batches: Batch) -> State:
        inner, watch = parts(state)
        return joined(program.consolidate(inner, batches), watch)

    def predict(state: State, *args: Any, **kwargs: Any) -> Any:
        return program.predict(parts(state)[0], *args, **kwargs)

    def read_params(state: State, batch: Batch) -> Params:
        return program.read_params(parts(state)[0], batch)

    def over_members(fn: Callable[..., Any], *args: Any) -> Any:
        return fn(watching, *args)

    # its stages end where drifts are found, so that no number of a stream's says when they start
    found = tuple(m._replace(starts=0) for m in program.method.parts)
    watching = program._replace(
        method=program.method._replace(parts=found),
        init=init,
        step=step,
        consolidate=consolidate,
        predict=predict,
        read_params=read_params,
        over_members=over_members,
    )
    return watching
