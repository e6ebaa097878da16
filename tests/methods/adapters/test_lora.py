"""LoRA: the base takes no gradient, no moments and no change; other methods work on the pairs.

What it computes is held against peft in tests/models/test_peft.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_decoder as tiny

import jcl
from jcl import adapters, methods, trees

BATCH = jax.tree.map(lambda x: x[0, 0], tiny.stream())


def started(method: jcl.Method, **options: Any) -> tuple[jcl.Program, jcl.State]:
    program = tiny.program(method, **options)
    return program, program.init(tiny.base(), BATCH, jax.random.key(0))


@pytest.mark.parametrize("dora", [False, True])
def test_at_the_start_it_is_the_base(dora: bool) -> None:
    program, state = started(methods.lora(rank=4, dora=dora))
    plain = tiny.CALL(tiny.base(), BATCH)
    ours = jax.jit(program.predict)(state, BATCH)
    np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-5)
    pair = state.params["blocks"]["query"]["lora"]
    assert pair["a"].shape == (2, 24, 4) and pair["b"].shape == (2, 4, 24)
    # uniform in ±1/√in, as torch's kaiming_uniform_(a=√5)
    assert float(jnp.abs(pair["a"]).max()) <= 24**-0.5
    np.testing.assert_allclose(float(pair["a"].std()), (3 * 24) ** -0.5, rtol=0.1)
    assert not np.array_equal(pair["a"][0], pair["a"][1])
    assert not pair["b"].any() and "lora" not in state.params["blocks"]["key"]


def shapes(jaxpr: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every operation in a jaxpr, those of inner ones too, and the shape of what it makes."""
    for eqn in jaxpr.eqns:
        inner = list(jax.extend.core.jaxprs_in_params(eqn.params))
        for one in inner:
            yield from shapes(one)
        if not inner:
            yield from ((eqn.primitive.name, v.aval.shape) for v in eqn.outvars)


def test_the_frozen_base_has_no_gradient_and_no_moments_and_no_sum_is_formed() -> None:
    program, state = started(methods.lora(rank=4, targets=r"blocks/.*"))
    learning = trees.partition(state.params, adapters.is_adapter)[0]
    assert (
        trees.size(state.optimizer[0].mu)
        == trees.size(state.optimizer[0].nu)
        == trees.size(learning)
    )
    whole, everything = started(
        methods.lora(rank=4, targets=r"blocks/.*"), trainable=lambda p: True
    )
    kernels = {(24, 40), (40, 24), (2, 24, 40), (2, 40, 24)}

    def made(program: jcl.Program, state: jcl.State) -> set[str]:
        """What makes something of the size of the MLP's kernels."""
        jaxpr = jax.make_jaxpr(program.step)(state, BATCH).jaxpr
        return {name for name, shape in shapes(jaxpr) if shape in kernels}

    assert "dot_general" in made(whole, everything)
    # a transposed kernel is the backward pass's way to read it
    assert made(program, state) <= {"transpose"}


def test_training_leaves_a_half_precision_base_as_it_was() -> None:
    start = tiny.base(jnp.bfloat16)
    state, reports = tiny.run(methods.lora(rank=4), start)
    tiny.same_base(state.params, start)
    pair = state.params["blocks"]["value"]["lora"]
    assert pair["a"].dtype == pair["b"].dtype == jnp.float32
    assert float(jnp.abs(pair["b"]).max()) > 1e-3
    assert np.isfinite(reports["steps"]["loss"]).all()


COMPANIONS: dict[str, Callable[[], jcl.Method]] = {
    "ewc": lambda: methods.ewc(strength=1.0),
    "er": lambda: methods.er(capacity=8, rows=2),
    "agem": lambda: methods.agem(capacity=8, rows=2),
    "der": lambda: methods.der(capacity=8, rows=2),
    "lwf": lambda: methods.lwf(),
    "ema": lambda: methods.ema(decay=0.5),
    "packnet": lambda: methods.packnet(stages=3),
}


