"""Dead units, effective rank and size of weights, of a perceptron that is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcl.measures import plasticity
from jcl.models import mlp

PARAMS = mlp.init(jax.random.key(0), (3, 5, 4, 2))
BATCH = {"x": jax.random.normal(jax.random.key(1), (7, 3)), "weight": jnp.ones(7)}


@pytest.mark.quick
def test_hidden_units_answer_as_the_model_computes_them():
    found = plasticity.hidden(mlp.apply, PARAMS, BATCH)
    h = np.asarray(BATCH["x"])
    for name, reader in (("dense_0", "dense_1"), ("dense_1", "dense_2")):
        h = np.maximum(h @ PARAMS[name]["kernel"] + PARAMS[name]["bias"], 0)
        np.testing.assert_allclose(found[reader], h, rtol=1e-5, atol=1e-6)


@pytest.mark.quick
def test_a_unit_that_never_answers_is_dead():
    first = PARAMS["dense_0"]
    silent = {**first, "bias": jnp.array([9.0, -100.0, 9.0, -100.0, 9.0])}
    found = plasticity.hidden(mlp.apply, {**PARAMS, "dense_0": silent}, BATCH)
    assert plasticity.dead_units(found["dense_1"]) == 0.4
    assert plasticity.dead_units(found["dense_1"], threshold=1e3) == 1


@pytest.mark.quick
def test_the_effective_rank_is_of_the_spectrum_s_entropy():
    rng = np.random.default_rng(0)
    u, _ = np.linalg.qr(rng.normal(size=(6, 3)))
    v, _ = np.linalg.qr(rng.normal(size=(8, 3)))
    p = np.array([0.5, 0.25, 0.25])
    answers = u @ np.diag(8 * p) @ v.T
    assert np.isclose(plasticity.effective_rank(answers), 2**1.5)  # an entropy of 1.5 bits
    assert plasticity.effective_rank(np.zeros((3, 2))) == 0


@pytest.mark.quick
def test_the_size_of_weights_is_a_mean_over_entries():
    params = {"a": jnp.array([[1.0, -3.0]]), "b": jnp.array([2.0])}
    assert plasticity.weight_magnitude(params) == 2
