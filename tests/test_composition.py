"""Chains keep what each method alone promises, or are refused by a sentence that names all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_decoder as tiny
import tiny_pairs

import jcl
from jcl import adapters, losses, methods, preference, trees

KEY = jax.random.key(0)
ROWS = tiny.stream()
FIRST = jax.tree.map(lambda x: x[0, 0], ROWS)


def begin(program: jcl.Program, example: Any = FIRST, params: Any = None) -> jcl.State:
    """The first state, of the tiny decoder where no parameters are given."""
    start = tiny.base() if params is None else params
    return jax.jit(program.init)(start, example, KEY)


def admitted(*parts: jcl.Method, tx: Any = None) -> tuple[jcl.Program, jcl.State] | None:
    """The program of a chain and its first state, or None where the chain or `init` refuses it.

    A refusal has to name every method of the chain.
    """
    try:
        program = tiny.program(jcl.chain(*parts), tx)
        return program, begin(program)
    except ValueError as refusal:
        assert all(method.name in str(refusal) for method in parts), refusal
        return None


def stage(program: jcl.Program, state: jcl.State, chunk: Any, times: int = 1) -> jcl.State:
    """The state after so many steps for each batch of `chunk`, and the boundary."""

    def whole(state: jcl.State, chunk: Any) -> jcl.State:
        steps = jax.tree.map(lambda x: jnp.repeat(x, times, axis=0), chunk)
        return program.consolidate(jcl.advance(program, state, steps)[0], chunk)

    return jax.jit(whole)(state, chunk)


def of_stage(index: int) -> Any:
    return jax.tree.map(lambda x: x[index], ROWS)


# A. What a hook computes is what the model would say at that moment.


class Seen(NamedTuple):
    """What the witness was shown at the last boundary."""

    outputs: jax.Array
    loss: jax.Array


def witness() -> jcl.Method:
    """A reader that keeps what `ctx.apply` and `ctx.loss` give for a boundary's first batch."""

    def init(ctx: jcl.Ctx, params: Any) -> tuple[Any, Seen]:
        shape = jax.eval_shape(ctx.apply, params, ctx.batch)
        return params, Seen(jnp.zeros(shape.shape, shape.dtype), jnp.float32(0))

    def consolidate(state: Seen, ctx: jcl.Ctx, params: Any, batches: Any) -> tuple[Any, Seen]:
        rows = jax.tree.map(lambda x: x[0], batches)
        return params, Seen(ctx.apply(params, rows), ctx.loss(params, rows)[0])

    return jcl.Method("witness", init=init, consolidate=consolidate)


@pytest.mark.parametrize(
    "writer",
    [
        methods.inclora(stages=3, rank=2),
        methods.olora(stages=3, rank=2),
        methods.progressive_prompts(stages=3, length=2),
    ],
    ids=lambda m: m.name,
)
def test_at_a_boundary_a_reader_sees_the_model_that_it_leaves(writer: jcl.Method) -> None:
    program = tiny.program(jcl.chain(writer, witness()), optax.adam(1e-1))
    state = stage(program, begin(program), of_stage(0), times=5)
    seen = state.methods["witness"]
    outputs = jax.jit(program.predict)(state, FIRST)
    loss = losses.next_token_nll(outputs, FIRST["tokens"]).mean()
    np.testing.assert_allclose(seen.loss, loss, rtol=1e-4)
    np.testing.assert_allclose(seen.outputs, outputs, rtol=1e-3, atol=1e-3)


def fisher_of(model: Callable[..., Any], left: jcl.State, batches: Any, trainable: Any) -> Any:
    """What EWC alone takes for the Fisher of `model` where a state was left, per row."""
    method = methods.ewc(per="row")  # which draws no signs
    program = jcl.make(method, model, losses.next_token, optax.sgd(0.0), trainable=trainable)
    state = begin(program, params=left.params)
    return jax.jit(program.consolidate)(state, batches).methods["ewc"].fisher


def flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


def test_fisher_after_a_bank_is_that_of_the_model_left() -> None:
    """Or 0, where leaves that were just renewed count as new; or the pair is refused."""
    made = admitted(methods.inclora(stages=3, rank=2), methods.ewc(per="row"), tx=optax.adam(1e-1))
    if made is None:
        return
    program, state = made
    state = stage(program, state, of_stage(0), times=5)
    found = flat(state.methods["ewc"].fisher)

    def left(params: Any, batch: Any) -> Any:
        return program.predict(state._replace(params=params), batch)

    wanted = flat(fisher_of(left, state, of_stage(0), adapters.is_adapter))
    if found.any():
        np.testing.assert_allclose(np.linalg.norm(found), np.linalg.norm(wanted), rtol=1e-3)
        np.testing.assert_allclose(found, wanted, rtol=1e-2, atol=1e-3 * wanted.max())


