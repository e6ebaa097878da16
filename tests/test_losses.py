"""Losses against scipy, torch and sums by hand, with odd weights and masks."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, logsumexp

from jcl import losses

pytestmark = pytest.mark.quick

DRAW = np.random.default_rng(0)
ROWS, CLASSES, LENGTH, VOCABULARY = 5, 7, 6, 11
LOGITS = DRAW.normal(size=(ROWS, CLASSES)).astype(np.float32)
LABELS = DRAW.integers(0, CLASSES, ROWS)
WEIGHT = np.array([0.25, 1, 0, 3, 0.5], np.float32)
BATCH = {"y": jnp.asarray(LABELS), "weight": jnp.asarray(WEIGHT), "task": jnp.arange(ROWS) % 3}
WORDS = 3 * DRAW.normal(size=(3, LENGTH, VOCABULARY)).astype(np.float32)
TEXT = {
    "tokens": jnp.asarray(DRAW.integers(0, VOCABULARY, (3, LENGTH))),
    "weight": jnp.array([1.0, 0.5, 2.0]),
}
MASK = jnp.asarray(DRAW.random((3, LENGTH - 1)) < 0.6, jnp.float32)
TABLE = np.zeros((3, CLASSES), bool)
TABLE[0, [1, 4]] = TABLE[1, [0, 6]] = TABLE[2, [2, 3, 5]] = True


def says(outputs: Any) -> Any:
    """A model that answers whatever it is asked with its parameters."""
    return lambda params, batch: outputs


def nll_of_words() -> np.ndarray:
    """-log p of each token but the first [3, L - 1]."""
    chances = log_softmax(WORDS.astype(np.float64), -1)[:, :-1]
    return -np.take_along_axis(chances, np.asarray(TEXT["tokens"])[:, 1:, None], -1)[..., 0]


def test_cross_entropy_is_the_weighted_mean_of_scipy_s() -> None:
    each = -log_softmax(LOGITS.astype(np.float64), -1)[np.arange(ROWS), LABELS]
    value, outputs = losses.cross_entropy()(says(jnp.asarray(LOGITS)), None, BATCH)
    np.testing.assert_allclose(value, (each * WEIGHT).sum() / WEIGHT.sum(), rtol=1e-6)
    np.testing.assert_array_equal(outputs.values, LOGITS)


@pytest.mark.parametrize("mask", ["seen", "task"])
def test_masked_classes_take_no_part(mask: str) -> None:
    stage = 1
    batch = {**BATCH, "stage": jnp.full(ROWS, stage)}
    objective = losses.cross_entropy(TABLE, mask)
    found = np.asarray(objective.log_probs(jnp.asarray(LOGITS), batch))
    for row in range(ROWS):
        allowed = TABLE[: stage + 1].any(0) if mask == "seen" else TABLE[row % 3]
        np.testing.assert_allclose(found[row, allowed], log_softmax(LOGITS[row, allowed]), 1e-5)
        np.testing.assert_array_equal(np.exp(found[row, ~allowed]), 0)
    # der stores the outputs, which stay as the model gave them, and say what is allowed
    outputs = objective(says(jnp.asarray(LOGITS)), None, batch)[1]
    np.testing.assert_array_equal(outputs.values, LOGITS)
    wanted = (
        TABLE[[row % 3 for row in range(ROWS)]] if mask == "task" else [TABLE[:2].any(0)] * ROWS
    )
    np.testing.assert_array_equal(outputs.allowed, wanted)
    assert (outputs.heads is None) == (mask == "seen")


def test_allowed_classes_by_stage_clips_at_the_last() -> None:
    for stage, last in ((0, 1), (1, 2), (2, 3), (9, 3)):
        found = losses.allowed_classes(TABLE, BATCH, "seen", jnp.int32(stage))
        np.testing.assert_array_equal(found, np.tile(TABLE[:last].any(0), (ROWS, 1)))
    assert losses.allowed_classes(jnp.asarray(TABLE), BATCH, "all").all()


@pytest.mark.parametrize("mask, classes", [("some", TABLE), ("seen", None)])
def test_a_mask_that_can_not_be_is_refused(mask: str, classes: Any) -> None:
    with pytest.raises(ValueError, match=f"mask is '{mask}'"):
        losses.cross_entropy(classes, mask)


def test_labels_of_one_s_own_replace_the_batch_s() -> None:
    relabelled = losses.cross_entropy().relabel(BATCH, jnp.arange(ROWS))
    assert relabelled["y"].tolist() == list(range(ROWS))
    assert relabelled["weight"] is BATCH["weight"]
    assert BATCH["y"].tolist() == LABELS.tolist()


def test_squared_error_is_half_the_distance() -> None:
    wanted = DRAW.normal(size=(ROWS, 2, 3)).astype(np.float32)
    outputs = DRAW.normal(size=(ROWS, 2, 3)).astype(np.float32)
    each = 0.5 * ((outputs - wanted) ** 2).sum((1, 2))
    batch = {"y": jnp.asarray(wanted.reshape(ROWS, 6)), "weight": jnp.asarray(WEIGHT)}
    value = losses.squared_error(says(jnp.asarray(outputs)), None, batch)[0]
    np.testing.assert_allclose(value, (each * WEIGHT).sum() / WEIGHT.sum(), rtol=1e-6)


@pytest.mark.parametrize("mask", [None, MASK])
def test_next_token_is_the_mean_over_what_counts(mask: Any) -> None:
    batch = TEXT if mask is None else {**TEXT, "mask": mask}
    weight = np.asarray(TEXT["weight"])[:, None] * (np.ones((3, 5)) if mask is None else mask)
    value, _ = losses.next_token(says(jnp.asarray(WORDS)), None, batch)
    np.testing.assert_allclose(value, (nll_of_words() * weight).sum() / weight.sum(), rtol=1e-5)
    np.testing.assert_allclose(losses.token_weight(batch), weight, rtol=1e-6)


def test_padding_alone_costs_nothing_and_has_no_slope() -> None:
    none = {**BATCH, "weight": jnp.zeros(ROWS)}

    def value(logits: jax.Array) -> jax.Array:
        return losses.cross_entropy()(lambda p, b: p, logits, none)[0]

    cost, slope = jax.value_and_grad(value)(jnp.asarray(LOGITS))
    assert float(cost) == 0 and not slope.any()


def test_means_of_parts_add_up_as_the_losses_do() -> None:
    rows = jnp.asarray(DRAW.normal(size=3), jnp.float32)
    tokens = jnp.asarray(DRAW.normal(size=(3, LENGTH)), jnp.float32)
    batch = {**TEXT, "mask": MASK}
    weight = np.asarray(batch["weight"])
    assert float(losses.total_weight(TEXT)) == 3.5
    total = (weight[:, None] * MASK).sum()
    np.testing.assert_allclose(losses.total_weight(batch), total, rtol=1e-6)
    by_token = (np.asarray(tokens)[:, :-1] * MASK * weight[:, None]).sum() / total
    np.testing.assert_allclose(losses.batch_mean(tokens, batch), by_token, rtol=1e-5)
    by_row = (np.asarray(rows) * MASK.sum(1) * weight).sum() / total
    np.testing.assert_allclose(losses.batch_mean(rows, batch), by_row, rtol=1e-5)
    for part in (slice(0, 1), slice(1, 3)):  # each part's mean times its weight
        some = jax.tree.map(lambda x, part=part: x[part], batch)
        share = losses.total_weight(some) / total
        by_token -= float(share * losses.batch_mean(tokens[part], some))
    np.testing.assert_allclose(by_token, 0, atol=1e-6)


def scores(params: Any, batch: Any) -> losses.TokenScores:
    """What a model says of `targets`, from `WORDS`."""
    chosen = np.take_along_axis(WORDS, np.asarray(batch["targets"])[..., None], -1)[..., 0]
    return losses.TokenScores(*map(jnp.asarray, (chosen, logsumexp(WORDS, -1), WORDS.mean(-1))))


def test_smoothing_and_z_loss_are_torch_s_and_palm_s() -> None:
    torch = pytest.importorskip("torch")
    batch = {**TEXT, "weight": jnp.ones(3)}
    logits = torch.tensor(WORDS)[:, :-1].reshape(-1, VOCABULARY)
    targets = torch.tensor(np.array(TEXT["tokens"]))[:, 1:].reshape(-1).long()
    smooth = torch.nn.functional.cross_entropy(logits, targets, label_smoothing=0.1)
    ours = losses.fused_next_token(smoothing=0.1)(scores, None, batch)[0]
    np.testing.assert_allclose(ours, smooth, rtol=1e-5)
    plain = torch.nn.functional.cross_entropy(logits, targets)
    drift = (torch.logsumexp(logits, -1) ** 2).mean()
    ours = losses.fused_next_token(z=0.01)(scores, None, batch)[0]
    np.testing.assert_allclose(ours, plain + 0.01 * drift, rtol=1e-5)


def test_the_fused_loss_masks_as_the_plain_one_does() -> None:
    batch = {**TEXT, "mask": MASK}
    plain = losses.next_token(says(jnp.asarray(WORDS)), None, batch)[0]
    np.testing.assert_allclose(losses.fused_next_token()(scores, None, batch)[0], plain, rtol=1e-5)


@pytest.mark.parametrize("options", [{"smoothing": 1.0}, {"smoothing": -0.1}, {"z": -1.0}])
def test_what_is_no_loss_is_refused(options: dict[str, float]) -> None:
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"{name} is {value}, but must be at least 0"):
        losses.fused_next_token(**options)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_distillation_is_torch_s_divergence(temperature: float) -> None:
    torch = pytest.importorskip("torch")
    student, teacher = (3 * DRAW.normal(size=(4, CLASSES)).astype(np.float32) for _ in range(2))
    inputs = [torch.log_softmax(torch.tensor(x) / temperature, -1) for x in (student, teacher)]
    each = torch.nn.functional.kl_div(*inputs, reduction="none", log_target=True).sum(-1)
    ours = losses.distillation(jnp.asarray(student), jnp.asarray(teacher), temperature)
    np.testing.assert_allclose(ours, temperature**2 * each, rtol=1e-5)
