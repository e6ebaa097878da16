"""Every method × every invariant; the methods are the rows of `method_table`.

The problem: a multilayer perceptron, three tasks of five steps, Adam; for adapters a decoder whose
base is frozen. Compiled work is shared by a module-scoped fixture, so that a row costs one
compilation of each function it needs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from method_table import MLP, TABLE, Row, disturb

import jcl
from jcl import merging, methods
from jcl.testing import laws
from jcl.testing.bench import TASKS, Bench, Loop, program_of, stream
from jcl.testing.check import ALONE

EXAMPLE = jax.tree.map(lambda x: x[0, 0], stream())
KEY = jax.random.key(3)


EVERY = [pytest.param(r, id=r.name, marks=pytest.mark.xdist_group(r.name)) for r in TABLE]


@pytest.fixture(scope="module", params=EVERY)
def row(request: pytest.FixtureRequest) -> Row:
    return request.param


@pytest.fixture(scope="module")
def bench(row: Row) -> Bench:
    return Bench(row.make, row.problem, row.tolerance)


@pytest.mark.parametrize("law", ALONE.values(), ids=ALONE)
def test_a_law_holds(bench: Bench, law: Callable[[Bench], None]) -> None:
    law(bench)


def test_a_changed_state_changes_the_next_step(row: Row, bench: Bench) -> None:
    if isinstance(row.disturb, str):
        kept = (bench.states[1].methods, bench.states[1].references)
        assert not jax.tree.leaves(kept), row.disturb
        return
    state = bench.states[1]
    changed = state._replace(
        methods=row.disturb(state.methods), references=disturb(state.references)
    )
    batch = jax.tree.map(lambda x: x[1, 0], bench.loop.rows)
    # the second step, for a pull towards an anchor is zero while the parameters stand on it
    a, b = (bench.loop.step(bench.loop.step(s, batch)[0], batch)[0] for s in (state, changed))
    if row.at_boundary:
        batches = jax.tree.map(lambda x: x[1], bench.loop.rows)
        a, b = (bench.loop.consolidate(s, batches) for s in (a, b))
    apart = jcl.trees.norm(jcl.trees.subtract(a.params, b.params))
    assert float(apart) > 1e-6
    assert bench.loop.traces["step"] == 1


@pytest.fixture(scope="module")
def plain() -> Any:
    return laws.plain_params(MLP)


def test_at_neutral_strength_it_is_plain_fine_tuning(row: Row, plain: Any) -> None:
    if isinstance(row.neutral, str):
        assert len(row.neutral) > 20 and row.neutral != Row.neutral, "say why"
        pytest.skip(row.neutral)
    laws.neutral_is_plain(Bench(row.make, MLP), row.neutral, plain)


@pytest.mark.quick
@pytest.mark.parametrize(
    "row, wrong", [pytest.param(r, w, id=f"{r.name}-{w}") for r in TABLE for w in r.bad]
)
def test_bad_arguments_are_refused_by_name(row: Row, wrong: dict[str, Any]) -> None:
    laws.refuses(row.make, wrong)


def test_ties_cuts_where_no_weight_is_near() -> None:
    # else the last bit decides which of two is kept, and bits differ between two compilations
    row = next(r for r in TABLE if r.name == "ties")
    loop = Loop(program_of(row.make(), row.problem), row.problem.params)
    state = loop.init(loop.params, EXAMPLE, KEY)
    for task in range(TASKS):
        state, _ = loop.steps(state, task)
        vector = merging.task_vector(state.params, state.methods["ties"].base)
        sizes = np.sort(np.abs(np.concatenate([np.ravel(x) for x in jax.tree.leaves(vector)])))
        kept = int(merging.whole_count(row.arguments["density"], len(sizes)))
        assert sizes[-kept] - sizes[-kept - 1] > 1e-5
        state = loop.boundary(state, task)


@pytest.mark.quick
def test_every_public_method_has_a_row() -> None:
    tested = " ".join(r.name for r in TABLE)
    missing = [n for n in methods.__all__ if n not in tested.replace("+", " ").split()]
    assert not missing
