"""Direct preference optimisation: rewards of answers, against a reference kept by stage."""

from __future__ import annotations

from typing import Any, Literal

from jcl.mechanisms import preference
from jcl.method import Apply, Batch, Call, Ctx, Method, Params, check


def dpo(beta: float = 0.1, reference: Literal["initial", "previous"] = "initial") -> Method:
    """DPO: the reward of an answer is r = β log π(y | x) / π_ref(y | x), summed over its tokens.

    With the objective `preference.ranking()`, -log σ(r_preferred - r_rejected), this is DPO's loss,
    log 2 where π is π_ref; with `preference.ranking("ipo")` it is IPO's times β². The reference
    belongs to the model and not to the loss, so that everything that differentiates the loss (a
    Fisher information, a projection, a memory of the hardest rows) means the loss of DPO. It costs
    a forward pass more.

    Source: Rafailov et al., arXiv 2305.18290, equations 5 and 7, and the authors' `trainers.py`.

    Args:
      beta: β; may be traced.
      reference: π_ref is the model before all training (`initial`), or the one with which the
        stage began (`previous`), for a deployed model that is aligned again.

    Raises:
      ValueError: if an argument is out of range; at `init`, if the loss asks for no rewards, and
        would be the same without this method.
    """
    check(beta > 0, "beta", beta, "above 0")
    check(reference in ("initial", "previous"), "reference", reference, "'initial' or 'previous'")

    def init(ctx: Ctx, params: Params) -> tuple[Params, tuple[()]]:
        preference.check_asks("dpo", ctx, params)
        return params, ()

    def forward(state: tuple[()], ctx: Ctx, apply: Apply) -> Apply:
        def apply_with_rewards(params: Params, batch: Batch, call: Call = Call()) -> Any:
            if preference.REWARDS not in batch:
                return apply(params, batch, call)
            rows = {k: v for k, v in batch.items() if k != preference.REWARDS}
            old = ctx.recall(ctx.references[reference], rows)
            return preference.implicit_rewards(apply(params, rows, call), old, beta)

        return apply_with_rewards

    return Method("dpo", init=init, forward=forward, reads=("parameters",), recalls=(reference,))
