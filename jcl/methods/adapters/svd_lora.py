"""PiSSA, MiLoRA, CorDA and LoRA-Null: low-rank pairs that start as a part of their kernel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

import jax

from jcl import trees
from jcl.mechanisms import adapters, subspaces
from jcl.method import Apply, Batch, Call, Ctx, Method, Params, check


class SvdLoraState(NamedTuple):
    """The state of `svd_lora`."""

    start: Params
    """The pairs as they started, b negated: a bank of one slot, see `adapters.bank`."""


def svd_lora(
    rank: int = 16,
    alpha: float = 16.0,
    targets: str = r"blocks/(query|value)",
    start: subspaces.Start = "principal",
    moments: Mapping[str, jax.Array] | None = None,
    train: Literal["both", "b"] = "both",
    rslora: bool = False,
) -> Method:
    """LoRA from a part of the kernel: W + s (A B - A₀ B₀), with s A₀ B₀ a part of W of rank r.

    At the start it is the model. The authors keep W - s A₀ B₀ in W's place; here A₀ and B₀ are kept
    instead, as thin as the pairs themselves, and the base stays as it is. What learns first is what
    lies in that part:

    - `principal`, the largest singular components of W: PiSSA (Meng et al., arXiv 2404.02948).
    - `minor`, the smallest: MiLoRA (Wang et al., arXiv 2406.09044).
    - `previewed`, the largest of C W, times C⁻¹, with C the second moment of the inputs that the
      new task has; `preserved`, the smallest, of inputs whose answers are to stay: CorDA's two
      modes (Yang et al., arXiv 2406.05223).
    - `null`, the part of W that reads the r directions in which the inputs to preserve are
      smallest: LoRA-Null (Tang et al., arXiv 2503.02659); with `train="b"` its second version,
      where A stays and with it the directions.

    Sources: the papers, peft's `pissa_init` and `tuners/lora/corda.py`, and `decomposition.py` of
    HungerPWAY/LoRA-Null; unlike there C's diagonal is raised by 1 % once, and not by more until its
    inverse is good, for a linear system is solved instead.

    Args:
      rank: r of every pair.
      alpha: α, with s = α / r, by which the start is divided; may be traced.
      targets: regular expression for the whole paths of the dense layers that are adapted.
      start: the part of the kernel.
      moments: C by the layers' paths, float32 [..., in, in], for the last three starts, as
        `subspaces.input_moments` gives it: of the new task for `previewed`, of what is to be
        preserved for the other two.
      train: whether `both` factors learn, or `b` alone.
      rslora: whether s is α / √r instead.

    Raises:
      ValueError: if an argument is out of range; at `init`, if `targets` matches no dense layer,
        a layer has a pair already, or moments of another shape, or r is above the size of a kernel.
    """
    check(rank >= 1, "rank", rank, "at least 1")
    known = get_args(subspaces.Start)
    check(start in known, "start", start, f"one of {[*known]}")
    check(train in ("both", "b"), "train", train, "'both' or 'b'")
    check(alpha > 0, "alpha", alpha, "above 0, for the start is divided by it")
    reads = start in ("previewed", "preserved", "null")
    given = "None" if moments is None else "given"
    wanted = "of the layers' inputs" if reads else "None"
    check(reads == (moments is not None), "moments", given, f"{wanted}, where start is {start!r}")
    factor = adapters.scale(rank, alpha, rslora)

    def init(ctx: Ctx, params: Params) -> tuple[Params, SvdLoraState]:
        kernels = subspaces.bare_kernels("svd_lora", ctx, params, targets)
        least = subspaces.smaller_side(kernels)
        check(rank <= least, "rank", rank, f"at most {least}, the smaller side of a kernel")
        second: Mapping[str, Any] = dict.fromkeys(kernels) if moments is None else moments
        for path, kernel in kernels.items():
            *stack, width, _ = adapters.shape(kernel)
            found, needed = getattr(second.get(path), "shape", None), (*stack, width, width)
            check(not reads or found == needed, f"shape of moments of {path}", found, f"{needed}")
        for path, kernel in kernels.items():
            a, b = subspaces.part_of(kernel, start, rank, second[path])
            pair = {"a": a * factor**-0.5, "b": b * factor**-0.5}
            params = adapters.with_subtree(params, path, {"lora": pair})
        adapters.check_read("svd_lora", ctx, params, ctx.apply)
        negated = adapters.scale_pairs(params, -1.0)
        return params, SvdLoraState(adapters.store_pairs(adapters.bank(params, 1), negated, 0))

    def forward(state: SvdLoraState, ctx: Ctx, apply: Apply) -> Apply:
        def apply_with_difference(params: Params, batch: Batch, call: Call = Call()) -> Any:
            whole = adapters.join_pairs(trees.merge(params, ctx.frozen), state.start)
            return apply(adapters.scale_pairs(whole, factor), batch, call)

        return apply_with_difference

    def learns(path: str) -> bool:
        return adapters.is_adapter(path) and not (train == "b" and path.endswith("/lora/a"))

    return Method("svd_lora", init=init, forward=forward, learns=learns)
