"""What methods keep and cost, against counts by hand."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import pytest

import jcl
from jcl import adapters, losses, methods, models
from jcl.measures.budget import Budget, Costs, costs, excess

pytestmark = pytest.mark.quick

SIZES, ROWS, BATCHES, STEPS = (6, 5, 3), 4, 2, 10
PARAMETERS = 6 * 5 + 5 + 5 * 3 + 3
BATCH = {
    "x": jax.ShapeDtypeStruct((ROWS, 6), jnp.float32),
    "y": jax.ShapeDtypeStruct((ROWS,), jnp.int32),
    "weight": jax.ShapeDtypeStruct((ROWS,), jnp.float32),
    "task": jax.ShapeDtypeStruct((ROWS,), jnp.int32),
}
BOUNDARY = jax.tree.map(lambda x: jax.ShapeDtypeStruct((BATCHES, *x.shape), x.dtype), BATCH)
FIRST, SECOND = 2 * ROWS * 6 * 5, 2 * ROWS * 5 * 3
PASS, SLOPES = FIRST + SECOND, FIRST + 2 * SECOND  # no gradient of the inputs


def found(method: jcl.Method, **options: Any) -> Costs:
    params = jax.eval_shape(lambda: models.mlp.init(jax.random.key(0), SIZES))
    loss, tx = losses.cross_entropy(), optax.sgd(0.1)
    programs = [
        jcl.make(m, models.mlp.apply, loss, tx, **o)
        for m, o in ((method, options), (methods.naive(), {}))
    ]
    return costs(*programs, params, BATCH, BOUNDARY, STEPS)


def test_plain_fine_tuning_costs_itself() -> None:
    assert found(methods.naive()) == Costs(0, 0, 0, 0.0)


def test_replay_keeps_rows_and_doubles_the_work() -> None:
    kept = found(methods.er(capacity=7, rows=ROWS))
    assert kept.examples == 7 and kept.parameters == 0
    # a slot has 6 features, label, weight and task; a count is beside them
    assert kept.bytes == 7 * (6 + 3) * 4 + 4
    assert kept.flops == pytest.approx(1, rel=1e-6)


def test_two_memories_add_up() -> None:
    both = jcl.chain(methods.er(capacity=7, rows=2), methods.agem(capacity=5, rows=2))
    assert found(both).examples == 12


class Answers(NamedTuple):
    """A user's own memory: inputs, the answers to them, and a count."""

    x: jax.Array
    answers: jax.Array
    seen: jax.Array

    @property
    def row_fields(self) -> tuple[str, ...]:
        return ("x", "answers")


def test_a_users_own_memory_counts_if_it_says_that_it_keeps_rows() -> None:
    def init(ctx: jcl.Ctx, params: Any) -> tuple[Any, Answers]:
        return params, Answers(jnp.zeros((9, 6)), jnp.zeros((9, 3)), jnp.int32(0))

    kept = found(jcl.Method("mine", init=init) + methods.er(capacity=7, rows=2))
    assert kept.examples == 9 + 7


def test_ewc_keeps_two_trees_and_works_at_the_boundary() -> None:
    kept = found(methods.ewc())
    assert kept.bytes == 2 * 4 * PARAMETERS and kept.examples == 0
    # a row's gradients one after another cost what a batch's do; a boundary has two batches
    assert kept.flops == pytest.approx(BATCHES / STEPS, rel=0.15)


def test_adapters_are_parameters() -> None:
    kept = found(methods.lora(rank=2, targets="dense_0"), trainable=adapters.is_adapter)
    assert kept.parameters == 2 * (6 + 5) and kept.bytes == 0


def test_what_goes_beyond_is_one_sentence_of_the_first_excess() -> None:
    taken = Costs(examples=200, bytes=3_000_000, parameters=7, flops=0.5)
    assert excess(taken, Budget()) == excess(taken, Budget(*taken)) == ""
    for name, unit, most in (
        ("examples", "200 stored examples", 199),
        ("bytes", "3e+06 stored bytes", 2_999_999),
        ("parameters", "7 added parameters", 0),
        ("flops", "0.5 FLOPs beside plain fine-tuning's, as a share", 0.25),
    ):
        said = excess(taken, Budget(**{name: most}))
        assert said == f"it takes {unit}, but must take at most {most:.6g}"
