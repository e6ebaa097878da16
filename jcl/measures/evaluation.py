"""Scores a state on every test task, as a pure function that a driver jits or scans.

An evaluator runs all tests in one scan. A score says what a batch adds to a task's sum, and to the
weight by which the sum is divided.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jcl import losses, refusals
from jcl.data.bounds import bounds_of, check_limits
from jcl.data.stream import Arrays, pack
from jcl.method import Batch
from jcl.program import Evaluate, Program, State

Score = Callable[[Any, Batch], tuple[jax.Array, jax.Array]]
"""`score(outputs, batch) -> (sum, weight)`, float32 [] each; rows of weight 0 must add nothing.

`batch["stage"]` int32 [B] is the last stage that the model has trained on, -1 before any."""


def evaluator(
    test: Any, score: Score, prepare: Callable[[Batch], Batch] = lambda batch: batch
) -> Evaluate:
    """`evaluate(program, state) -> float32 [tasks]`: Σ sum / Σ weight over each task's batches.

    With a program of many members (`replicate`) it is [members, tasks].

    Args:
      test: leaves [tasks, n, B, ...] with `weight` and `task`, such as `Stream.test`; or
        [members, tasks, n, B, ...] where each member has tests of its own.
      score: what to measure, such as `accuracy()`.
      prepare: changes a batch before the model and the score read it. With `losses.with_targets` a
        language model answers with `TokenScores` and never holds all logits. Where it makes other
        rows of it, as `preference.pair_rows` does, they are the model's, and the score reads the
        batch itself.

    Returns:
      The function. Its attributes `measure` and `higher_is_better` are what the score says of
      itself, else "score" and True. Where the tests have labels `y`, its attribute
      `by_label(classes)` makes the one that scores each class (see `by_label`).

    Raises:
      ValueError: in a trace, if the tests hold labels, tokens or documents for which the model's
        outputs, its vocabulary or its positions have no room.

    >>> import numpy as np, optax
    >>> from jcl import losses, make, methods
    >>> test = {"x": np.eye(2), "y": np.zeros(2, int), "task": np.zeros(2, int)}
    >>> test = jax.tree.map(lambda x: x[None, None], {**test, "weight": np.ones(2)})
    >>> apply = lambda params, batch: batch["x"] @ params["w"]
    >>> program = make(methods.naive(), apply, losses.cross_entropy(), optax.sgd(0.1))
    >>> example = {"x": jnp.zeros((2, 2)), "y": jnp.zeros(2, jnp.int32)}
    >>> state = program.init({"w": jnp.eye(2)}, example, jax.random.key(0))
    >>> evaluator(test, accuracy())(program, state)
    Array([0.5], dtype=float32)
    """
    own = np.ndim(test["weight"]) == 4
    tasks, batches = np.shape(test["weight"])[int(own) :][:2]

    def member(program: Program, state: State) -> jax.Array:
        stage = state.stage - (state.stage_step == 0)
        tests = jax.tree.map(lambda x: jnp.asarray(x)[program.member], test) if own else test
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tests)

        def one(_: None, batch: Batch) -> tuple[None, tuple[jax.Array, jax.Array]]:
            given, batch = batch, prepare(batch)
            outputs = program.predict(state, batch)
            untouched = {k: v for k, v in test.items() if batch.get(k) is given[k]}
            _check_test(untouched, program, score, outputs)
            # what the model reads may be other rows, such as both answers of each pair
            judged = batch if batch["weight"].shape == given["weight"].shape else given
            told = {**judged, "stage": jnp.full_like(judged["task"], stage)}
            added, weight = score(outputs, told)
            return None, (added.astype(jnp.float32), weight.astype(jnp.float32))

        sums, weights = lax.scan(one, None, flat)[1]
        total = jnp.sum(weights.reshape(tasks, batches), axis=1)
        total = jnp.where(total == 0, jnp.nan, total)
        return jnp.sum(sums.reshape(tasks, batches), axis=1) / total

    def evaluate(program: Program, state: State) -> jax.Array:
        return program.over_members(member, state)

    found: Any = evaluate
    found.measure = getattr(score, "measure", "score")
    found.higher_is_better = getattr(score, "higher_is_better", True)
    if not own and "y" in test:
        found.by_label = lambda classes: evaluator(by_label(test, classes), score, prepare)
    return found


def test_sizes(test: Any) -> np.ndarray:
    """How many rows each task's test has, float32 [tasks], for `metrics.micro_average`."""
    weight = np.asarray(test["weight"])
    return weight.reshape(*weight.shape[:-2], -1).sum(-1)


def differ(sizes: Any) -> bool:
    """Whether sizes differ by more than a tenth, so that a mean over them hides something."""
    return len(sizes) > 1 and float(np.max(sizes)) > 1.1 * float(np.min(sizes))


