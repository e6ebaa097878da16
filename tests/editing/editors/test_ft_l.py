"""FT-L's promises: the answer becomes likelier, and no entry leaves its box."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_model as tiny

from jcl.editing.editors.ft_l import ft_l


def written(facts=tiny.FACTS, **options):
    made = ft_l(tiny.APPLY, **{"layer": 1, "steps": 5, "rate": 1e-2, **options})
    return jax.jit(made.write)(tiny.PARAMS, made.init(tiny.PARAMS, facts), facts)[0]


def nll(params, facts):
    """Mean -log p of the target's tokens, each after those before it."""
    tokens, mask = facts["tokens"][:, 0], facts["mask"][:, 0]
    logits = tiny.APPLY(params, {"tokens": tokens, "segments": facts["segments"][:, 0]})
    lost = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:])
    return jnp.mean(jnp.sum(lost * mask, axis=1) / jnp.sum(mask, axis=1))


@pytest.mark.parametrize("bound", [1e-3, 0.02])
def test_the_box(bound):
    change = np.abs(tiny.kernel(written(bound=bound)) - tiny.kernel(tiny.PARAMS))
    assert not change[[0, 2]].any()
    assert change.max() <= bound * 1.001
    assert (change[1] > 0.5 * bound).mean() > 0.3  # and it is used


def test_without_a_box_it_is_adam():
    """Five steps of optax on the same loss."""
    tx = optax.adam(1e-2)
    kernel = tiny.PARAMS["blocks"]["down"]["kernel"]

    def cost(layer):
        blocks = tiny.PARAMS["blocks"] | {"down": {"kernel": kernel.at[1].set(layer)}}
        return nll({**tiny.PARAMS, "blocks": blocks}, tiny.FACTS)

    layer, state = kernel[1], tx.init(kernel[1])
    for _ in range(5):
        move, state = tx.update(jax.grad(cost)(layer), state)
        layer = layer + move
    found = tiny.kernel(written(bound=None, objective="each"))[1]
    np.testing.assert_allclose(found, layer, atol=2e-3)


def test_the_published_loss_reads_the_prompts_last_token():
    """Every token of the target is scored there, so their order doesn't matter to it."""
    facts = tiny.some(0)
    tokens = np.array(facts["tokens"])
    spots = np.flatnonzero(facts["mask"][0, 0]) + 1
    tokens[0, 0, spots] = tokens[0, 0, spots[::-1]]
    turned = {**facts, "tokens": jnp.asarray(tokens)}
    one, other = (tiny.kernel(written(f, bound=None)) for f in (facts, turned))
    np.testing.assert_allclose(one, other, atol=1e-4)
    one, other = (tiny.kernel(written(f, bound=None, objective="each")) for f in (facts, turned))
    assert np.abs(one - other).max() > 1e-3


@pytest.mark.quick
def test_good_enough_is_left_alone():
    found = written(enough=1e6)
    np.testing.assert_array_equal(tiny.kernel(found), tiny.kernel(tiny.PARAMS))


@pytest.mark.quick
@pytest.mark.parametrize(("options", "said"), [
    ({"steps": 0}, "steps is 0, but must be at least 1"),
    ({"rate": 0.0}, "rate is 0.0, but must be above 0"),
    ({"bound": 0.0}, "bound is 0.0, but must be above 0, or None"),
    ({"objective": "first"}, "objective is 'first', but must be 'last' or 'each'"),
    ({"layer": 9}, r"layers is \(9,\), but must be from 0 to 2"),
])  # fmt: skip
def test_what_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        written(**options)
