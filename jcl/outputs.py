"""Kinds of outputs: what a model's outputs mean to a loss, what of them counts, and distances.

A loss returns `(scalar, outputs)`, and `outputs` is a record of a kind: `return loss,
Logits(logits)` says that they are logits. A method says by `Method.wants` which kinds it can work
with. Anything else beside the scalar becomes `Values`, of which no method knows more than that they
are numbers. `complete` fills in what a record leaves open.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AbstractMesh

from jcl.method import Batch, Method, Params
from jcl.records import record


@record
class Logits(NamedTuple):
    """Unmasked logits of a softmax over classes, or at each token over a vocabulary."""

    values: jax.Array
    """[B, C], or [B, L, V] of tokens."""
    weight: jax.Array | None = None
    """float32 [B]: how much a row counts, 0 for padding; None takes the batch's."""
    mask: jax.Array | None = None
    """float32 [B, L]: which tokens count; None takes the batch's, or that rows have one output."""
    allowed: jax.Array | None = None
    """bool [B, C]: the classes that compete in the loss; None allows all."""
    heads: jax.Array | None = None
    """bool [tasks, C]: each task's classes, where the loss takes a softmax over a row's own task's
    alone; None where there is one softmax. Not in `Info`, whose leaves all have rows."""

    @property
    def counted(self) -> jax.Array:
        """How much each output counts in the loss, float32 [B] or [B, L]."""
        return _counted(self.weight, self.mask)


@dataclass(frozen=True)
class LogitPieces:
    """All logits [B, L, V] of a language model, of which only pieces are ever held."""

    head: Params
    """What the model multiplies the features with; None in `Info`, whose leaves all have rows."""
    hidden: jax.Array
    """The features [B, L, d] before the head."""
    project: Callable[[Params, jax.Array], jax.Array] = field(metadata={"static": True})
    """`(head, features [n, d]) -> logits float32 [n, V]`."""
    run: Callable[..., Any] = field(metadata={"static": True})
    """Goes over the pieces, as `jcl.models.layers.reduce_logits` does."""
    limit: int = field(metadata={"static": True})
    """How many logits are held at once at most, on each device."""
    mesh: AbstractMesh = field(metadata={"static": True})
    """The mesh on which the features lie; an empty one without any."""

    def reduce(
        self, fn: Callable[..., Any], *others: LogitPieces, given: tuple[jax.Array, ...] = ()
    ) -> Any:
        """What `fn` makes of all logits, leaves [B, L, ...].

        Args:
          fn: `(logits [n, V], the others' [n, V] ..., given [n, ...] ...) -> leaves [n, ...]`.
          others: other models' logits for the same tokens.
          given: arrays [B, L, ...] that `fn` reads besides.
        """
        return self.run(fn, (self, *others), given)


jax.tree_util.register_dataclass(LogitPieces)


@record
class TokenScores(NamedTuple):
    """What a language model answers about given tokens instead of logits; float32 [B, L] each.

    A model that finds `targets` int32 [B, L] in a batch answers with these, so that logits
    [B, L, V] never exist at once.
    """

    chosen: jax.Array
    """The target's logit."""
    logsumexp: jax.Array
    """log Σ exp of all logits."""
    mean: jax.Array
    """The mean of all logits."""
    weight: jax.Array | None = None
    """float32 [B]: how much a row counts, 0 for padding; None in a model's own answer."""
    mask: jax.Array | None = None
    """Which tokens count; None in a model's own answer."""
    logits: LogitPieces | None = None
    """All logits, a piece at a time, if the batch asked for them by the key `logits`."""

    @property
    def nll(self) -> jax.Array:
        """-log p(target), in nats."""
        return self.logsumexp - self.chosen

    @property
    def counted(self) -> jax.Array:
        """How much each token counts in the loss, float32 [B, L]."""
        return _counted(self.weight, self.mask)


