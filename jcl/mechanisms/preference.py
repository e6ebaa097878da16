"""Preferences between two answers to a prompt: a model's rewards, and losses over them.

A batch of pairs has `tokens` and `segments` int32 [B, L] of the preferred answers with their
prompts, and `answer` float32 [B, L - 1], 1 where a token of the answer is predicted. It has the
same of the rejected answers, as `rejected_tokens` and so on, and `weight` and `task` [B]. There is
no `mask`, for a pair counts as one however long its answers are.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jcl import losses
from jcl.losses import LogProbs, Rewards, TokenScores
from jcl.method import Apply, Batch, Ctx, Params, check
from jcl.outputs import name_of

REWARDS = "rewards"
"""A key of a batch: where it is there, a model is asked for rewards, as `implicit_rewards` gives
them, in place of plain scores. Any method may answer, by its `forward`; no other reads the key."""

_SIDES = ("tokens", "segments", "answer")
_SHARED = ("weight", "task", "stage")


def pair_rows(batch: Batch) -> Batch:
    """The rows [2B, L] that a model reads for a batch of pairs, preferred before rejected.

    They have `targets`, so that the model answers with `TokenScores` and never holds all logits.

    Raises:
      ValueError: if the batch is of no pairs.
    """
    check_pairs(batch)
    rows = {k: jnp.concatenate([batch[k]] * 2) for k in _SHARED if k in batch}
    rows |= {k: jnp.concatenate([batch[k], batch[f"rejected_{k}"]]) for k in _SIDES}
    return losses.with_targets(rows)


def check_pairs(batch: Batch) -> None:
    """Refuses rows that are no pairs of answers.

    Raises:
      ValueError: in one sentence.
    """
    needed = [f"{side}{k}" for k in _SIDES for side in ("", "rejected_")]
    if not batch.keys() >= set(needed):
        raise ValueError(
            f"the batch's columns are {sorted(batch)}, but must include {', '.join(needed)}: pairs "
            "of answers, such as data.from_pairs gives"
        )


def log_probs(scores: TokenScores, answer: jax.Array) -> jax.Array:
    """log π(answer | prompt) in nats, float32 [N]: a sum over the tokens of `answer` [N, L - 1]."""
    return -jnp.sum(scores.nll[:, :-1] * answer, axis=-1)


def implicit_rewards(
    scores: TokenScores, reference: TokenScores, beta: jax.Array | float
) -> TokenScores:
    """Scores whose `log_probs` are implicit rewards, r = β log π(y | x) / π_ref(y | x).

    Source: Rafailov et al., arXiv 2305.18290, section 4, β log Z(x) aside, which is the same for
    all answers to a prompt.
    """
    return TokenScores(
        beta * (scores.chosen - reference.chosen),
        beta * (scores.logsumexp - reference.logsumexp),
        beta * (scores.mean - reference.mean),
    )


def rewards(apply: Apply, params: Params, batch: Batch) -> Rewards:
    """Each answer's reward, from a model that a method such as `dpo` makes answer with rewards.

    A model without such a method answers with log-probabilities, which are the rewards for β = 1
    and a uniform reference.
    """
    rows = pair_rows(batch)
    rows[REWARDS] = jnp.ones_like(rows["weight"])
    return pair_log_probs(apply(params, rows), batch)


def check_asks(name: str, ctx: Ctx, params: Params) -> None:
    """Refuses a loss that never asks the model for rewards, beside a method that defines them.

    Args:
      name: the method's.
      ctx: of its `init`.
      params: the leaves that learn.

    Raises:
      ValueError: if the loss makes no batch with the key `rewards`.
    """
    asked = []

    def noting(params: Params, batch: Batch, *call: Any) -> Any:
        asked.append(REWARDS in batch)
        return ctx.apply(params, {k: v for k, v in batch.items() if k != REWARDS}, *call)

    def loss(params: Params) -> Any:
        return losses.evaluate(ctx.objective, noting, params, ctx.batch, ctx.stage)[0]

    jax.eval_shape(loss, params)
    if not any(asked):
        raise ValueError(
            f"loss is {name_of(ctx.objective)}, which asks for no rewards, but must be "
            f"preference.ranking() or another one of preference.rewards for {name}, which would "
            "else do nothing"
        )


def logistic(margin: jax.Array, smoothing: jax.Array | float = 0.0) -> jax.Array:
    """-(1 - ε) log σ(m) - ε log σ(-m), float32 [B]: a label is wrong with probability ε.

    Source: Rafailov et al., arXiv 2305.18290, equation 7, the loss of DPO where m is the margin of
    implicit rewards; Mitchell, ericmitchell.ai/cdpo.pdf, equation 3, for ε.
    """
    right, wrong = jax.nn.log_sigmoid(margin), jax.nn.log_sigmoid(-margin)
    return -(1 - smoothing) * right - smoothing * wrong


def squared(margin: jax.Array) -> jax.Array:
    """(m - ½)², float32 [B]: the loss of IPO times β².

    Source: Azar et al., arXiv 2310.12036, equation 17, (h - 1 / 2β)² with h = m / β.
    """
    return (margin - 0.5) ** 2


class Ranking(NamedTuple):
    """Bradley and Terry's loss over the margin of rewards; see `ranking`."""

    form: str = "logistic"
    smoothing: float | jax.Array = 0.0

    def __call__(self, apply: Apply, params: Params, batch: Batch) -> tuple[jax.Array, Rewards]:
        """The mean over pairs, and the rewards."""
        found = rewards(apply, params, batch)
        if self.form == "ipo":
            cost = squared(found.margin)
        else:
            cost = logistic(found.margin, self.smoothing)
        return losses.weighted_mean(cost, batch["weight"]), found


