"""Scoring what a model answers: whether its greedy answer is the right one, and written texts.

`exact_match` does so inside `jit` with one forward pass. `written` generates, outside, and scores
the texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jcl import scoring
from jcl.data.chats import pair
from jcl.data.instructions import Asked
from jcl.evaluation import Score
from jcl.losses import token_weight
from jcl.method import Batch, check
from jcl.models.generation import Call, generate


def exact_match() -> Score:
    """Share of documents whose learned tokens are exactly what greedy decoding writes.

    Where each token of an answer is the likeliest after the prompt and the tokens before it, greedy
    decoding writes that answer, and else another; so one forward pass over the right answer decides
    it. The token that ends a document is part of the answer. For (prompt, answer) documents, on
    text batches with `segments` and `mask`; takes logits [B, L, V].
    """

    def score(outputs: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        wanted, learned = batch["tokens"][:, 1:], token_weight(batch) > 0
        wrong = learned & (jnp.argmax(outputs[:, :-1], axis=-1) != wanted)
        rows, length = wanted.shape
        document = batch["segments"][:, 1:] + jnp.arange(rows)[:, None] * (length + 2)

        def any_of(x: jax.Array) -> jax.Array:  # in each document of each row
            empty = jnp.zeros(rows * (length + 2), bool)
            return empty.at[document].max(x)

        asked = any_of(learned)
        return jnp.sum(asked & ~any_of(wrong)), jnp.sum(asked)

    return score


def written(
    call: Call,
    tree: Any,
    config: Any,
    tokenizer: Any,
    rows: Sequence[Asked],
    *,
    steps: int = 16,
    batch: int = 16,
    soft: int = 0,
) -> tuple[scoring.Summary, list[str]]:
    """Generates greedy answers, and scores their texts: exact match, F1 and ROUGE-L.

    Args:
      call: `model.apply`, or `lambda state, batch: program.predict(state, {**batch, "task": ...})`
        where methods have a say; each call is compiled, so hand in the same one again.
      tree: the parameters, or the state.
      config: of the model.
      tokenizer: a fast tokenizer of transformers; None for bytes.
      rows: prompts, and the answers of which any will do.
      steps: tokens to write at most.
      batch: prompts at once.
      soft: length of the soft prefix that `call` puts before a prompt.

    Returns:
      The mean scores, and the texts.

    Raises:
      ValueError: as `generate`.
    """
    check(len(rows) >= 1, "number of rows", len(rows), "at least 1")
    check(batch >= 1, "batch", batch, "at least 1")
    prompts = [_prompt(tokenizer, row) for row in rows]
    end = None if tokenizer is None else tokenizer.eos_token_id
    texts: list[str] = []
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        part += part[:1] * (batch - len(part))  # no shape of its own for the last
        found = generate(
            call, tree, config, part,
            steps=steps, soft=soft, stop=() if end is None else (end,),
        )  # fmt: skip
        texts += [_decoded(tokenizer, ids) for ids in found]
    texts = texts[: len(rows)]
    return scoring.summary(texts, [row.answers for row in rows]), texts


def _prompt(tokenizer: Any, row: Asked) -> list[int]:
    """The tokens before the first that is learned, as training has them."""
    tokens, learned = pair(tokenizer, row.prompt, row.answers[0])
    return tokens[: 1 + int(learned.argmax())].tolist()


def _decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    if tokenizer is None:
        return bytes(ids).decode(errors="replace")
    return tokenizer.decode(list(ids), skip_special_tokens=True)
