"""Scoring what a model answers: whether its greedy answer is the right one, and written texts.

`exact_match` does so inside `jit` with one forward pass; `written` generates, outside, and scores
the texts that `continued` gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jcl.data.encode import Passage, encode
from jcl.data.instructions import Instruction
from jcl.losses import token_weight
from jcl.measures import scoring
from jcl.measures.evaluation import Score
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


def continue_texts(
    call: Call,
    tree: Any,
    config: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    steps: int = 16,
    batch: int = 16,
    soft: int = 0,
    key: jax.Array | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
) -> list[str]:
    """Texts that a model writes after prompts, each up to its end-of-document token.

    Args:
      call: `model.apply`, or `program.predict` where methods have a say; each is compiled, so hand
        in the same one again.
      tree: the parameters, or the state.
      config: of the model.
      tokenizer: a fast tokenizer of transformers; None for bytes.
      prompts: not empty.
      steps: tokens to write at most.
      batch: prompts at once.
      soft: length of the soft prefix that `call` puts before a prompt.
      key: of the draws; needed with a temperature.
      temperature: divides the logits; None takes the likeliest token.
      top_p: draw among the fewest that have so much probability together; None among all.

    Raises:
      ValueError: as `generate`, or if `batch` is out of range.
    """
    check(batch >= 1, "batch", batch, "at least 1")
    end = None if tokenizer is None else tokenizer.eos_token_id
    ids = []
    for passage in encode(tokenizer, [Passage(prompt, ()) for prompt in prompts]):
        tokens = passage.tokens.tolist()  # begun as training's are, and not ended
        ids.append(tokens[:-1] if tokens and tokens[-1] == end else tokens)
    texts: list[str] = []
    for start in range(0, len(ids), batch):
        part = ids[start : start + batch]
        part += part[:1] * (batch - len(part))  # no shape of its own for the last
        found = generate(
            call, tree, config, part,
            steps=steps, soft=soft, stop=() if end is None else (end,), temperature=temperature,
            top_p=top_p, key=None if key is None else jax.random.fold_in(key, start),
        )  # fmt: skip
        texts += [_decoded(tokenizer, row) for row in found]
    return texts[: len(ids)]


def score_texts(
    call: Call,
    tree: Any,
    config: Any,
    tokenizer: Any,
    rows: Sequence[Instruction],
    *,
    steps: int = 16,
    batch: int = 16,
    soft: int = 0,
) -> tuple[scoring.Summary, list[str]]:
    """Writes greedy answers, and scores their texts: exact match, F1 and ROUGE-L.

    Args:
      call: see `continued`. For rows of task t, whose methods go by it,
        `lambda state, batch: program.predict(state, {**batch, "task": jnp.full(n, t)})`.
      tree: see `continued`.
      config: of the model.
      tokenizer: see `continued`.
      rows: prompts, and the answers of which any will do.
      steps: tokens to write at most.
      batch: prompts at once.
      soft: see `continued`.

    Returns:
      The mean scores, and the texts.

    Raises:
      ValueError: as `continued`, or if there are no rows.
    """
    check(len(rows) >= 1, "number of rows", len(rows), "at least 1")
    prompts = [row.prompt for row in rows]
    texts = continue_texts(
        call, tree, config, tokenizer, prompts, steps=steps, batch=batch, soft=soft
    )
    return scoring.summary(texts, [row.answers for row in rows]), texts


def _decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    if tokenizer is None:
        return bytes(ids).decode(errors="replace")
    return tokenizer.decode(list(ids), skip_special_tokens=True)
