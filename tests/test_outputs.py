"""Kinds of outputs against scipy and numpy: what counts of them, and how far apart they are."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

import jcl
from jcl import losses, methods, outputs
from jcl.models import layers

pytestmark = pytest.mark.quick

DRAW = np.random.default_rng(0)
ROWS, LENGTH, WIDTH, WORDS, CLASSES = 3, 7, 5, 11, 6
TOKENS = DRAW.integers(0, WORDS, (ROWS, LENGTH))
BATCH = {"tokens": jnp.asarray(TOKENS), "weight": jnp.array([1.0, 0.5, 0.0])}
MASK = (DRAW.random((ROWS, LENGTH - 1)) < 0.6).astype(np.float32)
WHOLE = [3 * DRAW.normal(size=(ROWS, CLASSES)).astype(np.float32) for _ in range(2)]
HEADS = np.zeros((3, CLASSES), bool)
HEADS[0, [0, 4]] = HEADS[1, [1, 5]] = HEADS[2, [2, 3]] = True


def draw(*shape: int) -> np.ndarray:
    return DRAW.normal(size=shape).astype(np.float32)


def project(head: Any, h: jax.Array) -> jax.Array:
    return h @ head["kernel"]


HIDDEN, KERNELS = draw(2, ROWS, LENGTH, WIDTH), 2 * draw(2, WIDTH, WORDS)
LOGITS = np.einsum("mbld,mdv->mblv", HIDDEN.astype(float), KERNELS.astype(float))


def scores(model: int, limit: int, hidden: Any = HIDDEN, kernels: Any = KERNELS) -> Any:
    """Token scores of one of two models, as a loss gives them."""
    asked = {"targets": BATCH["tokens"], "logits": BATCH["weight"]}
    head = {"kernel": jnp.asarray(kernels[model])}
    found = layers.token_scores(project, head, jnp.asarray(hidden[model]), asked, limit)
    mask = jnp.pad(jnp.asarray(MASK), ((0, 0), (0, 1)))
    return found._replace(weight=BATCH["weight"], mask=mask)


def divergence(new: np.ndarray, old: np.ndarray, t: float = 1.0) -> np.ndarray:
    p, q = (log_softmax(z.astype(float) / t, -1) for z in (old, new))
    return np.sum(np.exp(p) * (p - q), -1)


def test_a_record_is_completed_by_its_batch() -> None:
    batch = {**BATCH, "mask": jnp.asarray(MASK)}
    whole = outputs.complete(losses.Logits(jnp.asarray(LOGITS[0])), batch)
    assert whole is not None
    wanted = np.pad(MASK, ((0, 0), (0, 1))) * np.asarray(BATCH["weight"])[:, None]
    np.testing.assert_allclose(whole.counted, wanted)
    of_rows = outputs.complete(losses.Logits(jnp.asarray(WHOLE[0])), batch)
    assert of_rows is not None
    np.testing.assert_allclose(of_rows.counted, BATCH["weight"])
    bare = outputs.complete(jnp.asarray(WHOLE[0]), BATCH)
    assert isinstance(bare, losses.Values) and bare.mask is None
    own = losses.LogProbs(jnp.zeros(ROWS), jnp.ones(ROWS))
    assert outputs.complete(own, BATCH) is own and outputs.complete(None, BATCH) is None


def test_padding_counts_where_no_mask_says_otherwise_by_its_segments() -> None:
    segments = jnp.asarray(TOKENS % 2)
    found = outputs.complete(losses.Logits(jnp.asarray(LOGITS[0])), {**BATCH, "segments": segments})
    assert found is not None
    np.testing.assert_array_equal(found.mask, segments)


def test_a_record_without_its_weight_says_what_fills_it_in() -> None:
    with pytest.raises(ValueError, match=r"weight is None, but must be float32 \[B\]"):
        losses.LogProbs(jnp.zeros(ROWS)).counted  # noqa: B018


@pytest.mark.parametrize("limit", [2 * WORDS * ROWS, 6 * WORDS * ROWS, 10_000])
@pytest.mark.parametrize("t", [1.0, 2.5])
def test_of_token_scores_a_divergence_is_scipy_s_in_however_many_pieces(
    limit: int, t: float
) -> None:
    found = losses.divergence(scores(0, limit), scores(1, limit), t)
    np.testing.assert_allclose(found, divergence(LOGITS[0], LOGITS[1], t), rtol=1e-4, atol=1e-5)


def test_of_token_scores_a_divergence_has_the_slope_of_whole_logits() -> None:
    def total(limit: int | None) -> Any:
        def value(hidden: jax.Array, kernel: jax.Array) -> jax.Array:
            kernels = [kernel, KERNELS[1]]
            if limit is None:
                new, old = hidden @ kernel, jnp.asarray(HIDDEN[1] @ KERNELS[1])
            else:
                new, old = (scores(i, limit, [hidden, HIDDEN[1]], kernels) for i in range(2))
            return jnp.sum(losses.divergence(new, old, 2.0) ** 2)

        return jax.grad(value, (0, 1))(jnp.asarray(HIDDEN[0]), jnp.asarray(KERNELS[0]))

    for pieces, whole in zip(total(6 * WORDS * ROWS), total(None), strict=True):
        np.testing.assert_allclose(pieces, whole, rtol=1e-4, atol=1e-4)


def test_of_several_heads_divergences_add_up() -> None:
    new, old = (losses.Logits(jnp.asarray(z)) for z in WHOLE)
    found = losses.divergence(new, old, 2.0, jnp.asarray(HEADS) & jnp.array([[1], [1], [0]], bool))
    parts = [divergence(WHOLE[0][:, h], WHOLE[1][:, h], 2.0) for h in HEADS[:2]]
    np.testing.assert_allclose(found, sum(parts), rtol=1e-5)


def test_of_masked_logits_a_divergence_is_over_what_both_allow() -> None:
    seen = np.array([1, 1, 0, 1, 1, 0], bool), np.array([1, 1, 1, 0, 1, 0], bool)
    new, old = (
        losses.Logits(jnp.asarray(z), allowed=jnp.tile(jnp.asarray(keep), (ROWS, 1)))
        for z, keep in zip(WHOLE, seen, strict=True)
    )
    both = seen[0] & seen[1]
    wanted = divergence(WHOLE[0][:, both], WHOLE[1][:, both])
    np.testing.assert_allclose(losses.divergence(new, old), wanted, rtol=1e-5)


def test_a_student_that_rounding_alone_moves_has_no_slope() -> None:
    """Not even one of rounding, of which Adam would make a whole step."""
    old = jnp.asarray(30 * WHOLE[1])
    slope = jax.grad(lambda z: jnp.sum(losses.divergence(z, old)))
    near = jnp.nextafter(old, jnp.inf)
    for same in (old, near):
        np.testing.assert_array_equal(slope(same), np.zeros_like(old))
    # one logit that has moved gives all of its row the usual slope
    moved = old.at[0, 2].add(0.5)
    p, q = (np.exp(log_softmax(np.asarray(z, float), -1)) for z in (old, moved))
    np.testing.assert_allclose(slope(moved)[0], (q - p)[0], atol=1e-5)
    np.testing.assert_array_equal(slope(moved)[1:], 0)


def test_squares_are_over_what_counts() -> None:
    allowed = jnp.asarray(HEADS)
    found = losses.square(losses.Logits(jnp.asarray(WHOLE[0]), BATCH["weight"], allowed=allowed))
    np.testing.assert_allclose(found, (WHOLE[0] ** 2 * HEADS).sum(-1), rtol=1e-5)
    wanted = (LOGITS[0][:, :-1] ** 2 * MASK[..., None]).sum((1, 2))
    mask = jnp.pad(jnp.asarray(MASK), ((0, 0), (0, 1)))
    of_tokens = losses.Logits(jnp.asarray(LOGITS[0], jnp.float32), BATCH["weight"], mask)
    for found in map(losses.square, (of_tokens, scores(0, 6 * WORDS * ROWS))):
        np.testing.assert_allclose(found, wanted, rtol=1e-4)
    tree = losses.Values({"a": jnp.asarray(WHOLE[0]), "b": jnp.ones(ROWS)}, BATCH["weight"])
    np.testing.assert_allclose(losses.square(tree), (WHOLE[0] ** 2).sum(-1) + 1, rtol=1e-5)


@pytest.mark.parametrize("limit", [2 * WORDS * ROWS, 10_000])
def test_the_largest_are_stored_and_matched_by_their_indices(limit: int) -> None:
    values, indices = losses.largest(scores(1, limit), 4)
    order = np.argsort(-LOGITS[1], axis=-1)[..., :4]
    np.testing.assert_array_equal(indices, order)
    np.testing.assert_allclose(values, np.take_along_axis(LOGITS[1], order, -1), rtol=1e-4)
    found = losses.squared_distance(scores(0, limit), values, indices)
    gap = np.take_along_axis(LOGITS[0] - LOGITS[1], order, -1)
    np.testing.assert_allclose(found, (gap**2).mean(-1), rtol=1e-4)


def test_classes_that_are_not_allowed_are_stored_last_and_not_matched() -> None:
    new, old = (
        losses.Logits(jnp.asarray(z), BATCH["weight"], allowed=jnp.asarray(HEADS)) for z in WHOLE
    )
    values, indices = losses.largest(old, 3)
    order = np.argsort(-np.where(HEADS, WHOLE[1], -np.inf), axis=-1)
    np.testing.assert_array_equal(indices[:, :2], order[:, :2])
    wanted = [((a - b)[h] ** 2).mean() for a, b, h in zip(*WHOLE, HEADS, strict=True)]
    np.testing.assert_allclose(losses.squared_distance(new, values, indices), wanted, rtol=1e-5)
    np.testing.assert_allclose(losses.squared_distance(new, old.values), wanted, rtol=1e-5)


def test_a_mean_weighs_rows_and_tokens() -> None:
    each = draw(ROWS, LENGTH)
    found = losses.mean_of(jnp.asarray(each), scores(0, 10_000))
    counted = np.pad(MASK, ((0, 0), (0, 1))) * np.asarray(BATCH["weight"])[:, None]
    np.testing.assert_allclose(found, (each * counted).sum() / counted.sum(), rtol=1e-5)
    rows = losses.mean_of(jnp.asarray(each[:, 0]), scores(0, 10_000))
    np.testing.assert_allclose(rows, (each[0, 0] + 0.5 * each[1, 0]) / 1.5, rtol=1e-5)


def test_what_has_no_rows_is_left_out_and_the_head_put_back() -> None:
    whole = scores(0, 10_000)
    rows = outputs.per_row(whole)
    assert {leaf.shape[0] for leaf in jax.tree.leaves(rows)} == {ROWS}
    again = outputs.with_head(rows, lambda: whole)
    np.testing.assert_array_equal(again.logits.head["kernel"], KERNELS[0])
    of_heads = losses.Logits(jnp.asarray(WHOLE[0]), heads=jnp.asarray(HEADS))
    assert outputs.per_row(of_heads).heads is None


def test_scores_that_came_without_logits_are_refused() -> None:
    bare = scores(0, 10_000)._replace(logits=None)
    with pytest.raises(ValueError, match="a TokenScores' logits are None, but must be LogitPieces"):
        losses.divergence(bare, scores(1, 10_000))


def test_a_kind_that_a_method_does_not_want_is_named() -> None:
    outputs.check_kind(methods.naive(), losses.squared_error, None)  # which wants none
    outputs.check_kind(methods.lwf(), losses.cross_entropy(), losses.Logits(jnp.zeros(1)))
    with pytest.raises(
        ValueError, match=r"loss is squared_error, which gives Values, .* for distil"
    ):
        kind = losses.Values(jnp.zeros(1))
        outputs.check_kind(methods.distil({}), losses.squared_error, kind)
    own = jcl.Method("own", wants=(losses.Rewards,))
    with pytest.raises(ValueError, match="loss is CrossEntropy, which gives no outputs, but must"):
        outputs.check_kind(own, losses.cross_entropy(), None)
