"""Taps: a method reads or changes what flows through a model, without a second model.

A model calls `h = tap(site, layer, h)` at named places. Around the dense layer whose weights live
at `blocks/up` in the parameter tree the sites are `blocks/up:in` and `blocks/up:out` (before the
activation), so that a site names its kernel. Where layers are stacked and scanned, `layer` is the
index along their leading axis, int32 [], else 0. Each model's docstring lists its other sites, such
as `blocks:out`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

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
    """Paths of the dense layers that `apply` visits, in order, with shape and dtype of their input.

    Raises:
      ValueError: if it visits none, for then a method that works on layers can do nothing.
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


@jax.custom_vjp
def probe(h: jax.Array, slot: jax.Array, value: jax.Array) -> jax.Array:
    """`h` itself, with a gradient of `slot` that is `value`.

    Differentiating by `slot` thus brings `value` out of a scan over layers, which would not let it
    out otherwise.
    """
    return h


def _probe_forward(h: jax.Array, slot: jax.Array, value: jax.Array) -> tuple[jax.Array, jax.Array]:
    return h, value


def _probe_backward(value: jax.Array, g: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    return g, value, jnp.zeros_like(value)


probe.defvjp(_probe_forward, _probe_backward)


def read(
    apply: Apply,
    params: Params,
    batch: Batch,
    wanted: Mapping[str, tuple[Any, Callable[[jax.Array], jax.Array]]],
) -> tuple[dict[str, jax.Array], Any]:
    """The values that pass some layers' sites, and the outputs, at the price of a forward pass.

    Args:
      apply: the model.
      params: its parameters.
      batch: its input.
      wanted: `(layers, pick)` by site. `layers` are indices, an integer or an array of distinct
        ones, which may be traced (a site outside a stack is layer 0); `pick` takes what is wanted
        of the value there, such as `lambda h: h[:, -1]`.

    Returns:
      float32 [*shape of layers, *shape of what was picked] by site; and the outputs.
    """
    shapes = sites(apply, params, batch)
    picked = {s: jax.eval_shape(pick, shapes[s]).shape for s, (_, pick) in wanted.items()}
    layers = {site: jnp.asarray(at) for site, (at, _) in wanted.items()}

    def run(slots: dict[str, jax.Array]) -> tuple[jax.Array, Any]:
        def tap(site: str, layer: Any, h: jax.Array) -> jax.Array:
            if site not in slots:
                return h
            # a slot for each of the layers, and one for all others
            slot = jnp.argmax(jnp.append(layers[site].reshape(-1) == layer, True))
            return probe(h, slots[site][slot], wanted[site][1](h).astype(jnp.float32))

        outputs = apply(params, batch, tap)
        parts = [jnp.sum(o.astype(jnp.float32)) for o in jax.tree.leaves(outputs)]
        return sum(parts, jnp.float32(0)), outputs

    blank = {site: jnp.zeros((at.size + 1, *picked[site])) for site, at in layers.items()}
    found, outputs = jax.grad(run, has_aux=True)(blank)
    kept = {s: x[:-1].reshape(*layers[s].shape, *picked[s]) for s, x in found.items()}
    return kept, outputs
