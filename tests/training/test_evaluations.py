"""Evaluations within stages: the best state, early stops, and that a resumed run does the same."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_halves import KEY, PARAMS, TASKS

import jcl
from jcl import data, losses, methods, models
from jcl.measures.evaluation import accuracy, evaluator
from jcl.training.evaluations import Evaluations, asked

STREAM = data.from_arrays(TASKS, TASKS, 8, steps=20)
SCORE = evaluator(STREAM.test, accuracy())
BEST: Any = {"evaluate": SCORE, "chunk": 8, "evaluate_every": 3, "keep": "best"}


def program(rate: Any = 0.5, name: str = "er") -> jcl.Program:
    method = methods.er(capacity=8, rows=2) if name == "er" else methods.naive()
    return jcl.make(method, models.mlp.apply, losses.cross_entropy(), optax.sgd(rate))


def seen(result: jcl.Result, stage: int) -> list[float]:
    """The mean over the tasks seen by a stage of each of its evaluations."""
    lines = [line for line in result.evaluations if line["stage"] == stage]
    return [float(np.mean(line["scores"][: stage + 1])) for line in lines]


@pytest.fixture(scope="module")
def whole() -> jcl.Result:
    return jcl.fit(program(), PARAMS, KEY, STREAM, **BEST)


def test_a_stage_ends_in_the_state_of_its_best_evaluation(whole: jcl.Result) -> None:
    assert whole.scores is not None
    at = [[line["step"] for line in whole.evaluations if line["stage"] == s] for s in (0, 1)]
    assert at == [[3, 6, 9, 12, 15, 18, 20], [23, 26, 29, 32, 35, 38, 40]]
    for stage in (0, 1):  # replay changes no parameters at a boundary
        assert whole.scores[stage + 1, : stage + 1].mean() == pytest.approx(max(seen(whole, stage)))
    assert max(seen(whole, 1)) > seen(whole, 1)[-1]  # else this would be a test of nothing
    assert SCORE(program(), whole.state).tolist() == whole.scores[-1].tolist()
    assert int(whole.state.step) == 40 and int(whole.state.stage) == 2


def test_to_look_changes_nothing_of_the_training() -> None:
    looked = jcl.fit(program(), PARAMS, KEY, STREAM, evaluate=SCORE, evaluate_every=3, chunk=8)
    blind = jcl.fit(program(), PARAMS, KEY, STREAM, evaluate=SCORE, chunk=8)
    np.testing.assert_array_equal(looked.scores, blind.scores)
    for a, b in zip(jax.tree.leaves(looked.state), jax.tree.leaves(blind.state), strict=True):
        assert (a == b).all()
    assert not blind.evaluations and len(looked.evaluations) == 14


@pytest.mark.parametrize(("until", "how"), [(20, "stops"), (29, "dies")])
def test_a_resumed_run_keeps_the_same_best(
    whole: jcl.Result, tmp_path: Path, until: int, how: str
) -> None:
    def end(event: dict[str, Any]) -> str:
        ends = event.get("step", 0) >= until
        if ends and how == "dies":  # after its last checkpoint, from which it is done again
            raise ZeroDivisionError
        return "stop" if ends else ""

    options: Any = {"out": tmp_path, "checkpoint_every": 4, **BEST}
    with contextlib.suppress(ZeroDivisionError):
        jcl.fit(program(), PARAMS, KEY, STREAM, on_event=end, **options)
    on = jcl.fit(program(), PARAMS, KEY, STREAM, resume=True, **options)
    np.testing.assert_array_equal(on.scores, whole.scores)
    assert on.evaluations == whole.evaluations and on.history == whole.history
    for a, b in zip(jax.tree.leaves(on.state), jax.tree.leaves(whole.state), strict=True):
        assert (a == b).all()
    text = (tmp_path / "evaluations.jsonl").read_text()
    assert [json.loads(line) for line in text.splitlines()] == on.evaluations


def test_a_stage_without_progress_ends_early_and_a_resumed_one_too(tmp_path: Path) -> None:
    options: Any = {"evaluate": SCORE, "evaluate_every": 2, "patience": 3, "chunk": 8}
    still = jcl.fit(program(0.0, "naive"), PARAMS, KEY, STREAM, **options)
    # the first is the best of a stage, for before it there is none; then nothing moves
    assert [line["step"] for line in still.evaluations] == [2, 4, 6, 8, 10, 12, 14, 16]
    assert int(still.state.step) == 16 and int(still.state.stage) == 2
    assert still.scores is not None and np.isfinite(still.scores).all()

    def stop(event: dict[str, Any]) -> str:
        return "stop" if event.get("step", 0) >= 6 else ""

    zero = program(0.0, "naive")
    jcl.fit(zero, PARAMS, KEY, STREAM, out=tmp_path, on_event=stop, **options)
    on = jcl.fit(zero, PARAMS, KEY, STREAM, out=tmp_path, resume=True, **options)
    assert on.evaluations == still.evaluations


def test_each_member_keeps_its_own_best() -> None:
    def build(rate: jax.Array) -> jcl.Program:
        return program(rate)

    rates = jnp.array([0.5, 1.5])
    two = jax.tree.map(lambda x: jnp.stack([x, x]), PARAMS)
    keys = jnp.stack([KEY, KEY])
    both = jcl.fit(
        jcl.replicate(build, rates, how="map"), two, keys, data.members([STREAM, STREAM]), **BEST
    )
    assert both.scores is not None
    for member, rate in enumerate(rates):
        alone = jcl.fit(program(rate), PARAMS, KEY, STREAM, **BEST)
        np.testing.assert_allclose(both.scores[member], alone.scores, atol=0.026)  # a row of 40
    # the members' best evaluations come at different times, so that each was taken by itself
    first = np.array([line["scores"] for line in both.evaluations if line["stage"] == 0])[..., 0]
    assert len(set(first.argmax(axis=0).tolist())) == 2


@pytest.mark.quick
def test_lower_scores_may_be_the_better_ones() -> None:
    within = Evaluations(asked(SCORE, 1, "last", 2, False), STREAM, ())
    state: Any = None
    values = [3.0, 2.0, 2.5, np.nan]
    better = [within.take(state, np.array([x, 9.0], np.float32), 0) for x in values]
    assert better == [True, True, False, False] and within.enough
    within.forget()
    assert not within.enough


@pytest.mark.quick
def test_the_best_is_chosen_by_rows_held_out_where_evaluate_has_some() -> None:
    def exam(program: Any, state: Any) -> Any:
        raise NotImplementedError

    told: Any = exam
    told.validation = 3  # after two tests and a probe
    within = Evaluations(asked(told, 1, "last", 9, True), STREAM, ())
    state: Any = None
    rows = [[0, 0, 0, 0.5, 0.1], [1, 1, 1, 0.4, 1], [0, 0, 0, 0.6, 0]]
    assert [within.take(state, np.array(row), 0) for row in rows] == [True, False, True]
    within.forget()
    assert [within.take(state, np.array(row), 1) for row in rows] == [True, True, False]


@pytest.mark.quick
def test_probes_beside_the_tests_choose_nothing() -> None:
    stream = STREAM._replace(tasks=(-1, -1))  # each stage has rows of every task
    within = Evaluations(asked(SCORE, 1, "last", 9, True), stream, ())
    state: Any = None
    rows = [[0.5, 0.5, 0.1], [0.4, 0.4, 0.9], [0.5, 0.6, 0.0]]
    assert [within.take(state, np.array(row), 0) for row in rows] == [True, False, True]
