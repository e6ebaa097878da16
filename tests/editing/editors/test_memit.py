"""MEMIT's promises: with little said for the old memories, the last layer has what was wanted."""

from functools import partial

import jax
import numpy as np
import pytest
import tiny_model as tiny

from jcl.editing import values
from jcl.editing.editors.memit import memit

SEARCH = values.Search(4, 0.3, 1e-3, 0.0625, 4.0, 0.05)


def editor(layers=(0, 1), **options):
    moment = tiny.MOMENTS[np.asarray(layers)]
    return memit(tiny.APPLY, moment, layers, steps=4, rate=0.3, together=4, **options)


@partial(jax.jit, static_argnums=0)
def written(layers, strength, facts):
    made = editor(layers, strength=strength)
    return made.write(tiny.PARAMS, made.init(tiny.PARAMS, facts), facts)[0]


def out(params, facts=tiny.FACTS):
    """What leaves layer 1, the last that is written, at the bare subject; and its keys."""
    wanted = {"blocks:out": 1, "blocks/down:in": 1}
    found = values.at_subjects(tiny.APPLY, params, facts, wanted, 4)
    return np.asarray(found["blocks:out"])[:, 0], values.mean_key(found["blocks/down:in"])


@jax.jit
@jax.vmap
def aims(fact):
    delta, old = values.find(tiny.APPLY, tiny.PARAMS, fact, "blocks:out", 1, SEARCH)
    return old + delta


@pytest.fixture(scope="module")
def bare():
    """Facts without other contexts, so that an edit's key is its prompt's."""
    return {k: x[:, :1] if k in ("tokens", "segments", "mask", "subject") else x
            for k, x in tiny.FACTS.items()}  # fmt: skip


def test_a_weak_past_lets_all_values_be_reached(bare):
    found, _ = out(written((0, 1), 1e-6, bare), bare)
    wanted, before = np.asarray(aims(bare)), out(tiny.PARAMS, bare)[0]
    assert np.linalg.norm(wanted - before) > 1
    np.testing.assert_allclose(found, wanted, atol=0.01 * np.abs(wanted - before).max())


def test_a_strong_past_lets_nothing_change():
    change = tiny.kernel(written((0, 1), 1e9, tiny.FACTS)) - tiny.kernel(tiny.PARAMS)
    assert np.abs(change).max() < 1e-4


def test_one_layer_solves_its_normal_equations():
    params = written((1,), 5.0, tiny.FACTS)
    change = (tiny.kernel(params) - tiny.kernel(tiny.PARAMS))[1].astype(np.float64)
    before, keys = out(tiny.PARAMS)
    keys = np.asarray(keys, np.float64)
    right = keys.T @ (np.asarray(aims(tiny.FACTS)) - before)
    moment = np.asarray(tiny.MOMENTS[1], np.float64)
    rest = (5.0 * moment + keys.T @ keys) @ change - right
    assert np.linalg.norm(rest) < 2e-3 * np.linalg.norm(right)


@pytest.mark.quick
def test_layers_that_are_not_named_stay():
    change = tiny.kernel(written((0, 1), 5.0, tiny.FACTS)) - tiny.kernel(tiny.PARAMS)
    assert [bool(x.any()) for x in change] == [True, True, False]


@pytest.mark.quick
@pytest.mark.parametrize(("options", "said"), [
    ({"strength": 0.0}, "strength is 0.0, but must be above 0, or None"),
    ({"kl": -1.0}, "kl is -1.0, but must be at least 0"),
])  # fmt: skip
def test_what_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        editor(**options)
    with pytest.raises(ValueError, match=r"layers is \(\), but must be from 0 to 2"):
        memit(tiny.APPLY, tiny.MOMENTS, ()).init(tiny.PARAMS, tiny.FACTS)
