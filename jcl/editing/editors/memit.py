"""MEMIT: many facts at once, spread over the MLPs of several layers."""

from __future__ import annotations

from typing import NamedTuple

import jax

from jcl.editing import solve, values
from jcl.editing.editor import Editor, Facts
from jcl.method import Apply, Params, check


class MemitState(NamedTuple):
    """The state of `memit`."""

    root: jax.Array
    """`solve.factor` of each layer's second moment, float32 [layers, in, in]."""


def memit(
    apply: Apply,
    moment: jax.Array,
    layers: tuple[int, ...] = (4, 5, 6, 7, 8),
    strength: float | jax.Array | None = None,
    steps: int = 25,
    rate: float | jax.Array = 0.5,
    decay: float | jax.Array = 1e-3,
    kl: float | jax.Array = 0.0625,
    clamp: float | jax.Array = 4.0,
    enough: float | jax.Array = 0.05,
    path: str = "blocks/down",
    together: int = 8,
) -> Editor:
    """Mass editing: W ← W + (λC + KᵀK)⁻¹ KᵀR, layer by layer, for keys K [N, in], residuals R.

    K are the inputs of the kernel at the subjects' last tokens (half the bare prompt's, half the
    mean of the other contexts'), C is the second moment of its inputs over much text, and R are the
    differences still missing at the last layer, divided by the number of layers that are left (see
    `values.write_layers`).

    Source: Meng et al., arXiv 2210.07229, sections 4.2 and 4.3 and algorithm 1, and the authors'
    code (kmeng01/memit: `memit_main.py`). The defaults of the search are EasyEdit's for Llama.

    Args:
      apply: the model, giving logits.
      moment: C, float32 [layers, in, in] (see `second_moment`), over many more tokens than `in`.
      layers: which of the stacked layers are written, in order.
      strength: λ, how much the old memories count; may be traced. None is the number of inputs,
        which is the mean of kᵀC⁻¹k; it is about the authors' 15,000 for models of 6 to 8 billion
        parameters.
      steps: as in `rome`.
      rate: as in `rome`.
      decay: as in `rome`.
      kl: as in `rome`.
      clamp: as in `rome`, but relative to the residual stream's norm.
      enough: as in `rome`.
      path: as in `rome`.
      together: how many edits are searched for, or read, at once.

    Raises:
      ValueError: if an argument is out of range, or the model has no such kernel.
    """
    search = values.Search(steps, rate, decay, kl, clamp, enough).checked()
    check(strength is None or strength > 0, "strength", strength, "above 0, or None")
    check(together >= 1, "together", together, "at least 1")

    def init(params: Params, facts: Facts) -> MemitState:
        solve.check_moment(moment, solve.kernel(params, path, layers), len(layers))
        return MemitState(solve.factor(moment))

    def solver(root: jax.Array, keys: jax.Array, missing: jax.Array) -> jax.Array:
        slack = keys.shape[1] if strength is None else strength
        return solve.least_change(root, keys, missing, slack)

    def write(params: Params, state: MemitState, facts: Facts) -> tuple[Params, MemitState]:
        params = values.write_layers(
            apply, params, facts, layers, search, solver, state.root, path, together
        )
        return params, state

    return Editor("memit", init, write)
