"""The divergence from a reference: its value in numpy, where it is over, and where it stands."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_decoder as tiny
import tiny_pairs
from scipy.special import log_softmax

import jcl
from jcl import losses, methods, preference

PAIRS = tiny_pairs.pairs()


def at(stage: int, step: int) -> Any:
    return jax.tree.map(lambda x: x[stage, step], PAIRS)


def apart(new: Any, old: Any, batch: Any, direction: str) -> np.ndarray:
    """KL at each position, [B, L]."""
    p, q = (log_softmax(np.asarray(tiny.CALL(x, batch), np.float64), -1) for x in (new, old))
    p, q = (p, q) if direction == "reverse" else (q, p)
    return np.sum(np.exp(p) * (p - q), axis=-1)


@pytest.mark.parametrize(
    ("reference", "direction"), [("initial", "reverse"), ("previous", "forward")]
)
def test_of_pairs_it_is_summed_over_the_preferred_answer(reference: Any, direction: Any) -> None:
    method = methods.kl_to_reference(0.7, reference, direction)
    program = tiny_pairs.program(method, rate=0.5)
    step, consolidate = jax.jit(program.step), jax.jit(program.consolidate)
    first = state = tiny_pairs.start(program)
    for stage in range(2):
        held = state.params if reference == "previous" else first.params
        for i in range(2):
            batch = {k: v for k, v in at(stage, i).items() if "rejected" not in k}
            plain, _ = preference.ranking()(tiny.APPLY, state.params, at(stage, i))
            answer = np.asarray(batch["answer"])
            sums = (apart(state.params, held, batch, direction)[:, :-1] * answer).sum(-1)
            state, aux = step(state, at(stage, i))
            np.testing.assert_allclose(aux["loss"] - plain, 0.7 * sums.mean(), rtol=2e-4, atol=2e-6)
            moved = i > 0 or (stage > 0 and reference == "initial")
            assert (sums.mean() > 1e-3) == moved
        state = consolidate(state, jax.tree.map(lambda x, s=stage: x[s], PAIRS))


@pytest.mark.parametrize("fused", [False, True])
def test_of_other_batches_it_is_a_mean_over_tokens(fused: bool) -> None:
    ask = losses.fused_next_token() if fused else losses.next_token
    method = methods.kl_to_reference(0.7)
    program = jcl.make(method, tiny.APPLY, ask, optax.sgd(0.5))
    mask = jnp.asarray(np.random.default_rng(0).integers(0, 2, (4, tiny.LENGTH - 1)), jnp.float32)
    batches = [
        jax.tree.map(lambda x, i=i: x[0, i], tiny.stream()) | {"mask": mask} for i in range(2)
    ]
    state = program.init(tiny.base(), batches[0], jax.random.key(0))
    state, _ = jax.jit(program.step)(state, batches[0])
    whole = {**batches[1], "weight": jnp.ones(4)}
    plain, _ = losses.next_token(tiny.APPLY, state.params, whole)
    gaps = apart(state.params, tiny.base(), batches[1], "reverse")[:, :-1]
    expected = np.sum(gaps * np.asarray(mask)) / float(mask.sum())
    _, aux = jax.jit(program.step)(state, batches[1])
    assert expected > 1e-3
    np.testing.assert_allclose(aux["loss"] - plain, 0.7 * expected, rtol=1e-3)


@pytest.mark.quick
def test_it_holds_a_model_near_its_start() -> None:

    @jax.jit
    def trained(strength: jax.Array) -> Any:
        method = jcl.chain(methods.dpo(beta=1.0), methods.kl_to_reference(strength))
        program = tiny_pairs.program(method, rate=0.02)
        state = program.init(tiny.base(), tiny_pairs.BATCH, jax.random.key(0))
        step = lambda state, _: program.step(state, tiny_pairs.BATCH)  # noqa: E731
        return jax.lax.scan(step, state, None, length=15)[0].params

    def end(strength: float) -> float:
        rows = {k: tiny_pairs.BATCH[k] for k in ("tokens", "segments")}
        gaps = apart(trained(strength), tiny.base(), rows, "reverse")[:, :-1]
        return float((gaps * np.asarray(tiny_pairs.BATCH["answer"])).sum(-1).mean())

    free, held = end(0.0), end(50.0)
    assert held < 0.3 * free
