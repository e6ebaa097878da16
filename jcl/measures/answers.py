"""Scores a model's greedy answers: whether they are exactly right, and as written texts.

`exact_match` works inside `jit` with one forward pass. `score_texts` generates outside of it, and
scores the texts that `continue_texts` gives.
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
    """A score: the share of documents whose learned tokens are exactly what greedy decoding writes.

    Greedy decoding writes an answer if and only if each of its tokens is the likeliest after the
    prompt and the tokens before it, so one forward pass over the right answer decides. The token
    that ends a document is part of the answer. It is for (prompt, answer) documents, in text
    batches with `segments` and `mask`, and takes logits [B, L, V].
    """

    def score(outputs: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        wanted, learned = batch["tokens"][:, 1:], token_weight(batch) > 0
        wrong = learned & (jnp.argmax(outputs[:, :-1], axis=-1) != wanted)
        rows, length = wanted.shape
        document = batch["segments"][:, 1:] + jnp.arange(rows)[:, None] * (length + 2)

        def any_of(x: jax.Array) -> jax.Array:  # whether any is True, in each document of each row
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
    """The texts that a model writes after prompts, each up to its end-of-document token.

    Args:
      call: `model.apply`, or `program.predict` to include the methods. It is compiled once for each
        function, so pass the same one again.
      tree: the parameters for `model.apply`, the state for `program.predict`.
      config: the model's configuration.
      tokenizer: a fast tokenizer of transformers; None is for bytes.
      prompts: the texts to continue, none of them empty.
      steps: how many tokens are written at most.
      batch: how many prompts are continued at once.
      soft: the length of the soft prefix that `call` puts before a prompt.
      key: the PRNG key of the draws, needed with a temperature.
      temperature: divides the logits; None takes the likeliest token.
      top_p: draws among the fewest tokens that together have this probability; None among all.

    Raises:
      ValueError: as `generate` does, or if `batch` is below 1.
    """
    check(batch >= 1, "batch", batch, "at least 1")
    end = None if tokenizer is None else tokenizer.eos_token_id
    ids = []
    for passage in encode(tokenizer, [Passage(prompt, ()) for prompt in prompts]):
        tokens = passage.tokens.tolist()  # begun as in training, but without the end token
        ids.append(tokens[:-1] if tokens and tokens[-1] == end else tokens)
    texts: list[str] = []
    for start in range(0, len(ids), batch):
        part = ids[start : start + batch]
        part += part[:1] * (batch - len(part))  # so that the last batch has the same shape
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
      call: see `continue_texts`. If methods read the rows' task t, it is
        `lambda state, batch: program.predict(state, {**batch, "task": jnp.full(n, t)})`.
      tree: see `continue_texts`.
      config: the model's configuration.
      tokenizer: see `continue_texts`.
      rows: prompts, each with the answers of which any will do.
      steps: how many tokens are written at most.
      batch: how many prompts are answered at once.
      soft: see `continue_texts`.

    Returns:
      The mean scores, and the texts.

    Raises:
      ValueError: as `continue_texts` does, or if there are no rows.
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
