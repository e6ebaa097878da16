"""The search for values, against what it promises; beside the authors' loop, see test_parity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_model as tiny

from jcl.editing import values

SEARCH = values.Search(steps=8, rate=0.3, decay=1e-3, kl=0.0625, clamp=4.0, enough=0.0)
FACT = jax.tree.map(lambda x: x[0], tiny.FACTS)


@jax.jit
def find(search, fact):
    return values.find(tiny.APPLY, tiny.PARAMS, fact, "blocks:mlp", 1, search._replace(steps=8))


def floats(**changes):
    return jax.tree.map(jnp.float32, SEARCH._replace(**changes))


def loss(delta):
    """-log p of the target's tokens at the bare prompt with δ added."""

    def tap(site, layer, h):
        if site != "blocks:mlp":
            return h
        return h.at[0, FACT["subject"][0]].add(jnp.where(layer == 1, delta, 0))

    logits = tiny.APPLY(tiny.PARAMS, {"tokens": FACT["tokens"][:1]}, tap)[0, :-1]
    scores = jnp.take_along_axis(jax.nn.log_softmax(logits), FACT["tokens"][0, 1:, None], axis=-1)
    return -jnp.sum(scores[:, 0] * FACT["mask"][0]) / jnp.sum(FACT["mask"][0])


def test_the_answer_becomes_likelier():
    delta, _ = find(floats(), FACT)
    assert loss(delta) < loss(jnp.zeros_like(delta)) - 0.03


@pytest.mark.quick
def test_the_clamp_holds():
    delta, old = find(floats(clamp=0.01, rate=5.0), FACT)
    assert jnp.linalg.norm(delta) <= 0.010001 * jnp.linalg.norm(old)
    assert jnp.linalg.norm(delta) > 0.009 * jnp.linalg.norm(old)


@pytest.mark.quick
@pytest.mark.parametrize("case", [{"weight": jnp.float32(0)}, {}])
def test_nothing_is_searched_for_padding_or_what_is_good_enough(case):
    delta, _ = find(floats(enough=0.0 if case else 1e6), {**FACT, **case})
    np.testing.assert_array_equal(delta, 0)


@pytest.mark.quick
def test_divergence_and_decay_hold_back():
    free, _ = find(floats(kl=0.0, decay=0.0), FACT)
    for kept in (floats(kl=100.0), floats(decay=1e4)):
        assert jnp.linalg.norm(find(kept, FACT)[0]) < jnp.linalg.norm(free)


@pytest.mark.quick
def test_keys_are_weighed_as_memit_does():
    keys = jnp.asarray([[[8.0]], [[1.0]], [[3.0]], [[5.0]]]).swapaxes(0, 1)  # [1, 4, 1]
    np.testing.assert_array_equal(values.mean_key(keys), [[5.5]])
    np.testing.assert_array_equal(values.mean_key(keys[:, :1]), [[8]])


@pytest.mark.quick
@pytest.mark.parametrize(("change", "said"), [
    ({"steps": 1}, "steps is 1, but must be at least 2"),
    ({"rate": 0.0}, "rate is 0.0, but must be above 0"),
    ({"clamp": 0.0}, "clamp is 0.0, but must be above 0"),
    ({"kl": -1.0}, "kl is -1.0, but must be at least 0"),
])  # fmt: skip
def test_what_is_refused(change, said):
    with pytest.raises(ValueError, match=said):
        SEARCH._replace(**change).checked()