def ranking(
    form: Literal["logistic", "ipo"] = "logistic", smoothing: float | jax.Array = 0.0
) -> Ranking:
    """The objective of preference learning: preferred answers should have the larger rewards.

    A method defines the rewards: with `methods.dpo` this is DPO, or IPO. Alone it ranks answers by
    their log-probabilities, without a reference.

    Args:
      form: `logistic` (DPO) or `ipo`.
      smoothing: share of labels that are taken to be wrong, for `logistic`; may be traced.

    Raises:
      ValueError: if `form` is neither, or `smoothing` isn't in [0, 0.5).
    """
    check(form in ("logistic", "ipo"), "form", form, "'logistic' or 'ipo'")
    check((smoothing >= 0) & (smoothing < 0.5), "smoothing", smoothing, "in [0, 0.5)")
    return Ranking(form, smoothing)


class Simpo(NamedTuple):
    """The loss over the margin of mean log-probabilities; see `simpo`."""

    beta: float | jax.Array = 2.0
    gamma: float | jax.Array = 1.0

    def __call__(self, apply: Apply, params: Params, batch: Batch) -> tuple[jax.Array, Rewards]:
        """The mean over pairs, and the rewards."""
        mean = mean_log_probs(apply, params, batch)
        found = Rewards(self.beta * mean.preferred, self.beta * mean.rejected, batch["weight"])
        return losses.weighted_mean(logistic(found.margin - self.gamma), batch["weight"]), found


def simpo(beta: float | jax.Array = 2.0, gamma: float | jax.Array = 1.0) -> Simpo:
    """SimPO: -log σ(r_preferred - r_rejected - γ) with r = β / |y| · log π(y | x), no reference.

    Source: Meng et al., arXiv 2405.14734, equation 6; β of 2 to 10 and γ of about β / 2 there.

    Args:
      beta: β; may be traced.
      gamma: γ, the margin that is asked for, in the rewards' unit; may be traced.

    Raises:
      ValueError: if `beta` isn't above 0, or `gamma` is negative.
    """
    check(beta > 0, "beta", beta, "above 0")
    check(gamma >= 0, "gamma", gamma, "at least 0")
    return Simpo(beta, gamma)


