"""A state that goes on whole is that of a run which knew all stages; wrong ones are refused."""

from __future__ import annotations

from functools import partial

import jax
import numpy as np
import optax
import pytest
from test_fit import PARAMS, SIZES, identical, parts, stream, tasks

import jcl
from jcl import losses, methods, models, trees
from jcl.training.carry import take_over, widen


def program() -> jcl.Program:
    method = jcl.chain(methods.er(capacity=24, rows=8), methods.lwf())
    return jcl.make(method, models.mlp.apply, losses.cross_entropy(), optax.adam(1e-2))


def test_a_whole_state_goes_on_with_its_optimizer_key_and_references() -> None:
    given, kept = stream(), program()
    expected = jcl.fit(kept, PARAMS, jax.random.key(2), given, chunk=4).state
    first = jcl.fit(kept, PARAMS, jax.random.key(2), parts(given, slice(0, 2)), chunk=4).state
    rest = partial(
        jcl.fit, kept, first.params, jax.random.key(1), parts(given, slice(2, 3)), chunk=4,
        carried=first,
    )  # fmt: skip
    went_on = rest(carry="whole").state
    same_key = jax.random.key_data(went_on.key) == jax.random.key_data(expected.key)
    assert same_key.all()  # and not what was given
    assert identical(went_on._replace(key=()), expected._replace(key=()))
    assert not identical(rest().state.optimizer, expected.optimizer)  # which starts anew


@pytest.mark.quick
def test_what_cannot_be_taken_over_is_refused() -> None:
    batch = {name: x[:2] for name, x in tasks()[0].items()}
    state = program().init(PARAMS, batch, jax.random.key(0))
    assert take_over(state, state, "whole").methods.keys() == state.methods.keys()
    within = state._replace(stage_step=state.stage_step + 1)
    with pytest.raises(ValueError, match="stage_step of carried is 1, but must be 0"):
        take_over(state, within, "whole")
    with pytest.raises(ValueError, match="carry is 'all', but must be 'methods' or 'whole'"):
        take_over(state, state, "all")  # type: ignore[arg-type]
    other = state._replace(optimizer=optax.sgd(0.1).init(PARAMS))
    with pytest.raises(ValueError, match="of its optimizer, where this run has"):
        take_over(state, other, "whole")
    take_over(state, other)  # which leaves the optimizer where it is


@pytest.mark.quick
def test_a_wider_state_has_the_old_one_in_its_first_columns() -> None:
    batch = {name: x[:2] for name, x in tasks()[0].items()}
    old = program().init(PARAMS, batch, jax.random.key(0))
    wide = models.mlp.init(jax.random.key(9), (*SIZES[:-1], SIZES[-1] + 5))
    fresh = program().init(wide, batch, jax.random.key(1))
    grown = widen(fresh, old)
    last = f"dense_{len(SIZES) - 2}"
    np.testing.assert_array_equal(
        models.mlp.apply(grown.params, batch)[:, : SIZES[-1]], models.mlp.apply(old.params, batch)
    )
    new = grown.params[last]["kernel"][:, SIZES[-1] :]
    np.testing.assert_array_equal(new, wide[last]["kernel"][:, SIZES[-1] :])  # which begins now
    assert trees.kinds(grown) == trees.kinds(fresh)
    with pytest.raises(ValueError, match=r"shape of .* is .*, but must be .* or wider"):
        widen(old, fresh)
