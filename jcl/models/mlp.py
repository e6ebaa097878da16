"""A multilayer perceptron, the usual model for Split-MNIST."""

from __future__ import annotations

from collections.abc import Sequence

import jax

from jcl.method import Batch, Call, Params, Structure, as_call, check, with_structure
from jcl.models.layers import dense, init_dense


def init(key: jax.Array, sizes: Sequence[int]) -> Params:
    """Parameters `{"dense_0": {"kernel", "bias"}, ...}` for layer widths `sizes`, float32.

    Raises:
      ValueError: if there are fewer than two widths, or one is below 1.
    """
    check(len(sizes) >= 2, "sizes", sizes, "at least an input and an output width")
    check(min(sizes) >= 1, "sizes", sizes, "widths of at least 1")
    keys = jax.random.split(key, len(sizes) - 1)
    return {
        f"dense_{i}": init_dense(k, a, b)
        for i, (k, a, b) in enumerate(zip(keys, sizes[:-1], sizes[1:], strict=True))
    }


def _depth(params: Params) -> int:
    return sum(name.startswith("dense_") for name in params)


def apply(params: Params, batch: Batch, call: Call = Call()) -> jax.Array:
    """Logits [B, C] for the flattened `batch["x"]` [B, ...], with ReLU between layers."""
    tap = as_call(call).tap
    h = batch["x"].reshape(batch["x"].shape[0], -1)
    depth = _depth(params)
    for i in range(depth):
        h = dense(params[f"dense_{i}"], h, f"dense_{i}", tap)
        if i < depth - 1:
            h = jax.nn.relu(h)
    return h


with_structure(apply, Structure(head=lambda params: f"dense_{_depth(params) - 1}"))
