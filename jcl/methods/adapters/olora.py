"""A low-rank pair for each stage: past pairs are kept, and only the present one learns."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jcl import moved, trees
from jcl.mechanisms import adapters
from jcl.method import Apply, Batch, Call, Ctx, Info, Method, Params, check

Predict = Literal["stack", "task"]
Form = Literal["absolute", "square"]


class BankState(NamedTuple):
    """The state of `inclora` and `olora`."""

    bank: Params
    """The pairs of all stages but the last, see `adapters.bank`."""
    last: jax.Array
    """int32 [tasks]: the last stage that trained on each task, -1 before any did."""


def _method(
    name: str, stages: int, rank: int, alpha: float, targets: str, rslora: bool, predict: Predict
) -> Method:
    check(stages >= 2, "stages", stages, "at least 2")
    check(rank >= 1, "rank", rank, "at least 1")
    check(predict in ("stack", "task"), "predict", predict, "'stack' or 'task'")
    factor = adapters.scale(rank, alpha, rslora)
    slots = stages - 1  # the last stage's pair stays where it learnt

    def init(ctx: Ctx, params: Params) -> tuple[Params, BankState]:
        params = adapters.add_pairs(name, ctx, params, rank, targets)
        return params, BankState(adapters.bank(params, slots), jnp.full(stages, -1, jnp.int32))

    def forward(state: BankState, ctx: Ctx, apply: Apply) -> Apply:
        def apply_with_bank(params: Params, batch: Batch, call: Call = Call()) -> Any:
            if predict == "stack":
                params = adapters.join_pairs(params, state.bank)
            elif not call.training:
                stage = state.last.at[batch["task"][0]].get(mode="fill", fill_value=-1)
                done = stage < jnp.minimum(ctx.stage, slots)
                params = adapters.select_pairs(params, state.bank, jnp.where(done, stage, -1))
            return apply(adapters.scale_pairs(params, factor), batch, call)

        return apply_with_bank

    def observe(state: BankState, ctx: Ctx, info: Info) -> BankState:
        return state._replace(last=adapters.last_stages(state.last, ctx.stage, info.batch))

    def consolidate(
        state: BankState, ctx: Ctx, params: Params, batches: Batch
    ) -> tuple[Params, BankState]:
        final = ctx.stage >= slots
        full = adapters.store_pairs(state.bank, params, jnp.minimum(ctx.stage, slots - 1))
        params = trees.select(final, params, adapters.redraw_pairs(ctx.key, params))
        return params, state._replace(bank=trees.select(final, state.bank, full))

    def forgets(state: BankState, stage: int) -> BankState:
        check(stage < slots, "stage", stage, f"below {slots}, whose pairs are in the bank")

        def clear(path: Any, x: jax.Array) -> jax.Array:
            return (x.at[..., stage, :] if path[-1].key == "a" else x.at[..., stage, :, :]).set(0)

        bank = jax.tree_util.tree_map_with_path(clear, state.bank)
        return BankState(bank, jnp.where(state.last == stage, -1, state.last))

    return Method(
        name,
        init=init,
        forward=forward,
        observe=observe,
        consolidate=consolidate,
        writes=True,
        learns=adapters.is_adapter,
        renews=adapters.is_pair,
        reads=("parameters",),
        forgets=forgets if predict == "task" else None,
    )


@moved.arguments
def inclora(
    stages: int,
    rank: int = 8,
    alpha: float = 16.0,
    targets: str = r"blocks/(query|value)",
    rslora: bool = False,
    predict: Predict = "stack",
) -> Method:
    """Incremental LoRA: W x + s Σ_k B_k A_k x, of which the present stage's pair alone learns.

    When a stage ends its pair goes into a bank and a fresh one with B = 0 begins, so that outputs
    stay. The optimizer's moments remain the old pair's, unless `boundary` resets them. Stages
    beyond `stages` go on with the last pair. Only adapters learn, unless `jcl.make(trainable=...)`
    says otherwise. Merge with
    `adapters.merge(adapters.join_pairs(params, state.bank), adapters.scale(...))`.

    Source: IncLoRA, a baseline of Wang et al., arXiv 2310.14152; `task` is their PerTaskLoRA, whose
    outputs for a finished task never change.

    Args:
      stages: how many stages there will be.
      rank: r of every pair.
      alpha: α, with s = α / r; may be traced.
      targets: regular expression for the whole paths of the dense layers that are adapted.
      rslora: whether s is α / √r instead.
      predict: `stack` trains and predicts with the sum of all pairs; `task` trains each pair alone
        and predicts a batch with the pair of the last stage that trained on its first row's `task`,
        or with the present pair if none did.

    Raises:
      ValueError: if an argument is out of range, or, at `init`, `targets` matches no dense layer.
    """
    return _method("inclora", stages, rank, alpha, targets, rslora, predict)


@moved.arguments
def olora(
    stages: int,
    rank: int = 8,
    alpha: float = 16.0,
    targets: str = r"blocks/(query|value)",
    rslora: bool = False,
    orthogonality: float = 0.5,
    shrink: float = 0.0,
    form: Form = "absolute",
) -> Method:
    """O-LoRA: `inclora` with the penalty λ₁ Σ_k Σ|A_k A_newᵀ| + λ₂ Σ‖new‖.

    It keeps the stages' input directions apart. Sums are over past stages k, the r × r entries and
    the adapted layers; ‖new‖ is the norm of each new A and B. The penalty's gradient is added
    before the optimizer.

    Source: Wang et al., arXiv 2310.14152, section 3, and the authors' code, which has the absolute
    value where the paper squares, and λ₂.

    Args:
      stages: how many stages there will be.
      rank: r of every pair.
      alpha: α, with s = α / r; may be traced.
      targets: regular expression for the whole paths of the dense layers that are adapted.
      rslora: whether s is α / √r instead.
      orthogonality: λ₁; may be traced; the authors use 0.5, and 5 in long streams.
      shrink: λ₂; may be traced; the authors use 0 to 0.3.
      form: `absolute` as in the authors' code, or `square` as in the paper.

    Raises:
      ValueError: if an argument is out of range, or, at `init`, `targets` matches no dense layer.
    """
    check(orthogonality >= 0, "orthogonality", orthogonality, "at least 0")
    check(shrink >= 0, "shrink", shrink, "at least 0")
    check(form in ("absolute", "square"), "form", form, "'absolute' or 'square'")
    stacked = _method("olora", stages, rank, alpha, targets, rslora, "stack")

    def norms(params: Params) -> jax.Array:
        total = jnp.float32(0)
        for path in adapters.paths_with(params):
            for x in adapters.subtree(params, path)["lora"].values():
                square = jnp.sum(x.astype(jnp.float32) ** 2, axis=(-2, -1))
                total += jnp.sum(jnp.sqrt(jnp.maximum(square, 1e-30)))  # B starts at 0
        return total

    def grads(state: BankState, ctx: Ctx, tree: Params) -> Params:
        def penalty(params: Params) -> jax.Array:
            apart = orthogonality * adapters.overlap(params, state.bank, form)
            return apart + shrink * norms(params)

        return trees.axpy(1.0, jax.grad(penalty)(ctx.params), tree)

    def report(state: BankState, info: Info) -> dict[str, jax.Array]:
        return {"overlap": adapters.overlap(info.params, state.bank, form)}

    return stacked._replace(grads=grads, report=report)
