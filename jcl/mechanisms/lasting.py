"""Leaves that keep their meaning, of which alone a method can know anything."""

from __future__ import annotations

from collections.abc import Iterable

from jcl import trees
from jcl.method import Ctx, Params


def check_lasting(name: str, ctx: Ctx, params: Params) -> None:
    """Refuses a method that keeps what it knows of leaves where all that learn are renewed.

    Raises:
      ValueError: if earlier methods renew every leaf of `params` at each boundary.
    """
    by = list(dict.fromkeys(ctx.renewed(path) for path in trees.by_path(params)))
    if by and None not in by:
        names = " and ".join(str(one) for one in by)
        raise ValueError(
            f"{names} renews every leaf that learns when a stage ends, so {name} has nothing to "
            f"keep; chain {name} with lora(), or with all parameters trained, instead"
        )


def check_single(name: str, ctx: Ctx, layers: Iterable[str]) -> None:
    """Refuses a method that knows one thing of each layer where another keeps several of a layer.

    Args:
      name: the method's.
      ctx: that of its `init`.
      layers: paths of the layers that it works on.

    Raises:
      ValueError: if an earlier method has given the kernel of one of them more axes.
    """
    for layer in layers:
        by = ctx.grown(f"{layer}/kernel")
        if by is not None:
            raise ValueError(
                f"{by} keeps several layers at {layer}, of which a model reads one at a time, and "
                f"{name} can know only one, so {by} and {name} can't be in one chain where "
                f"{name} works on {layer}"
            )
