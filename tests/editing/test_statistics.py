"""Second moments against sums written out, over packed documents as over each alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_model as tiny

from jcl import taps
from jcl.editing.statistics import second_moment


def inputs(tokens, layer):
    """What enters the kernel, [T, in], of a document alone."""
    batch = {"tokens": jnp.asarray(tokens)[None]}
    return taps.read(tiny.APPLY, tiny.PARAMS, batch, {"blocks/down:in": (layer, lambda h: h[0])})[
        0
    ]["blocks/down:in"]


def test_packed_padded_and_weightless_rows():
    a, b, c = ([*b"the first"], [*b"second one"], [*b"a third, all alone"])
    tokens, segments = np.full((2, 2, 24), 7, np.int32), np.zeros((2, 2, 24), np.int32)
    tokens[0, 0, :19], segments[0, 0, :19] = a + b, [1] * 9 + [2] * 10
    tokens[1, 1, :18], segments[1, 1, :18] = c, 1
    tokens[0, 1, :9], segments[0, 1, :9] = a, 1  # a row that doesn't count
    weight = np.array([[1, 0], [1, 1]], np.float32)
    batches = {"tokens": tokens, "segments": segments, "weight": weight}
    found = jax.jit(lambda b: second_moment(tiny.APPLY, tiny.PARAMS, b, (0, 2)))(batches)
    for i, layer in enumerate((0, 2)):
        k = np.concatenate([np.asarray(inputs(x, layer), np.float64) for x in (a, b, c)])
        np.testing.assert_allclose(found[i], k.T @ k / len(k), rtol=1e-4, atol=1e-6)


def test_without_segments_every_token_counts():
    k = np.concatenate([inputs(row, 1) for row in tiny.TEXT.reshape(-1, 32)[:3]])
    found = second_moment(tiny.APPLY, tiny.PARAMS, {"tokens": tiny.TEXT[:1, :3]}, [1])
    np.testing.assert_allclose(found[0], k.T @ k / len(k), rtol=1e-4, atol=1e-6)


@pytest.mark.quick
def test_an_unknown_layer():
    with pytest.raises(ValueError, match=r"path is 'blocks/low', but must be one of \['blocks/q"):
        second_moment(tiny.APPLY, tiny.PARAMS, {"tokens": tiny.TEXT}, [0], path="blocks/low")
