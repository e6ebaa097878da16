"""Losses over a model's outputs, as `loss(apply, params, batch) -> (scalar, outputs)`.

A loss is a weighted mean over examples: rows of weight 0 are padding, and a batch of padding
alone costs 0. Its `outputs` are of a kind (see `jcl.outputs`) that says what of them it counts; all
distances between outputs and sums over them are functions here, and count the same. Losses that
expose their predictive distribution also have `log_probs` and `relabel`, by which `jcl.importance`
draws labels; those of several predictions a row have `predictions`, by which it counts examples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jcl import refusals
from jcl.method import Apply, Batch, Ctx, Limits, Objective, Params, check
from jcl.outputs import (
    Logits,
    LogProbs,
    Outputs,
    Rewards,
    TokenScores,
    Values,
    among,
    complete,
    divergence,
    largest,
    square,
    squared_distance,
)
from jcl.records import record

__all__ = [
    "CrossEntropy",
    "FusedNextToken",
    "LogProbs",
    "Logits",
    "Outputs",
    "Rewards",
    "TokenScores",
    "Values",
    "allowed_classes",
    "answers",
    "batch_mean",
    "cross_entropy",
    "distillation",
    "divergence",
    "evaluate",
    "fused_next_token",
    "largest",
    "masked_token",
    "mean_of",
    "next_token",
    "next_token_nll",
    "predictions",
    "square",
    "squared_distance",
    "squared_error",
    "token_weight",
    "total_weight",
    "weighted_mean",
    "with_targets",
]


def total_weight(batch: Batch) -> jax.Array:
    """What a loss divides by, float32 []: Σ weight, each row's times its Σ mask if it has one."""
    rows = batch["weight"]
    if "mask" in batch:
        rows = rows * jnp.sum(batch["mask"], axis=-1)
    return jnp.sum(rows)


def weighted_mean(per_example: jax.Array, weight: jax.Array) -> jax.Array:
    """Σ w·l / Σ w over all axes, float32 []; 0 where every weight is 0."""
    weight = weight.astype(jnp.float32)
    total = jnp.sum(weight)
    # not maximum(total, 1), which would leave weights that sum to less than 1 unnormalised
    return jnp.sum(per_example * weight) / jnp.where(total == 0, 1.0, total)


def batch_mean(values: jax.Array, batch: Batch) -> jax.Array:
    """Mean of `values` [B] or [B, L], float32 [], weighted as a loss over `batch` is.

    A sequence counts by its weight, and if the batch has a `mask` [B, L - 1] or [B, L], each token
    by its own. The means of a batch's parts, by their `total_weight`, add up to the whole's, as
    losses do.
    """
    values = values.astype(jnp.float32)
    if values.ndim > 1 and "mask" in batch:
        mask = batch["mask"].astype(jnp.float32)
        rows = jnp.sum(values[:, : mask.shape[1]] * mask, axis=-1)
    else:
        rows = jnp.mean(values.reshape(values.shape[0], -1), axis=-1)
        if "mask" in batch:
            rows = rows * jnp.sum(batch["mask"], axis=-1)
    total = total_weight(batch)
    return jnp.sum(rows * batch["weight"]) / jnp.where(total == 0, 1.0, total)


def allowed_classes(
    classes: jax.Array, batch: Batch, mask: str, stage: jax.Array | None = None
) -> jax.Array:
    """Which classes a row may be given, bool [B, C], from `classes` bool [tasks, C].

    Args:
      classes: row t says which classes task t has.
      batch: `task` int32 [B] says where a row comes from, `stage` int32 [B] which stage it is.
      mask: `all` allows every class of the head, `seen` those of the tasks up to the present stage,
        `task` those of the row's own task.
      stage: int32 [], overrides `batch["stage"]`.
    """
    if mask == "task":
        return classes[batch["task"]]
    if mask == "all":
        return jnp.ones((batch["task"].shape[0], classes.shape[1]), bool)
    seen = jnp.cumsum(classes, axis=0) > 0
    last = jnp.clip(batch["stage"] if stage is None else stage, 0, len(classes) - 1)
    return jnp.broadcast_to(seen[last], (batch["task"].shape[0], classes.shape[1]))


