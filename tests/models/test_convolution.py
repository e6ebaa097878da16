"""A convolution with gradients of its own, against lax's."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jcl.models.convolution import convolve

CASES = {
    "3x3": ((2, 7, 6, 3), (3, 3, 3, 4), (1, 1), ((1, 1), (1, 1))),
    "3x3 halved": ((2, 8, 8, 3), (3, 3, 3, 4), (2, 2), ((1, 1), (1, 1))),
    "3x3 halved, odd": ((2, 7, 5, 3), (3, 3, 3, 4), (2, 2), ((1, 1), (1, 1))),
    "1x1 halved": ((2, 8, 7, 3), (1, 1, 3, 4), (2, 2), ((0, 0), (0, 0))),
    "uneven": ((2, 9, 7, 3), (2, 4, 3, 5), (3, 1), ((0, 2), (3, 1))),
    "cropped": ((2, 9, 7, 3), (3, 3, 3, 5), (2, 1), ((-1, 0), (1, -2))),
    "same": ((2, 7, 6, 3), (3, 2, 3, 4), (2, 1), "SAME"),
    "valid": ((2, 7, 6, 3), (3, 2, 3, 4), (2, 3), "VALID"),
    "sequence": ((2, 9, 3), (4, 3, 5), (2,), ((2, 1),)),
    "volume": ((2, 4, 5, 4, 2), (2, 3, 1, 2, 3), (1, 2, 1), ((1, 0), (1, 1), (0, 0))),
}
ORDERS = {1: ("NWC", "WIO", "NWC"), 2: ("NHWC", "HWIO", "NHWC"), 3: ("NDHWC", "DHWIO", "NDHWC")}


def draw(name):
    shape, window, *rest = CASES[name]
    keys = jax.random.split(jax.random.key(0))
    return jax.random.normal(keys[0], shape), jax.random.normal(keys[1], window), *rest


def slopes(function, x, kernel):
    """Gradients of something that isn't linear in the outputs."""
    return jax.grad(lambda x, k: jnp.sum(jnp.sin(function(x, k))), (0, 1))(x, kernel)


@pytest.mark.quick
@pytest.mark.parametrize("name", CASES)
def test_outputs_and_gradients_are_lax_s(name):
    x, kernel, strides, padding = draw(name)
    order = ORDERS[len(strides)]

    def ours(x, k):
        return convolve(x, k, strides, padding, dimension_numbers=order, rhs_dilation=None)

    def theirs(x, k):
        return lax.conv_general_dilated(x, k, strides, padding, dimension_numbers=order)

    np.testing.assert_array_equal(ours(x, kernel), theirs(x, kernel))
    for found, wanted in zip(slopes(ours, x, kernel), slopes(theirs, x, kernel), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_second_derivatives_and_gradients_of_single_rows_are_lax_s():
    x, kernel, strides, padding = draw("3x3 halved")
    order = ORDERS[2]

    def each(convolution, x, kernel):
        """Squared gradients of single rows, as a Fisher has them."""

        def one(row):
            fn = lambda k: jnp.sum(jnp.sin(convolution(row[None], k)))  # noqa: E731
            return jax.grad(fn)(kernel) ** 2

        return jax.vmap(one)(x)

    def ours(x, k):
        return convolve(x, k, strides, padding, dimension_numbers=order)

    def theirs(x, k):
        return lax.conv_general_dilated(x, k, strides, padding, dimension_numbers=order)

    np.testing.assert_allclose(each(ours, x, kernel), each(theirs, x, kernel), rtol=1e-4, atol=1e-4)
    twice = [jax.grad(lambda k, f=f: jnp.sum(each(f, x, k)))(kernel) for f in (ours, theirs)]
    np.testing.assert_allclose(*twice, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "options",
    [
        {"feature_group_count": 3},
        {"rhs_dilation": (2, 2)},
        {"lhs_dilation": (2, 1)},
        {"dimension_numbers": ("NCHW", "OIHW", "NCHW")},
    ],
)
def test_every_other_convolution_is_lax_s_own(options):
    order = options.get("dimension_numbers")
    shapes = ((2, 7, 7, 3), (3, 3, 1 if "feature_group_count" in options else 3, 6))
    shapes = ((2, 3, 7, 7), (4, 3, 3, 3)) if order else shapes
    x, kernel = (jax.random.normal(jax.random.key(i), s) for i, s in enumerate(shapes))
    given = {"dimension_numbers": ORDERS[2], **options}

    def ours(x, k):
        return convolve(x, k, (2, 1), ((1, 1), (0, 2)), **given)

    def theirs(x, k):
        return lax.conv_general_dilated(x, k, (2, 1), ((1, 1), (0, 2)), **given)

    np.testing.assert_array_equal(ours(x, kernel), theirs(x, kernel))
    jax.tree.map(np.testing.assert_array_equal, slopes(ours, x, kernel), slopes(theirs, x, kernel))


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="about the CPU's compiler")
def test_inside_a_loop_every_convolution_has_the_order_that_the_fast_routine_takes():
    x, kernel, strides, padding = draw("3x3")
    kernel = kernel[..., :3]

    def compiled(convolution):
        def step(_, kernel):
            fn = lambda x, k: jnp.sum(  # noqa: E731
                jnp.sin(convolution(convolution(x, k, strides, padding), k, strides, padding))
            )
            slope, back = jax.grad(fn, (0, 1))(x, kernel)
            return kernel - 0.1 * back - 0.1 * slope.mean()

        run = jax.jit(lambda k: lax.fori_loop(0, 4, step, k))
        return set(re.findall(r"dim_labels=(\S+?)[,}\s]", run.lower(kernel).compile().as_text()))

    def ours(x, k, *rest):
        return convolve(x, k, *rest, dimension_numbers=ORDERS[2])

    def theirs(x, k, *rest):
        return lax.conv_general_dilated(x, k, *rest, dimension_numbers=ORDERS[2])

    assert compiled(ours) == {"b01f_01io->b01f"}
    assert len(compiled(theirs)) > 1, "lax's own gradients are in order too: convolve may go"
