"""Prompt tuning: learned embeddings before the tokens."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jcl import trees
from jcl.mechanisms import adapters, prompts
from jcl.method import Apply, Batch, Call, Ctx, Method, Params, check


def prompt_tuning(length: int = 20) -> Method:
    """Prompt tuning: the model reads [P; tokens], with a prompt P [length, d] that is learned.

    P is the leaf `prompt/table`, float32, and starts as the embeddings of random tokens. A model
    that scales its tokens' embeddings (Gemma) scales P as well; in peft P is what comes out. Only
    adapters learn, unless `jcl.make(trainable=...)` says otherwise. P stands before a row's first
    document, so rows should hold one document each; the later ones of packed rows don't see it
    (`prefix_tuning` reaches all). Outputs are those of the tokens alone.

    Source: Lester et al., arXiv 2104.08691, section 2; here the starting tokens are drawn from the
    whole vocabulary, there from its 5,000 most common tokens.

    Args:
      length: how many tokens long the prompt is.

    Raises:
      ValueError: if `length` is out of range, or, at `init`, there is no `embed/table`, the model
        doesn't read `embeddings`, or the chain has a prompt already.
    """
    check(length >= 1, "length", length, "at least 1")

    def init(ctx: Ctx, params: Params) -> tuple[Params, tuple[()]]:
        table = prompts.embedding_table("prompt_tuning", ctx, params)
        if "prompt" in trees.merge(params, ctx.frozen):  # such as one that was loaded
            return params, ()
        rows = jax.random.randint(ctx.key, (length,), 0, len(table))
        new = {"table": table[rows].astype(jnp.float32)}
        params = adapters.with_subtree(params, "prompt", new)
        adapters.check_read("prompt_tuning", ctx, params, forward((), ctx, ctx.apply))
        return params, ()

    def forward(state: tuple[()], ctx: Ctx, apply: Apply) -> Apply:
        def apply_with_prompt(params: Params, batch: Batch, call: Call = Call()) -> Any:
            if "cache" in batch:  # the cache holds all that was read before, the prompt too
                return apply(params, batch, call)
            table = trees.merge(params, ctx.frozen)["prompt"]["table"]
            soft = jnp.broadcast_to(table, (len(batch["tokens"]), *table.shape))
            return apply(params, {**batch, "embeddings": soft}, call)

        return apply_with_prompt

    return Method("prompt_tuning", init=init, forward=forward, learns=adapters.is_adapter)
