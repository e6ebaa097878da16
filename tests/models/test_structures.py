"""What every backbone says of itself: which leaves stack layers, and which layer makes the logits.

The oracles are its own parameters with a layer or an expert more, and its slopes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jcl
from jcl import trees
from jcl.method import with_structure
from jcl.models import decoder, encoder, layers, mlp, multimodal, t5, vision

KEY = jax.random.key(0)
DECODER = decoder.Config(vocabulary=12, layers=2, width=16, heads=2, kv_heads=1, hidden=24)
ENCODER = encoder.Config(vocabulary=12, layers=2, width=16, heads=2, hidden=24)
T5 = t5.Config(
    vocabulary=12, layers=2, decoder_layers=2, width=16, heads=2, head_width=8, hidden=24
)
VISION = vision.Config(image=4, patch=2, layers=2, width=16, heads=2, hidden=24)
BOTH = multimodal.Config(VISION, DECODER)
MIXTURE = replace(DECODER, experts=3, chosen_experts=2)
TOKENS = {"tokens": jnp.array([[1, 2, 3, 4]]), "weight": jnp.ones(1), "task": jnp.zeros(1, int)}
IMAGE = {"image": jax.random.normal(KEY, (1, 4, 4, 1))}

BACKBONES: dict[str, tuple[Any, Any, dict[str, jax.Array], str | None]] = {
    "decoder, tied": (decoder, replace(DECODER, tied=True), TOKENS, "embed"),
    "decoder": (decoder, replace(DECODER, tied=False), TOKENS, "head"),
    "mixture": (decoder, replace(MIXTURE, tied=False), TOKENS, "head"),
    "encoder": (encoder, ENCODER, TOKENS, None),
    "encoder, masked": (encoder, replace(ENCODER, masked=True), TOKENS, "embed"),
    "encoder, classes": (encoder, replace(ENCODER, classes=12), TOKENS, "classifier"),
    "t5, tied": (t5, replace(T5, tied=True), TOKENS | {"inputs": TOKENS["tokens"]}, "embed"),
    "t5": (t5, T5, TOKENS | {"inputs": TOKENS["tokens"]}, "head"),
    "vision": (vision, VISION, IMAGE, None),
    "vision, classes": (vision, replace(VISION, classes=12), IMAGE, "classifier"),
    "multimodal": (multimodal, BOTH, TOKENS | IMAGE, "embed" if DECODER.tied else "head"),
}


def deeper(config: Any) -> Any:
    """With a layer more in every stack."""
    if isinstance(config, multimodal.Config):
        return replace(config, vision=deeper(config.vision), language=deeper(config.language))
    more = {"layers": config.layers + 1}
    if isinstance(config, t5.Config):
        more["decoder_layers"] = config.decoder_layers + 1
    return replace(config, **more)


def shapes(module: Any, config: Any) -> dict[str, tuple[int, ...]]:
    made = jax.eval_shape(lambda key: module.init(key, config), KEY)
    return {path: x.shape for path, x in trees.by_path(made).items()}


@pytest.mark.quick
@pytest.mark.parametrize("name", BACKBONES)
def test_a_leaf_stacks_layers_where_one_more_layer_makes_it_longer(name: str) -> None:
    module, config, *_ = BACKBONES[name]
    structure = module.apply_fn(config).structure
    more = shapes(module, deeper(config))
    for path, shape in shapes(module, config).items():
        grown = more[path] == (shape[0] + 1, *shape[1:])
        assert grown or more[path] == shape
        assert (trees.stack_axes(path, structure) > 0) == grown, path


@pytest.mark.quick
def test_experts_are_a_second_axis() -> None:
    structure = decoder.apply_fn(MIXTURE).structure
    more = shapes(decoder, replace(MIXTURE, experts=4))
    for path, shape in shapes(decoder, MIXTURE).items():
        grown = len(shape) > 1 and more[path] == (shape[0], shape[1] + 1, *shape[2:])
        assert (trees.stack_axes(path, structure) == 2) == grown, path


def slopes(apply: Callable[..., Any], params: Any, batch: Any, index: int) -> Any:
    """The gradient of the sum of all logits of one class."""
    return jax.jit(jax.grad(lambda p: jnp.sum(apply(p, batch)[..., index])))(params)


@pytest.mark.parametrize("name", BACKBONES)
def test_the_head_is_the_layer_whose_columns_are_the_classes(name: str) -> None:
    module, config, batch, head = BACKBONES[name]
    apply, params = module.apply_fn(config), module.init(KEY, config)
    assert apply.structure.head_of(params) == head
    if head is None:
        assert apply(params, batch).shape[-1] == 16  # features
        return
    one = slopes(apply, params, batch, 9)[head]  # a token that isn't read
    by_class = one["table"] if head == "embed" else one["kernel"].T
    assert np.any(by_class[9] != 0)
    np.testing.assert_array_equal(by_class[10:], 0)


@pytest.mark.parametrize("name", ["decoder", "decoder, tied", "multimodal"])
def test_a_classifier_among_the_parameters_is_the_head(name: str) -> None:
    module, config, batch, _ = BACKBONES[name]
    apply = module.apply_fn(config)
    params = module.init(KEY, config) | {"classifier": layers.init_dense(KEY, 16, 12)}
    assert apply.structure.head_of(params) == "classifier"
    one = slopes(apply, params, batch, 9)["classifier"]["kernel"]
    np.testing.assert_array_equal(np.flatnonzero(np.any(one != 0, axis=0)), [9])


@pytest.mark.quick
def test_the_head_of_a_perceptron_is_its_last_layer() -> None:
    for sizes in ([3, 4], [3, 5, 4], [3, 5, 5, 4]):
        params = mlp.init(KEY, sizes)
        assert mlp.apply.structure.head_of(params) == f"dense_{len(sizes) - 2}"
        assert not mlp.apply.structure.stacks


@pytest.mark.quick
def test_hooks_are_told_what_the_model_or_the_caller_says() -> None:
    seen = []

    def init(ctx: jcl.Ctx, params: Any) -> Any:
        seen.append(ctx.structure)
        return params, ()

    def plain(params: Any, batch: Any) -> jax.Array:
        return batch["x"] @ params["w"]

    mine, said = jcl.Structure("w"), jcl.Structure("given", {"w": 1})
    told = with_structure(lambda params, batch: plain(params, batch), mine)
    for apply, given in ((plain, None), (told, None), (told, said)):
        program = jcl.make(
            jcl.Method("look", init=init), apply, jcl.losses.squared_error, optax.sgd(0.1),
            structure=given,
        )  # fmt: skip
        program.init({"w": jnp.ones((3, 1))}, {"x": jnp.ones((2, 3)), "y": jnp.ones((2, 1))}, KEY)
    assert seen == [jcl.Structure(), mine, said]
