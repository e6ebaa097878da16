"""Taps: how a method looks into, or changes, what flows through a model, without a second model.

A model calls `h = tap(site, layer, h)` at named places. Around the dense layer whose weights live
at `blocks/up` in the parameter tree the sites are `blocks/up:in` and `blocks/up:out` (before the
activation), so that a site names its kernel; `layer` is the index along the leading axis where
layers are stacked and scanned, else 0. Other sites, such as `blocks:out`, each model lists itself.
"""

from __future__ import annotations

from typing import Any

import jax

from jcl.method import Apply, Batch, Params, Tap


def identity(site: str, layer: Any, h: jax.Array) -> jax.Array:
    """The tap that does nothing."""
    return h


def compose(first: Tap, second: Tap) -> Tap:
    """A tap that applies `first`, then `second`."""
    return lambda site, layer, h: second(site, layer, first(site, layer, h))


def sites(apply: Apply, params: Params, batch: Batch) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and dtype at each site that `apply` visits, in order; nothing is computed.

    A site inside a scan over stacked layers is listed once, with the shape of one layer.
    """
    seen: dict[str, jax.ShapeDtypeStruct] = {}

    def note(site: str, layer: Any, h: jax.Array) -> jax.Array:
        seen[site] = jax.ShapeDtypeStruct(h.shape, h.dtype)
        return h

    jax.eval_shape(lambda p, b: apply(p, b, note), params, batch)
    return seen


def dense_sites(apply: Apply, params: Params, batch: Batch) -> dict[str, jax.ShapeDtypeStruct]:
    """Paths of the dense layers that `apply` visits, in order, with the shape of their input.

    Raises:
      ValueError: if the model has none, for then a method that works on layers can do nothing.
    """
    found = {
        s[: -len(":in")]: h for s, h in sites(apply, params, batch).items() if s.endswith(":in")
    }
    if not found:
        raise ValueError(
            "apply visits no dense sites, but must call tap(site, layer, h) around its dense "
            "layers (jcl.models.dense does)"
        )
    return found