def test_fisher_after_pruning_is_that_of_the_pruned_model() -> None:
    chain = jcl.chain(methods.packnet(prune=0.5, stages=3), methods.ewc(strength=0.0, per="row"))
    program = tiny.program(chain, optax.adam(1e-1), trainable=trees.every_leaf)
    state = stage(program, begin(program), of_stage(0))
    found = flat(state.methods["ewc"].fisher)

    def left(params: Any, batch: Any) -> Any:
        return program.predict(state._replace(params=params), batch)

    wanted = flat(fisher_of(left, state, of_stage(0), trees.every_leaf))
    np.testing.assert_allclose(np.linalg.norm(found), np.linalg.norm(wanted), rtol=1e-3)


def test_scores_of_stored_rows_are_losses_of_the_model_left() -> None:
    memory = methods.agem(capacity=8, rows=2, policy="loss")
    program = tiny.program(jcl.chain(methods.inclora(stages=3, rank=2), memory), optax.adam(1e-1))
    state = stage(program, begin(program), of_stage(0), times=5)
    stored = state.methods["agem"].buffer
    outputs = jax.jit(program.predict)(state, stored.rows)
    wanted = losses.next_token_nll(outputs, stored.rows["tokens"]).mean(axis=1)
    np.testing.assert_allclose(stored.ranks.score, wanted, rtol=1e-3)


# B. A jump is no step. Four numbers w descend ½ ‖w - y‖², half the way a step, so that all of a
# stage is known; the base is 0.

TARGETS = ([4.0, 3.0, 0.0, 0.0], [0.0, 0.0, 2.0, 1.0])
STEPS = 4


def four_numbers(*parts: jcl.Method) -> tuple[jcl.Program, jcl.State]:
    def apply(params: Any, batch: Any) -> jax.Array:
        return jnp.broadcast_to(params["w"], batch["y"].shape)

    program = jcl.make(jcl.chain(*parts), apply, losses.squared_error, optax.sgd(0.5))
    return program, begin(program, towards(0), {"w": jnp.zeros(4)})


def towards(index: int) -> dict[str, jax.Array]:
    return {"x": jnp.zeros((1, 1)), "y": jnp.asarray([TARGETS[index]])}


def chunk_towards(index: int) -> Any:
    return jax.tree.map(lambda x: jnp.stack([x] * STEPS), towards(index))


def walked(index: int, factors: Any = (1.0,) * STEPS) -> np.ndarray:
    """The numbers after each step of a stage from the base, its updates scaled by `factors`."""
    w, seen = np.zeros(4), []
    for factor in factors:
        w = w + factor * 0.5 * (np.asarray(TARGETS[index]) - w)
        seen.append(w)
    return np.stack(seen)


def importance_of_walk(index: int, damping: float = 1e-3) -> np.ndarray:
    """Ω of SI for a stage from the base: Σ g² / 2 over (Δ² + ξ)."""
    seen = np.vstack([np.zeros(4), walked(index)])
    slopes = seen[:-1] - np.asarray(TARGETS[index])
    return (0.5 * slopes**2).sum(axis=0) / (seen[-1] ** 2 + damping)


JUMPERS = [
    methods.task_arithmetic(scale=1.0, start="initial"),
    methods.ties(density=1.0, scale=1.0, start="initial"),
    methods.from_scratch(),
]


@pytest.mark.parametrize("jumper", JUMPERS, ids=lambda m: m.name)
def test_an_update_holds_no_jump(jumper: jcl.Method) -> None:
    def observe(state: Any, ctx: jcl.Ctx, info: jcl.Info) -> Any:
        return info.updates

    recorder = jcl.Method("recorder", init=lambda ctx, params: (params, params), observe=observe)
    program, state = four_numbers(jumper, recorder)
    state = stage(program, state, chunk_towards(0))
    state, _ = jax.jit(program.step)(state, towards(1))
    np.testing.assert_allclose(state.methods["recorder"]["w"], walked(1)[0], atol=1e-6)


@pytest.mark.parametrize("jumper", JUMPERS, ids=lambda m: m.name)
def test_a_schedule_scales_no_jump(jumper: jcl.Method) -> None:
    program, state = four_numbers(jumper, methods.rewarm(warmup=2, steps=4, final=1.0))
    state = stage(program, state, chunk_towards(0))
    step = jax.jit(program.step)
    for wanted in walked(1, factors=(0.0, 0.5, 1.0, 1.0)):
        state, _ = step(state, towards(1))
        np.testing.assert_allclose(state.params["w"], wanted, atol=1e-6)


