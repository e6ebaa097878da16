"""Soft prompts: what methods that learn the leaf `prompt/table` begin with."""

from __future__ import annotations

import jax

from jcl import trees
from jcl.method import Ctx, Params, check


def embedding_table(name: str, ctx: Ctx, params: Params) -> jax.Array:
    """The table [vocabulary, d] of embeddings, as which a prompt starts.

    Args:
      name: the method that adds the prompt.
      ctx: of its `init`.
      params: the leaves that learn.

    Raises:
      ValueError: if there is no `embed/table`, or another method of the chain adds a prompt, for
        one would overwrite what the other has the model read.
    """
    whole = trees.merge(params, ctx.frozen)
    there = "embed" in whole and "table" in whole["embed"]
    check(there, "parameters", sorted(whole), "a language model's, with embed/table")
    other = ctx.added("prompt/table")
    if other is not None:
        raise ValueError(f"{other} adds prompt/table, and so would {name}; a chain has one of them")
    return whole["embed"]["table"]
