"""Policies: what they keep of a stream, what they refuse, and what their steps cost."""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_memory import KEY, context, herding_by_hand, kept, rows_of

import jcl
from jcl import losses, memory, methods, models
from jcl.method import Ctx


def feed(
    name: str, groups: int | None, batches: list[dict[str, jax.Array]], size: int
) -> memory.Buffer:
    """Offers batches under a policy; the loss of row i is i mod 7."""
    keep = memory.policy(name, size, groups)
    buffer = keep.empty(batches[0])
    insert = jax.jit(lambda b, k, rows: keep.insert(b, context(k), rows))
    for i, rows in enumerate(batches):
        buffer = insert(buffer, jax.random.fold_in(KEY, i), rows)
    return buffer


def test_class_balanced_keeps_the_rare_and_balances_the_rest() -> None:
    rng = np.random.default_rng(0)
    group = rng.choice(4, 600, p=[0.8, 0.15, 0.04, 0.01])
    batches = [rows_of(np.arange(i, i + 10), group[i : i + 10]) for i in range(0, 600, 10)]
    buffer = feed("class", 4, batches, 60)
    seen, counts = np.bincount(group), np.asarray(buffer.ranks.held)
    assert seen[3] < 15 and counts[3] == seen[3]  # a class smaller than its share is kept whole
    assert counts.sum() == 60 and counts[0] - counts[1] in (-1, 0, 1)
    uniform = np.bincount(group[kept(feed("reservoir", None, batches, 60))], minlength=4)
    assert uniform[0] > 40  # which a reservoir does not do


def test_task_balanced_reads_the_task_column() -> None:
    batches = [
        {**rows_of(np.arange(i, i + 10)), "task": jnp.full(10, i >= 180, jnp.int32)}
        for i in range(0, 200, 10)
    ]
    counts = np.asarray(feed("task", 2, batches, 20).ranks.held)
    assert counts.tolist() == [10, 10]


@pytest.mark.quick
def test_highest_loss_keeps_the_highest() -> None:
    buffer = feed("loss", None, [rows_of(np.arange(i, i + 10)) for i in range(0, 70, 10)], 20)
    assert sorted(kept(buffer) % 7) == [5] * 10 + [6] * 10


