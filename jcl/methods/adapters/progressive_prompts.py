"""Progressive prompts: a soft prompt for each stage, put before those of the earlier stages."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jcl import moved, trees
from jcl.mechanisms import adapters, prompts
from jcl.method import Apply, Batch, Call, Ctx, Info, Method, Params, check


class ProgressivePromptsState(NamedTuple):
    """The state of `progressive_prompts`."""

    bank: jax.Array
    """float32 [stages, length, d]: the prompts of finished stages."""
    last: jax.Array
    """int32 [tasks]: the last stage that trained on each task, -1 before any did."""


@moved.arguments
def progressive_prompts(
    stages: int, length: int = 10, predict: Literal["task", "all"] = "task"
) -> Method:
    """Progressive prompts: in stage k the model reads [P_k; P_k-1; ...; P_1; tokens].

    Only P_k [length, d] learns, the leaf `prompt/table`, float32, which starts as the embeddings of
    random tokens and is scaled as theirs are; when the stage ends it is kept, and the next prompt
    begins. A finished task's outputs never change. Only adapters learn, unless
    `jcl.make(trainable=...)` says otherwise. As in `prompt_tuning`, only a row's first document
    sees prompts.

    Source: Razdaibiedina et al., arXiv 2301.12314, section 3, and the authors' code, whose newest
    prompt stands first. Their residual MLP, which is dropped after training, is left out.

    Args:
      stages: how many stages there will be; later ones go on with the last prompt.
      length: how many tokens long each prompt is.
      predict: `task` reads each row with the prompts up to the last stage that trained on the
        row's `task`, or with those of all stages if none did; `all` with those of all stages.

    Raises:
      ValueError: if an argument is out of range, or, at `init`, there is no `embed/table`, the
        model doesn't read `embeddings`, or the chain has a prompt already.
    """
    check(stages >= 1, "stages", stages, "at least 1")
    check(length >= 1, "length", length, "at least 1")
    check(predict in ("task", "all"), "predict", predict, "'task' or 'all'")

    def drawn(key: jax.Array, table: jax.Array) -> jax.Array:
        return table[jax.random.randint(key, (length,), 0, len(table))].astype(jnp.float32)

    def init(ctx: Ctx, params: Params) -> tuple[Params, ProgressivePromptsState]:
        table = prompts.embedding_table("progressive_prompts", ctx, params)
        empty = jnp.zeros((stages, length, table.shape[1]))
        state = ProgressivePromptsState(empty, jnp.full(stages, -1, jnp.int32))
        params = adapters.with_subtree(params, "prompt", {"table": drawn(ctx.key, table)})
        adapters.check_read("progressive_prompts", ctx, params, forward(state, ctx, ctx.apply))
        return params, state

    def forward(state: ProgressivePromptsState, ctx: Ctx, apply: Apply) -> Apply:
        # the newest prompt that has trained: at a boundary the next one hasn't yet
        trained = ctx.stage - (ctx.stage_step == 0)

        def apply_with_prompt(params: Params, batch: Batch, call: Call = Call()) -> Any:
            if "cache" in batch:  # the cache holds all that was read before, the prompts too
                return apply(params, batch, call)
            mine = trees.merge(params, ctx.frozen)["prompt"]["table"]
            every = state.bank.at[jnp.minimum(ctx.stage, stages - 1)].set(mine)
            soft = every[::-1].reshape(stages * length, -1)
            upto = jnp.broadcast_to(ctx.stage if call.training else trained, batch["task"].shape)
            if predict == "task" and not call.training:
                stage = state.last.at[batch["task"]].get(mode="fill", fill_value=-1)
                upto = jnp.where(stage < 0, upto, stage)
            written = jnp.repeat(jnp.arange(stages)[::-1], length)
            shown = (written <= upto[:, None]).astype(jnp.int32)
            soft = jnp.broadcast_to(soft, (len(upto), *soft.shape))
            return apply(params, {**batch, "embeddings": soft, "embedding_segments": shown}, call)

        return apply_with_prompt

    def observe(state: ProgressivePromptsState, ctx: Ctx, info: Info) -> ProgressivePromptsState:
        return state._replace(last=adapters.last_stages(state.last, ctx.stage, info.batch))

    def consolidate(
        state: ProgressivePromptsState, ctx: Ctx, params: Params, batches: Batch
    ) -> tuple[Params, ProgressivePromptsState]:
        mine = params["prompt"]["table"]
        kept = state.bank.at[jnp.minimum(ctx.stage, stages - 1)].set(mine)
        fresh = drawn(ctx.key, trees.merge(params, ctx.frozen)["embed"]["table"])
        following = jnp.where(ctx.stage < stages - 1, fresh, mine)
        return {**params, "prompt": {"table": following}}, state._replace(bank=kept)

    return Method(
        "progressive_prompts", init=init, forward=forward, observe=observe,
        consolidate=consolidate, writes=True, renews=lambda path: path == "prompt/table",
        reads=("parameters",), learns=adapters.is_adapter,
    )  # fmt: skip
