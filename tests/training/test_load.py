"""A state is loaded without its stream, of one member and of many."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest
from test_fit import PARAMS, identical, stream

import jcl
from jcl import data, losses, methods, models
from jcl.training.fit import last_state


def test_it_is_the_state_that_the_run_ended_in(tmp_path: Path) -> None:
    def build(strength: jax.Array | float) -> jcl.Program:
        method = methods.er(capacity=20, rows=4) + methods.ewc(strength=strength)
        return jcl.make(method, models.mlp.apply, losses.cross_entropy(), optax.adam(1e-2))

    given = stream()
    exam = jcl.evaluator(given.test, jcl.evaluation.accuracy())
    alone = jcl.fit(
        build(1.0), PARAMS, jax.random.key(1), given, evaluate=exam, out=tmp_path / "a",
        evaluate_every=3, keep="best", patience=9,
    )  # fmt: skip
    again = jcl.load_state(tmp_path / "a", build(1.0), PARAMS)
    assert identical(again._replace(key=()), alone.state._replace(key=()))
    last = last_state(build(1.0), PARAMS, jax.random.key(1), given, exam, tmp_path / "a")
    assert identical(last._replace(key=()), alone.state._replace(key=()))
    many = jcl.replicate(build, jnp.array([0.0, 1.0]))
    both = jax.tree.map(lambda x: jnp.stack([x, x]), PARAMS)
    keys = jax.random.split(jax.random.key(1), 2)
    members = data.members([given, given])
    done = jcl.fit(many, both, keys, members, out=tmp_path / "b")
    again = jcl.load_state(tmp_path / "b", many, both)
    assert identical(again._replace(key=()), done.state._replace(key=()))


@pytest.mark.quick
def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    program = jcl.make(methods.naive(), models.mlp.apply, losses.cross_entropy(), optax.sgd(0.1))
    with pytest.raises(ValueError, match=r"folder is .*, but must be out of a jcl.fit"):
        jcl.load_state(tmp_path, program, PARAMS)