@record
class CrossEntropy(NamedTuple):
    """Softmax cross-entropy of `outputs` [B, C] with integer labels `batch["y"]` [B].

    The head has all classes from the start and is masked, so that nothing recompiles as classes
    arrive and anchors keep their shapes. The model's outputs themselves stay unmasked, so that what
    `der` stores of them remains valid when the mask grows; they say what the mask allows.

    Args:
      classes: bool [tasks, C], which classes a task has; None leaves the head unmasked.
      mask: which logits compete in training: `all`, `seen` or `task` (see `allowed_classes`).
    """

    classes: Any = None
    mask: str = "all"

    def log_probs(self, outputs: jax.Array, batch: Batch) -> jax.Array:
        """log p(class | row), float32 [B, C]."""
        return jax.nn.log_softmax(among(outputs, self._allowed(batch)))

    def _allowed(self, batch: Batch) -> jax.Array | None:
        if self.classes is None or self.mask == "all":
            return None
        return allowed_classes(jnp.asarray(self.classes), batch, self.mask)

    def relabel(self, batch: Batch, labels: jax.Array) -> Batch:
        """The batch with other labels, int32 [B]."""
        return {**batch, "y": labels}

    def limits(self, outputs: Any) -> Limits:
        """For which values of `y` and `task` there is room, given outputs [B, C] or their shape."""
        return refusals.class_limits(outputs, None if self.mask == "all" else self.classes)

    def __call__(self, apply: Apply, params: Params, batch: Batch) -> tuple[jax.Array, Logits]:
        """The mean over rows, in nats, and the unmasked logits [B, C]."""
        outputs = apply(params, batch)
        refusals.check_classes(outputs, batch, "cross_entropy")
        logp = self.log_probs(outputs, batch)
        # a product with one-hot rows: its gradient is dense, where a gather's is a slow scatter
        nll = -jnp.sum(logp * jax.nn.one_hot(batch["y"], logp.shape[-1]), axis=-1)
        heads = jnp.asarray(self.classes) if self.mask == "task" else None
        logits = Logits(outputs, batch["weight"], None, self._allowed(batch), heads)
        return weighted_mean(nll, batch["weight"]), logits


def cross_entropy(classes: Any = None, mask: str = "all") -> CrossEntropy:
    """Makes a `CrossEntropy`, which explains the arguments.

    Raises:
      ValueError: if `mask` is not `all`, `seen` or `task`, or needs `classes` and there are none.
    """
    if mask not in ("all", "seen", "task"):
        raise ValueError(f"mask is {mask!r}, but must be 'all', 'seen' or 'task'")
    if mask != "all" and classes is None:
        raise ValueError(f"mask is {mask!r} and classes is None, but must be bool [tasks, C]")
    return CrossEntropy(classes, mask)


def squared_error(apply: Apply, params: Params, batch: Batch) -> tuple[jax.Array, Values]:
    """½ ‖outputs - y‖², the mean over rows of `outputs` and `batch["y"]` [B, D]."""
    outputs = apply(params, batch)
    refusals.check_targets(outputs, batch["y"], "squared_error")
    error = outputs.astype(jnp.float32) - batch["y"].reshape(outputs.shape)
    per_row = 0.5 * jnp.sum(error.reshape(error.shape[0], -1) ** 2, axis=-1)
    return weighted_mean(per_row, batch["weight"]), Values(outputs, batch["weight"])


def with_targets(batch: Batch) -> Batch:
    """The batch with `targets` [B, L]: each token's successor in `tokens`; the last has none."""
    tokens = batch["tokens"]
    return {**batch, "targets": jnp.concatenate([tokens[:, 1:], tokens[:, -1:]], axis=1)}