def by_label(test: Any, classes: int) -> Arrays:
    """The rows of all tests laid out by their label `y`: leaves [classes, n, B, ...].

    `evaluator(by_label(stream.test, 10), accuracy())` so gives each class's own score, [10], where
    a mean over a task hides its rare classes. Of a class without rows the score is NaN.

    Args:
      test: leaves [tasks, n, B, ...] with `y`, such as `Stream.test`.
      classes: how many there are.
    """
    flat = {k: np.asarray(v).reshape(-1, *np.shape(v)[3:]) for k, v in test.items()}
    there = flat["weight"] > 0
    own = [np.flatnonzero(there & (flat["y"] == label)) for label in range(classes)]
    absent = [len(rows) == 0 for rows in own]
    first = np.flatnonzero(there)[:1]  # a row of weight 0 stands for those of an absent class
    sets = [{k: v[first if empty else rows] for k, v in flat.items()}
            for rows, empty in zip(own, absent, strict=True)]  # fmt: skip
    for rows, empty in zip(sets, absent, strict=True):
        rows["weight"] = rows["weight"] * (not empty)
    return pack(sets, np.shape(test["weight"])[-1])


def _check_test(test: Any, program: Program, score: Any, outputs: Any) -> None:
    """Looks at the tests' host arrays, which are constants of the trace."""
    bounds = bounds_of(test)
    if program.scene is not None:
        check_limits(bounds, program.scene.structure.limits, "the model", "the test")
    if hasattr(score, "limits"):
        check_limits(bounds, score.limits(outputs), "the model", "the test")


def _called(score: Any, measure: str, higher_is_better: bool) -> Score:
    """A score that says what it is called, and which way it is good."""
    score.measure, score.higher_is_better = measure, higher_is_better
    return score


def _classes_of(score: Any, classes: Any, mask: str) -> Any:
    """A score of logits, which says below what labels have to stay."""
    score.limits = partial(refusals.class_limits, classes=None if mask == "all" else classes)
    return score


def _allowed(classes: Any, batch: Batch, mask: str) -> jax.Array:
    keep = losses.allowed_classes(jnp.asarray(classes), batch, mask)
    # before training no class has been seen, so all classes compete
    return keep | (batch["stage"] < 0)[:, None] if mask == "seen" else keep


def _check(classes: Any, mask: str) -> None:
    losses.cross_entropy(classes, mask)  # the same rules, in the same words


def accuracy(classes: Any = None, mask: str = "all") -> Score:
    """A score: the share of rows whose label `y` int32 [B] has the largest of the outputs [B, C].

    Args:
      classes: bool [tasks, C], which classes each task has.
      mask: which outputs compete in prediction: `all`; those of the classes `seen` in the stages
        trained on so far, which is class-incremental; or those of the row's own `task`, which is
        task-incremental.

    Raises:
      ValueError: if `mask` is none of these, or needs `classes` and there are none.
    """
    _check(classes, mask)

    def score(outputs: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        refusals.check_classes(outputs, batch, "accuracy")
        if mask != "all":
            outputs = jnp.where(_allowed(classes, batch, mask), outputs, -jnp.inf)
        hit = (jnp.argmax(outputs, axis=-1) == batch["y"]).astype(jnp.float32)
        return jnp.sum(hit * batch["weight"]), jnp.sum(batch["weight"])

    return _called(_classes_of(score, classes, mask), "accuracy", True)


def nll(classes: Any = None, mask: str = "all") -> Score:
    """A score: the negative log-likelihood of the labels `y` [B] in nats a row, from logits [B, C].

    Args:
      classes: as in `accuracy`.
      mask: as in `accuracy`.

    Raises:
      ValueError: as `accuracy`.
    """
    _check(classes, mask)

    def score(outputs: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        refusals.check_classes(outputs, batch, "nll")
        logits = outputs.astype(jnp.float32)
        if mask != "all":
            logits = jnp.where(_allowed(classes, batch, mask), logits, -1e9)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), batch["y"][:, None], axis=-1)
        return jnp.sum(-chosen[:, 0] * batch["weight"]), jnp.sum(batch["weight"])

    return _called(_classes_of(score, classes, mask), "negative log-likelihood", False)


def token_nll() -> Score:
    """A score: the negative log-likelihood of `tokens` [B, L] in nats a token, given those before.

    Its exponential is the perplexity (`metrics.perplexity`). `mask` [B, L - 1] leaves tokens out.
    It takes logits, or the `TokenScores` of a batch prepared by `losses.with_targets`.
    """

    def score(outputs: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        if isinstance(outputs, losses.TokenScores):
            lost = outputs.nll[:, :-1]
        else:
            lost = losses.next_token_nll(outputs, batch["tokens"])
        weight = losses.token_weight(batch)
        return jnp.sum(lost * weight), jnp.sum(weight)

    return _called(score, "log perplexity", False)


def masked_nll() -> Score:
    """A score: the negative log-likelihood in nats of each token that `jcl.data.masked` hid.

    It takes the `TokenScores` [B, L] of `targets`, which such rows have; `mask` [B, L] says which
    tokens count.
    """

    def score(outputs: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        weight = batch["weight"][:, None] * losses.masked_predictions(batch)
        refusals.check_scores(outputs, "masked_nll")
        return jnp.sum(outputs.nll * weight), jnp.sum(weight)

    return _called(score, "masked log perplexity", False)


def bits_per_byte() -> Score:
    """A score: Σ nll / ln 2 / Σ bytes, comparable between tokenizers; lower is better.

    `batch["bytes"]` [B] says how many bytes a row's predicted tokens stand for; without it a token
    is a byte.
    """
    per_token = token_nll()

    def score(outputs: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        added, weight = per_token(outputs, batch)
        if "bytes" in batch:
            weight = jnp.sum(batch["bytes"] * batch["weight"])
        return added / jnp.log(2.0), weight

    return _called(score, "bits per byte", False)
