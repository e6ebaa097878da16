"""Leaves that keep their meaning over a boundary, of which alone a method can know anything."""

from __future__ import annotations

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
