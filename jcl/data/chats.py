"""Conversations and prompt-answer pairs as text, and which characters of it are learned."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np

from jcl.data.encode import Passage, check_tokenizer, encode, special_texts
from jcl.method import check

Messages = Sequence[Mapping[str, Any]]


def chat(tokenizer: Any, messages: Messages) -> tuple[np.ndarray, np.ndarray]:
    """A conversation's tokens int32 [n], and the loss mask float32 [n - 1] of a text batch.

    The text is made by the tokenizer's own template. `mask[i]` is 1 where token i + 1 belongs to an
    assistant's turn, including the token that ends it. System, user and tool turns, and headers
    such as `<|im_start|>assistant`, are given and not learned. If the template marks generated text
    (`{% generation %}`), its marks hold; else a turn is what follows the generation prompt.

    Args:
      tokenizer: a fast tokenizer of transformers with a chat template.
      messages: the turns in order, such as `{"role": "user", "content": "..."}`.

    Raises:
      ValueError: if there is no template, no turn of an assistant, or a turn can't be found in the
        text that the template makes.
    """
    return _tokens_and_mask(tokenizer, render(tokenizer, messages))


def pair(tokenizer: Any, prompt: str, answer: str) -> tuple[np.ndarray, np.ndarray]:
    """A prompt's and its answer's tokens int32 [n], and the loss mask float32 [n - 1].

    They are tokenised as one text, with no template and nothing between them, and end as a document
    does. The answer and that end are learned. A token with characters of both counts as answer.

    Args:
      tokenizer: a fast tokenizer of transformers; None is for bytes.
      prompt: the text that is given.
      answer: the text that is learned, with the blank that it starts with, if it needs one.
    """
    return _tokens_and_mask(tokenizer, joined(prompt, answer))


def joined(prompt: str, answer: str) -> Passage:
    """The passage of a prompt and its answer."""
    return Passage(prompt + answer, ((len(prompt), len(prompt) + len(answer)),))


def render(tokenizer: Any, messages: Messages) -> Passage:
    """The passage that a tokenizer's chat template makes of a conversation; see `chat`.

    Raises:
      ValueError: as `chat` does.
    """
    check_tokenizer(tokenizer)
    if getattr(tokenizer, "chat_template", None) is None:
        raise ValueError(
            "tokenizer has no chat template, but must have one for conversations; set its "
            "chat_template, or give (prompt, answer) pairs"
        )
    if not all(isinstance(m, Mapping) and isinstance(m.get("role"), str) for m in messages):
        raise ValueError("messages is not what it must be: mappings, each with a role")
    roles = [m["role"] for m in messages]
    check("assistant" in roles, "messages' roles", roles, "an assistant's for one at least")
    template = tokenizer.get_chat_template()
    ends = tuple(special_texts(tokenizer).values())
    if re.search(r"\{%-?\s*generation\b", template):
        return _marked(tokenizer, template, messages, ends)
    full = _text(tokenizer, messages)
    turns = [i for i, role in enumerate(roles) if role == "assistant"]
    return Passage(full, tuple(_turn(tokenizer, messages, i, full, ends) for i in turns), False)


def _tokens_and_mask(tokenizer: Any, passage: Passage) -> tuple[np.ndarray, np.ndarray]:
    encoded = encode(tokenizer, [passage])[0]
    return encoded.tokens, encoded.learn[1:].astype(np.float32)


def _text(tokenizer: Any, messages: Messages, prompt: bool = False) -> str:
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=prompt
        )
    except TemplateError as error:
        raise ValueError(f"the chat template refuses the conversation: {error}") from error


def _marked(tokenizer: Any, template: str, messages: Messages, ends: tuple[str, ...]) -> Passage:
    """The passage with the spans that the template itself marks as generated."""
    from transformers.utils.chat_template_utils import render_jinja_template

    # like apply_chat_template, but by characters, for in tokens blanks can hide a span's beginning
    given = [{k: v for k, v in m.items() if v is not None} for m in messages]
    texts, spans = cast(
        tuple[list[str], list[list[tuple[int, int]]]],
        render_jinja_template(
            [given], chat_template=template, return_assistant_tokens_mask=True,
            **tokenizer.special_tokens_map,
        ),
    )  # fmt: skip
    closed = tuple((a, _close(texts[0], a, b, ends)) for a, b in spans[0])
    return Passage(texts[0], closed, False)


def _turn(
    tokenizer: Any, messages: Messages, i: int, full: str, ends: tuple[str, ...]
) -> tuple[int, int]:
    """The range of characters of the i-th message in `full`, up to the end of its turn.

    The content is never searched for, since it may occur anywhere, be changed by the template, or
    be missing beside a call of a tool. Two conversations that differ in this turn's content alone
    have its header, and all before, as their common beginning, and the turn's end, and all after,
    as their common ending.
    """
    if i == 0:
        raise ValueError(
            "messages begins with an assistant's, but must begin with another's, unless the chat "
            "template marks what is generated with {% generation %}"
        )
    start, stop = _around(tokenizer, messages, i, full)
    prompt = _text(tokenizer, messages[:i], prompt=True)
    if prompt != _text(tokenizer, messages[:i]) and full.startswith(prompt):
        # what is given when a turn is generated is known, and may open a thought
        start = min(len(prompt), stop)
    upto = _text(tokenizer, messages[: i + 1])
    closing = max((e for e in ends if upto.rstrip().endswith(e)), key=len, default="")
    rest = full[stop:].lstrip()
    if closing and rest.startswith(closing):
        # blanks after the token that ends a turn are the template's and never generated
        return start, len(full) - len(rest) + len(closing)
    if not closing and full.startswith(upto):
        return start, len(upto)
    return start, stop


def _around(tokenizer: Any, messages: Messages, i: int, full: str) -> tuple[int, int]:
    """Where the i-th message's own text begins and ends, between its header and its end.

    Raises:
      ValueError: if the template shows the rest in another way when this text is another.
    """
    for form in _forms(messages[i]):
        try:
            one, other = (
                _text(tokenizer, [*messages[:i], form(mark), *messages[i + 1 :]]) for mark in "ab"
            )
        except ValueError:  # which asks for what this form leaves out
            continue
        if one == other:  # the content isn't shown in this form
            continue
        header = _common(one, other)
        tail = min(_common(one[::-1], other[::-1]), min(len(one), len(other)) - header)
        start = _common(one[:header], full)
        ending = one[len(one) - tail :]
        # a blank between header and content may be missing where there is no content
        if full.endswith(ending) and not one[start:header].strip() and len(full) - tail >= start:
            return start, len(full) - tail
    raise _unclear(i)


def _forms(message: Mapping[str, Any]) -> list[Callable[[str], dict[str, Any]]]:
    """Ways to write a message with another content: bare, or with all that it has besides."""
    bare = {"role": message["role"]}
    parts = isinstance(message.get("content"), list)

    def form(given: Mapping[str, Any], parts: bool) -> Callable[[str], dict[str, Any]]:
        def write(text: str) -> dict[str, Any]:
            return {**given, "content": [{"type": "text", "text": text}] if parts else text}

        return write

    return [form(given, kind) for kind in (parts, not parts) for given in (bare, message)]


def _common(one: str, other: str) -> int:
    """How many characters two texts have in common at their beginnings."""
    return next(
        (k for k, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
        min(len(one), len(other)),
    )


def _close(text: str, start: int, stop: int, ends: tuple[str, ...]) -> int:
    """`stop`, moved past a special token that follows, so that a turn's end is learned too."""
    if text[start:stop].rstrip().endswith(ends):
        return stop
    rest = text[stop:].lstrip()
    closing = [e for e in ends if rest.startswith(e)]
    return len(text) - len(rest) + len(max(closing, key=len)) if closing else stop


def _unclear(i: int) -> ValueError:
    return ValueError(
        f"message {i} can't be found in what the chat template makes of the conversation, which "
        "shows it in another way once later messages follow; mark what is generated in the "
        "template with {% generation %}"
    )
