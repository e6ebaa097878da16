"""GEM: the step nearest to the gradient that raises the loss on no past stage."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jcl import memory, moved, trees
from jcl.method import Batch, Ctx, Info, Method, Params, check


class GemState(NamedTuple):
    """The state of `gem`."""

    buffer: memory.Buffer
    """The memory, a region of slots for each stage."""


def solve_dual(gram: jax.Array, slope: jax.Array, lower: jax.Array, free: jax.Array) -> jax.Array:
    """argmin ½ vᵀPv + qᵀv subject to v >= lower, float32 [K], by Lawson and Hanson's active sets.

    They need finitely many K × K solves, of which at most 6 K are made.

    Args:
      gram: P, positive definite, float32 [K, K].
      slope: q, float32 [K].
      lower: the lower bounds of v, float32 [K].
      free: bool [K]; where it is False v is `lower`.
    """
    size = len(slope)
    slope = slope + gram @ lower  # the slope in terms of u = v - lower >= 0
    scale = jnp.maximum(jnp.max(jnp.abs(slope)), 1e-30)

    def newton(support: jax.Array) -> jax.Array:
        """The minimiser over `support`, 0 elsewhere."""
        both = support[:, None] & support[None, :]
        matrix = jnp.where(both, gram, jnp.eye(size))
        factor = jax.scipy.linalg.cho_factor(matrix)
        wanted = jnp.where(support, -slope, 0.0)
        u = jax.scipy.linalg.cho_solve(factor, wanted)
        return u + jax.scipy.linalg.cho_solve(factor, wanted - matrix @ u)  # refined once

    def unfinished(carry: tuple[jax.Array, ...]) -> jax.Array:
        return ~carry[2] & (carry[3] < 6 * size)

    def advance(carry: Any) -> Any:
        u, support, _, turn = carry
        goal = newton(support)
        below = support & (goal <= 0)
        ratio = jnp.where(below, u / jnp.where(below, u - goal, 1.0), jnp.inf)
        part = jnp.minimum(jnp.min(ratio), 1.0)  # as far as the first bound on the way
        u = jnp.where(support, u + part * (goal - u), 0.0)
        hit = jnp.any(below)
        kept = support & ~(below & (ratio <= part))
        # at a minimum over the support, the bound that pulls hardest is freed
        pull = jnp.where(free & ~support, -(gram @ u + slope), -jnp.inf)
        best = jnp.argmax(pull)
        more = pull[best] > 1e-6 * scale
        grown = support.at[best].set(True)
        return (
            jnp.where(hit & ~kept, 0.0, u),
            jnp.where(hit, kept, grown),
            ~hit & ~more,
            turn + 1,
        )

    start = (jnp.zeros(size), jnp.zeros(size, bool), jnp.bool_(False), jnp.int32(0))
    return lower + lax.while_loop(unfinished, advance, start)[0]


def _inner(rows: jax.Array) -> jax.Array:
    """All inner products of `rows` [K, ...] with one another, [K, K]."""
    rest = tuple(range(1, rows.ndim))
    return jnp.tensordot(rows, rows, (rest, rest), precision=lax.Precision.HIGHEST)


@moved.arguments
def gem(
    stages: int,
    capacity_per_task: int = 256,
    margin: float = 0.0,
    at: Literal["grads", "updates"] = "grads",
) -> Method:
    """GEM: min ½‖g̃ - g‖² subject to g̃·g_k >= 0 for every past stage k, through its dual.

    With g_k the rows of G, v minimises ½ vᵀGGᵀv + (Gg)ᵀv subject to v_k >= margin, and
    g̃ = g + Gᵀv; g is left alone where no g·g_k < 0. Each g_k is the gradient on the whole memory of
    stage k, so that a step costs (B + stages · capacity_per_task) / B of a plain one, and holds
    `stages` gradients.

    Source: Lopez-Paz and Ranzato, arXiv 1706.08840, equations 8 to 12; as in the authors' code the
    margin is a bound on v (the paper adds it to v), and the memory of a stage is its last rows,
    here of the batches that `consolidate` gets. With a margin every past gradient is added, so that
    the constraints hold with room to spare. The g_k are scaled to length 1 before a ridge of 1e-6
    is added, where the code adds 1e-3 to GGᵀ whatever its size.

    Args:
      stages: how many past stages are remembered; a later one takes the place of the oldest.
      capacity_per_task: how many slots each of them has.
      margin: γ; may be traced; the authors use 0.5.
      at: whether to project the gradient (`grads`, as published) or the optimizer's update
        (`updates`), which keeps the promise with momentum, Adam or weight decay too.

    Raises:
      ValueError: if an argument is out of range.
    """
    check(stages >= 1, "stages", stages, "at least 1")
    check(capacity_per_task >= 1, "capacity_per_task", capacity_per_task, "at least 1")
    check(margin >= 0, "margin", margin, "at least 0")
    check(at in ("grads", "updates"), "at", at, "'grads' or 'updates'")
    downhill = 1.0 if at == "grads" else -1.0
    keep = memory.policy("ring", stages * capacity_per_task, stages)

    def init(ctx: Ctx, params: Params) -> tuple[Params, GemState]:
        return params, GemState(keep.empty(ctx.batch))

    def past(state: GemState, ctx: Ctx) -> Params:
        """g_k of every stage, leaves float32 [stages, ...]; 0 for a stage without rows."""

        def of(k: jax.Array) -> Params:
            slots = k * capacity_per_task + jnp.arange(capacity_per_task)
            rows = memory.take(state.buffer, slots)
            return trees.float32(jax.grad(ctx.loss, has_aux=True)(ctx.params, rows)[0])

        def one(k: jax.Array) -> Params:
            return lax.cond(state.buffer.seen[k] > 0, of, lambda _: trees.zeros(ctx.params), k)

        return lax.map(one, jnp.arange(stages))

    def project(state: GemState, ctx: Ctx, tree: Params) -> Params:
        refs = past(state, ctx)
        along = downhill * jax.vmap(lambda ref: trees.dot(tree, ref))(refs)
        gram = jax.tree.reduce(jnp.add, jax.tree.map(_inner, refs))
        length = jnp.sqrt(jnp.diagonal(gram))
        free = length > 0
        inverse = jnp.where(free, 1 / jnp.where(free, length, 1.0), 0.0)
        gram = gram * inverse * inverse[:, None] + 1e-6 * jnp.eye(stages)
        v = solve_dual(gram, along * inverse, jnp.where(free, margin * length, 0.0), free)
        v = jnp.where(jnp.any(along < 0), downhill * v * inverse, 0.0)
        return jax.tree.map(lambda t, r: (t + jnp.tensordot(v, r, 1)).astype(t.dtype), tree, refs)

    def projected(state: GemState, ctx: Ctx, tree: Params) -> Params:
        return lax.cond(ctx.stage < 1, lambda t: t, lambda t: project(state, ctx, t), tree)

    def consolidate(
        state: GemState, ctx: Ctx, params: Params, batches: Batch
    ) -> tuple[Params, GemState]:
        return params, GemState(memory.insert_batches(keep, state.buffer, ctx, params, batches))

    def report(state: GemState, info: Info) -> dict[str, jax.Array]:
        return {"stored": memory.count_filled(state.buffer)}

    method = Method(
        "gem", init=init, consolidate=consolidate, report=report, reads=("samples",), starts=1
    )
    if at == "grads":
        return method._replace(grads=projected)
    return method._replace(updates=projected)
