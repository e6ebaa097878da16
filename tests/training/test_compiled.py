"""What is compiled before the loop: it computes what the program's own functions do, untraced."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jcl
from jcl import data, losses, methods
from jcl.training.compiled import compile_loop, start
from jcl.training.feed import Feed

pytestmark = pytest.mark.quick


def test_chunk_boundary_and_evaluation_are_the_program_s() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 12, 3)).astype(np.float32)
    tasks = [{"x": a, "y": a @ np.ones((3, 1), np.float32)} for a in x]
    stream = data.from_arrays(tasks, tasks, batch=4, steps=3)
    program = jcl.make(
        methods.l2sp(strength=0.1), lambda p, b: b["x"] @ p["w"], losses.squared_error,
        optax.sgd(0.1),
    )  # fmt: skip

    def evaluate(program: jcl.Program, state: jcl.State) -> jax.Array:
        return jnp.stack([state.params["w"].sum(), 2.0])

    feed = Feed(stream, None, 3)
    begun = start(program, {"w": jnp.zeros((3, 1))}, jax.random.key(0), feed, evaluate)
    assert begun.scores.shape == (3, 2) and np.isnan(begun.scores).all() and begun.width == 4
    state = begun.make()
    shapes = jax.tree.map(lambda a: (a.shape, a.dtype), state._replace(key=()))
    assert shapes == jax.tree.map(lambda a: (a.shape, a.dtype), begun.like._replace(key=()))
    compiled = compile_loop(program, state, feed, evaluate)
    assert compiled.traces == [1] and compiled.seconds > 0
    expected, losses_ = begun.make(), []
    for step in range(3):
        batch = stream.fetch(feed.source, jax.tree.map(lambda a, i=step: a[i], feed.chunk(0, 0, 3)))
        expected, aux = program.step(expected, batch)
        losses_.append(float(aux["loss"]))
    state, reports = compiled.advance(state, feed.source, feed.chunk(0, 0, 3), np.int32(3))
    np.testing.assert_allclose(reports["loss"], losses_, rtol=1e-5)
    np.testing.assert_allclose(state.params["w"], expected.params["w"], rtol=1e-5)
    assert compiled.evaluate is not None
    np.testing.assert_allclose(compiled.evaluate(state)[0], expected.params["w"].sum(), rtol=1e-5)
    state = compiled.consolidate(state, feed.source, feed.boundary(0))
    assert int(state.stage) == 1 and int(state.stage_step) == 0 and compiled.traces == [1]
