"""A multilayer perceptron against torch's."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcl.models import mlp

pytestmark = pytest.mark.quick


def test_it_is_torch_s_linear_layers_with_relu_between() -> None:
    torch = pytest.importorskip("torch")
    sizes = (6, 5, 7, 3)
    params = mlp.init(jax.random.key(0), sizes)
    linear = [torch.nn.Linear(a, b) for a, b in pairwise(sizes)]
    with torch.no_grad():
        for i, layer in enumerate(linear):
            layer.weight.copy_(torch.tensor(np.array(params[f"dense_{i}"]["kernel"]).T))
            layer.bias.copy_(torch.tensor(np.array(params[f"dense_{i}"]["bias"])))
    model = torch.nn.Sequential(*(x for i, m in enumerate(linear)
                                  for x in ((torch.nn.ReLU(), m) if i else (m,))))  # fmt: skip
    x = np.random.default_rng(0).normal(size=(4, 2, 3)).astype(np.float32)  # images are flattened
    wanted = model(torch.tensor(x).reshape(4, 6)).detach().numpy()
    np.testing.assert_allclose(mlp.apply(params, {"x": jnp.asarray(x)}), wanted, atol=1e-6)


def test_every_layer_is_a_site() -> None:
    seen: list[str] = []

    def tap(site: str, layer: Any, h: jax.Array) -> jax.Array:
        seen.append(f"{site} {h.shape[-1]}")
        return h

    mlp.apply(mlp.init(jax.random.key(0), (4, 3, 2)), {"x": jnp.ones((1, 4))}, tap)
    assert seen == ["dense_0:in 4", "dense_0:out 3", "dense_1:in 3", "dense_1:out 2"]


def test_one_width_is_no_layer() -> None:
    with pytest.raises(ValueError, match=r"sizes is \[4\], but must be at least an input and"):
        mlp.init(jax.random.key(0), [4])
