"""Generates text: batched decoding with a cache, with the whole loop in one compiled function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jcl.method import check
from jcl.models import decoder, t5

Call = Callable[[Any, dict[str, Any]], tuple[jax.Array, Any]]
"""`(tree, batch) -> (logits, cache)`: a model's `apply` with its parameters, or `program.predict`
with a state."""


class Written(NamedTuple):
    """The generated continuation of each prompt."""

    tokens: jax.Array
    """int32 [B, steps]; 0 after a stop token."""
    lengths: jax.Array
    """int32 [B]: how many tokens come before the stop token."""


def sample(
    call: Call,
    tree: Any,
    cache: decoder.Cache | t5.Cache,
    tokens: jax.Array,
    segments: jax.Array,
    key: jax.Array,
    inputs: dict[str, Any] | None = None,
    *,
    steps: int,
    temperature: float | jax.Array | None = None,
    top_k: int | None = None,
    top_p: float | jax.Array | None = None,
    stop: Sequence[int] = (),
) -> Written:
    """Continues prompts until all have met a stop token, or `steps` tokens are written.

    Args:
      call: the model; see `Call`.
      tree: the first argument of `call`.
      cache: an empty cache, with a slot for each token of prompt, soft prefix and continuation.
      tokens: the prompts, int32 [B, P], padded on the left.
      segments: int32 [B, P], 1 for a token and 0 for padding.
      key: the PRNG key of the draws.
      inputs: other arrays that the model reads with the prompts: T5's `inputs` and
        `input_segments`.
      steps: how many tokens are written at most.
      temperature: divides the logits; None takes the likeliest token. May be traced.
      top_k: draws among the k likeliest tokens; None among all.
      top_p: draws among the fewest tokens that together have this probability; None among all
        (Holtzman et al., arXiv 1904.09751). May be traced.
      stop: token ids that end a text.
    """
    ends = jnp.asarray(list(stop) or [-1], jnp.int32)
    rows = tokens.shape[0]

    def draw(logits: jax.Array, at: jax.Array) -> jax.Array:
        if temperature is None:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        logits = _likeliest(logits / temperature, top_k, top_p)
        return jax.random.categorical(jax.random.fold_in(key, at), logits).astype(jnp.int32)

    def is_going(carry: Any) -> jax.Array:
        at, done = carry[0], carry[1]
        return (at < steps) & ~jnp.all(done)

    def write(carry: Any) -> Any:
        at, done, lengths, logits, cache, written = carry
        new = draw(logits, at)
        done = done | jnp.any(new[:, None] == ends, axis=-1)
        written = written.at[:, at].set(jnp.where(done, 0, new))
        lengths = lengths + ~done
        logits, cache = call(tree, {"tokens": new[:, None], "cache": cache})
        return at + 1, done, lengths, logits, cache, written

    prompt = {"tokens": tokens, "segments": segments, "prefill": cache, **(inputs or {})}
    logits, cache = call(tree, prompt)
    start = (
        jnp.int32(0), jnp.zeros(rows, bool), jnp.zeros(rows, jnp.int32), logits, cache,
        jnp.zeros((rows, steps), jnp.int32),
    )  # fmt: skip
    *_, lengths, _, _, written = lax.while_loop(is_going, write, start)
    return Written(written, lengths)


def _likeliest(logits: jax.Array, top_k: int | None, top_p: Any) -> jax.Array:
    """Logits [B, V] with all but the likeliest at -inf."""
    if top_k is not None:
        least = lax.top_k(logits, top_k)[0][:, -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if top_p is not None:
        falling = -jnp.sort(-logits, axis=-1)
        shares = jax.nn.softmax(falling, axis=-1)
        before = jnp.cumsum(shares, axis=-1) - shares
        needed = (before < top_p) | (jnp.asarray(top_p) >= 1)  # at 1 rounding must drop none
        least = jnp.min(jnp.where(needed, falling, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return logits


_compiled = jax.jit(sample, static_argnames=("call", "steps", "top_k", "stop"))


def left_padded(
    prompts: Sequence[Sequence[int]], vocabulary: int, multiple: int = 32
) -> tuple[np.ndarray, np.ndarray]:
    """Prompts of different length as `tokens` and `segments`, int32 [B, P].

    Args:
      prompts: the token ids of each prompt.
      vocabulary: how many ids the model knows.
      multiple: P is a multiple of it, so that a few compiled shapes serve all prompts.

    Raises:
      ValueError: if a prompt is empty, or an id isn't in the vocabulary.
    """
    check(len(prompts) > 0, "number of prompts", len(prompts), "at least 1")
    for i, prompt in enumerate(prompts):
        check(len(prompt) > 0, f"length of prompt {i}", 0, "at least 1 token")
        largest, smallest = max(prompt), min(prompt)
        worst = largest if smallest >= 0 else smallest
        check(0 <= worst < vocabulary, f"token id in prompt {i}", worst, f"below {vocabulary}")
    width = -(-max(map(len, prompts)) // multiple) * multiple
    tokens = np.zeros((len(prompts), width), np.int32)
    segments = np.zeros_like(tokens)
    for row, prompt in enumerate(prompts):
        tokens[row, width - len(prompt) :] = prompt
        segments[row, width - len(prompt) :] = 1
    return tokens, segments


def generate(
    call: Call,
    tree: Any,
    config: decoder.Config | t5.Config,
    prompts: Sequence[Sequence[int]],
    *,
    steps: int = 64,
    key: jax.Array | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: Sequence[int] = (),
    soft: int = 0,
    dtype: Any = None,
) -> list[list[int]]:
    """Continues token prompts of different length, compiled once for each padded shape.

    A T5 reads the prompts with its encoder, and writes from its start token.

    Args:
      call: `model.apply`, or `program.predict` to include the methods.
      tree: the parameters for `model.apply`, the state for `program.predict`.
      config: the model's configuration.
      prompts: the token ids of each prompt.
      steps: how many tokens are written at most.
      key: the PRNG key of the draws, needed with a temperature.
      temperature: as in `sample`.
      top_k: as in `sample`.
      top_p: as in `sample`.
      stop: token ids that end a text and aren't returned; a loaded model's are `stop_ids(model)`.
      soft: the length of a soft prefix that `call` puts before the prompt.
      dtype: the cache's dtype; None is float32.

    Returns:
      The written token ids of each prompt, without the prompt.

    Raises:
      ValueError: if an argument is out of range, or an id isn't in the vocabulary.
    """
    ok = isinstance(config, decoder.Config | t5.Config)
    check(ok, "config", config, "a decoder's or a T5's, for others don't write")
    check(steps >= 1, "steps", steps, "at least 1")
    check(temperature is None or temperature > 0, "temperature", temperature, "above 0, or None")
    check(temperature is None or key is not None, "key", key, "given with a temperature")
    check(
        top_k is None or 1 <= top_k <= config.vocabulary, "top_k", top_k, "from 1 to the vocabulary"
    )
    check(top_p is None or 0 < top_p <= 1, "top_p", top_p, "above 0 and at most 1")
    tokens, segments = left_padded(prompts, config.vocabulary)
    inputs = None
    if isinstance(config, t5.Config):
        inputs = {"inputs": jnp.asarray(tokens), "input_segments": jnp.asarray(segments)}
        segments = np.ones((len(prompts), 1), np.int32)
        tokens = config.start * segments
        cache: Any = t5.empty_cache(config, len(prompts), 1 + steps, dtype or jnp.float32)
    else:
        if config.rope is None:
            longest, most = max(map(len, prompts)) + steps + soft, config.context
            check(longest <= most, "prompt and steps", longest, f"at most {most}")
        slots = tokens.shape[1] + steps + soft
        cache = decoder.empty_cache(config, len(prompts), slots, dtype or jnp.float32)
    written = _compiled(
        call, tree, cache,
        jnp.asarray(tokens), jnp.asarray(segments), jax.random.key(0) if key is None else key,
        inputs, steps=steps, temperature=temperature, top_k=top_k, top_p=top_p, stop=tuple(stop),
    )  # fmt: skip
    found, lengths = np.asarray(written.tokens), np.asarray(written.lengths)
    return [row[:n].tolist() for row, n in zip(found, lengths, strict=True)]


def stop_ids(model: Any) -> tuple[int, ...]:
    """The token ids that end a text of a loaded model, as its makers say.

    They are `eos_token_id` of its `generation_config.json`, else of its `config.json`, and the
    tokenizer's end of text.
    """
    said = (model.generation or {}).get("eos_token_id")
    said = model.given.get("eos_token_id") if said is None else said
    own = [] if said is None else said if isinstance(said, list) else [said]
    end = None if model.tokenizer is None else model.tokenizer.eos_token_id
    return tuple(dict.fromkeys([*own, *([] if end is None else [end])]))


def write(
    model: Any,
    prompts: Sequence[str],
    *,
    params: Any = None,
    stop: Sequence[int] = (),
    **options: Any,
) -> list[str]:
    """Continues texts with a loaded model.

    Args:
      model: a `models.Model` with a tokenizer.
      prompts: the texts, which the tokenizer reads as they are.
      params: the parameters; None takes the model's own.
      stop: token ids that end a text, beside `stop_ids(model)`.
      **options: further arguments of `generate`.

    Raises:
      ValueError: if the model has no tokenizer, or as `generate` does.
    """
    check(model.tokenizer is not None, "tokenizer", None, "there; give token ids to generate")
    ids = [model.tokenizer(p)["input_ids"] for p in prompts]
    stop = (*stop, *stop_ids(model))
    tree = model.params if params is None else params
    found = generate(model.apply, tree, model.config, ids, stop=stop, **options)
    return [model.tokenizer.decode(row) for row in found]
