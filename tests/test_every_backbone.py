"""Models of Flax × the laws of methods, with a method of each kind.

A small ResNet keeps the averages of its batch norms beside its parameters, and a small Transformer
has dropout. The other backbones are the rows of `method_table`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

import jcl
from jcl import adapters, losses, methods, models
from jcl.models.resnet import ResNet
from jcl.testing.bench import CLASSES, Bench, Problem, stream
from jcl.testing.check import ALONE

pytestmark = pytest.mark.slow
EXAMPLE = jax.tree.map(lambda x: x[0, 0], stream())


def images(batch: Any) -> tuple[jax.Array]:
    """The rows of the bench as images."""
    return (batch["x"].reshape(-1, 4, 4, 1),)


class Transformer(nn.Module):
    """Two blocks with dropout, which answer by their last token."""

    @nn.compact
    def __call__(self, tokens: jax.Array, *, deterministic: bool) -> jax.Array:
        h = 4 * nn.Embed(CLASSES, 8)(tokens)
        mask = nn.make_causal_mask(tokens)
        for _ in range(2):
            attend = nn.MultiHeadAttention(num_heads=2, dropout_rate=0.2)
            a = attend(nn.LayerNorm()(h), mask=mask, deterministic=deterministic)
            h = h + nn.Dropout(0.2)(a, deterministic=deterministic)
            h = h + nn.Dense(8)(nn.gelu(nn.Dense(16)(nn.LayerNorm()(h))))
        return nn.Dense(CLASSES, name="head")(h[:, -1])


def problem(model: models.Model, trainable: Any = jcl.trees.every_leaf) -> Problem:
    loss = losses.cross_entropy()
    return Problem(model.apply, model.params, trainable, loss, model.collections)


RESNET = problem(
    models.flax.linen(
        ResNet(CLASSES, 4, (1, 1)), EXAMPLE, jax.random.key(1), inputs=images, head="head"
    )
)
TRANSFORMER = models.flax.linen(
    Transformer(), EXAMPLE, jax.random.key(1), inputs=lambda batch: (batch["tokens"],), head="head"
)
WHOLE, ADAPTED = problem(TRANSFORMER), problem(TRANSFORMER, adapters.is_adapter)
SPLIT = {"four microbatches", "four replicas"}
"""Laws of parts that are those of the whole: a batch norm's part normalises itself, as everywhere,
and each part drops out its own. What is averaged over parts is in test_collections."""

ROWS: dict[str, tuple[Callable[..., jcl.Method], Problem]] = {
    "resnet ewc": (partial(methods.ewc, strength=10.0), RESNET),
    "resnet er": (partial(methods.er, capacity=12, rows=4), RESNET),
    "resnet lwf": (methods.lwf, RESNET),
    "resnet gpm": (partial(methods.gpm, threshold=0.5), RESNET),
    "resnet soft_mask": (methods.soft_mask, RESNET),
    "resnet wise_ft": (methods.wise_ft, RESNET),
    "transformer si": (partial(methods.si, strength=10.0), WHOLE),
    "transformer derpp": (partial(methods.derpp, capacity=12, rows=4), WHOLE),
    "transformer lwf": (methods.lwf, WHOLE),
    "transformer ema": (partial(methods.ema, decay=0.5), WHOLE),
    "transformer lora": (partial(methods.lora, rank=2, targets=r"Dense_\d"), ADAPTED),
}
SHORT = {"resnet er", "resnet wise_ft", "transformer derpp", "transformer lora"}
"""One row for each way that collections and dropout meet a method; the others are run by hand."""


def marks(name: str) -> tuple[Any, ...]:
    group = pytest.mark.xdist_group(f"backbone {name}")
    return (group,) if name in SHORT else (group, pytest.mark.whole)


@pytest.fixture(scope="module", params=[pytest.param(name, marks=marks(name)) for name in ROWS])
def bench(request: pytest.FixtureRequest) -> Bench:
    build, given = ROWS[request.param]
    return Bench(lambda **changes: build(**changes), given)


@pytest.mark.parametrize("law", [v for k, v in ALONE.items() if k not in SPLIT],
                         ids=[k for k in ALONE if k not in SPLIT])  # fmt: skip
def test_a_law_holds(bench: Bench, law: Callable[[Bench], None]) -> None:
    law(bench)


def test_averages_move_in_training_and_have_no_gradient(bench: Bench) -> None:
    first, last = bench.states[0], bench.states[-1]
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), first.collections, last.collections)
    assert all(jax.tree.leaves(moved))
    names = set(jcl.trees.by_path(first.collections))
    assert not names & set(jcl.trees.by_path(last.params))
