"""LwF: the distillation term and its gradient, against the formula in numpy."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_decoder
from scipy.special import log_softmax, softmax

import jcl
from jcl import losses, methods

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
RATE = 0.3
START = {"w": jnp.asarray(RNG.normal(size=(3, 4)), jnp.float32)}


def apply(params: Any, batch: Any) -> jax.Array:
    return batch["x"] @ params["w"]


def rows(count: int = 6) -> dict[str, jax.Array]:
    x = jnp.asarray(RNG.normal(size=(count, 3)), jnp.float32)
    return {"x": x, "y": jnp.asarray(RNG.integers(0, 4, count))}


def after_a_stage(method: jcl.Method, **options: Any) -> tuple[Any, jcl.State]:
    program = jcl.make(method, apply, losses.cross_entropy(), optax.sgd(RATE), **options)
    first, step = rows(), jax.jit(program.step)
    state, _ = step(jax.jit(program.init)(START, first, KEY), first)
    return step, jax.jit(program.consolidate)(state, jax.tree.map(lambda v: v[None], first))


def cross_entropy_slope(w: np.ndarray, batch: Any) -> np.ndarray:
    x = np.asarray(batch["x"], float)
    return x.T @ (softmax(x @ w, axis=1) - np.eye(4)[np.asarray(batch["y"])]) / len(x)


def divergence(z: np.ndarray, old: np.ndarray, t: float) -> np.ndarray:
    p = softmax(old / t, axis=-1)
    gap = log_softmax(old / t, axis=-1) - log_softmax(z / t, axis=-1)
    return np.sum(p * gap, axis=-1)


@pytest.mark.parametrize("microbatches", [1, 3])
@pytest.mark.parametrize(
    "strength, t, rescale", [(1.0, 2.0, False), (0.5, 1.0, False), (3.0, 4.0, False), (1, 2, True)]
)
def test_step_and_loss_follow_the_formula(
    strength: float, t: float, rescale: bool, microbatches: int
) -> None:
    method = methods.lwf(strength=strength, temperature=t, rescale=rescale)
    scale = strength * t**2 if rescale else strength
    step, state = after_a_stage(method, microbatches=microbatches)
    old = np.asarray(state.params["w"], float)
    for turn in range(3):
        batch = rows()
        w, x = np.asarray(state.params["w"], float), np.asarray(batch["x"], float)
        state, aux = step(state, batch)
        # d/dz of KL(p ‖ q) is (q - p) / T
        apart = (softmax(x @ w / t, axis=1) - softmax(x @ old / t, axis=1)) / t
        slope = cross_entropy_slope(w, batch) + scale * x.T @ apart / len(x)
        np.testing.assert_allclose(state.params["w"], w - RATE * slope, rtol=2e-5, atol=1e-6)
        term = float(np.mean(divergence(x @ w, x @ old, t)))
        assert (t**2 * term > 1e-3) == (turn > 0)  # the model starts the stage as its own teacher
        nll = -np.mean(log_softmax(x @ w, axis=1)[np.arange(6), batch["y"]])
        np.testing.assert_allclose(aux["loss"], nll + scale * term, rtol=1e-5)


@pytest.mark.quick
def test_the_first_stage_is_plain_fine_tuning() -> None:
    first = rows()
    programs = [
        jcl.make(m, apply, losses.cross_entropy(), optax.sgd(RATE))
        for m in (methods.lwf(strength=5.0), methods.naive())
    ]
    ends = [jax.jit(p.step)(p.init(START, first, KEY), first)[0].params["w"] for p in programs]
    np.testing.assert_array_equal(*ends)


@pytest.mark.quick
def test_a_strength_may_grow_with_the_stage() -> None:
    batch = rows()
    step, state = after_a_stage(methods.lwf(lambda ctx: 2.0 * ctx.stage))
    fixed, _ = after_a_stage(methods.lwf(2.0))
    ends = []
    for one in (step, fixed):
        moved, _ = one(state, batch)
        ends.append(one(moved, batch)[0].params["w"])
    np.testing.assert_allclose(*ends, rtol=1e-6)


@pytest.mark.quick
def test_with_classes_only_those_of_earlier_stages_are_distilled() -> None:
    classes = np.array([[1, 1, 0, 0], [0, 0, 1, 1]], bool)
    step, state = after_a_stage(methods.lwf(strength=2.0, classes=classes))
    old = np.asarray(state.params["w"], float)
    state, _ = step(state, rows())
    batch = rows()
    w, x = np.asarray(state.params["w"], float), np.asarray(batch["x"], float)
    _, aux = step(state, batch)
    term = np.mean(divergence((x @ w)[:, :2], (x @ old)[:, :2], 2.0))
    nll = -np.mean(log_softmax(x @ w, axis=1)[np.arange(6), batch["y"]])
    np.testing.assert_allclose(aux["loss"], nll + 2.0 * term, rtol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_tokens_count_as_they_do_in_the_loss(masked: bool) -> None:
    def decoder(params: Any, batch: Any) -> jax.Array:
        return params["w"][batch["tokens"]]

    def sequences() -> dict[str, jax.Array]:
        batch = {"tokens": jnp.asarray(RNG.integers(0, 3, (5, 7))), "weight": jnp.ones(5)}
        mask = jnp.asarray(RNG.integers(0, 2, (5, 6)), jnp.float32)
        return {**batch, "mask": mask} if masked else batch

    program = jcl.make(
        methods.lwf(strength=1.0, temperature=1.0), decoder, losses.next_token, optax.sgd(5.0)
    )
    first, step = sequences(), jax.jit(program.step)
    state, _ = step(jax.jit(program.init)(START, first, KEY), first)
    state = jax.jit(program.consolidate)(state, jax.tree.map(lambda v: v[None], first))
    old = np.asarray(state.params["w"], float)
    state, _ = step(state, sequences())
    batch = sequences()
    w, tokens = np.asarray(state.params["w"], float), np.asarray(batch["tokens"])
    _, aux = step(state, batch)
    apart = divergence(w[tokens], old[tokens], 1.0)[:, :-1]  # the last token predicts none
    mask = np.asarray(batch["mask"]) if masked else np.ones(apart.shape)
    term = np.sum(apart * mask) / mask.sum()
    plain, _ = losses.next_token(decoder, {"w": jnp.asarray(w, jnp.float32)}, batch)
    assert term > 1e-2
    np.testing.assert_allclose(aux["loss"] - plain, term, rtol=1e-4)


def test_a_loss_without_outputs_is_refused() -> None:
    def bare(apply: Any, params: Any, batch: Any) -> jax.Array:
        return jnp.mean(apply(params, batch) ** 2)

    program = jcl.make(methods.lwf(), apply, bare, optax.sgd(RATE))
    with pytest.raises(ValueError, match="loss is bare, which gives no outputs, but must be one"):
        program.init(START, rows(), KEY)


def test_a_loss_of_one_s_own_says_that_its_outputs_are_logits() -> None:
    def says(kind: Any) -> Any:
        def own(apply: Any, params: Any, batch: Any) -> Any:
            z = apply(params, batch)
            return jnp.mean(z**2), kind(z)

        return jcl.make(methods.lwf(), apply, own, optax.sgd(RATE))

    jax.jit(says(losses.Logits).init)(START, rows(), KEY)
    wanted = "loss is own, which gives Values, but must be one that gives Logits or TokenScores for"
    with pytest.raises(ValueError, match=wanted):
        says(lambda z: z).init(START, rows(), KEY)


def test_a_step_costs_one_forward_pass_more() -> None:
    """Four thirds of a plain step, counted in the compiled program."""

    def flops(method: jcl.Method) -> float:
        method = method._replace(skips=methods.naive().skips)  # the work alone, without its cond
        program = jcl.make(method, jcl.models.mlp.apply, losses.cross_entropy(), optax.sgd(RATE))
        params = jcl.models.mlp.init(KEY, [128, 256, 256, 10])
        batch = {"x": jnp.zeros((64, 128)), "y": jnp.zeros(64, jnp.int32)}
        state = jax.eval_shape(program.init, params, batch, KEY)
        return jax.jit(program.step).lower(state, batch).compile().cost_analysis()["flops"]

    ratio = flops(methods.lwf()) / flops(methods.naive())
    # the first layer has no gradient for its input, so a forward is a little more than a third
    assert 1.33 < ratio < 1.45


def test_a_language_model_is_distilled_at_every_token_that_counts() -> None:
    mask = jnp.asarray(RNG.random((4, tiny_decoder.LENGTH - 1)) < 0.7, jnp.float32)
    batch = {**jax.tree.map(lambda x: x[0, 0], tiny_decoder.stream()), "mask": mask}
    method, start = methods.lwf(strength=0.7, temperature=2.0), tiny_decoder.base()
    program = tiny_decoder.program(method, optax.sgd(0.5), trainable=jcl.trees.every_leaf)
    state, step = jax.jit(program.init)(start, batch, KEY), jax.jit(program.step)
    state = program.consolidate(state, jax.tree.map(lambda x: x[None], batch))
    moved, _ = step(state, batch)
    _, aux = step(moved, batch)
    tokens = {"tokens": batch["tokens"]}
    z, old = (np.asarray(tiny_decoder.CALL(p, tokens), float) for p in (moved.params, start))
    logp = np.take_along_axis(log_softmax(z[:, :-1], -1), tokens["tokens"][:, 1:, None], -1)
    cost = -logp[..., 0] + 0.7 * divergence(z, old, 2.0)[:, :-1]
    m = np.asarray(mask)
    np.testing.assert_allclose(aux["loss"], (cost * m).sum() / m.sum(), rtol=1e-5)
    assert float((divergence(z, old, 2.0)[:, :-1] * m).sum()) > 1e-3


def test_strength_is_the_published_one() -> None:
    """L + λ KL at temperature T, as in the paper and in van de Ven's and mammoth's code."""
    step, state = after_a_stage(methods.lwf(strength=1.0, temperature=2.0))
    batch, w = rows(), np.asarray(state.params["w"], float)
    x = np.asarray(batch["x"], float)
    moved = w + RNG.normal(size=w.shape)
    _, aux = step(state._replace(params={"w": jnp.asarray(moved, jnp.float32)}), batch)
    nll = -log_softmax(x @ moved, axis=1)[np.arange(len(x)), np.asarray(batch["y"])]
    apart = divergence(x @ moved, x @ w, 2.0)
    np.testing.assert_allclose(aux["loss"], np.mean(nll) + np.mean(apart), rtol=1e-5)


HEADS = np.eye(3, dtype=bool).repeat(2, axis=1)  # three tasks with a head of two classes each
LOGITS = jnp.asarray([[2.0, -1.0, 0.5, 0.3, 0.0, 0.0]])


def distilled(student: jax.Array, classes: Any) -> jax.Array:
    """The distillation term in the third stage of a model that once gave `LOGITS`."""
    program = jcl.make(
        methods.lwf(1.0, 2.0, classes=classes),
        lambda params, batch: params["z"] + 0 * batch["x"],
        losses.cross_entropy(HEADS, "task"),
        optax.sgd(0.0),
    )
    batch = {"x": jnp.zeros((1, 1)), "y": jnp.array([4]), "task": jnp.array([2])}
    state = program.init({"z": LOGITS}, batch, KEY)
    for _ in range(2):
        state = program.consolidate(state, jax.tree.map(lambda x: x[None], batch))
    _, aux = jax.jit(program.step)(state._replace(params={"z": student}), batch)
    return aux["loss"] + jax.nn.log_softmax(student[0, 4:])[0]


@pytest.mark.parametrize("classes", [None, HEADS], ids=["default", "given"])
def test_a_constant_on_an_old_head_is_no_distance(classes: Any) -> None:
    student = LOGITS.at[0, :2].add(3.0)
    np.testing.assert_allclose(distilled(student, classes), 0.0, atol=1e-5)


def test_the_new_head_is_not_distilled() -> None:
    student = LOGITS.at[0, 4:].add(jnp.array([3.0, -3.0]))
    np.testing.assert_allclose(distilled(student, None), 0.0, atol=1e-5)


def test_rounding_moves_no_old_head() -> None:
    """A stage begins at its teacher, so no slope reaches heads that the loss's mask leaves out."""
    rate, heads = 1e-2, HEADS[:2, :4]
    method = methods.lwf(1.0, 2.0, classes=heads)
    loss = losses.cross_entropy(heads, "task")
    program = jcl.make(method, apply, loss, optax.adam(rate), boundary="reset")
    batch = {**rows(32), "task": jnp.ones(32, jnp.int32)}
    batch["y"] = 2 + batch["y"] % 2
    state = program.init(START, batch, KEY)
    state = program.consolidate(state, jax.tree.map(lambda x: x[None], batch))
    after, _ = jax.jit(program.step)(state, batch)
    moved = np.abs(after.params["w"] - state.params["w"])
    if moved[:, 2:].min() < 0.9 * rate:
        pytest.fail("the new head doesn't learn")
    assert moved[:, :2].max() < 1e-2 * rate