MORE: dict[str, Callable[[], jcl.Method]] = {
    "online_ewc": methods.online_ewc,
    "si": methods.si,
    "mas": methods.mas,
    "rwalk": methods.rwalk,
    "l2sp": lambda: methods.l2sp(strength=1.0),
    "recadam": lambda: methods.recadam(midpoint=2.0, speed=1.0),
    "derpp": lambda: methods.derpp(capacity=8, rows=2),
    "gem": lambda: methods.gem(stages=3, capacity_per_task=4),
    "mofo": lambda: methods.mofo(fraction=0.2),
    "wise_ft": methods.wise_ft,
    "from_scratch": methods.from_scratch,
}


@cache
def by_itself() -> jcl.State:
    """The end of a run of the adapters alone."""
    return tiny.run(methods.lora(rank=2), tiny.base())[0]


@pytest.mark.parametrize(
    "name", [*COMPANIONS, *(pytest.param(name, marks=pytest.mark.whole) for name in MORE)]
)
def test_other_methods_work_on_the_pairs_alone(name: str) -> None:
    start = tiny.base()
    state, reports = tiny.run(jcl.chain(methods.lora(rank=2), (COMPANIONS | MORE)[name]()), start)
    tiny.same_base(state.params, start)
    jax.tree.map(lambda x: np.testing.assert_equal(np.isfinite(x), True), reports["steps"])
    states = (state, by_itself())
    learnt, plain = (trees.partition(s.params, adapters.is_adapter)[0] for s in states)
    assert float(trees.norm(trees.subtract(learnt, plain))) > 1e-4
    # what is held of parameters is held of the pairs
    paths = [
        trees.path_name(p) for p, _ in jax.tree_util.tree_leaves_with_path(state.methods[name])
    ]
    assert not [p for p in paths if "blocks" in p and not adapters.is_adapter(p)]


def test_two_tasks_with_ewc_forget_less_than_without() -> None:
    tokens = jax.tree.map(lambda x: x[:2], tiny.stream(steps=60, rows=8))

    def losses(method: jcl.Method) -> np.ndarray:
        program = tiny.program(method, optax.adam(1e-2))

        def evaluate(program: jcl.Program, state: jcl.State) -> jax.Array:
            def one(task: jax.Array) -> jax.Array:
                batch = {"tokens": task[0], "weight": jnp.ones(8)}
                logits = program.predict(state, batch)
                return jcl.losses.next_token_nll(logits, task[0]).mean()

            return jnp.stack([one(t) for t in tokens["tokens"]])

        run = jax.jit(lambda p, k: jcl.run(program, p, k, tokens, evaluate=evaluate))
        state, out = run(tiny.base(), jax.random.key(0))
        tiny.same_base(state.params, tiny.base())
        return np.asarray(out["scores"])  # [stage, task]

    def lora() -> jcl.Method:
        return methods.lora(rank=4, targets=r"blocks/.*")

    plain, kept = losses(lora()), losses(jcl.chain(lora(), methods.ewc(strength=3000.0)))
    for scores in (plain, kept):
        assert scores[1, 0] < 0.8 * scores[0, 0] and scores[2, 1] < scores[1, 1]
    assert kept[2, 0] - kept[1, 0] < 0.7 * (plain[2, 0] - plain[1, 0])


def test_a_base_frozen_in_part() -> None:
    method = methods.lora(rank=2, targets="blocks/query")
    trainable = trees.match_path(r"blocks/(query/lora/b|down/kernel)")
    start = tiny.base()
    state, _ = tiny.run(method, start, trainable=trainable)
    first = tiny.program(method).init(start, BATCH, jax.random.key(2)).params

    def moved(path: Any, x: jax.Array, y: jax.Array) -> None:
        assert np.array_equal(x, y) != trainable(trees.path_name(path)), path

    jax.tree_util.tree_map_with_path(moved, state.params, first)


@pytest.mark.quick
@pytest.mark.parametrize("targets", ["blocks/querry", "blocks/(", "head", "uery"])
def test_targets_that_are_no_dense_layer_are_refused(targets: str) -> None:
    with pytest.raises(ValueError, match=r"(targets|pattern) is .* must be"):
        started(methods.lora(targets=targets))