@pytest.mark.parametrize("jumper", JUMPERS, ids=lambda m: m.name)
def test_a_mask_drops_no_jump(jumper: jcl.Method) -> None:
    """The second stage's loss has no slope in the first two numbers, so they stay at the base."""
    program, state = four_numbers(jumper, methods.mofo(fraction=0.25))
    state = stage(program, state, chunk_towards(0))
    state, _ = jax.jit(program.step)(state, towards(1))
    np.testing.assert_allclose(state.params["w"][:2], 0.0, atol=1e-6)


@pytest.mark.parametrize("jumper", JUMPERS, ids=lambda m: m.name)
def test_a_path_counts_no_jump(jumper: jcl.Method) -> None:
    program, state = four_numbers(jumper, methods.si(strength=0.0))
    for index in range(2):
        state = stage(program, state, chunk_towards(index))
    wanted = importance_of_walk(0) + importance_of_walk(1)
    np.testing.assert_allclose(state.methods["si"].omega["w"], wanted, rtol=1e-4)


@pytest.mark.parametrize("writer", [methods.wise_ft(0.5), methods.ema(0.5)], ids=lambda m: m.name)
def test_the_way_gone_holds_no_jump(writer: jcl.Method) -> None:
    program, state = four_numbers(writer, methods.si(strength=0.0))
    state = stage(program, state, chunk_towards(0))
    omega = state.methods["si"].omega["w"]
    np.testing.assert_allclose(omega, importance_of_walk(0), rtol=1e-4)


# K and E4. Leaves that a bank renewed at a boundary are new: what was known of them is void.


def test_an_average_after_a_bank_counts_no_pair_twice() -> None:
    made = admitted(methods.inclora(stages=3, rank=2), methods.ema(0.5), tx=optax.adam(5e-2))
    if made is None:
        return
    program, state = made
    state = stage(program, state, of_stage(0))
    fresh = state.params["blocks"]["query"]["lora"]["b"]
    np.testing.assert_array_equal(fresh, jnp.zeros_like(fresh))


@pytest.mark.parametrize(
    ("reader", "importance"),
    [(methods.ewc(), "fisher"), (methods.mas(), "omega"), (methods.si(), "omega")],
    ids=["ewc", "mas", "si"],
)
def test_renewed_leaves_have_no_importance(reader: jcl.Method, importance: str) -> None:
    """All leaves that learn are renewed at the boundary."""
    made = admitted(methods.inclora(stages=3, rank=2), reader, tx=optax.adam(1e-1))
    if made is None:
        return
    program, state = made
    state = stage(program, state, of_stage(0), times=5)
    found = flat(getattr(state.methods[reader.name], importance))
    np.testing.assert_array_equal(found, np.zeros_like(found))


def test_renewed_leaves_have_no_task_vector() -> None:
    merging = methods.online_merging(alpha=1e-3, density=1.0)
    made = admitted(methods.inclora(stages=3, rank=2), merging)
    if made is None:
        return
    program, state = made
    state = stage(program, state, of_stage(0))
    _, aux = jax.jit(program.step)(state, jax.tree.map(lambda x: x[1, 0], ROWS))
    assert aux["online_merging/length"] == 0


@pytest.mark.parametrize(
    "writer",
    [
        methods.wise_ft(0.5, anchor="first"),
        methods.task_arithmetic(scale=0.5, start="initial"),
        methods.ties(density=1.0, scale=0.5, start="initial"),
    ],
    ids=lambda m: m.name,
)
def test_half_the_way_of_a_low_rank_pair_is_half_its_product(writer: jcl.Method) -> None:
    made = admitted(methods.lora(rank=2), writer)
    if made is None:
        return
    program, state = made
    state = jax.jit(lambda s, c: jcl.advance(program, s, c)[0])(state, of_stage(0))
    after = jax.jit(program.consolidate)(state, of_stage(0))

    def product(state: jcl.State) -> jax.Array:
        pair = state.params["blocks"]["query"]["lora"]
        return pair["a"] @ pair["b"]

    # it was 0 at the start
    np.testing.assert_allclose(product(after), 0.5 * product(state), rtol=1e-3, atol=1e-4)


# N. A reference is a model: it answers the same for ever.


