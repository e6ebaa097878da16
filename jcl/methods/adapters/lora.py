"""Low-rank adaptation: beside each chosen kernel a product of two thin matrices learns."""

from __future__ import annotations

from jcl.mechanisms import adapters
from jcl.method import Ctx, Method, Params, check


def lora(
    rank: int = 8,
    alpha: float = 16.0,
    targets: str = r"blocks/(query|value)",
    rslora: bool = False,
    dora: bool = False,
) -> Method:
    """LoRA: W x + s B A x with s = α / r, and B = 0 at the start; W + sBA is never formed.

    The pairs are leaves `<target>/lora/{a,b}` of the parameter tree, float32 whatever the base's
    dtype. Only adapters learn, and every other method in the chain works on them, unless
    `jcl.make(trainable=...)` says otherwise. α = 0 is the model
    without pairs. `adapters.merge(params, adapters.scale(rank, alpha, rslora))` folds them into the
    kernels.

    DoRA: m ⊙ (W + sBA) / ‖W + sBA‖ for each output, m learned, the norm a constant to the gradient.

    Source: Hu et al., arXiv 2106.09685, section 4.1, with A drawn as peft draws it; Kalajdzievski,
    arXiv 2312.03732, for rsLoRA; Liu et al., arXiv 2402.09353, equation 5 and section 4.3, for
    DoRA.

    Args:
      rank: r of every new pair; a pair that is already in the tree, as `models.load_adapter`
        leaves it, keeps its own.
      alpha: α; may be traced.
      targets: regular expression for the whole paths of the dense layers that are adapted.
      rslora: whether s is α / √r instead.
      dora: whether a magnitude for every output is learned too.

    Raises:
      ValueError: if `rank` is out of range, or, at `init`, `targets` matches no dense layer.
    """
    check(rank >= 1, "rank", rank, "at least 1")
    factor = adapters.scale(rank, alpha, rslora)

    def init(ctx: Ctx, params: Params) -> tuple[Params, tuple[()]]:
        return adapters.add_pairs("lora", ctx, params, rank, targets, dora), ()

    return Method(
        "lora", init=init, forward=adapters.scale_hook(factor), learns=adapters.is_adapter
    )
