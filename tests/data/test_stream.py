"""Streams whatever they are made of: packed tests, stacked leaves, members side by side."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jcl
from jcl import data, losses, methods
from jcl.data.stream import pack

pytestmark = pytest.mark.quick

SIZES = (10, 7, 13)


def task(size, start=0):
    rows = np.arange(start, start + size)
    return {"x": np.stack([rows, rows], 1).astype(np.float64), "y": rows % 2}


def stream(**given):
    given = {"batch": 4, "epochs": 2, **given}
    tasks = [task(n, 100 * i) for i, n in enumerate(SIZES)]
    return data.from_arrays(tasks, [task(3), task(2), task(5)], **given)


def test_tests_of_unequal_size_are_padded_to_one_shape():
    packed = pack([{"x": np.arange(5.0)}, {"x": np.arange(3.0)}], limit=2)
    assert packed["x"].shape == packed["weight"].shape == (2, 3, 2)
    np.testing.assert_array_equal(packed["weight"].reshape(2, -1).sum(1), [5, 3])
    for i, size in enumerate((5, 3)):
        real = packed["weight"][i].ravel() > 0
        np.testing.assert_array_equal(packed["x"][i].ravel()[real], np.arange(size))


def test_stack_is_what_run_scans():
    s = stream(epochs=None, steps=3)
    stacked = data.stack(s)
    assert stacked["row"].shape == (3, 3, 4)
    np.testing.assert_array_equal(stacked["row"][2, 1], s.chunk(2, 1, 2)["row"][0])
    with pytest.raises(ValueError, match="equal over stages"):
        data.stack(stream())


def test_members_lead_and_share_the_data():
    each = [stream(epochs=None, steps=3, seed=i) for i in range(2)]
    joined = data.members(each)
    assert joined.members == 2
    chunk = joined.chunk(1, 1, 3)
    assert chunk["row"].shape == (2, 2, 4)
    np.testing.assert_array_equal(chunk["row"][1], each[1].chunk(1, 1, 3)["row"])
    assert joined.boundary(0)["row"].shape == (2, 4, 4)
    assert data.stack(joined)["row"].shape == (2, 3, 3, 4)
    with pytest.raises(ValueError, match="stream 1 has other steps"):
        data.members([stream(epochs=None, steps=3), stream(epochs=None, steps=4)])
    with pytest.raises(ValueError, match="stream 1 has other source"):
        data.members([each[0], data.from_arrays([task(10)] * 3, [task(3)] * 3, 4, steps=3)])


def test_leaves_are_a_stream_of_their_own():
    leaves = {"x": np.arange(2 * 3 * 4.0).reshape(2, 3, 4), "task": np.zeros((2, 3, 4), np.int32)}
    s = data.from_leaves(leaves)
    assert s.steps == (3, 3)
    batch = s.fetch(s.source, jax.tree.map(lambda v: v[0], s.chunk(1, 2, 3)))
    np.testing.assert_array_equal(batch["x"], leaves["x"][1, 2])
    again = data.stack(s)
    np.testing.assert_array_equal(again["x"], leaves["x"])


def apply(params, batch):
    return batch["x"] @ params["w"]


def test_run_draws_from_a_stream_what_its_batches_hold():
    s = stream(epochs=None, steps=6)
    program = jcl.make(methods.naive(), apply, losses.cross_entropy(), optax.sgd(1e-4))
    params = {"w": jnp.zeros((2, 2))}
    scanned, _ = jcl.run(
        program, params, jax.random.key(0), data.stack(s), fetch=partial(s.fetch, s.source)
    )
    example = s.fetch(s.source, jax.tree.map(lambda v: v[0], s.chunk(0, 0, 1)))
    state = program.init(params, example, jax.random.key(0))
    step = jax.jit(program.step)
    for stage in range(3):
        for i in range(6):
            rows = jax.tree.map(lambda v: v[0], s.chunk(stage, i, i + 1))
            state, _ = step(state, s.fetch(s.source, rows))
    np.testing.assert_allclose(scanned.params["w"], state.params["w"], rtol=1e-5)
