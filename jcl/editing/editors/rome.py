"""ROME: a fact is one key and one value of an MLP's kernel, written by a change of rank one."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jcl.editing import solve, values
from jcl.editing.editor import Editor, Facts
from jcl.method import Apply, Params


class RomeState(NamedTuple):
    """The state of `rome`."""

    root: jax.Array
    """`solve.factor` of the second moment of the kernel's inputs, float32 [in, in]."""


def rome(
    apply: Apply,
    moment: jax.Array,
    layer: int = 6,
    steps: int = 25,
    rate: float | jax.Array = 0.5,
    decay: float | jax.Array = 1e-3,
    kl: float | jax.Array = 0.0625,
    clamp: float | jax.Array = 4.0,
    enough: float | jax.Array = 0.05,
    path: str = "blocks/down",
) -> Editor:
    """Rank-one model editing: W ← W + C⁻¹k ⊗ δ / (kᵀC⁻¹k₀), so that W maps k₀ to its value plus δ.

    k₀ is the kernel's input at the subject's last token of the bare prompt, k its mean over the
    contexts, C the second moment of the inputs over much text, and δ is searched for at the
    kernel's output (see `values.find`). Several edits are written one after another.

    Source: Meng et al., arXiv 2202.05262, equations 2 to 4, and the authors' code (kmeng01/rome:
    `compute_u.py`, `compute_v.py`), where k and k₀ differ as here. The defaults are EasyEdit's for
    Llama, which leaves C out; only the default layer is the one that harms SmolLM2-135M least.

    Args:
      apply: the model, giving logits.
      moment: C, float32 [1, in, in] (see `second_moment`), over many more tokens than `in`.
      layer: which of the stacked layers is written.
      steps: one more than the steps of Adam that the search for δ takes at most.
      rate: Adam's learning rate; like the next four it may be traced.
      decay: the search's weight of ‖δ‖ / ‖h‖².
      kl: the search's weight of the divergence after `{subject}`.
      clamp: ‖δ‖ is at most this times the old value's norm.
      enough: the loss at which the search ends early.
      path: the path of the dense layer whose kernel is written.

    Raises:
      ValueError: if an argument is out of range, or the model has no such kernel.
    """
    search = values.Search(steps, rate, decay, kl, clamp, enough).checked()

    def init(params: Params, facts: Facts) -> RomeState:
        solve.check_moment(moment, solve.kernel(params, path, (layer,)), 1)
        return RomeState(solve.factor(moment[0]))

    def write(params: Params, state: RomeState, facts: Facts) -> tuple[Params, RomeState]:
        def one(kernel: jax.Array, fact: Facts) -> tuple[jax.Array, None]:
            now = solve.put(params, path, kernel)
            delta, _ = values.find(apply, now, fact, f"{path}:out", layer, search)
            alone = jax.tree.map(lambda x: x[None], fact)
            keys = values.at_subjects(apply, now, alone, {f"{path}:in": layer}, 1)[f"{path}:in"]
            value = fact["weight"] * delta[None]
            change = solve.least_change(state.root, jnp.mean(keys, axis=1), value, 0.0, keys[:, 0])
            return solve.add(kernel, layer, change), None

        kernel, _ = lax.scan(one, solve.kernel(params, path, (layer,)), facts)
        return solve.put(params, path, kernel), state

    return Editor("rome", init, write)
