"""FT-L: plain fine-tuning of one kernel on the edit, within a small box around its old value."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jcl.editing import solve, values
from jcl.editing.editor import Editor, Facts
from jcl.losses import weighted_mean
from jcl.method import Apply, Params, check


def ft_l(
    apply: Apply,
    layer: int = 0,
    bound: float | jax.Array | None = 2e-3,
    steps: int = 25,
    rate: float | jax.Array = 1e-3,
    objective: Literal["last", "each"] = "last",
    enough: float | jax.Array = 0.01,
    path: str = "blocks/down",
) -> Editor:
    """Constrained fine-tuning: Adam on one kernel W; after each step every |W - W₀| is cut to ε.

    W₀ is the kernel before this batch of edits. Of the contexts only the bare prompt is used.

    Source: Zhu et al., arXiv 2012.00363, as the baseline FT+L of Meng et al., arXiv 2202.05262, in
    their code (kmeng01/rome: `baselines/ft/ft_main.py`), whose loss predicts every token of the
    target at the prompt's last token; and, as `objective="each"` with no bound, FT-M of
    Zhang et al., arXiv 2401.01286 (zjunlp/EasyEdit). The authors take layer 0, and for GPT-2 XL a
    bound and a rate of 5e-4, with which SmolLM2-135M doesn't learn most edits.

    Args:
      apply: the model, giving logits.
      layer: which of the stacked layers is written.
      bound: ε; None sets no bound. `bound`, `rate` and `enough` may be traced.
      steps: how many steps of Adam it takes at most.
      rate: Adam's learning rate.
      objective: whether every token of the target is predicted at the prompt's `last` token, or
        `each` one at the token before it.
      enough: the loss at which it ends early.
      path: the path of the dense layer whose kernel is written.

    Raises:
      ValueError: if an argument is out of range, or the model has no such kernel.
    """
    check(steps >= 1, "steps", steps, "at least 1")
    check(rate > 0, "rate", rate, "above 0")
    check(bound is None or bound > 0, "bound", bound, "above 0, or None")
    check(enough >= 0, "enough", enough, "at least 0")
    check(objective in ("last", "each"), "objective", objective, "'last' or 'each'")
    adam = optax.adam(rate)

    def init(params: Params, facts: Facts) -> tuple[()]:
        solve.kernel(params, path, (layer,))
        return ()

    def loss(params: Params, facts: Facts) -> jax.Array:
        tokens, mask = facts["tokens"][:, 0], facts["mask"][:, 0]
        logits = apply(params, values.rows(tokens, facts["segments"][:, 0]))[:, :-1]
        if objective == "last":
            at = jnp.argmax(mask, axis=-1)  # the place before the target's first token
            logits = jnp.take_along_axis(logits, at[:, None, None], axis=1)
        scores = jax.nn.log_softmax(logits.astype(jnp.float32))
        scores = jnp.broadcast_to(scores, (*mask.shape, scores.shape[-1]))
        chosen = jnp.take_along_axis(scores, tokens[:, 1:, None], axis=-1)[..., 0]
        nll = -jnp.sum(chosen * mask, axis=-1) / jnp.maximum(jnp.sum(mask, axis=-1), 1)
        return weighted_mean(nll, facts["weight"])

    def write(params: Params, state: tuple[()], facts: Facts) -> tuple[Params, tuple[()]]:
        stacked = solve.kernel(params, path, (layer,))
        start = stacked[layer].astype(jnp.float32)

        def cost(kernel: jax.Array) -> jax.Array:
            now = stacked.at[layer].set(kernel.astype(stacked.dtype))
            return loss(solve.put(params, path, now), facts)

        def is_going(carry: Any) -> jax.Array:
            step, done, *_ = carry
            return (step < steps) & ~done

        def improve(carry: Any) -> Any:
            step, _, kernel, inner = carry
            value, slope = jax.value_and_grad(cost)(kernel)
            move, after = adam.update(slope, inner)
            moved = kernel + move
            if bound is not None:
                moved = jnp.clip(moved, start - bound, start + bound)
            done = value < enough
            return step + 1, done, jnp.where(done, kernel, moved), after

        first = (jnp.int32(0), jnp.bool_(False), start, adam.init(start))
        kernel = lax.while_loop(is_going, improve, first)[2]
        kernel = stacked.at[layer].set(kernel.astype(stacked.dtype))
        return solve.put(params, path, kernel), state

    return Editor("ft_l", init, write)
