"""What `fit` looks at before it compiles: `test_wrong_input.py` has the table of sentences."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jcl
from jcl import data, losses, methods, models
from jcl.training import inputs

pytestmark = pytest.mark.quick

KEY = jax.random.key(0)


def program(rate=1e-2):
    return jcl.make(methods.naive(), models.mlp.apply, losses.cross_entropy(), optax.sgd(rate))


def stream(highest=2, seed=0):
    rows = {"x": np.zeros((6, 4), np.float32), "y": np.array([0, 1, 2, 0, 1, highest])}
    return data.from_arrays([rows], [rows], batch=3, steps=1, seed=seed)


def test_nothing_is_computed_and_labels_that_fit_pass():
    params = models.mlp.init(KEY, [4, 3])
    shapes = jax.eval_shape(lambda p: p, params)
    inputs.check_rows(program(), shapes, jax.eval_shape(lambda k: k, KEY), stream(), ())
    with pytest.raises(ValueError, match="y of the stream is from 0 to 3"):
        inputs.check_rows(program(), params, KEY, stream(3), ())


@pytest.mark.parametrize("how", ["vmap", "map"])
def test_members_are_looked_at_as_one_is(how):
    many = jcl.replicate(program, jnp.array([0.1, 0.2]), how)
    params = jax.tree.map(lambda x: jnp.stack([x, x]), models.mlp.init(KEY, [4, 3]))
    keys = jax.random.split(KEY, 2)
    joined = data.members([stream(), stream(seed=1)])
    inputs.check_rows(many, params, keys, inputs.as_stream(joined, many), ())
    joined = data.members([stream(3), stream(3, seed=1)])
    with pytest.raises(ValueError, match="y of the stream is from 0 to 3"):
        inputs.check_rows(many, params, keys, joined, ())
    with pytest.raises(ValueError, match="the stream has None members, but must have the prog"):
        inputs.as_stream(stream(), many)


def test_a_stream_that_says_nothing_and_a_loss_of_ones_own_are_left_alone():
    params = models.mlp.init(KEY, [4, 3])
    silent = stream(3)
    silent = silent._replace(fetch=lambda source, rows: stream(3).fetch(source, rows))
    inputs.check_rows(program(), params, KEY, silent, ())

    def loss(apply, params, batch):
        return jnp.mean(apply(params, batch)[:, 0] - batch["y"])

    mine = jcl.make(methods.naive(), models.mlp.apply, loss, optax.sgd(0.1))
    inputs.check_rows(mine, params, KEY, stream(3), ())


def test_states_are_carried_with_the_parameters_that_they_belong_to():
    params = models.mlp.init(KEY, [4, 3])
    batch = {"x": jnp.zeros((3, 4)), "y": jnp.zeros(3, jnp.int32)}
    done = program().init(params, batch, KEY)
    inputs.check_carried(params, done)
    inputs.check_carried(jax.tree.map(lambda x: x + 0, params), done)
    inputs.check_carried(params, None)
    other = models.mlp.init(jax.random.key(1), [4, 3])
    inputs.check_carried(other, done._replace(params=other))  # changed on purpose
    with pytest.raises(ValueError, match="params at 'dense_0/bias' are not those of carried"):
        inputs.check_carried(other, done)
    for wrong in ({**params, "more": jnp.zeros(2)}, {}):
        with pytest.raises(ValueError, match=r"params at '(more|dense_0/bias)' are not those of"):
            inputs.check_carried(wrong, done)
