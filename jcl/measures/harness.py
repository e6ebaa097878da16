"""A jcl model for lm-eval-harness, so that any of its tasks can score it.

    import lm_eval
    from jcl import harness, models
    model = harness.adapter(models.load("…"), length=1024)
    lm_eval.simple_evaluate(model=model, tasks=["arc_easy", "gsm8k"])

To include the methods of a trained program, pass `call=program.predict` and `tree=state`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcl.data.packages import needed
from jcl.method import Batch, check
from jcl.models.generation import Call, generate


@partial(jax.jit, static_argnames="call")
def _scores(call: Call, tree: Any, batch: Batch, wanted: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Σ log p of the wanted tokens, float32 [B], and whether each was the likeliest, bool [B].

    Args:
      call: the model.
      tree: its first argument, the parameters or the state.
      batch: `tokens` int32 [B, L].
      wanted: int32 [B, L], the wanted next token at each place; -1 where none is scored.
    """
    logits: Any = call(tree, batch)
    logits = logits.astype(jnp.float32)
    scored, targets = wanted >= 0, jnp.maximum(wanted, 0)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    logp = jnp.where(scored, chosen - jax.nn.logsumexp(logits, axis=-1), 0.0)
    greedy = jnp.all((jnp.argmax(logits, axis=-1) == targets) | ~scored, axis=1)
    return jnp.sum(logp, axis=1), greedy


def _width(size: int, length: int) -> int:
    """A power of two that holds `size` tokens, at most `length`, so that few shapes compile."""
    return min(max(32, 1 << (size - 1).bit_length()), length)


def adapter(
    model: Any, *, length: int, rows: int = 8, call: Call | None = None, tree: Any = None
) -> Any:
    """An `lm_eval.api.model.LM` of a loaded model, for `lm_eval.simple_evaluate(model=...)`.

    It holds the logits of a batch, rows × length × vocabulary in float32, since lm-eval asks
    whether an answer is the likeliest. Generation is greedy.

    Args:
      model: a `models.Model` with a tokenizer.
      length: how many tokens a context with its continuation has at most, without the last one.
      rows: how many of them are read at once.
      call: the model; None is `model.apply`.
      tree: the parameters or the state that `call` takes; None is `model.params`.

    Raises:
      ImportError: if lm-eval isn't installed; the message says how to install it.
      ValueError: if the model has no tokenizer, or an argument is out of range.

    Source: Gao et al., the Language Model Evaluation Harness, zenodo.12608602; its
    `models/huggingface.py` is what this agrees with.
    """
    with needed("harness", "lm-eval", "lm-eval"):
        from lm_eval import utils
        from lm_eval.api.model import TemplateLM
    check(model.tokenizer is not None, "tokenizer", None, "there, for lm-eval's tasks are text")
    check(length >= 2, "length", length, "at least 2")
    check(rows >= 1, "rows", rows, "at least 1")
    run: Call = model.apply if call is None else call
    weights = model.params if tree is None else tree

    class Adapter(TemplateLM):
        """The interface that lm-eval demands of a model."""

        tokenizer = model.tokenizer
        tokenizer_name = "jcl"
        max_length = length
        eot_token_id = model.tokenizer.eos_token_id

        @property
        def prefix_token_id(self) -> int:
            """The token before a text that nothing precedes."""
            begin = self.tokenizer.bos_token_id
            return self.eot_token_id if begin is None else begin

        def tok_encode(
            self, string: str, add_special_tokens: bool | None = None, **more: Any
        ) -> list[int]:
            """The token ids of a text."""
            given = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
            return list(self.tokenizer(string, verbose=False, **given)["input_ids"])

        def apply_chat_template(
            self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
        ) -> str:
            """A conversation as the text of a prompt."""
            return self.tokenizer.apply_chat_template(
                chat_history, tokenize=False, add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )  # fmt: skip

        def _loglikelihood_tokens(
            self, requests: Sequence[tuple[Any, list[int], list[int]]], **more: Any
        ) -> list[tuple[float, bool]]:
            # the input is all but the last token, and loses its beginning if it is too long
            given = [(context + answer)[-length - 1 :] for _, context, answer in requests]
            order = sorted(range(len(given)), key=lambda i: -len(given[i]))
            found: list[Any] = [None] * len(given)
            for start in range(0, len(order), rows):
                part = order[start : start + rows]
                width = _width(len(given[part[0]]) - 1, length)
                tokens = np.zeros((rows, width), np.int32)
                segments, wanted = np.zeros_like(tokens), np.full_like(tokens, -1)
                for row, i in enumerate(part):
                    ids, answer = given[i], requests[i][2]
                    check(len(answer) <= length, "tokens of an answer", len(answer), f"{length}")
                    size = len(ids) - 1
                    tokens[row, :size], segments[row, :size] = ids[:-1], 1
                    wanted[row, size - len(answer) : size] = answer
                batch = {"tokens": tokens, "segments": segments}
                sums, greedy = _scores(run, weights, batch, wanted)
                for i, total, likeliest in zip(part, sums.tolist(), greedy.tolist(), strict=False):
                    found[i] = (total, likeliest)
            return found

        def loglikelihood_rolling(
            self, requests: Sequence[Any], disable_tqdm: bool = False
        ) -> list[float]:
            """log p of whole texts, each token once, given as many tokens before it as fit."""
            totals = []
            for request in requests:
                windows = utils.get_rolling_token_windows(
                    token_list=self.tok_encode(request.args[0]),
                    prefix_token=self.prefix_token_id,
                    max_seq_len=length,
                    context_len=1,
                )
                parts = [(None, *utils.make_disjoint_window(window)) for window in windows]
                totals.append(sum(total for total, _ in self._loglikelihood_tokens(parts)))
            return totals

        def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
            """Greedy continuations, each up to the first of its stop strings."""
            texts = []
            for start in range(0, len(requests), rows):
                part = [request.args for request in requests[start : start + rows]]
                wishes = [{"max_gen_toks": 256, "until": [], **options} for _, options in part]
                check(not any(w.get("do_sample") for w in wishes), "do_sample", True, "False")
                steps = max(w["max_gen_toks"] for w in wishes)
                check(steps < length, "max_gen_toks", steps, f"below length, {length}")
                prompts = [self.tok_encode(context)[steps - length :] for context, _ in part]
                prompts += prompts[:1] * (rows - len(prompts))  # one shape for all
                stop = () if self.eot_token_id is None else (self.eot_token_id,)
                written = generate(run, weights, model.config, prompts, steps=steps, stop=stop)
                for ids, wish in zip(written, wishes, strict=False):
                    text = self.tokenizer.decode(
                        ids[: wish["max_gen_toks"]], skip_special_tokens=True
                    )
                    until = [wish["until"]] if isinstance(wish["until"], str) else wish["until"]
                    for end in filter(None, until):
                        text = text.split(end)[0]
                    texts.append(text)
            return texts

    return Adapter()