def test_herding_policy_shrinks_old_classes_to_their_first_exemplars() -> None:
    keep = memory.policy("herding", 12, 4)
    rng = np.random.default_rng(2)

    def stage(first: int) -> dict[str, jax.Array]:
        rows = rows_of(np.arange(100 * first, 100 * first + 40), first + np.arange(40) % 2)
        rows["x"] = jnp.asarray(rng.normal(size=(40, 5)) + 1, jnp.float32)
        return jax.tree.map(lambda v: v.reshape(4, 10, *v.shape[1:]), rows)

    batches = [stage(0), stage(2)]
    buffer = keep.empty(jax.tree.map(lambda v: v[0], batches[0]))
    finish = jax.jit(lambda b, rows: keep.finish(b, context(KEY), jnp.float32(1), rows))
    for rows, share in zip(batches, (6, 3), strict=True):
        buffer = finish(buffer, rows)
        ids = kept(buffer)
        for part in batches[: 6 // share]:  # one stage with six exemplars a class, two with three
            x = np.asarray(part["x"]).reshape(40, 5)
            y, number = np.asarray(part["y"]).ravel(), np.asarray(part["id"]).ravel()
            for g in np.unique(y):
                mine = np.flatnonzero(y == g)
                expected = number[mine[herding_by_hand(x[mine], share)]]
                assert set(expected) == set(ids) & set(number[mine])


def test_herding_goes_by_what_the_loss_counts_of_the_outputs() -> None:
    """Classes that the mask leaves out, however far apart, change no choice."""
    keep = memory.policy("herding", 8, 1)
    x = np.random.default_rng(2).normal(size=(40, 5)).astype(np.float32)
    noise = 100 * np.random.default_rng(3).normal(size=(40, 3)).astype(np.float32)
    wide = rows_of(np.arange(40)) | {"x": jnp.asarray(np.concatenate([x, noise], axis=1))}
    allowed = jnp.tile(jnp.arange(8) < 5, (40, 1))

    def loss(params: Any, rows: Any) -> Any:
        outputs = losses.Logits(rows["x"], rows["weight"], allowed=allowed)
        return jnp.float32(0), jcl.Aux(outputs)

    ctx = context(KEY, loss=loss)
    batches = jax.tree.map(lambda v: v[None], wide)
    buffer = keep.finish(keep.empty(wide), ctx, jnp.float32(1), batches)
    assert set(kept(buffer)) == set(herding_by_hand(x, 8))


def test_herding_refuses_a_loss_without_outputs_at_init() -> None:
    def bare(apply: Any, params: Any, batch: Any) -> jax.Array:
        return jnp.mean(apply(params, batch) ** 2)

    for method in (
        jcl.methods.er(capacity=8, policy="herding", groups=2),
        jcl.methods.agem(capacity=8, policy="herding", groups=2),
    ):
        program = jcl.make(method, lambda p, b: p * b["x"], bare, optax.sgd(0.1))
        with pytest.raises(ValueError, match=f"bare, which gives no outputs.* for {method.name}"):
            program.init(jnp.float32(1), rows_of(np.arange(4)), KEY)


@pytest.mark.parametrize(
    "arguments, name",
    [
        (("newest", 5), "policy"),
        (("reservoir", 0), "capacity"),
        (("class", 5), "groups"),
        (("ring", 5, 6), "groups"),
    ],
)
def test_policies_refuse_bad_arguments(arguments: Any, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is .* must be"):
        memory.policy(*arguments)


def test_a_balanced_policy_names_the_column_that_a_batch_lacks() -> None:
    with pytest.raises(ValueError, match="'y'"):
        memory.policy("class", 5, 2).empty({"tokens": jnp.zeros((2, 3)), "weight": jnp.ones(2)})


REHEARSAL = {
    "er": methods.er(capacity=777, rows=4),
    "er, hardest": methods.er(capacity=777, rows=4, select="loss"),
    "er, classes": methods.er(capacity=777, rows=4, policy="class", groups=4),
    "er, ring": methods.er(capacity=777, rows=4, policy="ring"),
    "er, loss": methods.er(capacity=777, rows=4, policy="loss"),
    "er, gss": methods.er(capacity=777, rows=4, policy="gss"),
    "der": methods.der(capacity=777, rows=4),
    "derpp": methods.derpp(capacity=777, rows=4),
    "agem": methods.agem(capacity=777, rows=4),
    "agem from er": jcl.chain(
        methods.er(capacity=777, rows=4), methods.agem(rows=4, share="er", at="updates")
    ),
}


def copies(method: jcl.Method) -> list[str]:
    """Instructions of a compiled scan over steps that copy an array of 777 rows of 33 columns."""
    program = jcl.make(method, models.mlp.apply, losses.cross_entropy(), optax.sgd(0.1))
    chunk = {"x": jnp.zeros((3, 5, 33)), "y": jnp.zeros((3, 5), jnp.int32)}
    example = jax.tree.map(lambda v: v[0], chunk)
    params = models.mlp.init(KEY, [33, 8, 4])
    state = jax.eval_shape(program.init, params, example, KEY)
    assert any(x.shape == (777, 33) for x in jax.tree.leaves(state))
    run = jax.jit(lambda s, c: jcl.advance(program, s, c), donate_argnums=0)
    text = run.lower(state, chunk).compile().as_text()
    return [line for line in text.splitlines() if "f32[777,33]" in line and " copy(" in line]


@pytest.mark.parametrize("name", REHEARSAL)
def test_a_step_does_not_copy_the_buffer(name: str) -> None:
    assert not copies(REHEARSAL[name])


def test_a_write_that_does_not_wait_for_the_reads_would_copy_it() -> None:
    def observe(state: Any, ctx: Ctx, info: jcl.Info) -> Any:
        return state._replace(buffer=memory.reservoir(state.buffer, ctx.key, info.batch))

    assert copies(REHEARSAL["er"]._replace(observe=observe))


def test_a_step_that_diverged_leaves_no_rows() -> None:
    program = jcl.make(
        methods.er(capacity=8, rows=4), models.mlp.apply, losses.cross_entropy(), optax.sgd(0.1)
    )
    batch = {"x": jnp.ones((5, 3)), "y": jnp.zeros(5, jnp.int32)}
    state = program.init(models.mlp.init(KEY, [3, 4]), batch, KEY)
    state, aux = jax.jit(program.step)(state, {**batch, "x": batch["x"].at[0, 0].set(jnp.nan)})
    assert int(aux["er/stored"]) == 0


def test_online_inserts_are_fast() -> None:
    """A hundred times the 3,600 rows a second that Avalanche's reservoir takes, ten at a time."""
    example = {"x": jnp.zeros((10, 784)), "y": jnp.zeros(10, jnp.int32), "weight": jnp.ones(10)}

    def steps(buffer: memory.Buffer) -> memory.Buffer:
        def one(b: memory.Buffer, key: jax.Array) -> Any:
            return memory.reservoir(b, key, example), None

        return jax.lax.scan(one, buffer, jax.random.split(KEY, 2000))[0]

    optimised = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
    run, seconds = jax.jit(steps, donate_argnums=0, compiler_options=optimised), []
    for _ in range(5):
        buffer = jax.block_until_ready(memory.empty(example, 500))
        begin = time.process_time()
        jax.block_until_ready(run(buffer))
        seconds.append(time.process_time() - begin)
    assert 20_000 / min(seconds) > 100 * 3_600
