"""Flax's layers as matrices: what flows at `:in` times the kernel is what the layer puts out."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from jcl import taps
from jcl.method import Call, Structure
from jcl.models import flax, flax_layers

KEY = jax.random.key(0)
IMAGES = jax.random.normal(jax.random.key(1), (2, 7, 6, 3))
SERIES = jax.random.normal(jax.random.key(2), (2, 9, 4))
CONVS: dict[str, tuple[Any, jax.Array]] = {
    "same": (nn.Conv(5, (3, 3)), IMAGES),
    "strides": (nn.Conv(5, (3, 2), strides=(2, 3)), IMAGES),
    "valid, dilated": (nn.Conv(5, (2, 3), kernel_dilation=(2, 1), padding="VALID"), IMAGES),
    "one by one": (nn.Conv(5, (1, 1), strides=2), IMAGES),
    "number": (nn.Conv(5, (3, 3), padding=2, use_bias=False), IMAGES),
    "pairs": (nn.Conv(5, (3, 3), padding=((0, 2), (1, 0)), strides=2), IMAGES),
    "cropped": (nn.Conv(5, (2, 2), padding=((-1, 0), (0, -2))), IMAGES),
    "circular": (nn.Conv(5, (3, 4), padding="CIRCULAR"), IMAGES),
    "reflect": (nn.Conv(5, (3, 3), padding="REFLECT", strides=2), IMAGES),
    "lower": (nn.Conv(5, (4, 4), padding="SAME_LOWER"), IMAGES),
    "causal": (nn.Conv(5, (3,), padding="CAUSAL", kernel_dilation=2), SERIES),
    "no rows": (nn.Conv(5, 3), SERIES[0]),
    "rows of rows": (nn.Conv(5, 3, strides=2), jnp.stack([SERIES, 2 * SERIES])),
}
DENSE: dict[str, tuple[Any, jax.Array]] = {
    "dense": (nn.Dense(5), SERIES),
    "several out": (nn.DenseGeneral((2, 3)), SERIES),
    "several in": (nn.DenseGeneral(5, axis=(-2, -1)), IMAGES),
    "in the middle": (nn.DenseGeneral((5, 2), axis=(1, 3), use_bias=False), IMAGES),
    "turned": (nn.DenseGeneral(5, axis=(-1, 1)), IMAGES),
    "einsum": (nn.Einsum((6, 3, 2, 5), "...hc,hcab->...ab"), IMAGES),
}
UNUSUAL: dict[str, tuple[Any, jax.Array]] = {
    "grouped": (nn.Conv(6, (3, 3), feature_group_count=3), IMAGES),
    "masked": (nn.Conv(5, (3,), mask=jnp.ones((3, 4, 5))), SERIES),
    "input dilated": (nn.Conv(5, (3,), input_dilation=2, padding=1), SERIES),
    "local": (nn.ConvLocal(5, (3,)), SERIES),
    "transposed": (nn.ConvTranspose(5, (3,)), SERIES),
    "batch axes": (nn.DenseGeneral(5, batch_dims=(0,)), SERIES),
    "einsum, kernel in another order": (nn.Einsum((2, 4, 5), "...a,hab->...hb"), SERIES),
    "embed": (nn.Embed(7, 5), jnp.arange(6).reshape(2, 3)),
    "layer norm": (nn.LayerNorm(), SERIES),
    "group norm": (nn.GroupNorm(num_groups=2), SERIES),
}


class Net(nn.Module):
    """A module whose only layer is `layer`."""

    layer: nn.Module

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.layer(x)


def model_of(layer: Any, x: jax.Array) -> Any:
    return flax.linen(Net(layer), {"x": x}, KEY)


def copied(site: str, layer: Any, h: jax.Array) -> jax.Array:
    """Another array of the same values, so that layers compute from what taps gave back."""
    return h + 0


@pytest.mark.parametrize("name", CONVS | DENSE)
def test_what_flows_in_times_the_kernel_as_a_matrix_is_what_flows_out(name: str) -> None:
    layer, x = (CONVS | DENSE)[name]
    model = model_of(layer, x)
    ours = model.params["layer"]
    ours["bias"] = (
        jnp.arange(1.0, 1 + ours["bias"].size).reshape(ours["bias"].shape)
        if ("bias" in ours)
        else None
    )
    ours = model.params["layer"] = {k: v for k, v in ours.items() if v is not None}
    wanted = layer.apply({"params": ours}, x)
    seen: dict[str, jax.Array] = {}

    def look(site: str, layer: Any, h: jax.Array) -> jax.Array:
        seen[site] = h
        return h

    same = model.apply(model.params, {"x": x}, Call(look))
    np.testing.assert_array_equal(same, wanted)
    width = taps.Width(seen["layer:in"].shape[-1], seen["layer:out"].shape[-1])
    shape = taps.matrix_shape("layer", ours["kernel"].shape, width, Structure())
    product = seen["layer:in"] @ ours["kernel"].reshape(shape)
    product = product + ours.get("bias", jnp.zeros(width.outputs)).reshape(-1)
    np.testing.assert_allclose(seen["layer:out"], product, atol=1e-5)
    assert seen["layer:out"].size == wanted.size
    changed = model.apply(model.params, {"x": x}, Call(copied))
    np.testing.assert_allclose(changed, wanted, atol=1e-5)


@pytest.mark.quick
@pytest.mark.parametrize("name", UNUSUAL)
def test_layers_that_are_no_such_matrix_show_their_output_alone(name: str) -> None:
    layer, x = UNUSUAL[name]
    model = model_of(layer, x)
    assert list(taps.sites(model.apply, model.params, {"x": x})) == ["layer:out"]
    doubled = model.apply(model.params, {"x": x}, Call(lambda site, layer, h: 2 * h))
    np.testing.assert_allclose(doubled, 2 * layer.apply({"params": model.params["layer"]}, x))


@pytest.mark.quick
def test_a_tap_that_changes_nothing_costs_nothing() -> None:
    layer, x = CONVS["same"]
    model = model_of(layer, x)

    def compiled(tap: Any) -> str:
        run = jax.jit(lambda p: model.apply(p, {"x": x}, Call(tap)))
        return run.lower(model.params).compile().as_text()

    plain = compiled(taps.identity)
    assert compiled(lambda site, layer, h: h) == plain
    assert "convolution" in plain and "concatenate" not in plain


class Own(nn.Dense):
    """A dense layer with arithmetic of its own, which no matrix describes."""

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        return super().__call__(inputs) ** 2


class Renamed(nn.Dense):
    """A dense layer under another name."""


@pytest.mark.quick
def test_which_classes_have_sites() -> None:
    assert flax_layers.kind_of(nn.Dense, nn) == "Dense"
    assert flax_layers.kind_of(Renamed, nn) == "Dense"
    assert flax_layers.kind_of(Own, nn) is None
    assert flax_layers.kind_of(nnx.Linear, nnx) == "Linear"
    assert flax_layers.kind_of(nnx.LoRALinear, nnx) is None
    assert flax_layers.kind_of(nn.Dense, nnx) is None


@pytest.mark.quick
def test_what_a_batch_norm_counts() -> None:
    rows = {"weight": jnp.array([1.0, 0.0, 2.0])}
    mask = flax_layers.row_mask("norm", jnp.ones((3, 4, 4, 2)), rows)
    np.testing.assert_array_equal(mask, np.array([1, 0, 1], bool).reshape(3, 1, 1, 1))
    text = {**rows, "segments": jnp.array([[1, 1, 0, 0], [1, 1, 1, 1], [1, 2, 2, 0]])}
    mask = flax_layers.row_mask("norm", jnp.ones((3, 4, 2)), text)
    there = [[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 0]]
    np.testing.assert_array_equal(mask, np.array(there, bool)[..., None])
    alone = flax_layers.row_mask("norm", jnp.ones((3, 2)), {"weight": jnp.zeros(3)})
    assert alone.all()  # a mean over nothing would be no number
    with pytest.raises(ValueError, match=r"'a/norm' is given x .12, 2., but must .* 3 rows"):
        flax_layers.row_mask("a/norm", jnp.ones((12, 2)), rows)
