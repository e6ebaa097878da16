"""Views of stored tensors, which are read and written alike; against torch's own layers."""

import numpy as np
import pytest
import torch

from jcl.models import layout
from jcl.models.layers import ACTIVATIONS

pytestmark = pytest.mark.quick


def test_a_kernel_is_a_view_of_what_torch_stores():
    layer = torch.nn.Linear(3, 5)
    stored = layer.weight.detach().numpy()
    source = layout.linear("query", 3, 5)
    assert (source.name, source.shape) == ("query.weight", stored.shape)
    kernel = source.view(stored)
    x = np.ones((2, 3), np.float32)
    wanted = layer(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(x @ kernel + layer.bias.detach().numpy(), wanted, rtol=1e-5)
    kernel[0, 4] = 7.0  # what is written into the view is stored
    assert stored[4, 0] == 7.0


def test_a_block_has_each_layer_s_kernel_and_bias_and_each_norm_s_scale_and_bias():
    names = {"query": "attn.q", "up": "mlp.fc1", "down": "mlp.fc2", "mlp_norm": "ln"}
    found = layout.block("layers.{layer}", 4, 16, names)
    assert {path: (s.name, s.shape) for path, s in found.items()} == {
        "blocks/query/kernel": ("layers.{layer}.attn.q.weight", (4, 4)),
        "blocks/query/bias": ("layers.{layer}.attn.q.bias", (4,)),
        "blocks/up/kernel": ("layers.{layer}.mlp.fc1.weight", (16, 4)),
        "blocks/up/bias": ("layers.{layer}.mlp.fc1.bias", (16,)),
        "blocks/down/kernel": ("layers.{layer}.mlp.fc2.weight", (4, 16)),
        "blocks/down/bias": ("layers.{layer}.mlp.fc2.bias", (4,)),
        "blocks/mlp_norm/scale": ("layers.{layer}.ln.weight", (4,)),
        "blocks/mlp_norm/bias": ("layers.{layer}.ln.bias", (4,)),
    }


@pytest.mark.parametrize(
    ("theirs", "function"),
    [
        ("silu", torch.nn.functional.silu),
        ("gelu", torch.nn.functional.gelu),
        ("gelu_new", lambda x: torch.nn.functional.gelu(x, approximate="tanh")),
        ("quick_gelu", lambda x: x * torch.sigmoid(1.702 * x)),
        ("relu", torch.relu),
    ],
)
def test_an_activation_s_name_is_that_of_the_same_function(theirs, function):
    x = np.linspace(-3, 3, 25, dtype=np.float32)
    ours = ACTIVATIONS[layout.activation_name(theirs)](x)
    np.testing.assert_allclose(ours, function(torch.from_numpy(x)).numpy(), atol=1e-6)


def test_an_unknown_activation_is_refused_by_name():
    with pytest.raises(ValueError, match="activation is 'mish', but must be one of"):
        layout.activation_name("mish")