class Orpo(NamedTuple):
    """Imitation and the odds of the preferred answer against the rejected one; see `orpo`."""

    strength: float | jax.Array = 0.1

    def __call__(self, apply: Apply, params: Params, batch: Batch) -> tuple[jax.Array, Rewards]:
        """The mean over pairs, and the answers' log odds as rewards."""
        mean = mean_log_probs(apply, params, batch)
        found = Rewards(log_odds(mean.preferred), log_odds(mean.rejected), batch["weight"])
        cost = self.strength * logistic(found.margin) - mean.preferred
        return losses.weighted_mean(cost, batch["weight"]), found


def orpo(strength: float | jax.Array = 0.1) -> Orpo:
    """ORPO: -log P(y_w) - λ log σ(log odds(y_w) - log odds(y_l)), no reference, one stage.

    P(y) is the geometric mean of the probabilities of y's tokens, and odds P / (1 - P).

    Source: Hong et al., arXiv 2403.07691, equations 3, 6 and 7; λ of .1 to .25 there. In TRL's code
    the first term is a mean over all tokens of a batch, so that long answers count more; here, and
    in the paper, it is one over pairs.

    Args:
      strength: λ; may be traced. At 0 it imitates the preferred answers, token by token.

    Raises:
      ValueError: if `strength` is negative.
    """
    check(strength >= 0, "strength", strength, "at least 0")
    return Orpo(strength)


def mean_log_probs(apply: Apply, params: Params, batch: Batch) -> Rewards:
    """log π(y | x) / |y| in nats of both answers."""

    def mean(summed: jax.Array, answer: jax.Array) -> jax.Array:
        return summed / jnp.maximum(jnp.sum(answer, axis=-1), 1)

    found = pair_log_probs(apply(params, pair_rows(batch)), batch)
    return found._replace(
        preferred=mean(found.preferred, batch["answer"]),
        rejected=mean(found.rejected, batch["rejected_answer"]),
    )


def log_odds(logp: jax.Array) -> jax.Array:
    """log(p / (1 - p)) of log p; a p that rounds to 1 counts as the largest float32 below it."""
    return logp - jnp.log(-jnp.expm1(jnp.minimum(logp, -(2.0**-24))))


def imitation(apply: Apply, params: Params, batch: Batch) -> tuple[jax.Array, LogProbs]:
    """Supervised fine-tuning on the preferred answers: -log π(y | x) in nats, the mean over pairs.

    The log-probabilities [B] come back as outputs.
    """
    rows = losses.with_targets({k: batch[k] for k in (*_SHARED, *_SIDES) if k in batch})
    found = log_probs(apply(params, rows), batch["answer"])
    return losses.weighted_mean(-found, batch["weight"]), LogProbs(found, batch["weight"])


def pair_log_probs(outputs: TokenScores, batch: Batch) -> Rewards:
    """The answers' log-probabilities in nats, from the model's outputs for `pair_rows(batch)`."""
    answer = jnp.concatenate([batch["answer"], batch["rejected_answer"]])
    preferred, rejected = jnp.split(log_probs(outputs, answer), 2)
    return Rewards(preferred, rejected, batch["weight"])


def accuracy(outputs: TokenScores, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """A score for `jcl.evaluator(test, accuracy, pair_rows)`: the share of pairs ranked rightly.

    A pair is ranked rightly if log π(preferred) > log π(rejected).

    Returns:
      The weighted sum over pairs and the sum of weights, float32 [] each.
    """
    hit = (pair_log_probs(outputs, batch).margin > 0).astype(jnp.float32)
    return jnp.sum(hit * batch["weight"]), jnp.sum(batch["weight"])


def margin(outputs: TokenScores, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """A score like `accuracy`: the mean margin of implicit rewards in nats, for β = 1.

    The test's column `reference` float32 [B] is the margin of the reference's log-probabilities.
    """
    gained = pair_log_probs(outputs, batch).margin - batch["reference"]
    return jnp.sum(gained * batch["weight"]), jnp.sum(batch["weight"])