@record
class LogProbs(NamedTuple):
    """Log-probabilities of whole answers."""

    values: jax.Array
    """float32 [B], in nats."""
    weight: jax.Array | None = None
    """float32 [B]: how much a row counts, 0 for padding; None takes the batch's."""

    @property
    def counted(self) -> jax.Array:
        """How much each answer counts in the loss, float32 [B]."""
        return _counted(self.weight, None)


@record
class Rewards(NamedTuple):
    """The rewards of both answers of each pair, float32 [B] each."""

    preferred: jax.Array
    """Of the preferred answer of each pair."""
    rejected: jax.Array
    """Of the other answer."""
    weight: jax.Array | None = None
    """float32 [B]: how much a pair counts, 0 for padding; None takes the batch's."""

    @property
    def margin(self) -> jax.Array:
        """How much more the preferred answer is worth, float32 [B]."""
        return self.preferred - self.rejected

    @property
    def counted(self) -> jax.Array:
        """How much each pair counts in the loss, float32 [B]."""
        return _counted(self.weight, None)


@record
class Values(NamedTuple):
    """Numbers of any other meaning, such as a regression's."""

    values: Any
    """An array [B, ...], or a pytree of such arrays."""
    weight: jax.Array | None = None
    """float32 [B]: how much a row counts, 0 for padding; None takes the batch's."""
    mask: jax.Array | None = None
    """float32 [B, L]: which tokens count; None takes the batch's, or that there are none."""

    @property
    def counted(self) -> jax.Array:
        """How much each output counts in the loss, float32 [B] or [B, L]."""
        return _counted(self.weight, self.mask)


Outputs = Logits | TokenScores | LogProbs | Rewards | Values
"""A record of one of the kinds, its leaves with rows in front."""


def _counted(weight: jax.Array | None, mask: jax.Array | None) -> jax.Array:
    if weight is None:
        raise ValueError(
            "weight is None, but must be float32 [B]: jcl.outputs.complete fills it in"
        )
    return weight if mask is None else weight[:, None] * mask


def _token_mask(values: Any, batch: Batch) -> jax.Array | None:
    """Which of the outputs [B, L, ...] count, float32 [B, L]; None if they aren't of tokens."""
    tokens = batch.get("tokens")
    shape: tuple[int, ...] = getattr(values, "shape", ())
    if tokens is None or len(shape) < 3 or shape[:2] != tokens.shape:
        return None
    if "mask" in batch:  # [B, L - 1] where each token predicts the next: the last predicts none
        mask = batch["mask"].astype(jnp.float32)
        return jnp.pad(mask, ((0, 0), (0, shape[1] - mask.shape[1])))
    return (batch.get("segments", jnp.ones_like(tokens)) > 0).astype(jnp.float32)


def complete(found: Any, batch: Batch) -> Outputs | None:
    """The record of a loss's outputs with its weight and its mask; None stays None.

    Args:
      found: what a loss returned beside the scalar; what is no record becomes `Values`.
      batch: the rows that the loss was given.
    """
    if found is None:
        return None
    outputs: Any = found if isinstance(found, Outputs) else Values(found)
    if outputs.weight is None:
        outputs = outputs._replace(weight=batch["weight"].astype(jnp.float32))
    if isinstance(outputs, Logits | Values) and outputs.mask is None:
        outputs = outputs._replace(mask=_token_mask(outputs.values, batch))
    return outputs


def per_row(outputs: Any) -> Any:
    """The same outputs without what has no rows: the table of heads, and a model's head."""
    if isinstance(outputs, Logits):
        return outputs._replace(heads=None)
    if isinstance(outputs, TokenScores) and outputs.logits is not None:
        return outputs._replace(logits=replace(outputs.logits, head=None))
    return outputs


