"""COPR against its equations in numpy: targets, constraints, multipliers, and what is stored."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
import tiny_decoder as tiny
import tiny_pairs
from scipy import stats
from scipy.special import log_softmax

import jcl
from jcl import methods
from jcl.methods.alignment.copr import apart

STREAM = tiny_pairs.pairs(shape=(3, 3, 4))
OPTIONS: dict[str, Any] = {
    "stages": 3, "beta": 0.5, "reward": 0.4, "capacity": 8, "rows": 1, "per": "answer",
}  # fmt: skip


def at(stage: int, step: int) -> Any:
    return jax.tree.map(lambda x: x[stage, step], STREAM)


def sampling(log_probs: np.ndarray, advantage: Any = 0.0) -> np.ndarray:
    """log P over the two answers [2, B], from log π and an advantage of ± it, over β."""
    shift = np.stack(
        [advantage * np.ones(log_probs.shape[1]), -advantage * np.ones(log_probs.shape[1])]
    )
    return log_softmax(log_probs + shift, axis=0)


def fit(params: Any, target: np.ndarray, batch: Any) -> np.ndarray:
    """|Y|⁻¹ Σ_y [log P_θ(y) - log P*(y)]² of each pair."""
    return np.mean((sampling(tiny_pairs.log_probs(params, batch)) - target) ** 2, axis=0)


@pytest.mark.quick
def test_the_distance_is_taken_over_both_answers() -> None:
    odds, target = np.random.default_rng(0).normal(0, 3, (2, 9))
    p, q = (log_softmax(np.stack([x, np.zeros(9)]), axis=0) for x in (odds, target))
    np.testing.assert_allclose(apart(odds, target), np.mean((p - q) ** 2, axis=0), rtol=1e-5)


def test_the_first_stage_fits_the_optimal_policy() -> None:
    program = tiny_pairs.program(methods.copr(sft=0.3, **OPTIONS), rate=0.01)
    state, step = tiny_pairs.start(program), jax.jit(program.step)
    for i in range(3):
        batch = at(0, i)
        target = sampling(tiny_pairs.log_probs(tiny.base(), batch), 0.4 / 0.5)
        log_probs = tiny_pairs.log_probs(state.params, batch)
        sft = -np.mean(log_probs[0] / np.asarray(batch["answer"]).sum(-1))
        expected = fit(state.params, target, batch).mean() + 0.3 * sft
        state, aux = step(state, batch)
        np.testing.assert_allclose(aux["loss"], expected, rtol=2e-5)


@pytest.fixture(scope="module")
def second() -> tuple[Any, jcl.State, jcl.State]:
    """The step, the state at the second stage's start, and that of the first's."""
    program = tiny_pairs.program(methods.copr(sft=0.0, rate=0.5, **OPTIONS), rate=0.01)
    first = state = tiny_pairs.start(program)
    step = jax.jit(program.step)
    for i in range(3):
        state, _ = step(state, at(0, i))
    return step, jax.jit(program.consolidate)(state, jax.tree.map(lambda x: x[0], STREAM)), first


def test_memory_keeps_pairs_of_a_stage_with_its_optimum_and_the_bound(second: Any) -> None:
    _, state, first = second
    held = state.methods["copr"]
    rows = jax.tree.map(np.asarray, held.buffer.rows)
    assert (rows["weight"] == 1).all() and (rows["copr/stage"] == 0).all()
    stored = {bytes(t) for t in rows["tokens"]}
    offered = np.asarray(STREAM["tokens"][0]).reshape(-1, tiny_pairs.LENGTH)
    assert stored < {bytes(t) for t in offered} and len(stored) == 8
    target = sampling(tiny_pairs.log_probs(first.params, rows), 0.4 / 0.5)
    np.testing.assert_allclose(rows["copr/odds"], target[0] - target[1], rtol=1e-4)
    bound = fit(state.params, target, rows).mean()
    np.testing.assert_allclose(held.bound, [bound, 0, 0], rtol=1e-4)


def test_constraints_weigh_as_their_multipliers_say(second: Any) -> None:
    """Λ⁻¹ [J_fit + λ J_0], Λ = 1 + λ, over the one row that the step drew."""
    step, state, first = second
    held = state.methods["copr"]._replace(
        log_multiplier=np.array([np.log(3.0), 0.7, 0.1], np.float32)
    )
    state = state._replace(methods={"copr": held})
    rows = jax.tree.map(np.asarray, held.buffer.rows)
    batch = at(1, 0)
    new = sampling(tiny_pairs.log_probs(state.params, batch), 0.4 / 0.5)
    old = sampling(tiny_pairs.log_probs(first.params, rows), 0.4 / 0.5)
    _, aux = step(state, batch)
    fresh = fit(state.params, new, batch).mean()
    each = fit(state.params, old, rows)
    used = (aux["loss"] * 4.0 - fresh) / 3.0
    assert np.abs(each - used).min() < 1e-4 * used and each.min() < 0.5 * each.max()


def test_a_multiplier_grows_where_its_bound_is_exceeded(second: Any) -> None:
    step, state, first = second
    held = state.methods["copr"]
    rows = jax.tree.map(np.asarray, held.buffer.rows)
    old = sampling(tiny_pairs.log_probs(first.params, rows), 0.4 / 0.5)
    for bound in (0.0, 1e3):
        given = held._replace(bound=np.full(3, bound, np.float32))
        after, _ = step(state._replace(methods={"copr": given}), at(1, 0))
        moved = np.asarray(after.methods["copr"].log_multiplier)
        np.testing.assert_array_equal(moved[1:], 0)  # of stages that have no rows
        expected = 0.5 * (fit(after.params, old, rows) - bound)  # ρ λ (J_0 - d_0), λ = 1
        assert np.abs(expected - moved[0]).min() < 1e-4 * abs(moved[0])


def test_rewards_are_drawn_from_their_distribution() -> None:
    """r ~ Beta(1, 2), read off the targets that a boundary stores."""
    options = OPTIONS | {"reward": None, "capacity": 4000}
    many = tiny_pairs.pairs(shape=(1, 40, 50))
    program = tiny_pairs.program(methods.copr(**options))
    example = jax.tree.map(lambda x: x[0, 0], many)
    state = tiny_pairs.start(program, example)
    after = jax.jit(program.consolidate)(state, jax.tree.map(lambda x: x[0], many))
    rows = jax.tree.map(lambda x: np.asarray(x)[:2000], after.methods["copr"].buffer.rows)
    margin = np.subtract(*tiny_pairs.log_probs(tiny.base(), rows))
    drawn = (rows["copr/odds"] - margin) * 0.5 / 2
    assert stats.kstest(drawn, stats.beta(1, 2).cdf).pvalue > 1e-3


def test_it_comes_before_other_methods_that_add_to_the_loss() -> None:
    both = methods.copr(**OPTIONS), methods.kl_to_reference(0.1)
    ahead = tiny_pairs.program(jcl.chain(*both))
    state = jax.eval_shape(ahead.init, tiny.base(), tiny_pairs.BATCH, jax.random.key(0))
    assert jax.eval_shape(ahead.step, state, tiny_pairs.BATCH)[1]["loss"].shape == ()
    with pytest.raises(ValueError, match="adds, so copr must come before kl_to_reference"):
        jcl.chain(*both[::-1])


def per_token(params: Any, batch: Any) -> np.ndarray:
    """The mean of log π over the tokens of both answers [2, B]."""
    lengths = [np.asarray(batch[k]).sum(-1) for k in ("answer", "rejected_answer")]
    return tiny_pairs.log_probs(params, batch) / np.stack(lengths)


def test_as_in_the_authors_code_answers_count_by_their_mean_token() -> None:
    """The loss on new pairs of accelerate_copr_trainer.py, over its coefficient of J_fit, 0.8.

    RDPO_loss is a sum over new pairs over all queries, of which half are new, so ½ times the mean;
    coef_dpo and coef_nll are both 0.8, dpo_beta is 0.8, and margin_rm is 0.8 as linear reward. What
    differs by intent: P is over each pair, and P* is that of the policy before.
    """
    program = tiny_pairs.program(methods.copr(stages=3, reward=0.8), rate=0.01)
    state, step = tiny_pairs.start(program), jax.jit(program.step)
    for i in range(2):
        batch = at(0, i)
        scale = np.exp(np.array([[0.8], [-0.8]]) / 0.8)
        star = np.exp(per_token(tiny.base(), batch)) * scale
        now = np.exp(per_token(state.params, batch))
        gap = np.log(now / now.sum(0)) - np.log(star / star.sum(0))
        new, queries = gap.shape[1], 2 * gap.shape[1]
        rdpo = np.sum(gap**2) / queries
        nll = -np.sum(per_token(state.params, batch)[0]) / new
        expected = (0.8 * rdpo + 0.8 * nll) / 0.8
        state, aux = step(state, batch)
        np.testing.assert_allclose(aux["loss"], expected, rtol=2e-5)


def test_targets_constraints_and_multipliers_count_by_the_mean_token_too() -> None:
    options = OPTIONS | {"per": "token"}
    program = tiny_pairs.program(methods.copr(sft=0.0, rate=0.5, **options), rate=0.01)
    first = state = tiny_pairs.start(program)
    step = jax.jit(program.step)
    for i in range(3):
        state, _ = step(state, at(0, i))
    state = jax.jit(program.consolidate)(state, jax.tree.map(lambda x: x[0], STREAM))
    held = state.methods["copr"]
    rows = jax.tree.map(np.asarray, held.buffer.rows)
    target = sampling(per_token(first.params, rows), 0.4 / 0.5)
    np.testing.assert_allclose(rows["copr/odds"], target[0] - target[1], rtol=1e-4)

    def apart_from(params: Any) -> np.ndarray:
        return np.mean((sampling(per_token(params, rows)) - target) ** 2, axis=0)

    np.testing.assert_allclose(held.bound, [apart_from(state.params).mean(), 0, 0], rtol=1e-4)
    after, _ = step(state, at(1, 0))
    moved = np.asarray(after.methods["copr"].log_multiplier)[0]
    expected = 0.5 * (apart_from(after.params) - held.bound[0])
    assert np.abs(expected - moved).min() < 1e-3 * abs(moved)
