"""Edits taken back bit for bit, with no more kept than what they changed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcl.editing import Editor
from jcl.editing.undo import recorded, undo

pytestmark = pytest.mark.quick


def write(params, state, facts):
    """Changes one leaf in a way that addition couldn't take back, and counts."""
    kernel = jnp.sin(1e3 * params["down"]["kernel"]) + facts["weight"]
    return {**params, "down": {**params["down"], "kernel": kernel}}, {**state, "n": state["n"] + 1}


def start():
    kernel = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5)), jnp.float32)
    params = {"down": {"kernel": kernel, "bias": jnp.ones(5)}, "up": jnp.zeros(2)}
    return params, {"n": jnp.int32(0), "bank": jnp.arange(4.0)}


def test_only_what_a_write_changed_is_kept():
    params, state = start()
    step = recorded(Editor("odd", lambda params, facts: (), write))
    _, _, past = step(params, state, {"weight": jnp.float32(1)})
    assert past.params == {"down": {"kernel": params["down"]["kernel"], "bias": None}, "up": None}
    assert past.state["bank"] is None and past.state["n"] == 0
    _, _, compiled = jax.jit(step)(params, state, {"weight": jnp.float32(1)})
    assert jax.tree.structure(compiled) == jax.tree.structure(past)


def test_the_last_write_is_taken_back_first():
    step = recorded(Editor("odd", lambda params, facts: (), write))
    params, state = start()
    trail, pasts = [(params, state)], []
    for weight in (0.25, -1.5, 3.0):
        params, state, past = step(params, state, {"weight": jnp.float32(weight)})
        trail.append((params, state))
        pasts.append(past)
    for past, before in zip(reversed(pasts), reversed(trail[:-1]), strict=True):
        params, state = undo(params, state, past)
        jax.tree.map(np.testing.assert_array_equal, (params, state), before)
    assert not np.array_equal(trail[1][0]["down"]["kernel"], trail[0][0]["down"]["kernel"])
