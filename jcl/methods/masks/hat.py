"""HAT: learned gates choose units for each task, and finished tasks' units no longer change."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jcl import taps, trees
from jcl.method import Apply, Aux, Batch, Call, Ctx, Info, LossFn, Method, Params, check

_LIMIT = 6.0  # the largest magnitude of an embedding, as in the authors' code


class HatState(NamedTuple):
    """The state of `hat`."""

    used: dict[str, jax.Array]
    """bool [units] by path of each gated layer: the units that a finished task has chosen."""
    finished: jax.Array
    """bool [tasks]: which tasks a finished stage has trained on."""
    answered: jax.Array
    """bool [C]: which outputs of the head had a gradient in a finished stage."""
    answering: jax.Array
    """bool [C]: which outputs of the head have had a gradient in this stage."""


def _layers(apply: Apply, params: Params, batch: Batch) -> list[str]:
    return list(taps.dense_sites(apply, params, batch))


def _at_places(units: jax.Array, inputs: int) -> jax.Array:
    """[..., units] for each of a layer's inputs, which are the units at one place after another."""
    return jnp.tile(units, inputs // units.shape[-1])


def _chain(ctx: Ctx, params: Params) -> dict[str, int]:
    """The units of every dense layer by its path, in order; a convolution's are its channels.

    Raises:
      ValueError: if the model is anything but a plain stack of two or more dense layers.
    """
    leaves = trees.by_path(params)
    units: dict[str, int] = {}
    places = False
    for path, width in taps.dense_sites(ctx.apply, params, ctx.batch).items():
        kernel = leaves.pop(f"{path}/kernel", None)
        leaves.pop(f"{path}/bias", None)
        before = next(reversed(units.values()), width.inputs)
        whole = kernel is not None and not trees.stack_axes(path, ctx.structure)
        # each unit at the places of a patch, or at all places where a convolution's are flattened
        fits = width.inputs % before == 0 and (
            not units or places or (whole and kernel.shape[-2] == before)
        )
        if not whole or not fits:
            raise ValueError(
                f"the layer {path!r} is not the next of a plain stack, but must be a trainable "
                "dense layer whose inputs are the units of the one before"
            )
        taps.matrix_shape(path, kernel.shape, width, ctx.structure)  # for its error
        units[path] = width.outputs
        places = kernel.ndim > 2
    if leaves or len(units) < 2:
        raise ValueError(
            f"the model has {len(units)} dense layers and also {sorted(leaves)}, but must be a "
            "plain stack of two or more dense layers"
        )
    return units


def hat(tasks: int, steps: int, smax: float = 400.0, strength: float = 0.75) -> Method:
    """Hard attention to the task: h_l ← h_l · σ(s e_l[t]), with embeddings e_l [tasks, units].

    h_l are a layer's units, t is the row's task. The loss gains λ Σ a (1 - used) / Σ (1 - used),
    over all gates a = σ(s e). Weights from a used unit to a used unit don't move, nor used units'
    biases: update · (1 - min(used_out, used_in)), the model's inputs counting as used.
    s rises linearly from 1/smax to smax over `steps` steps and starts again; the gradient of a gate
    is smax σ'(e), which is what the authors' compensation (smax/s)(cosh(s e) + 1)/(cosh(e) + 1)
    makes of it, without the overflow.

    Source: Serrà et al., arXiv 1801.01423, section 2, and the authors' code. Differences:
    - The mask is on the update, not on the gradient, so that it holds under momentum and Adam.
    - Gates are 0 or 1 (e > 0) in prediction and where units are marked as used, and finished
      tasks' embeddings are frozen, so that a finished task's outputs never change again.
    - The head is shared, and ungated: its weights from used units, and its bias, are frozen for
      those outputs that had a gradient in a finished stage. With a loss over each task's own
      classes this leaves the other classes' outputs free to learn, as separate heads would.
    - Each row has the gate of its own `task`, so replayed rows pass the gates of the task that they
      came from. The global clipping of gradients is left to the optimizer.

    It is for plain stacks of dense layers and convolutions, gated behind the activation, and the
    data must name its tasks. A convolution's units are its channels, which come last, and fastest
    where its places are flattened for a dense layer. The embeddings are parameters, `hat/<layer>`.
    No argument makes it plain fine-tuning, for the gates act at once.

    Args:
      tasks: how many tasks there will be.
      steps: how many steps one annealing takes, an epoch's in the paper.
      smax: the largest s; may be traced.
      strength: λ; may be traced.

    Raises:
      ValueError: if an argument is out of range, or, at `init`, the model is no such stack.
    """
    check(tasks >= 1, "tasks", tasks, "at least 1")
    check(steps >= 1, "steps", steps, "at least 1")
    check(smax >= 1, "smax", smax, "at least 1")
    check(strength >= 0, "strength", strength, "at least 0")

    def init(ctx: Ctx, params: Params) -> tuple[Params, HatState]:
        *gated, head = _chain(ctx, params).items()
        keys = jax.random.split(ctx.key, len(gated))
        drawn = {
            path: jax.random.normal(key, (tasks, units))
            for key, (path, units) in zip(keys, gated, strict=True)
        }
        used = {path: jnp.zeros(units, bool) for path, units in gated}
        none = jnp.zeros(head[1], bool)
        state = HatState(used, jnp.zeros(tasks, bool), none, jnp.zeros_like(none))
        return {**params, "hat": drawn}, state

    def gate(e: jax.Array, ctx: Ctx, training: bool) -> jax.Array:
        if not training:
            return (e > 0).astype(e.dtype)
        share = (ctx.stage_step % steps) / max(steps - 1, 1)
        s = 1 / smax + (smax - 1 / smax) * share
        slope = smax * jax.nn.sigmoid(e)
        # the value of σ(s e), with the gradient of smax σ(e)
        return lax.stop_gradient(jax.nn.sigmoid(s * e)) + (slope - lax.stop_gradient(slope))

    def forward(state: HatState, ctx: Ctx, apply: Apply) -> Apply:
        layers = _layers(apply, ctx.params, ctx.batch)
        behind = {f"{after}:in": path for path, after in pairwise(layers)}

        def apply_with_gates(params: Params, batch: Batch, call: Call = Call()) -> Any:
            # a product with one-hot rows: its gradient is dense, where a gather's is a slow scatter
            rows = jax.nn.one_hot(batch["task"], tasks)

            def shut(site: str, layer: Any, h: jax.Array) -> jax.Array:
                if site not in behind:
                    return h
                e = jnp.dot(rows, params["hat"][behind[site]], precision="highest")
                gates = _at_places(gate(e, ctx, call.training), h.shape[-1])
                return h * gates.reshape(len(e), *[1] * (h.ndim - 2), -1).astype(h.dtype)

            return apply(params, batch, call._replace(tap=taps.compose(shut, call.tap)))

        return apply_with_gates

    def loss(state: HatState, ctx: Ctx, loss_fn: LossFn) -> LossFn:
        free = {path: 1.0 - u for path, u in state.used.items()}
        room = jnp.maximum(sum(jnp.sum(f) for f in free.values()), 1.0)
        task = ctx.batch["task"][0]

        def loss_with_penalty(
            params: Params, batch: Batch, call: Call = ctx.call
        ) -> tuple[jax.Array, Aux]:
            value, aux = loss_fn(params, batch, call)
            gates = {p: gate(params["hat"][p][task], ctx, call.training) for p in free}
            taken = sum(jnp.sum(gates[p] * f) for p, f in free.items())
            return value + strength * taken / room, aux

        return loss_with_penalty

    def updates(state: HatState, ctx: Ctx, tree: Params) -> Params:
        held: dict[str, jax.Array] = {}
        before = jnp.ones(1, bool)
        for path, width in taps.dense_sites(ctx.apply, ctx.params, ctx.batch).items():
            out = state.used.get(path, state.answered)
            held[f"{path}/kernel"] = _at_places(before, width.inputs)[:, None] & out
            held[f"{path}/bias"] = before = out
        kept = jax.tree_util.tree_map_with_path(
            lambda p, u: jnp.where(held[trees.path_name(p)].reshape(u.shape), 0, u),
            {k: u for k, u in tree.items() if k != "hat"},
        )

        def bounded(u: jax.Array, e: jax.Array) -> jax.Array:
            moved = jnp.clip(e + u, -_LIMIT, _LIMIT) - e
            return jnp.where(state.finished[:, None], 0, moved)

        return {**kept, "hat": jax.tree.map(bounded, tree["hat"], ctx.params["hat"])}

    def observe(state: HatState, ctx: Ctx, info: Info) -> HatState:
        head = _layers(ctx.apply, ctx.params, ctx.batch)[-1]
        node = info.grads
        for key in head.split("/"):
            node = node[key]
        slopes = node["kernel"].reshape(-1, len(state.answering))
        return state._replace(answering=state.answering | jnp.any(slopes != 0, axis=0))

    def consolidate(
        state: HatState, ctx: Ctx, params: Params, batches: Batch
    ) -> tuple[Params, HatState]:
        real = jnp.where(batches["weight"] > 0, batches["task"], tasks)
        finished = state.finished.at[real.reshape(-1)].set(True, mode="drop")
        used = {
            path: jnp.any((params["hat"][path] > 0) & finished[:, None], axis=0)
            for path in state.used
        }
        answered = state.answered | state.answering
        return params, HatState(used, finished, answered, jnp.zeros_like(answered))

    def report(state: HatState, info: Info) -> dict[str, jax.Array]:
        units = sum(u.size for u in state.used.values())
        used = sum((jnp.sum(u, dtype=jnp.float32) for u in state.used.values()), jnp.float32(0))
        return {"used": used / units}

    return Method(
        "hat",
        init=init,
        forward=forward,
        loss=loss,
        updates=updates,
        observe=observe,
        consolidate=consolidate,
        report=report,
        fixes=True,
        reads=("parameters",),
    )
