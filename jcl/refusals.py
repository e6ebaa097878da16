"""What losses, scores and programs refuse of outputs, labels and reports, and of what they warn.

All of it is static, shapes and dtypes, so that it costs nothing in a compiled step. Which values
labels and tokens have is looked at before a run (see `jcl.data.bounds`).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jcl import trees
from jcl.method import Batch, Limits, Method, Params, check
from jcl.outputs import TokenScores, name_of


def described(thing: Any) -> str:
    """A dtype and a shape, or the name of a type that has none, for a sentence."""
    if not hasattr(thing, "dtype"):
        return f"a {type(thing).__name__}"
    return f"{thing.dtype} {list(thing.shape)}"


def check_classes(outputs: Any, batch: Batch, asks: str) -> None:
    """Refuses outputs that are no logits [B, C], or labels `y` that are no classes [B].

    Args:
      outputs: the model's.
      batch: the rows.
      asks: the name of the loss or score, for the sentence.

    Raises:
      ValueError: in one sentence.
    """
    rows = batch["weight"].shape[0]
    if getattr(outputs, "shape", ())[:1] != (rows,) or len(outputs.shape) != 2:
        raise ValueError(
            f"the model's outputs are {described(outputs)}, but must be logits [{rows}, classes] "
            f"for {asks}"
        )
    y = batch.get("y")
    if y is None:
        raise ValueError(f"the batch's columns are {sorted(batch)}, but must include y for {asks}")
    if not (jnp.issubdtype(y.dtype, jnp.integer) and y.shape == (rows,)):
        one_hot = y.shape == outputs.shape
        hint = "; of one-hot labels take the argmax" if one_hot and y.shape[1] > 1 else ""
        raise ValueError(
            f"y is {described(y)}, but must be integers [{rows}] for {asks}, a class for each row"
            + hint
        )


def class_limits(outputs: Any, classes: Any = None) -> Limits:
    """Below what labels have to stay for logits [B, C], and tasks for a table of classes."""
    if not hasattr(outputs, "shape"):
        return {}  # no logits, which the loss refuses itself
    limits = {"y": (outputs.shape[-1], "number of outputs")}
    return limits if classes is None else limits | {"task": (len(classes), "number of tasks")}


def check_targets(outputs: Any, y: jax.Array, asks: str) -> None:
    """Refuses targets of a regression that are not as many numbers as the outputs.

    Raises:
      ValueError: in one sentence.
    """
    if getattr(outputs, "size", None) != y.size:
        raise ValueError(
            f"y is {described(y)}, but must have as many numbers as the model's outputs, which "
            f"are {described(outputs)}, for {asks}"
        )


def check_logits(outputs: Any, tokens: jax.Array, asks: str) -> None:
    """Refuses outputs that are no logits [B, L, V] of tokens [B, L].

    Raises:
      ValueError: in one sentence.
    """
    if getattr(outputs, "shape", ())[:-1] != tokens.shape:
        raise ValueError(
            f"the model's outputs are {described(outputs)}, but must be logits "
            f"{[*tokens.shape, 'vocabulary']} for {asks}"
        )


def check_scores(outputs: Any, asks: str) -> None:
    """Refuses what a model answers if it doesn't know of `targets`.

    Raises:
      ValueError: in one sentence.
    """
    if not isinstance(outputs, TokenScores):
        raise ValueError(
            f"the model's outputs are {described(outputs)}, but must be losses.TokenScores for "
            f"{asks}, where the batch has targets; losses.next_token takes logits"
        )


def check_mask(batch: Batch, length: int, asks: str, *needed: str) -> None:
    """Refuses rows that were made for another objective of tokens.

    Args:
      batch: the rows.
      length: how many predictions a row's `mask` must be about, if there is one.
      asks: what asks, for the sentence.
      needed: columns without which the rows, and their `mask`, can't be used.

    Raises:
      ValueError: in one sentence.
    """
    hint = "; jcl.data.masked makes rows for losses.masked_token"
    missing = [name for name in needed if name not in batch]
    if missing:
        raise ValueError(
            f"the batch's columns are {sorted(batch)}, but must include {' and '.join(missing)} "
            f"for {asks}{hint}"
        )
    mask = batch.get("mask")
    if mask is not None and jnp.ndim(mask) == 2 and mask.shape[1] not in (1, length):
        raise ValueError(
            f"mask is {described(mask)}, but must be [{mask.shape[0]}, {length}] for {asks}{hint}"
        )


def check_added(method: Method, before: Params, after: Params, learns: trees.Trainable) -> None:
    """Refuses to freeze all that a method adds to learn, for then it would do nothing.

    Args:
      method: the chain.
      before: the learning leaves before the methods' `init`.
      after: those that they return.
      learns: which leaves learn, as `make` was told or the methods say.

    Raises:
      ValueError: in one sentence that names the method and its leaves.
    """
    added = sorted(trees.by_path(after).keys() - trees.by_path(before).keys())
    for part in method.parts:
        mine = [path for path in added if part.learns is not None and part.learns(path)]
        if mine and not any(learns(path) for path in mine):
            raise ValueError(
                f"trainable is {learns}, but must be true of a leaf among {mine}, which "
                f"{part.name} adds to learn and which would do nothing frozen"
            )


def check_scalar(value: Any, objective: Any) -> None:
    """Refuses a loss that isn't a scalar.

    Raises:
      ValueError: in one sentence that names it.
    """
    if jnp.shape(value) != ():
        raise ValueError(
            f"loss is {name_of(objective)}, which gives {described(value)}, but must be one that "
            "gives a scalar, such as the weighted mean over rows: "
            "losses.weighted_mean(each, batch['weight'])"
        )


def scalars(reports: Mapping[str, Any]) -> dict[str, Any]:
    """Reports as they are.

    Raises:
      ValueError: if one isn't a scalar, which a log has no place for.
    """
    for name, value in reports.items():
        check(jnp.shape(value) == (), f"shape of {name!r}", jnp.shape(value), "(), a scalar")
    return dict(reports)


def warn_of_idle(method: Method, stages: int) -> None:
    """Warns of each method of a chain that would change nothing in so many stages."""
    for part in method.parts:
        if isinstance(part.starts, int) and part.starts >= stages:  # a sweep's may be traced
            warnings.warn(
                f"{part.name} changes nothing before stage {part.starts}, counted from 0, and "
                f"there {'is' if stages == 1 else 'are'} only {stages}, so it does nothing here; "
                "if it has an argument start, start=0 lets it act from the first step",
                stacklevel=3,
            )