def with_head(outputs: Any, asked: Callable[[], Any]) -> Any:
    """Outputs of `Info` with the model's head again, if they are token scores.

    Args:
      outputs: as `per_row` left them.
      asked: gives the loss's outputs for the same parameters. Their head alone is read, so that XLA
        drops the pass through the model.
    """
    if not isinstance(outputs, TokenScores) or outputs.logits is None:
        return outputs
    return outputs._replace(logits=replace(outputs.logits, head=asked().logits.head))


def name_of(objective: Any) -> str:
    """What a loss is called in a sentence."""
    return getattr(objective, "__name__", type(objective).__name__)


def check_kind(method: Method, objective: Any, outputs: Any) -> None:
    """Refuses a loss whose outputs are of no kind that a method wants.

    Raises:
      ValueError: which names the method, the loss, what it gives and what would be right.
    """
    if not method.wants or isinstance(outputs, method.wants):
        return
    given = "no outputs" if outputs is None else type(outputs).__name__
    wanted = [kind.__name__ for kind in method.wants]
    raise ValueError(
        f"loss is {name_of(objective)}, which gives {given}, but must be one that gives "
        f"{' or '.join(wanted)} for {method.name}; one of your own says what it gives by "
        f"`return value, losses.{wanted[0]}(outputs)`"
    )


def among(logits: jax.Array, keep: jax.Array | None) -> jax.Array:
    """Logits in float32, in which only the classes of `keep` compete."""
    logits = logits.astype(jnp.float32)
    return logits if keep is None else jnp.where(keep, logits, -1e9)  # so that 0 · log 0 stays 0


def _divergence(
    student: jax.Array, teacher: jax.Array, temperature: float | jax.Array, keep: jax.Array | None
) -> jax.Array:
    """KL(softmax(teacher / T) ‖ softmax(student / T)), float32 [...], over the last axis."""
    new, old = student.astype(jnp.float32), teacher.astype(jnp.float32)
    # A student that still is its teacher has a slope of rounding, which Adam would amplify to a
    # whole step. Where no logit differs by more than rounding there is no distance and no slope.
    apart, size = jnp.abs(new - old), jnp.abs(old)
    if keep is not None:
        apart, size = jnp.where(keep, apart, 0.0), jnp.where(keep, size, 0.0)
    least = 4 * jnp.finfo(jnp.float32).eps * jnp.max(size, axis=-1, keepdims=True)
    same = jnp.all(apart <= least, axis=-1, keepdims=True)
    new = jnp.where(same, lax.stop_gradient(old), new)
    t = jnp.asarray(temperature, jnp.float32)
    p, q = (jax.nn.log_softmax(among(z, keep) / t) for z in (old, new))
    return jnp.sum(jnp.exp(p) * (p - q), axis=-1)


def divergence(
    student: Any,
    teacher: Any,
    temperature: float | jax.Array = 1.0,
    groups: jax.Array | None = None,
) -> jax.Array:
    """KL(softmax(teacher / T) ‖ softmax(student / T)) of each output, float32 [B] or [B, L].

    Of token scores it is computed over a piece of the logits at a time.

    Args:
      student: `Logits`, `TokenScores`, or bare logits [..., C].
      teacher: the same for the same rows.
      temperature: T.
      groups: bool [G, C], sets of classes with a softmax each, whose divergences are added up;
        None is one softmax over the classes that both allow.

    Raises:
      ValueError: if token scores came without the logits that they were asked for.
    """
    if isinstance(student, TokenScores):
        pieces = _pieces(student)
        return pieces.reduce(
            lambda z, old: _divergence(z, old, temperature, None), _pieces(teacher)
        )
    if not isinstance(student, Logits):
        student, teacher = Logits(student), Logits(teacher)
    new, old = student.values, teacher.values
    if groups is not None:
        each = _divergence(new[..., None, :], old[..., None, :], temperature, groups)
        return jnp.sum(each, axis=-1)
    keep = student.allowed
    if teacher.allowed is not None:
        keep = teacher.allowed if keep is None else keep & teacher.allowed
    return _divergence(new, old, temperature, keep)