def between(old: Callable[..., Any], new: Callable[..., Any]) -> Callable[..., Any]:
    """A model of one number m: at 0 it answers as `old` does, at 1 as `new`."""

    def apply(params: Any, batch: Any) -> Any:
        m = params["m"]
        return jax.tree.map(lambda a, b: (1 - m) * a + m * b, old(batch), new(batch))

    return apply


def loss_at_one(method: jcl.Method, model: Callable[..., Any], batch: Any) -> jax.Array:
    """The loss of a step at m = 1 of a program that began at m = 0."""
    program = jcl.make(method, model, losses.next_token, optax.sgd(0.0))
    state = begin(program, batch, {"m": jnp.float32(0)})
    return jax.jit(program.step)(state._replace(params={"m": jnp.float32(1)}), batch)[1]["loss"]


BANKS = [methods.inclora(stages=3), methods.olora(stages=3)]


@pytest.mark.parametrize("bank", BANKS, ids=lambda m: m.name)
def test_dpo_is_against_the_initial_policy(bank: jcl.Method) -> None:
    pairs = tiny_pairs.pairs()
    program = jcl.make(
        jcl.chain(bank, methods.dpo(beta=0.1, reference="initial")),
        tiny.APPLY, preference.ranking(), optax.adam(1e-1), trainable=adapters.is_adapter,
    )  # fmt: skip
    first = begin(program, tiny_pairs.BATCH)
    later = stage(program, first, jax.tree.map(lambda x: x[0], pairs))
    batch = jax.tree.map(lambda x: x[1, 0], pairs)
    predict, rows = jax.jit(program.predict), preference.pair_rows(batch)
    new, old = (preference.pair_log_probs(predict(s, rows), batch).margin for s in (later, first))
    wanted = jnp.mean(preference.logistic(0.1 * (new - old)))
    _, aux = jax.jit(program.step)(later, batch)
    np.testing.assert_allclose(aux["loss"], wanted, rtol=1e-4)


@pytest.mark.parametrize("bank", BANKS, ids=lambda m: m.name)
def test_kl_is_from_the_initial_model(bank: jcl.Method) -> None:
    pull = methods.kl_to_reference(strength=1.0, reference="initial")
    program = tiny.program(jcl.chain(bank, pull))
    first = begin(program)
    later = stage(program, first, of_stage(0))
    batch = jax.tree.map(lambda x: x[1, 0], ROWS)
    model = between(lambda b: program.predict(first, b), lambda b: program.predict(later, b))
    _, aux = jax.jit(program.step)(later, batch)
    np.testing.assert_allclose(aux["loss"], loss_at_one(pull, model, batch), rtol=1e-4)


@pytest.mark.parametrize(
    "given",
    [
        lambda params: methods.distil(params, 0.5, temperature=1.0),
        lambda params: methods.rho(0.5, reference=params),
    ],
    ids=["distil", "rho"],
)
def test_a_given_model_does_not_follow_its_student(given: Callable[[Any], jcl.Method]) -> None:
    bank = methods.inclora(stages=3)
    params = begin(tiny.program(bank)).params  # B = 0, so it answers as the base does
    program = tiny.program(jcl.chain(bank, given(params)))
    later = stage(program, begin(program), of_stage(0))
    batch = jax.tree.map(lambda x: x[1, 0], ROWS)
    base = tiny.base()
    model = between(lambda b: tiny.APPLY(base, b), lambda b: program.predict(later, b))
    wanted = loss_at_one(given({"m": jnp.float32(0)}), model, batch)
    _, aux = jax.jit(program.step)(later, batch)
    np.testing.assert_allclose(aux["loss"], wanted, rtol=1e-4)


@pytest.mark.parametrize("jumper", JUMPERS, ids=lambda m: m.name)
@pytest.mark.parametrize("writer", [methods.ema(0.5), methods.wise_ft(0.5)], ids=lambda m: m.name)
def test_a_writer_before_a_jumper_starts_where_the_stage_does(
    writer: jcl.Method, jumper: jcl.Method
) -> None:
    """In each stage the writer moves the numbers from where it ended, and the next begins at 0."""
    program, state = four_numbers(writer, jumper._replace(consolidate=jcl.Method("").consolidate))
    for index in range(2):
        state = stage(program, state, chunk_towards(index))
        ends = walked(index)
        if writer.name == "ema":
            wanted = np.zeros(4)
            for w in ends:
                wanted = 0.5 * wanted + 0.5 * w
        else:
            wanted = 0.5 * ends[-1]
        np.testing.assert_allclose(state.params["w"], wanted, atol=1e-6)
