"""The command `jcl edit`: writes one fact into a model and saves it again."""

from __future__ import annotations

import inspect
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jcl import editing, models
from jcl.data.corpora import state_of_the_union
from jcl.data.edits import Edit
from jcl.data.encode import Passage
from jcl.data.encode import encode as tokenised
from jcl.data.registry.fetch import fetch
from jcl.editing import Editor, solve
from jcl.method import check
from jcl.models import decoder
from jcl.models.tensors import check_free
from jcl.runs import expression

EDITORS: dict[str, Callable[..., Editor]] = {
    "alphaedit": editing.alphaedit,
    "ft_l": editing.ft_l,
    "memit": editing.memit,
    "rome": editing.rome,
}
"""The editors that leave a model of the same layout, which can be saved."""
ROWS, LENGTH = 8, 128  # rows and tokens of a batch of the text for the second moment
SHOWN = 12  # how many tokens of an answer are shown
SMALL = {
    "a", "an", "at", "by", "for", "from", "how", "in", "is", "it", "of", "on", "that", "the",
    "this", "to", "was", "what", "when", "where", "which", "who", "whose", "why",
}  # fmt: skip


class Result(NamedTuple):
    """The result of an edit."""

    before: str
    """The prompt and the unedited model's greedy answer."""
    after: str
    """The prompt and the edited model's greedy answer."""
    folder: Path
    """The folder of the edited model."""


def write(
    name: str,
    prompt: str,
    target: str,
    to: Path,
    subject: str = "",
    method: str = "rome",
    text: Path | None = None,
) -> Result:
    """Writes a fact into a model and saves it; warns if the model still doesn't tell it.

    Args:
      name: a name that `fetch` knows, a folder, or a Hugging Face id.
      prompt: the text that the answer continues.
      target: the new answer.
      to: the folder to write, new or empty.
      subject: the part of the prompt that the fact is about; "" takes the result of `guessed`.
      method: an expression of one of `EDITORS`. If it names no layers, those a fifth of the way up
        are taken, except for ft_l.
      text: a file of text over which the second moment is taken; None is State of the Union
        addresses, which are fetched.

    Raises:
      ValueError: if an argument is wrong, or the model is no decoder with a tokenizer.
    """
    check_free(to)
    call = _call(method)
    if text is not None and not text.is_file():
        raise ValueError(f"text is {str(text)!r}, but must be a file of text")
    edit = Edit(prompt, subject or guessed(prompt), target)
    editing.encode([edit])  # for its errors, before a model is loaded
    model = _load(name)
    facts = jax.tree.map(jnp.asarray, editing.encode([edit], model.tokenizer))
    editor = _editor(call, model, facts, text)
    state = editor.init(model.params, facts)
    params, _ = jax.jit(editor.write)(model.params, state, facts)
    asked = prompt.rstrip()
    before, after = (
        models.write(model, [asked], params=p, steps=SHOWN)[0].partition("\n")[0]
        for p in (model.params, params)
    )
    if not after.strip().startswith(target.strip()):
        warnings.warn(
            f"the model doesn't say {target.strip()!r}; try another layer or more steps, such as "
            f"--method '{call.name}(steps=60)'",
            stacklevel=2,
        )
    out = models.save(model, params, to)
    return Result(asked + before, asked + after, out)


def guessed(prompt: str) -> str:
    """The last words of a prompt that begin with a capital, except a first word such as `The`.

    Raises:
      ValueError: if there are none.

    >>> guessed("The President of San Marino lives in")
    'San Marino'
    """
    found: list[list[re.Match[str]]] = []
    for word in re.finditer(r"[\w-]+", prompt):
        if not word[0][0].isupper() or (word.start() == 0 and word[0].lower() in SMALL):
            continue
        joined = found and prompt[found[-1][-1].end() : word.start()] == " "
        found[-1].append(word) if joined else found.append([word])
    if not found:
        raise ValueError(f"no name stands out in {prompt!r}; say which --subject it is about")
    return prompt[found[-1][0].start() : found[-1][-1].end()]


def _call(method: str) -> expression.Call:
    """The one editor of an expression."""
    calls = expression.parse(method, EDITORS)
    check(len(calls) == 1, "method", method, f"one of {expression.listed(EDITORS)}")
    for given in ("apply", "moment"):
        if given in calls[0].arguments:
            raise ValueError(
                f"{calls[0].name}'s {given} comes from the model; name the others, as in "
                f"{calls[0].name}(steps=40)"
            )
    return calls[0]


def _load(name: str) -> models.Model:
    known = "/" not in name and not name.startswith(".") and not Path(name).exists()
    model = models.load(fetch(name, say=lambda s: print(s, file=sys.stderr)) if known else name)
    ok = isinstance(model.config, decoder.Config) and model.tokenizer is not None
    check(ok, "model", name, "a decoder with a tokenizer")
    return model


def _editor(
    call: expression.Call, model: models.Model, facts: editing.Facts, text: Path | None
) -> Editor:
    factory, arguments = EDITORS[call.name], dict(call.arguments)
    takes = inspect.signature(factory).parameters
    if "moment" not in takes:
        return factory(model.apply, **arguments)
    depth = model.config.layers
    middle = max(round(depth / 5), min(1, depth - 1))
    if "layers" in takes:
        some = range(max(0, middle - 2), max(1, min(depth - 1, middle + 3)))
        arguments.setdefault("layers", tuple(some))
    else:
        arguments.setdefault("layer", middle)
    layers = arguments["layers"] if "layers" in takes else (arguments["layer"],)
    path = arguments.get("path", "blocks/down")
    width = solve.kernel(model.params, path, layers).shape[1]

    def made(moment: jax.Array) -> Editor:
        return factory(model.apply, moment=moment, **arguments)

    shape = jax.ShapeDtypeStruct((len(layers), width, width), jnp.float32)
    jax.eval_shape(lambda x: made(x).init(model.params, facts), shape)  # for its errors
    batches = {"tokens": jnp.asarray(_tokens(model, text, width))}
    moment = jax.jit(lambda p: editing.second_moment(model.apply, p, batches, layers, path))
    return made(moment(model.params))


def _tokens(model: models.Model, text: Path | None, width: int) -> np.ndarray:
    """A text's tokens, int32 [n, ROWS, LENGTH], more of them than a kernel has inputs."""
    if text is None:
        words = "\n\n".join(address.text for address in state_of_the_union()[-8:])
    else:
        words = text.read_text(encoding="utf-8")
    length = min(LENGTH, model.config.context)
    tokens = tokenised(model.tokenizer, [Passage(words)])[0].tokens
    batch = ROWS * length
    count = min(len(tokens), max(8192, 4 * width)) // batch
    wanted = f"at least {batch * (1 + width // batch)}, for the kernel has {width} inputs"
    check(count * batch > width, "number of tokens of the text", len(tokens), wanted)
    return tokens[: count * batch].reshape(count, ROWS, length)
