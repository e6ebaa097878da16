"""ROME's promises: the key now has the value wanted, by a change of rank one in one layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_model as tiny
from flax import linen as nn

from jcl.editing import values
from jcl.editing.editors.rome import rome
from jcl.editing.statistics import second_moment
from jcl.models import flax

LAYER, OPTIONS = 1, {"layer": 1, "steps": 4}
EDITOR = rome(tiny.APPLY, tiny.MOMENTS[1:2], **OPTIONS)
WRITE = jax.jit(EDITOR.write)


def at_subject(params, fact, site):
    wanted = {f"blocks/down:{site}": LAYER}
    found = values.at_subjects(tiny.APPLY, params, fact, wanted, 1)
    return np.asarray(found[f"blocks/down:{site}"])[0]


@pytest.mark.parametrize("place", [0, 2])
def test_the_key_has_the_value(place):
    fact = tiny.some(place)
    params, _ = WRITE(tiny.PARAMS, EDITOR.init(tiny.PARAMS, fact), fact)
    search = values.Search(4, 0.5, 1e-3, 0.0625, 4.0, 0.05)
    alone = jax.tree.map(lambda x: x[0], fact)
    delta, old = values.find(tiny.APPLY, tiny.PARAMS, alone, "blocks/down:out", LAYER, search)
    assert jnp.linalg.norm(delta) > 0.5 * jnp.linalg.norm(old)
    now = at_subject(params, fact, "out")[0]
    np.testing.assert_allclose(now, old + delta, atol=1e-4 * float(jnp.linalg.norm(delta)))


def test_rank_one_in_one_layer_along_the_whitened_key():
    fact = tiny.some(0)
    params, _ = WRITE(tiny.PARAMS, EDITOR.init(tiny.PARAMS, fact), fact)
    change = tiny.kernel(params) - tiny.kernel(tiny.PARAMS)
    assert not change[[0, 2]].any()
    left, size, _ = np.linalg.svd(change[LAYER])
    assert size[1] < 1e-4 * size[0]
    key = at_subject(tiny.PARAMS, fact, "in").mean(axis=0)
    along = np.linalg.solve(np.asarray(tiny.MOMENTS[1], np.float64), key)
    assert abs(left[:, 0] @ along) > 0.9999 * np.linalg.norm(along)
    rest = jax.tree.map(jnp.array_equal, params, tiny.PARAMS)
    rest["blocks"]["down"]["kernel"] = True
    assert all(jax.tree.leaves(rest))


def test_a_batch_is_written_one_after_another():
    state = EDITOR.init(tiny.PARAMS, tiny.FACTS)
    together, _ = WRITE(tiny.PARAMS, state, tiny.some(0, 1))
    params = tiny.PARAMS
    for place in (0, 1):
        params, state = WRITE(params, state, tiny.some(place))
    np.testing.assert_allclose(tiny.kernel(together), tiny.kernel(params), rtol=1e-3, atol=1e-3)


@pytest.mark.quick
def test_what_is_refused():
    with pytest.raises(ValueError, match=r"layers is \(3,\), but must be from 0 to 2"):
        rome(tiny.APPLY, tiny.MOMENTS[:1], layer=3).init(tiny.PARAMS, tiny.FACTS)
    with pytest.raises(ValueError, match=r"shape of moment is \(2, 24, 24\), .* \(1, 24, 24\)"):
        rome(tiny.APPLY, tiny.MOMENTS[:2], layer=1).init(tiny.PARAMS, tiny.FACTS)


def test_a_kernel_of_half_precision_keeps_its_dtype():
    start = tiny.base(jnp.bfloat16)
    fact = tiny.some(0)
    params, _ = WRITE(start, EDITOR.init(start, fact), fact)
    kernel = params["blocks"]["down"]["kernel"]
    assert kernel.dtype == jnp.bfloat16
    change = kernel.astype(jnp.float32) - start["blocks"]["down"]["kernel"].astype(jnp.float32)
    assert jnp.isfinite(change).all() and jnp.abs(change[LAYER]).max() > 1e-2


class Causal(nn.Module):
    """A language model of Flax's layers, which aren't stacked."""

    @nn.compact
    def __call__(self, tokens):
        h = 3 * nn.Embed(512, 16)(tokens)
        h = h + jnp.cumsum(h, axis=1) / (1 + jnp.arange(tokens.shape[1])[:, None])
        h = h + nn.Dense(16, name="down")(nn.gelu(nn.Dense(24, name="up")(h)))
        return nn.Dense(512, name="head")(h)


def test_a_kernel_of_flax_that_is_not_stacked_is_written():
    model = flax.linen(Causal(), {"tokens": tiny.TEXT[0]}, jax.random.key(0))
    texts = {"tokens": tiny.TEXT}
    moment = jax.jit(lambda p: second_moment(model.apply, p, texts, (0,), "down"))(model.params)
    editor = rome(model.apply, moment, layer=0, path="down", steps=4)
    fact = tiny.some(0)
    params, _ = jax.jit(editor.write)(model.params, editor.init(model.params, fact), fact)
    assert params["down"]["kernel"].shape == (24, 16)
    search = values.Search(4, 0.5, 1e-3, 0.0625, 4.0, 0.05)
    alone = jax.tree.map(lambda x: x[0], fact)
    delta, old = values.find(model.apply, model.params, alone, "down:out", 0, search)
    now = values.at_subjects(model.apply, params, fact, {"down:out": 0}, 1)["down:out"][0, 0]
    assert jnp.linalg.norm(delta) > 0.1
    np.testing.assert_allclose(now, old + delta, atol=1e-3 * float(jnp.linalg.norm(delta)))