def _pieces(scores: TokenScores) -> LogitPieces:
    if scores.logits is None:
        raise ValueError(
            "a TokenScores' logits are None, but must be LogitPieces where a batch has the key "
            "'logits': let the model make its scores by jcl.models.layers.token_scores, or take a "
            "loss over whole logits such as next_token"
        )
    return scores.logits


def flat(outputs: Logits | Values) -> jax.Array:
    """Each row's numbers in a line, float32 [B, D], 0 where they don't count.

    They are times the root of their mask, so that their squares count by the mask.
    """
    rows = jnp.asarray(outputs.weight).shape[0]
    keep = getattr(outputs, "allowed", None)

    def line(leaf: jax.Array) -> jax.Array:
        z = leaf.astype(jnp.float32) if keep is None else jnp.where(keep, leaf, 0.0)
        if outputs.mask is not None:
            z = z.reshape(*outputs.mask.shape, -1) * jnp.sqrt(outputs.mask)[..., None]
        return z.reshape(rows, -1)

    lines = [line(leaf) for leaf in jax.tree.leaves(outputs.values)]
    return jnp.concatenate(lines, axis=-1) if len(lines) > 1 else lines[0]


def square(outputs: Outputs) -> jax.Array:
    """‖f(x)‖² of each row, float32 [B]: over what its mask counts and the classes allowed."""
    if isinstance(outputs, TokenScores):
        each = _pieces(outputs).reduce(lambda z: jnp.sum(z**2, axis=-1))
        return jnp.sum(each * jnp.asarray(outputs.mask), axis=-1)
    assert isinstance(outputs, Logits | Values)
    return jnp.sum(flat(outputs) ** 2, axis=-1)


def largest(outputs: Outputs, count: int) -> tuple[jax.Array, jax.Array]:
    """The `count` largest of each output's numbers, or all if it has fewer, and their indices.

    They are [..., count] each; of logits classes that the loss doesn't allow come last.
    """
    if isinstance(outputs, TokenScores):
        return _pieces(outputs).reduce(lambda z: tuple(lax.top_k(z, min(count, z.shape[-1]))))
    assert isinstance(outputs, Logits | Values)
    z = outputs.values
    allowed = outputs.allowed if isinstance(outputs, Logits) else None
    ranked = z if allowed is None else jnp.where(allowed, z, -jnp.inf)
    indices = lax.top_k(ranked, min(count, z.shape[-1]))[1]
    return jnp.take_along_axis(z, indices, axis=-1), indices


def squared_distance(
    outputs: Outputs, wanted: jax.Array, indices: jax.Array | None = None
) -> jax.Array:
    """The mean of (z - wanted)² over each output's numbers z, float32 [B], or [B, L] of tokens.

    Of logits it is over the classes that the loss allows.

    Args:
      outputs: a record of `Logits`, `TokenScores` or `Values`.
      wanted: [B, ...], as the outputs, or [..., k] as `largest` gives them.
      indices: int32 [..., k], which of the outputs `wanted` are of; None is all.
    """
    keep: jax.Array | None = None
    if isinstance(outputs, TokenScores):
        at = jnp.asarray(indices)
        z = _pieces(outputs).reduce(lambda z, i: jnp.take_along_axis(z, i, -1), given=(at,))
    else:
        assert isinstance(outputs, Logits | Values)
        z, keep = outputs.values, getattr(outputs, "allowed", None)
        if indices is not None:
            z = jnp.take_along_axis(z, indices, axis=-1)
            keep = None if keep is None else jnp.take_along_axis(keep, indices, axis=-1)
    gap = (z.astype(jnp.float32) - wanted.astype(jnp.float32)) ** 2
    gap = gap.reshape(*outputs.counted.shape, -1)
    if keep is None:
        return jnp.mean(gap, axis=-1)
    return jnp.sum(gap * keep, axis=-1) / jnp.maximum(jnp.sum(keep, axis=-1), 1)
