"""AlphaEdit: MEMIT, written only in directions that old memories leave free."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jcl.editing import solve, values
from jcl.editing.editor import Editor, Facts
from jcl.method import Apply, Params, check


class AlphaEditState(NamedTuple):
    """The state of `alphaedit`."""

    projector: jax.Array
    """P, the projector onto the null space of the second moment, float32 [layers, in, in]."""
    past: jax.Array
    """Σ P k kᵀ P over the keys that were written, float32 [layers, in, in]."""


def null_space(moment: jax.Array, threshold: float | jax.Array) -> jax.Array:
    """P = U Uᵀ, U the eigenvectors of C [..., d, d] whose eigenvalues are below `threshold`."""
    energy, vectors = jnp.linalg.eigh(moment)
    free = vectors * (energy < threshold)[..., None, :]
    return solve.product(free, jnp.swapaxes(free, -1, -2))


def alphaedit(
    apply: Apply,
    moment: jax.Array,
    layers: tuple[int, ...] = (3, 4, 5, 6, 7, 8),
    threshold: float | jax.Array = 0.02,
    ridge: float | jax.Array = 10.0,
    steps: int = 25,
    rate: float | jax.Array = 0.5,
    decay: float | jax.Array = 0.5,
    kl: float | jax.Array = 0.0625,
    clamp: float | jax.Array = 0.75,
    enough: float | jax.Array = 0.05,
    path: str = "blocks/down",
    together: int = 8,
) -> Editor:
    """AlphaEdit: W ← W + P ΔW, solving (P(KᵀK + K_pᵀK_p)P + α) ΔW = P KᵀR layer by layer.

    P projects onto directions in which C, the second moment of the kernel's inputs over much text,
    is almost zero, so that the keys of such text keep their values. K_p are the keys of the edits
    so far, whose values are kept too. K, R and the order of the layers are those of `memit`.

    Source: Fang et al., arXiv 2410.02355, section 3, and the authors' code
    (jianghoucheng/AlphaEdit: `AlphaEdit_main.py`, and `get_project` of `experiments/evaluate.py`),
    which adds the keys to K_p as they are after all layers were written. With P = Pᵀ = P² its
    system is the one above, which is symmetric. The defaults are the authors' for GPT-J, of 28
    layers (`hparams/AlphaEdit`); for Llama 3 of 8 billion parameters, of 32, they write layers 4 to
    8 at rate 0.1, for GPT-2 XL, of 48, layers 13 to 17 in 20 steps.

    Args:
      apply: the model, giving logits.
      moment: C, float32 [layers, in, in] (see `second_moment`), over many more tokens than `in`.
      layers: which of the stacked layers are written, in order.
      threshold: eigenvalues of C below this are null; may be traced.
      ridge: α, the weight of ‖ΔW‖²; may be traced.
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
    check(threshold > 0, "threshold", threshold, "above 0")
    check(ridge > 0, "ridge", ridge, "above 0")
    check(together >= 1, "together", together, "at least 1")

    def init(params: Params, facts: Facts) -> AlphaEditState:
        solve.check_moment(moment, solve.kernel(params, path, layers), len(layers))
        return AlphaEditState(null_space(moment, threshold), jnp.zeros_like(moment))

    def solver(state: AlphaEditState, keys: jax.Array, missing: jax.Array) -> jax.Array:
        prior = state.past + ridge * jnp.eye(keys.shape[1])
        free = solve.product(keys, state.projector)
        return solve.least_change(solve.factor(prior), free, missing, 1.0)

    def write(params: Params, state: AlphaEditState, facts: Facts) -> tuple[Params, AlphaEditState]:
        params = values.write_layers(
            apply, params, facts, layers, search, solver, state, path, together
        )
        site = f"{path}:in"
        keys = values.at_subjects(apply, params, facts, {site: layers}, together)[site]
        keys = facts["weight"][:, None] * jnp.swapaxes(values.mean_key(keys), 0, 1)
        free = solve.product(keys, state.projector)
        new = solve.product(jnp.swapaxes(free, -1, -2), free)
        return params, state._replace(past=state.past + new)

    return Editor("alphaedit", init, write)
