"""Reading what flows through a model, against the model's own arithmetic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcl import taps
from jcl.method import Structure
from jcl.models import decoder, mlp, multimodal, t5, vision

CONFIG = decoder.Config(layers=4, width=16, heads=2, kv_heads=2, hidden=24, vocabulary=32)


@pytest.fixture(scope="module")
def model():
    params = decoder.init(jax.random.key(0), CONFIG)
    params = jax.tree.map(lambda x: 5 * x if x.ndim > 2 else x, params)
    tokens = jax.random.randint(jax.random.key(1), (3, 7), 0, 32)
    return decoder.apply_fn(CONFIG), params, {"tokens": tokens}


def whole(h):
    return h


def look(apply, params, batch, wanted):
    """`taps.read`, compiled as one."""
    return jax.jit(lambda p, b: taps.read(apply, p, b, wanted))(params, batch)


@pytest.mark.parametrize("layers", [[1, 3], [2], [3, 0, 2]])
def test_read_layers_stand_in_order_and_add_up(model, layers):
    apply, params, batch = model
    sites = ("blocks/down:in", "blocks/down:out", "blocks:out", "blocks:attention", "blocks:mlp")
    found, outputs = look(apply, params, batch, {s: (layers, whole) for s in sites})
    before, _ = look(apply, params, batch, {"blocks:out": ([0, 1, 2, 3], whole)})
    np.testing.assert_array_equal(outputs, jax.jit(apply)(params, batch))
    for i, layer in enumerate(layers):
        product = found["blocks/down:in"][i] @ params["blocks"]["down"]["kernel"][layer]
        np.testing.assert_allclose(found["blocks/down:out"][i], product, atol=1e-5)
        table = params["embed"]["table"][batch["tokens"]]
        old = before["blocks:out"][layer - 1] if layer else table
        added = found["blocks:attention"][i] + found["blocks:mlp"][i]
        np.testing.assert_allclose(found["blocks:out"][i], old + added, atol=1e-5)


def test_one_layer_a_pick_and_a_traced_index(model):
    apply, params, batch = model

    @jax.jit
    def last(layer):
        wanted = {"blocks:out": (layer, lambda h: h[:, -1])}
        return taps.read(apply, params, batch, wanted)[0]["blocks:out"]

    every, _ = look(apply, params, batch, {"blocks:out": ([0, 1, 2, 3], whole)})
    for layer in range(4):
        np.testing.assert_allclose(
            last(jnp.int32(layer)), every["blocks:out"][layer][:, -1], atol=1e-6
        )


@pytest.mark.quick
def test_outside_a_stack():
    params = mlp.init(jax.random.key(0), (4, 5, 3))
    x = jax.random.normal(jax.random.key(1), (6, 4))
    found, _ = taps.read(mlp.apply, params, {"x": x}, {"dense_1:in": (0, whole)})
    first = params["dense_0"]
    np.testing.assert_allclose(
        found["dense_1:in"], jax.nn.relu(x @ first["kernel"] + first["bias"]), atol=1e-6
    )


# Moments: what is summed of what flows, and what is left out as padding


def total(h, weight, layer):
    """Σ weight · h, float32 [d]."""
    return jnp.tensordot(weight, h, weight.ndim)


def sums(apply, params, batch, sites):
    """`taps.moments`, compiled as one; rows without a weight count once."""
    return jax.jit(lambda p, b: taps.moments(apply, p, b, sites))(
        params, {"weight": jnp.ones(len(batch["tokens"])), **batch}
    )


def layer_sums(apply, params, batch, site, layers, moment=total):
    return sums(apply, params, batch, {site: (layers, moment)})[site]


@pytest.mark.parametrize("moment", [total, taps.magnitude, taps.second])
def test_moments_are_sums_over_rows_and_tokens_in_each_layer(model, moment):
    apply, params, batch = model
    weight = jnp.array([2.0, 0.0, 0.5])
    got = layer_sums(apply, params, {**batch, "weight": weight}, "blocks/down:in", 4, moment)
    seen, _ = look(apply, params, batch, {"blocks/down:in": ([0, 1, 2, 3], whole)})
    h, w = np.float64(seen["blocks/down:in"]), np.float64(weight)
    wanted = {
        total: np.einsum("b,lbti->li", w, h),
        taps.magnitude: np.einsum("b,lbti->li", w, np.abs(h)),
        taps.second: np.einsum("b,lbti,lbtj->lij", w, h, h),
    }[moment]
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.quick
def test_moments_outside_a_stack():
    params = mlp.init(jax.random.key(0), (4, 5, 3))
    x = jax.random.normal(jax.random.key(1), (6, 4))
    batch = {"x": x, "weight": jnp.arange(6.0)}
    found = taps.moments(mlp.apply, params, batch, {"dense_0:in": (None, total)})
    np.testing.assert_allclose(found["dense_0:in"], jnp.arange(6.0) @ x, rtol=1e-5)


@pytest.mark.quick
def test_a_token_counts_if_a_counted_one_of_its_segment_is_it_or_comes_later(model):
    apply, params, batch = model
    tokens = batch["tokens"]  # [3, 7]
    segments = jnp.array([[1, 1, 1, 1, 2, 2, 0], [1, 1, 2, 2, 2, 3, 3], [1, 1, 1, 1, 1, 1, 1]])
    mask = jnp.array([[0, 1, 0, 0, 1, 0], [0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0]])
    real = [[1, 1, 1, 0, 1, 1, 0], [0, 0, 1, 1, 1, 0, 0], [0] * 7]
    packed = {"tokens": tokens, "segments": segments, "mask": mask.astype(jnp.float32)}
    got = layer_sums(apply, params, packed, "blocks/up:in", 4)
    seen, _ = taps.read(apply, params, packed, {"blocks/up:in": ([0, 1, 2, 3], whole)})
    wanted = np.einsum("bt,lbti->li", np.float64(real), np.float64(seen["blocks/up:in"]))
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
    # a mask of hidden tokens, each predicted from both sides, counts all of its segment
    hidden = {**packed, "mask": jnp.pad(packed["mask"], ((0, 0), (1, 0)))}
    got = layer_sums(apply, params, hidden, "blocks/up:in", 4)
    real = [[1, 1, 1, 1, 1, 1, 0], [0, 0, 1, 1, 1, 0, 0], [0] * 7]
    wanted = np.einsum("bt,lbti->li", np.float64(real), np.float64(seen["blocks/up:in"]))
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
    # without a mask every real token counts, and as much as with a mask of ones
    both = [{**packed, "mask": jnp.ones((3, 6))}, {k: packed[k] for k in ("tokens", "segments")}]
    ones, none = (layer_sums(apply, params, b, "blocks/up:in", 4) for b in both)
    np.testing.assert_allclose(ones, none, rtol=1e-5, atol=1e-6)


def test_appended_padding_changes_no_moment(model):
    apply, params, batch = model
    tokens = batch["tokens"]
    plain = layer_sums(apply, params, {"tokens": tokens}, "blocks/value:in", 4, taps.second)
    behind = ((0, 0), (0, 5))
    wide = {"tokens": jnp.pad(tokens, behind), "segments": jnp.pad(jnp.ones_like(tokens), behind)}
    unmarked = {"tokens": wide["tokens"], "mask": jnp.pad(jnp.ones((3, 6)), behind)}
    rows = {"tokens": jnp.pad(tokens, ((0, 2), (0, 0))), "weight": jnp.array([1.0, 1, 1, 0, 0])}
    for padded in (wide, unmarked, rows):
        got = layer_sums(apply, params, padded, "blocks/value:in", 4, taps.second)
        np.testing.assert_allclose(got, plain, rtol=1e-3, atol=1e-4)


def test_a_soft_prefix_counts_unless_it_is_marked_as_padding(model):
    apply, params, batch = model
    soft = jax.random.normal(jax.random.key(2), (3, 2, 16))
    marks = jnp.array([[1, 1], [0, 1], [0, 0]])
    there = {**batch, "embeddings": soft}
    mask = {"mask": jnp.zeros((3, 6)).at[:, 2].set(1.0)}
    tokens = np.arange(7) < 4
    for more, real in (
        ({}, np.ones((3, 9))),
        ({"embedding_segments": marks}, np.concatenate([marks, np.ones((3, 7))], axis=1)),
        (mask, np.concatenate([np.ones((3, 2)), np.tile(tokens, (3, 1))], axis=1)),
    ):
        given = there | more
        got = layer_sums(apply, params, given, "blocks/key:in", 4)
        seen, _ = taps.read(apply, params, given, {"blocks/key:in": ([0, 1, 2, 3], whole)})
        wanted = np.einsum("bt,lbti->li", real, np.float64(seen["blocks/key:in"]))
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


def test_what_a_t5_reads_and_what_it_writes_each_have_their_own_padding():
    config = t5.Config(
        vocabulary=16, layers=2, decoder_layers=2, width=16, heads=2, head_width=8, hidden=24
    )
    apply, params = t5.apply_fn(config), t5.init(jax.random.key(0), config)
    keys = jax.random.split(jax.random.key(1))
    read, written = (jax.random.randint(k, (2, 6), 0, 16) for k in keys)  # of the same length
    batch = {"inputs": read, "tokens": written, "weight": jnp.ones(2)}
    batch["input_segments"] = jnp.array([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0]])
    batch["segments"] = jnp.array([[1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0]])
    real = {
        "encoder/blocks/query:in": batch["input_segments"],
        "decoder/blocks/cross_key:in": batch["input_segments"],
        "decoder/blocks/cross_query:in": batch["segments"],
        "decoder/blocks/up:out": batch["segments"],
    }
    got = sums(apply, params, batch, dict.fromkeys(real, (2, total)))
    seen, _ = look(apply, params, batch, dict.fromkeys(real, ([0, 1], whole)))
    for site, counted in real.items():
        wanted = np.einsum("bt,lbti->li", np.float64(counted), np.float64(seen[site]))
        np.testing.assert_allclose(got[site], wanted, rtol=1e-4, atol=1e-5, err_msg=site)


def test_an_image_that_only_fills_a_batch_counts_nothing():
    config = multimodal.Config(
        vision.Config(image=4, patch=1, layers=1, width=16, heads=2, hidden=24),
        decoder.Config(vocabulary=8, layers=2, width=16, heads=2, kv_heads=1, hidden=24),
    )
    apply, params = multimodal.apply_fn(config), multimodal.init(jax.random.key(0), config)
    batch = {
        "image": jax.random.normal(jax.random.key(1), (2, 4, 4, 1)),
        "tokens": jnp.arange(10).reshape(2, 5) % 8,
        "segments": jnp.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]),
        "has_image": jnp.array([1, 0]),
    }
    text = np.concatenate([[[1.0] * 16, [0.0] * 16], batch["segments"]], axis=1)
    patches = np.array([[1.0] * 16, [0.0] * 16])
    sites = {
        "vision/blocks/up:in": (1, patches),
        "projector/second:in": (None, patches),
        "blocks/up:in": (2, text),
    }
    got = sums(apply, params, batch, {s: (layers, total) for s, (layers, _) in sites.items()})
    at = {s: list(range(layers)) if layers else [0] for s, (layers, _) in sites.items()}
    seen, _ = look(apply, params, batch, {s: (layers, whole) for s, layers in at.items()})
    for site, (_, real) in sites.items():
        wanted = np.einsum("bt,lbti->li", real, np.float64(seen[site]))
        found = np.atleast_2d(got[site])
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4, err_msg=site)


@pytest.mark.quick
def test_a_kernel_is_a_matrix_of_what_flows_in_and_out_in_each_layer():
    said = Structure(stacks={"blocks": 1})
    for kernel in ((3, 4, 10), (3, 4, 2, 5), (3, 2, 2, 5, 2)):
        assert taps.matrix_shape("blocks/up", kernel, taps.Width(4, 10), said) == (3, 4, 10)
        assert taps.matrix_shape("head", kernel[1:], taps.Width(4, 10), said) == (4, 10)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("path", "kernel", "width"),
    [
        ("up", (3, 4, 5), (4, 5)),  # stacked, but the model doesn't say so
        ("blocks/up", (4, 5), (4, 5)),  # not stacked, though it says so
        ("up", (4, 4, 5), (4, 5)),  # as many layers as inputs
        ("up", (2, 5, 4), (4, 10)),  # what it multiplies isn't in front
    ],
)
def test_a_kernel_of_other_axes_than_the_model_says_is_refused(path, kernel, width):
    with pytest.raises(ValueError, match=r"stacks is \{'blocks': 1\}, but must say"):
        taps.matrix_shape(path, kernel, taps.Width(*width), Structure(stacks={"blocks": 1}))


@pytest.mark.quick
def test_what_flows_without_the_batchs_rows_in_front_has_no_moments():
    def apply(params, batch, call):
        return call.tap("layer:in", 0, batch["x"].reshape(-1, 2))

    batch = {"x": jnp.ones((3, 4)), "weight": jnp.ones(3)}
    with pytest.raises(ValueError, match=r"layer:in has shape \(6, 2\), but must have .* 3 rows"):
        taps.moments(apply, {}, batch, {"layer:in": (None, taps.second)})
