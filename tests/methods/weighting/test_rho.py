"""rho: which tokens are learned, against a choice in numpy; exactly k of them; 1 is plain."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_decoder import APPLY, CALL, LENGTH, base, stream

import jcl
from jcl import losses, methods
from jcl.models import decoder

KEY = jax.random.key(0)
OTHER = jax.tree.map(lambda x: x + 0.1, base())
ROWS = jax.tree.map(lambda x: x[0, 0], stream())
MASK = jnp.asarray(np.random.default_rng(2).random((4, LENGTH - 1)) < 0.8, jnp.float32)
BATCH = {**ROWS, "mask": MASK, "weight": jnp.array([1.0, 1.0, 0.0, 1.0])}
FUSED = losses.fused_next_token()


def program(method: jcl.Method, loss: Any = losses.next_token, **options: Any) -> jcl.Program:
    return jcl.make(method, APPLY, loss, optax.sgd(0.1), **options)


def one_step(method: jcl.Method, batch: Any = BATCH, loss: Any = losses.next_token, **options: Any):
    made = program(method, loss, **options)
    return jax.jit(made.step)(jax.jit(made.init)(base(), batch, KEY), batch)


def token_losses(params: Any) -> np.ndarray:
    """-log p of each successor, float64 [B, L - 1], from the model's logits."""
    logits = np.asarray(CALL(params, {"tokens": ROWS["tokens"]}), np.float64)[:, :-1]
    logits -= logits.max(-1, keepdims=True)
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return -np.take_along_axis(logp, np.asarray(ROWS["tokens"])[:, 1:, None], -1)[..., 0]


def chosen(share: float, excess: np.ndarray) -> np.ndarray:
    """The mask of the tokens with the highest excess among those that count."""
    there = (np.asarray(MASK) > 0) & (np.asarray(BATCH["weight"]) > 0)[:, None]
    count = there.sum() - round((1 - share) * there.sum())
    order = np.argsort(np.where(there, -excess, np.inf), axis=None, kind="stable")
    picked = np.zeros(excess.size)
    picked[order[:count]] = 1
    return picked.reshape(excess.shape)


@pytest.mark.parametrize(
    "share, microbatches, loss",
    [(0.05, 1, FUSED), (0.3, 2, FUSED), (0.6, 1, losses.next_token), (0.6, 2, losses.next_token)],
)
def test_loss_is_the_mean_over_those_with_the_highest_excess(
    share: float, microbatches: int, loss: Any
) -> None:
    own, best = token_losses(base()), token_losses(OTHER)
    mask = chosen(share, own - best)
    method = methods.rho(share=share, reference=OTHER)
    state, aux = one_step(method, loss=loss, microbatches=microbatches)
    np.testing.assert_allclose(aux["loss"], (own * mask).sum() / mask.sum(), rtol=1e-5)
    # and it learns as from a batch that has that mask from the start
    given, _ = one_step(methods.naive(), {**BATCH, "mask": jnp.asarray(mask)}, loss)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        state.params, given.params,
    )  # fmt: skip


@partial(jax.jit, static_argnums=1)
def masked(share: Any, reference: str, batch: Any) -> jax.Array:
    """The mask with which a step's loss is called; the reference is OTHER or what the batch has."""

    def shown(apply: Any, params: Any, rows: Any) -> Any:
        return losses.next_token(apply, params, rows)[0], rows["mask"]

    note = jcl.Method(
        "note",
        init=lambda ctx, params: (params, jnp.zeros_like(batch["mask"])),
        observe=lambda state, ctx, info: info.outputs.values,
    )
    source = OTHER if reference == "other" else reference
    made = program(jcl.chain(methods.rho(share=share, reference=source), note), shown)
    state, _ = made.step(made.init(base(), batch, KEY), batch)
    return state.methods["note"]


def test_of_a_model_that_is_its_reference_the_earliest_tokens_are_learned() -> None:
    """Float64 and float32 round its losses otherwise, as two meshes do; no choice follows."""
    best = jnp.asarray(token_losses(base()), jnp.float32)
    mask = masked(0.5, "batch", {**BATCH, "reference": best})
    there = BATCH["weight"][:, None] > 0
    np.testing.assert_array_equal((mask > 0) & there, chosen(0.5, np.zeros_like(best)) > 0)


