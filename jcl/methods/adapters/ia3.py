"""(IA)³: learned gains on keys, values and the inside of the MLP."""

from __future__ import annotations

import jax.numpy as jnp

from jcl import trees
from jcl.mechanisms import adapters
from jcl.method import Ctx, Method, Params, check


def ia3(outputs: str | None = r"blocks/(key|value)", inputs: str | None = r"blocks/down") -> Method:
    """(IA)³: learned gains on keys, on values and on the inputs of the MLP's last layer.

    They are leaves `<layer>/gain` and `<layer>/input_gain`, float32, 1 at the start. Only
    adapters learn, unless `jcl.make(trainable=...)` says otherwise. `adapters.merge` folds them in.

    Source: Liu et al., arXiv 2205.05638, section 3.3; a layer's bias is scaled too, as in peft.

    Args:
      outputs: regular expression for whole paths of dense layers whose outputs are scaled; None
        scales none.
      inputs: the same for layers whose inputs are scaled.

    Raises:
      ValueError: if both are None, or, at `init`, one matches no dense layer.
    """
    check(bool(outputs or inputs), "outputs", outputs, "given where inputs is None")

    def init(ctx: Ctx, params: Params) -> tuple[Params, tuple[()]]:
        whole, given = trees.merge(params, ctx.frozen), params
        for targets, key, axis in ((outputs, "gain", -1), (inputs, "input_gain", -2)):
            kernels = adapters.dense_kernels(ctx, given, targets) if targets else {}
            for path, kernel in kernels.items():
                if key not in adapters.subtree(whole, path):
                    size = adapters.shape(kernel)
                    ones = jnp.ones((*size[:-2], size[axis]))
                    params = adapters.with_subtree(params, path, {key: ones})
        adapters.check_read("ia3", ctx, params, ctx.apply)
        return params, ()

    return Method("ia3", init=init, learns=adapters.is_adapter)
