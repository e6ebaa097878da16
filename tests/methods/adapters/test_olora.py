"""A bank of low-rank pairs: what is kept stays, outputs stay at a boundary, stages don't meet."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_decoder as tiny
from tiny_context import context

import jcl
from jcl import adapters, methods, trees
from jcl.methods.adapters.olora import BankState

STREAM = tiny.stream()
PROBE = jax.tree.map(lambda x: x[:, 0], STREAM)
"""A batch of each task."""


def walk(method: jcl.Method, stages: int = 3) -> tuple[jcl.Program, list[jcl.State]]:
    """The state at the start, and before and after every boundary."""
    program = tiny.program(method)
    step, consolidate = jax.jit(program.step), jax.jit(program.consolidate)
    batches = [jax.tree.map(lambda x, t=t: x[t % tiny.TASKS], STREAM) for t in range(stages)]
    states = [program.init(tiny.base(), jax.tree.map(lambda x: x[0, 0], STREAM), jax.random.key(0))]
    for rows in batches:
        state = states[-1]
        for i in range(tiny.STEPS):
            state, _ = step(state, jax.tree.map(lambda x, i=i: x[i], rows))
        states += [state, consolidate(state, rows)]
    return program, states


def pair(params: Any, name: str = "query") -> Any:
    return params["blocks"][name]["lora"]


def test_a_boundary_keeps_the_pair_begins_a_fresh_one_and_leaves_the_outputs() -> None:
    program, states = walk(methods.inclora(stages=3, rank=2))
    predict = jax.jit(program.predict)
    for stage in range(2):
        before, after = states[2 * stage + 1], states[2 * stage + 2]
        old, new = pair(before.params), pair(after.params)
        bank = pair(after.methods["inclora"].bank)
        np.testing.assert_array_equal(bank["a"][..., stage, :], old["a"])
        np.testing.assert_array_equal(bank["b"][..., stage, :, :], old["b"])
        assert not new["b"].any() and not np.array_equal(new["a"], old["a"])
        for task in range(3):
            batch = jax.tree.map(lambda x, t=task: x[t], PROBE)
            wanted = predict(before, batch)
            ours = predict(after, batch)
            np.testing.assert_allclose(ours, wanted, rtol=1e-4, atol=1e-4)
            assert np.abs(ours - predict(states[0], batch)).max() > 0.1
        # what is kept never learns
        kept, later = after.methods["inclora"].bank, states[2 * stage + 3].methods["inclora"].bank
        jax.tree.map(np.testing.assert_array_equal, kept, later)
    final = [trees.partition(s.params, adapters.is_adapter)[0] for s in states[-2:]]
    jax.tree.map(np.testing.assert_array_equal, *final)  # the last pair stays where it learnt
    tiny.same_base(states[-1].params, tiny.base())
    factor = adapters.scale(2, 16.0)
    whole = adapters.join_pairs(states[-1].params, states[-1].methods["inclora"].bank)
    batch = jax.tree.map(lambda x: x[0], PROBE)
    merged = tiny.CALL(adapters.merge(whole, factor), batch)
    np.testing.assert_allclose(merged, predict(states[-1], batch), rtol=1e-3, atol=1e-3)


@pytest.mark.quick
def test_by_task_a_finished_task_is_answered_the_same_for_ever() -> None:
    program, states = walk(methods.inclora(stages=3, rank=2, predict="task"), stages=4)
    predict = jax.jit(program.predict)

    def answers(state: jcl.State, task: int) -> np.ndarray:
        return np.asarray(predict(state, jax.tree.map(lambda x: x[task], PROBE)))

    for task in (1, 2):  # task 0 comes back as the fourth stage
        first = answers(states[2 * task + 1], task)
        assert np.abs(first - answers(states[2 * task], task)).max() > 0.1
        for later in states[2 * task + 2 : 7]:
            np.testing.assert_array_equal(answers(later, task), first)
    # a fourth stage of three goes on with the last pair, and task 0 is now its
    assert np.abs(answers(states[7], 0) - answers(states[6], 0)).max() > 0.1
    np.testing.assert_array_equal(answers(states[7], 1), answers(states[6], 1))
    last = states[-1].methods["inclora"].last
    np.testing.assert_array_equal(last, [3, 1, 2])


def test_the_penalty_and_its_gradient_are_the_authors() -> None:
    torch = pytest.importorskip("torch")
    _, states = walk(methods.inclora(stages=3, rank=2))
    before = states[5]  # in the third stage, with two pairs in the bank
    for form, power in (("absolute", 1), ("square", 2)):
        method = methods.olora(3, rank=2, orthogonality=0.5, shrink=0.3, form=form)
        learning = trees.partition(before.params, adapters.is_adapter)[0]
        state = BankState(*before.methods["inclora"])
        ctx = context(params=learning)
        ours = method.grads(state, ctx, trees.zeros(learning))
        overlap = 0.0
        for name in ("query", "value"):
            kept, new = pair(state.bank, name), pair(learning, name)
            for layer in range(2):
                # [r · slots, in], as lora_A is; loranew_A [r, in], loranew_B [out, r]
                old = np.moveaxis(np.asarray(kept["a"][layer]), 0, -1).reshape(-1, 24)
                a, b = (
                    torch.tensor(np.array(new[k][layer]).T, requires_grad=True) for k in ("a", "b")
                )
                orthogonal = (torch.mm(torch.tensor(old), a.T).abs() ** power).sum()
                norms = torch.norm(a, p=2) + torch.norm(b, p=2)
                (0.5 * orthogonal + 0.3 * norms).backward()
                overlap += orthogonal.item()
                got = pair(ours, name)
                np.testing.assert_allclose(got["a"][layer], a.grad.numpy().T, rtol=1e-4, atol=1e-5)
                np.testing.assert_allclose(got["b"][layer], b.grad.numpy().T, rtol=1e-4, atol=1e-5)
        report = method.report(state, jcl.Info(*[None] * 5, before.params, {}))  # type: ignore[arg-type]
        assert float(report["overlap"]) == pytest.approx(overlap, rel=1e-5)


def overlaps(method: jcl.Method, tx: Any) -> np.ndarray:
    """|A_oldᵀ A_new| / (|A_old| |A_new|) at the end of the second stage, by layer and target."""
    program = tiny.program(method, tx)
    stream = jax.tree.map(lambda x: jnp.tile(x[:2], (1, 12, *[1] * (x.ndim - 2))), STREAM)
    state = program.init(tiny.base(), jax.tree.map(lambda x: x[0, 0], STREAM), jax.random.key(0))

    @jax.jit
    def both(state: jcl.State) -> jcl.State:
        first, second = (jax.tree.map(lambda x, t=t: x[t], stream) for t in range(2))
        state, _ = jcl.advance(program, state, first)
        state = program.consolidate(state, first)
        return jcl.advance(program, state, second)[0]

    state = both(state)
    found = []
    for name in ("query", "value"):
        old = pair(state.methods[method.name].bank, name)["a"][:, :, 0]
        new = pair(state.params, name)["a"]
        inner = jnp.linalg.norm(jnp.einsum("lip,liq->lpq", old, new), axis=(1, 2))
        found.append(inner / jnp.linalg.norm(old, axis=(1, 2)) / jnp.linalg.norm(new, axis=(1, 2)))
    return np.concatenate(found)


@pytest.mark.parametrize("form", ["absolute", "square"])
def test_stages_become_orthogonal(form: Any) -> None:
    tx = optax.sgd(optax.cosine_decay_schedule(0.05, 2 * 12 * tiny.STEPS, alpha=1e-3))
    strength = {"absolute": 2.0, "square": 10.0}[form]
    apart = overlaps(methods.olora(stages=3, rank=2, orthogonality=strength, form=form), tx)
    plain = overlaps(methods.olora(stages=3, rank=2, orthogonality=0.0, form=form), tx)
    assert plain.max() > 0.1
    assert apart.max() < 0.05 * plain.max()