@pytest.mark.parametrize("share", [0.01, 0.25, 0.5, 0.99])
def test_exactly_so_many_tokens_even_where_all_are_alike(share: float) -> None:
    alike = {**BATCH, "reference": jnp.asarray(token_losses(base()), jnp.float32)}
    there = int((MASK * BATCH["weight"][:, None]).sum())
    for batch in (alike, {**BATCH, "reference": jnp.zeros_like(MASK)}):
        mask = np.asarray(masked(share, "batch", batch))
        kept = (mask > 0) & (np.asarray(BATCH["weight"]) > 0)[:, None]
        assert kept.sum() == max(there - round((1 - share) * there), 1)
        assert not (mask > np.asarray(MASK)).any()


def test_a_batch_may_bring_the_references_losses() -> None:
    best = jnp.asarray(token_losses(OTHER), jnp.float32)
    own = masked(0.4, "other", BATCH)
    brought = masked(0.4, "batch", {**BATCH, "reference": best})
    np.testing.assert_array_equal(own, brought)
    with pytest.raises(ValueError, match="one with 'reference' for rho"):
        one_step(methods.rho(reference="batch"))


def test_a_share_of_one_is_plain_training_bit_for_bit() -> None:
    for loss in (losses.next_token, FUSED):
        ends = [one_step(m, loss=loss) for m in (methods.rho(share=1.0), methods.naive())]
        jax.tree.map(np.testing.assert_array_equal, ends[0][0].params, ends[1][0].params)
        assert float(ends[0][1]["loss"]) == float(ends[1][1]["loss"])


def test_previous_is_the_last_boundarys_model_and_nothing_before_it() -> None:
    made = program(methods.rho(share=0.3))
    state = made.init(base(), BATCH, KEY)
    step = jax.jit(made.step)
    moved, aux = step(state, BATCH)
    there = np.asarray(MASK * BATCH["weight"][:, None])
    np.testing.assert_allclose(
        aux["loss"], (token_losses(base()) * there).sum() / there.sum(), rtol=1e-5
    )
    closed = made.consolidate(moved, jax.tree.map(lambda x: x[None], BATCH))
    again, _ = step(closed, BATCH)
    own, best = token_losses(again.params), token_losses(closed.params)
    mask = chosen(0.3, own - best)
    _, aux = step(again, BATCH)
    np.testing.assert_allclose(aux["loss"], (own * mask).sum() / mask.sum(), rtol=1e-5)


@pytest.mark.quick
def test_rows_are_chosen_by_their_own_losses() -> None:
    there = np.asarray(MASK)
    excess = token_losses(base()) - token_losses(OTHER)
    rows = (excess * there).sum(1) / there.sum(1)
    best = int(np.argmax(np.where(np.asarray(BATCH["weight"]) > 0, rows, -np.inf)))
    _, aux = one_step(methods.rho(share=0.3, reference=OTHER, unit="row"))  # one of three
    own = (token_losses(base()) * there)[best].sum() / there[best].sum()
    np.testing.assert_allclose(aux["loss"], own, rtol=1e-5)


def test_with_targets_no_logits_of_all_tokens_are_held() -> None:
    """The compiled step's memory grows by less than [B, L, V] where logits come in pieces."""
    wide = decoder.Config(vocabulary=4096, layers=1, width=16, heads=1, kv_heads=1, hidden=16)
    params = decoder.init(KEY, wide)
    batch = {"tokens": jnp.zeros((8, 64), jnp.int32)}

    def temporary(method: jcl.Method) -> int:
        apply = decoder.apply_fn(wide, logits_limit=2**15)
        made = jcl.make(method, apply, FUSED, optax.sgd(0.1))
        state = made.init(params, batch, KEY)
        compiled = jax.jit(made.step).lower(state, batch).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    more = temporary(methods.rho(reference=params)) - temporary(methods.naive())
    assert more < 8 * 64 * 4096 * 4 / 4