def predictions(batch: Batch) -> jax.Array:
    """How much predicting each of `tokens[:, 1:]` counts in its row, float32 [B, L - 1]: `mask`."""
    rows, length = batch["tokens"].shape
    refusals.check_mask(batch, length - 1, "what predicts the next token")
    return jnp.broadcast_to(batch.get("mask", 1.0), (rows, length - 1)).astype(jnp.float32)


def token_weight(batch: Batch) -> jax.Array:
    """The weight of predicting each of `tokens[:, 1:]`, float32 [B, L - 1]: row's times `mask`."""
    return batch["weight"].astype(jnp.float32)[:, None] * predictions(batch)


def _token_mask(batch: Batch) -> jax.Array:
    """Which of `tokens` [B, L] predict one that counts, float32 [B, L]; the last predicts none."""
    return jnp.pad(predictions(batch), ((0, 0), (0, 1)))


def next_token(apply: Apply, params: Params, batch: Batch) -> tuple[jax.Array, Logits]:
    """Cross-entropy in nats of each token of `batch["tokens"]` int32 [B, L] given those before it.

    `apply` returns logits [B, L, V], which come back as outputs. The mean is over the predicted
    tokens, L - 1 a row, weighted by `batch["mask"]` [B, L - 1] where there is one.
    `fused_next_token` gives the same loss without holding logits.
    """
    logits = apply(params, batch)
    refusals.check_logits(logits, batch["tokens"], "next_token")
    nll = next_token_nll(logits, batch["tokens"])
    outputs = Logits(logits, batch["weight"], _token_mask(batch))
    return weighted_mean(nll, token_weight(batch)), outputs


next_token.predictions = predictions  # type: ignore[attr-defined]


@record
class FusedNextToken(NamedTuple):
    """`next_token` over a model that answers `targets` with `TokenScores`, which are its outputs.

    A token costs nll + z · logsumexp² - ε · (mean logit - target's logit). With label smoothing the
    target is (1 - ε) of the label and ε of the uniform distribution (Szegedy et al., arXiv
    1512.00567); the z-loss keeps logits from drifting (Chowdhery et al., arXiv 2204.02311).

    Args:
      smoothing: ε; may be traced.
      z: weight of the z-loss, 1e-4 in PaLM; may be traced.
    """

    smoothing: float | jax.Array = 0.0
    z: float | jax.Array = 0.0

    def predictions(self, batch: Batch) -> jax.Array:
        """How much each prediction counts in its row: see `predictions`."""
        return predictions(batch)

    def __call__(self, apply: Apply, params: Params, batch: Batch) -> tuple[jax.Array, TokenScores]:
        """The mean over predicted tokens, and the scores [B, L]; the last column is of no token."""
        # asked for all logits too, which methods go over in pieces; unread they cost nothing
        question = {**with_targets(batch), "logits": jnp.ones_like(batch["weight"])}
        scores: TokenScores = apply(params, question)
        refusals.check_scores(scores, "fused_next_token")
        cost = scores.nll
        if not _absent(self.z):
            cost = cost + self.z * scores.logsumexp**2
        if not _absent(self.smoothing):
            cost = cost - self.smoothing * (scores.mean - scores.chosen)
        counted = scores._replace(weight=batch["weight"], mask=_token_mask(batch))
        return weighted_mean(cost[:, :-1], token_weight(batch)), counted


def _absent(weight: float | jax.Array) -> bool:
    """Whether a weight is a plain 0, so that its term, which XLA would compute, can be left out."""
    return isinstance(weight, int | float) and weight == 0


def fused_next_token(
    smoothing: float | jax.Array = 0.0, z: float | jax.Array = 0.0
) -> FusedNextToken:
    """Makes a `FusedNextToken`, which explains the arguments.

    Raises:
      ValueError: if `smoothing` isn't in [0, 1), or `z` is negative.
    """
    check((smoothing >= 0) & (smoothing < 1), "smoothing", smoothing, "at least 0 and below 1")
    check(z >= 0, "z", z, "at least 0")
    return FusedNextToken(smoothing, z)


