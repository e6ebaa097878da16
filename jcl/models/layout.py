"""How a published model's configuration and tensors become ours: what its families say of it.

A family maps a Hugging Face configuration to ours, and each leaf of our parameter tree to a view
of a stored tensor. The same view serves both ways: weights are read from it, and written into it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jcl.method import Apply, Params
from jcl.models import decoder

View = Callable[[np.ndarray], np.ndarray]


class Source(NamedTuple):
    """Where one leaf, or one layer or expert of it, is stored."""

    name: str
    """The tensor's name; `{layer}` and `{expert}` stand for indices along the leaf's first axes."""
    shape: tuple[int, ...]
    """The stored tensor's shape."""
    view: View = lambda stored: stored
    """Gives the leaf within the stored tensor, up to a reshape, without copying."""


Layout = dict[str, Source]
"""The sources of leaves, by path such as `blocks/query/kernel`."""


class Family(NamedTuple):
    """How one `model_type` is read and written."""

    config: Callable[[Any], Any]
    """Makes our configuration from one of transformers, in its 5.x form."""
    layout: Callable[[Any], Layout]
    """Makes the layout from our configuration."""
    prefix: str
    """The prefix of the body's tensors, which some checkpoints leave out."""
    heads: Callable[[Any, Any, frozenset[str]], Any] = lambda config, given, names: config
    """Completes our configuration by what only the names of the stored tensors tell."""
    init: Callable[..., Params] = decoder.init
    """`init(key, config)` of the model's module."""
    apply_fn: Callable[..., Apply] = decoder.apply_fn
    """`apply_fn(config)` of the model's module."""
    copies: Mapping[str, str] = {}
    """Tensors that some files hold beside the one that they are a copy of."""
    unread: str = ""
    """A regular expression of tensors of other parts, which are left out."""
    also: frozenset[str] = frozenset()
    """Keys that transformers reads though the family's configuration doesn't declare them."""


def _transposed(stored: np.ndarray) -> np.ndarray:
    return stored.T


def linear(name: str, fan_in: int, fan_out: int) -> Source:
    """The source of a kernel [in, out], which torch.nn.Linear stores as a weight [out, in]."""
    return Source(f"{name}.weight", (fan_out, fan_in), _transposed)


def vector(name: str, size: int) -> Source:
    """The source of a bias, or of a norm's scale."""
    return Source(name, (size,))


def dense(ours: str, theirs: str, fan_in: int, fan_out: int) -> Layout:
    """A linear layer with a bias."""
    return {
        f"{ours}/kernel": linear(theirs, fan_in, fan_out),
        f"{ours}/bias": vector(f"{theirs}.bias", fan_out),
    }


def norm(ours: str, theirs: str, width: int) -> Layout:
    """A layer norm with a bias."""
    return {
        f"{ours}/scale": vector(f"{theirs}.weight", width),
        f"{ours}/bias": vector(f"{theirs}.bias", width),
    }


def block(at: str, width: int, hidden: int, names: Mapping[str, str]) -> Layout:
    """A block's dense layers and norms, all of them with biases.

    Args:
      at: where they stand in a layer, with `{layer}`.
      width: of the residual stream.
      hidden: width inside the MLP.
      names: by our names, such as `query` and `mlp_norm`, theirs below `at`.
    """
    sizes = {"up": (width, hidden), "down": (hidden, width)}
    found: Layout = {}
    for ours, theirs in names.items():
        if ours.endswith("_norm"):
            found |= norm(f"blocks/{ours}", f"{at}.{theirs}", width)
        else:
            fan_in, fan_out = sizes.get(ours, (width, width))
            found |= dense(f"blocks/{ours}", f"{at}.{theirs}", fan_in, fan_out)
    return found


_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
}


def activation_name(name: str) -> str:
    """The name in `layers.ACTIVATIONS` of an activation of transformers.

    Raises:
      ValueError: if there is no such activation.
    """
    if name not in _ACTIVATIONS:
        raise ValueError(f"activation is {name!r}, but must be one of {list(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]
