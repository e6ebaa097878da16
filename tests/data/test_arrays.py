"""Streams of arrays: what is drawn, that it depends on (seed, stage, step) alone, and refusals."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcl import data

pytestmark = pytest.mark.quick

SIZES = (10, 7, 13)


def task(size, start=0):
    rows = np.arange(start, start + size)
    return {"x": np.stack([rows, rows], 1).astype(np.float64), "y": rows % 2}


def tasks():
    return [task(n, 100 * i) for i, n in enumerate(SIZES)]


def stream(**given):
    given = {"batch": 4, "epochs": 2, **given}
    return data.from_arrays(tasks(), [task(3), task(2), task(5)], **given)


def fetched(s, stage, start=None, stop=None):
    """All batches of some steps, as (x[:, 0], weight) in order."""
    rows = s.chunk(stage, start or 0, s.steps[stage] if stop is None else stop)
    batch = s.fetch(s.source, rows)
    return np.asarray(batch["x"])[..., 0].reshape(-1), np.asarray(batch["weight"]).reshape(-1)


def test_epochs_draw_without_replacement_and_weight_0_pads_the_stage_s_end():
    s = stream()
    assert s.steps == (5, 4, 7)
    for stage, size in enumerate(SIZES):
        x, weight = fetched(s, stage)
        assert weight.sum() == 2 * size
        assert (weight[: 2 * size] == 1).all()
        own = np.arange(100 * stage, 100 * stage + size)
        first, second = x[:size], x[size : 2 * size]
        np.testing.assert_array_equal(np.sort(first), own)
        np.testing.assert_array_equal(np.sort(second), own)
        assert not np.array_equal(first, second)


def test_steps_go_round_and_are_always_full():
    s = stream(epochs=None, steps=9)
    assert s.steps == (9, 9, 9)
    x, weight = fetched(s, 1)
    assert (weight == 1).all()
    assert set(np.unique(x, return_counts=True)[1]) <= {5, 6}  # 36 draws of 7 rows


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_any_chunking_draws_the_same(cut):
    s, again = stream(seed=3), stream(seed=3)
    whole, _ = fetched(s, 2)
    parts = [fetched(again, 2, i, min(i + cut, 7))[0] for i in reversed(range(0, 7, cut))]
    np.testing.assert_array_equal(np.concatenate(parts[::-1]), whole)


def test_seeds_and_stages_differ():
    same = data.from_arrays([task(50)] * 2, [task(3)] * 2, batch=10, epochs=1, seed=0)
    other = data.from_arrays([task(50)] * 2, [task(3)] * 2, batch=10, epochs=1, seed=1)
    a, b, c = fetched(same, 0)[0], fetched(same, 1)[0], fetched(other, 0)[0]
    assert not np.array_equal(a, b) and not np.array_equal(a, c)


def test_a_chunk_holds_row_numbers_and_not_the_data():
    wide = {"x": np.zeros((100, 10_000), np.float32), "y": np.zeros(100, int)}
    s = data.from_arrays([wide], [wide], batch=5, epochs=1)
    assert sum(x.nbytes for x in jax.tree.leaves(s.chunk(0, 0, 20))) == 20 * 5 * 8


def test_batches_have_the_contract_s_keys_and_dtypes():
    s = stream()
    batch = jax.jit(s.fetch)(s.source, jax.tree.map(lambda v: v[0], s.chunk(1, 0, 1)))
    kinds = {k: (v.dtype, v.shape) for k, v in batch.items()}
    assert kinds == {
        "x": (jnp.float32, (4, 2)),
        "y": (jnp.int32, (4,)),
        "weight": (jnp.float32, (4,)),
        "task": (jnp.int32, (4,)),
    }
    assert (batch["task"] == 1).all()


def test_boundary_is_one_pass_of_the_same_shape_for_all_stages():
    s = stream()
    for stage, size in enumerate(SIZES):
        rows = s.boundary(stage)
        assert rows["row"].shape == (4, 4)
        batch = s.fetch(s.source, rows)
        real = np.asarray(batch["x"])[..., 0][np.asarray(batch["weight"]) > 0]
        np.testing.assert_array_equal(np.sort(real), np.arange(100 * stage, 100 * stage + size))
    assert stream(boundary_batches=2).boundary(0)["row"].shape == (2, 4)


def test_example_weights_of_one_s_own_are_kept():
    own = {**task(8), "weight": np.full(8, 0.5)}
    s = data.from_arrays([own], [own], batch=5, epochs=1)
    _, weight = fetched(s, 0)
    np.testing.assert_allclose(weight, [0.5] * 8 + [0, 0])
    np.testing.assert_allclose(s.test["weight"], np.full((1, 1, 8), 0.5))


def test_tests_are_padded_with_weight_0():
    s = stream(test_batch=2)
    assert s.test["x"].shape == (3, 3, 2, 2)
    np.testing.assert_array_equal(s.test["weight"].sum((1, 2)), [3, 2, 5])
    np.testing.assert_array_equal(s.test["task"][2], 2)
    kept = s.test["x"][2][s.test["weight"][2] > 0][:, 0]
    np.testing.assert_array_equal(kept, np.arange(5))


@pytest.mark.parametrize("kind", ["stream", "scenario"])
def test_reorder_is_as_if_given_so(kind):
    order = (2, 0, 1)
    train, test = tasks(), [task(3), task(2), task(5)]
    names = ("a", "b", "c")
    make = partial(data.from_scenario, batch=4, epochs=1)
    classes = np.eye(3, dtype=bool)
    given = data.scenario(train, test, names, classes)
    direct = make(
        data.scenario(
            [train[i] for i in order], [test[i] for i in order], [names[i] for i in order]
        )
    )
    if kind == "stream":
        moved = data.reorder(make(given), order)
    else:
        scenario = data.reorder(given, order)
        assert scenario.classes is not None
        np.testing.assert_array_equal(scenario.classes, classes[list(order)])
        moved = make(scenario)
    assert moved.names == direct.names and moved.tasks == (0, 1, 2)
    assert moved.tests == direct.tests and moved.steps == direct.steps
    for stage in range(3):
        a = moved.fetch(moved.source, moved.chunk(stage, 0, moved.steps[stage]))
        real = np.asarray(a["weight"]) > 0
        assert (np.asarray(a["task"])[real] == stage).all()
        expected = np.sort(train[order[stage]]["x"][:, 0])
        np.testing.assert_array_equal(np.sort(np.asarray(a["x"])[..., 0][real]), expected)
    jax.tree.map(np.testing.assert_array_equal, moved.test, direct.test)
    with pytest.raises(ValueError, match="permutation of 0 to 2"):
        data.reorder(given, (0, 0, 1))


@pytest.mark.quick
def test_a_reordered_stream_keeps_what_its_stages_draw():
    rows = [{"x": np.full((8, 1), i), "y": np.arange(8)} for i in range(3)]
    stream = data.from_arrays(rows, rows, batch=3, epochs=2, seed=5)
    moved = data.reorder(stream, (2, 0, 1))
    for place, stage in enumerate((2, 0, 1)):
        for a, b in zip(
            jax.tree.leaves(moved.chunk(place, 1, 3)),
            jax.tree.leaves(stream.chunk(stage, 1, 3)),
            strict=True,
        ):
            np.testing.assert_array_equal(a, b)


@pytest.mark.quick
def test_reordering_keeps_the_tests_of_members_apart():
    rows = [{"x": np.full((4, 1), i), "y": np.arange(4)} for i in range(3)]
    one = data.from_arrays(rows, rows, batch=2, steps=1)
    two = one._replace(test={**one.test, "x": one.test["x"] + 10})
    moved = data.reorder(data.members([one, two]), (2, 0, 1))
    found = moved.test["x"]
    assert found.shape[:2] == (2, 3)
    assert found[:, :, 0, 0, 0].tolist() == [[2, 0, 1], [12, 10, 11]]


def test_reorder_numbers_recurring_tasks_by_first_appearance():
    s = data.from_scenario(
        data.recurring(data.scenario(tasks(), tasks(), ("a", "b", "c"))), batch=4, epochs=1
    )
    moved = data.reorder(s, (1, 4, 0, 2, 3, 5))
    assert moved.names == ("b (1)", "b (2)", "a (1)", "c (1)", "a (2)", "c (2)")
    assert moved.tasks == (0, 0, 1, 2, 1, 2)
    assert moved.tests == ("b", "a", "c")


BAD = np.array([[1.0, 2.0], [np.nan, 1.0], [1.0, np.inf]])


@pytest.mark.parametrize(
    ("train", "given", "sentence"),
    [
        ([task(4), task(0)], {}, r"task 'task 1' has 0 rows, but must have at least 1"),
        ([], {}, r"number of tasks is 0, but must be at least 1"),
        ([{}], {}, r"must be a dict of arrays such as x and y"),
        (
            [{"x": BAD, "y": np.zeros(3, int)}],
            {},
            r"x of task 'task 0' is NaN or infinite in 2 of its rows, first in row 1",
        ),
        ([{"x": np.ones((3, 2)), "y": np.zeros(2, int)}], {}, r"\{'x': 3, 'y': 2\} rows"),
        (
            [{"x": np.ones((3, 2)), "y": np.array([0, -1, 2])}],
            {},
            r"y of task 'task 0' goes from -1",
        ),
        ([task(4)], {"batch": 5}, r"batch is 5, but must be at most 4, the rows of 'task 0'"),
        ([task(4)], {"batch": 0}, r"batch is 0, but must be at least 1"),
        ([task(4)], {"epochs": 0}, r"epochs is 0, but must be at least 1"),
        ([task(4)], {"steps": 3}, r"epochs and steps is \(1, 3\), but must be one of the two"),
        ([task(4)], {"seed": -1}, r"seed is -1, but must be from 0"),
        ([task(4)], {"names": ["a", "b"]}, r"number of names is 2, but must be 1, one a task"),
        ([task(4)], {"boundary_batches": 0}, r"boundary_batches is 0, but must be at least 1"),
        ([task(4), {"x": np.ones((4, 2))}], {}, r"task 'task 1' has arrays \['x'\]"),
    ],
)
def test_bad_input_is_refused_with_a_sentence(train, given, sentence):
    given = {"batch": 2, "epochs": 1, **given}
    with pytest.raises(ValueError, match=sentence):
        data.from_arrays(train, [task(2)] * len(train), **given)


def test_labels_out_of_the_class_table_are_refused():
    classes = np.array([[True, True]])
    bad = {"x": np.ones((2, 2)), "y": np.array([0, 2])}
    with pytest.raises(ValueError, match=r"goes from 0 to 2.* below 2, the number of classes"):
        data.scenario([bad], [task(2)], classes=classes)


def test_steps_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match="steps 4 to 6 are asked for, but stage 0 has 5"):
        stream().chunk(0, 4, 6)