def next_token_nll(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """-log p(token i+1 | tokens up to i) in nats, float32 [B, L - 1], from logits [B, L, V]."""
    logits, targets = logits[:, :-1].astype(jnp.float32), tokens[:, 1:]
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen


def masked_token(apply: Apply, params: Params, batch: Batch) -> tuple[jax.Array, TokenScores]:
    """Cross-entropy in nats of the tokens that `jcl.data.masked` hid, given all that it left.

    The mean is over the places of `batch["mask"]` float32 [B, L]; what stood there is
    `batch["targets"]` int32 [B, L]. The outputs are the model's `TokenScores` [B, L], so that
    logits [B, L, V] are never held. A batch of which nothing is hidden costs 0.

    Source: Devlin et al., arXiv 1810.04805, section 3.1.
    """
    mask = masked_predictions(batch)
    scores = apply(params, {**batch, "logits": jnp.ones_like(batch["weight"])})
    refusals.check_scores(scores, "masked_token")
    counted = scores._replace(weight=batch["weight"], mask=mask)
    return weighted_mean(scores.nll, counted.counted), counted


def masked_predictions(batch: Batch) -> jax.Array:
    """How much each hidden token counts in its row, float32 [B, L]: `mask`."""
    refusals.check_mask(batch, batch["tokens"].shape[1], "masked_token", "mask", "targets")
    return batch["mask"].astype(jnp.float32)


masked_token.predictions = masked_predictions  # type: ignore[attr-defined]


def evaluate(
    objective: Objective, apply: Apply, params: Params, batch: Batch, stage: jax.Array
) -> tuple[jax.Array, Outputs | None]:
    """An objective's loss, float32 [], and its outputs as a record that says what counts of them.

    The rows are of `stage` int32 [], by which the objective may mask classes. The outputs are None
    where the objective returns only a scalar.
    """
    batch = {**batch, "stage": jnp.full_like(batch["task"], stage)}
    value = objective(apply, params, batch)
    value, outputs = value if isinstance(value, tuple) else (value, None)
    refusals.check_scalar(value, objective)
    return value.astype(jnp.float32), complete(outputs, batch)


def answers(
    ctx: Ctx, ask: Callable[[Batch], Any], batch: Batch, stage: jax.Array | None = None
) -> Any:
    """Another model's outputs for a batch, of the kind that the objective gives of the model's own.

    No gradient passes, and what the objective computes beside the outputs XLA drops.

    Args:
      ctx: its objective asks.
      ask: gives the other model's raw outputs for the rows that the objective asks about.
      batch: the rows.
      stage: int32 [], the stage whose classes the outputs say that they allow; None is the present.
    """
    stage = ctx.stage if stage is None else stage
    asked: Apply = lambda params, rows: lax.stop_gradient(ask(rows))  # noqa: E731
    return evaluate(ctx.objective, asked, lax.stop_gradient(ctx.params), batch, stage)[1]


def mean_of(each: jax.Array, outputs: Outputs) -> jax.Array:
    """The mean of what each output has, float32 [], by how much the output counts in the loss.

    Args:
      each: float32 [B], or [B, ...] with a mean over what a row has; of tokens [B, L], each counts
        by its own mask.
      outputs: a record with its weight, as `ctx.loss` gives it.
    """
    counted = outputs.counted
    if each.ndim < counted.ndim:  # a number of each row, whatever its tokens
        counted = jnp.asarray(outputs.weight)
    each = each.astype(jnp.float32).reshape(*counted.shape, -1)
    return weighted_mean(jnp.mean(each, axis=-1), counted)


def distillation(student: Any, teacher: Any, temperature: float | jax.Array = 1.0) -> jax.Array:
    """T² · KL(softmax(teacher / T) ‖ softmax(student / T)) of each output, float32 [B] or [B, L].

    T² keeps the size of the gradients as T grows; `divergence` is without it, and explains the
    arguments.

    Source: Hinton et al., arXiv 1503.02531, section 2.
    """
    return jnp.asarray(temperature, jnp.float32) ** 2 * divergence(student, teacher, temperature)
