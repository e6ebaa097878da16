"""Bottleneck adapters: a small network with a skip connection after every sublayer."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from jcl import trees
from jcl.mechanisms import adapters
from jcl.method import Ctx, Method, Params, check

Part = Literal["attention", "mlp"]


def bottleneck(width: int = 64, after: tuple[Part, ...] = ("attention", "mlp")) -> Method:
    """Adapters: h ← h + W_up relu(W_down h + c) + e, with h what a sublayer adds to the stream.

    They are the leaves `blocks/{attention,mlp}_adapter/{down,up}/{kernel,bias}`, float32. W_up is 0
    at the start, so that the model begins as it was. Only
    adapters learn, unless `jcl.make(trainable=...)` says otherwise.

    Source: Houlsby et al., arXiv 1902.00751, section 2 and figure 2; the norms there learn as well.

    Args:
      width: how many units a bottleneck has.
      after: which sublayers have one.

    Raises:
      ValueError: if an argument is out of range, or, at `init`, the model has no stacked `blocks`
        with an `output`, or doesn't read such adapters.
    """
    check(width >= 1, "width", width, "at least 1")
    ok = len(after) > 0 and {"attention", "mlp"} >= set(after)
    check(ok, "after", after, "'attention', 'mlp' or both, in a tuple")

    def init(ctx: Ctx, params: Params) -> tuple[Params, tuple[()]]:
        blocks = trees.merge(params, ctx.frozen).get("blocks", {})
        check("output" in blocks, "parameters", sorted(blocks), "with blocks/output")
        layers, _, size = adapters.shape(blocks["output"]["kernel"])
        for part, key in zip(after, jax.random.split(ctx.key, len(after)), strict=True):
            if f"{part}_adapter" in blocks:
                continue
            down = jax.random.uniform(key, (layers, size, width), minval=-1, maxval=1) / size**0.5
            new = {
                "down": {"kernel": down, "bias": jnp.zeros((layers, width))},
                "up": {
                    "kernel": jnp.zeros((layers, width, size)),
                    "bias": jnp.zeros((layers, size)),
                },
            }
            params = adapters.with_subtree(params, f"blocks/{part}_adapter", new)
        adapters.check_read("bottleneck", ctx, params, ctx.apply)
        return params, ()

    return Method("bottleneck", init=init, learns=adapters.is_adapter)
