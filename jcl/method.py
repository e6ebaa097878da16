"""The contract: a method is a record of pure functions around one optimizer step.

Every hook but the name has a default that changes nothing, so a method writes down only what it
does. All hooks run inside `jax.jit`: they take and return pytrees of arrays and never branch in
Python on a traced value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
from jax.sharding import Mesh

Params = Any
"""A nested dict of arrays; `None` stands for a leaf of the other half after `trees.partition`."""
Batch = dict[str, jax.Array]
"""Arrays with a leading example axis [B, ...], by these keys. Every batch has `weight` and `task`,
for `program.fill_batch` adds them; the others are there where a stream, a model or a method brings
them, and a column of any other name passes through.

| key | shape and dtype | what it is | read by |
|---|---|---|---|
| `weight` | [B] float32 | how much a row counts, 0 for padding | all that averages |
| `task` | [B] int32 | where a row comes from | losses, memory, masks, adapters |
| `stage` | [B] int32 | the present stage; in scores, the last one trained on | losses, scores |
| `x` | [B, ...] float32 | an input | `mlp`, users' models |
| `y` | [B] int32 or [B, D] float32 | a label or target | losses, scores, memory |
| `tokens` | [B, L] int32 | token ids | language models and their losses |
| `segments` | [B, L] int32 | a row's documents from 1, 0 for padding | language models |
| `mask` | [B, L - 1] float32 | how much the prediction of the next token counts | losses, scores |
| `bytes` | [B] float32 | bytes that the predicted tokens stand for | `bits_per_byte` |
| `targets` | [B, L] int32 | asks for `TokenScores` of these, not logits | language models |
| `types` | [B, L] int32 | BERT's token types | `encoder` |
| `embeddings` | [B, P, d] float | a soft prefix, written by prompt methods | language models |
| `embedding_segments` | [B, P] int32 | 0 where the prefix is padding | `decoder` |
| `inputs`, `input_segments` | [B, S] int32 | what the encoder reads | `t5` |
| `prefill`, `cache` | a model's `Cache` | asks for last logits and cache | `decoder`, `t5` |
| `image` | [B, H, W, C] float32 or uint8 | an image | `vision`, `multimodal` |
| `has_image` | [B] int32 | 0 where the image only fills the batch | `multimodal` |
| `question` | [B, L] int32 | 1 for tokens that decide the routing | `wise` |
| `answer` | [B, L - 1] float32 | 1 where an answer's token is predicted | `preference`, `copr` |
| `rejected_...` | as without it | the rejected answer's three arrays | `preference`, `copr` |
| `rewards` | [B] float32 | asks for rewards, not scores | `dpo` |
| `reference` | [B, L - 1] or [B] float32 | the reference's losses, or margin | `rho`, `margin` |

Slices of a stream have `row` or `start` instead, which its `fetch` reads. The arrays of edits are
listed at `jcl.editing.Facts`, and keys such as `copr/odds` belong to the method that they name.
"""
Tap = Callable[[str, Any, jax.Array], jax.Array]
"""`tap(site, layer, h) -> h`, which a model calls at its named sites (see `jcl.taps`)."""
Apply = Callable[..., Any]
"""A model: `apply(params, batch, tap=identity) -> outputs`."""
LossFn = Callable[..., tuple[jax.Array, Any]]
"""`loss_fn(params, batch) -> (scalar float32, outputs)`."""


class Objective(Protocol):
    """What a user hands to `make`: a loss over a model's outputs.

    A plain function will do. A loss that exposes its predictive distribution, as `fisher` may ask
    for, also has `log_probs(outputs, batch)` and `relabel(batch, labels)` (see `jcl.losses`).
    """

    def __call__(self, apply: Apply, params: Params, batch: Batch) -> Any:
        """Returns a scalar float32 [], or `(scalar, outputs)`."""
        ...


class Ctx(NamedTuple):
    """What a hook may read. It is built anew inside every trace and never stored."""

    params: Params
    """The trainable parameters before this step (`None` where a leaf is frozen)."""
    frozen: Params
    """The leaves that `trainable` excludes (`None` where a leaf is trainable)."""
    stage: jax.Array
    """int32 []: how many stages are finished, which is the index of the present one."""
    stage_step: jax.Array
    """int32 []: how many steps are taken in this stage."""
    step: jax.Array
    """int32 []: how many steps are taken in all."""
    key: jax.Array
    """A typed PRNG key of this method's own, another one in each phase and step."""
    batch: Batch
    """The fresh rows, before any replay. In `init` it is an example of zeros, to read shapes from,
    and in `consolidate` the first of the stage's batches."""
    apply: Apply
    """The model with every method's `forward` around it:
    `(params, batch, tap=identity) -> outputs`, of the trainable parameters."""
    loss: LossFn
    """The objective's loss, without any method's penalty: `(params, batch, tap=identity) -> (scalar
    float32, outputs)`."""
    objective: Objective
    """The loss object that was handed to `make`."""
    states: dict[str, Any]
    """Every method's state by its name, to be read only. So two methods may share one buffer."""
    training: bool
    """A Python bool: True inside `step`, False in `predict`, `consolidate` and `init`."""
    grads: Params = None
    """The gradient that the optimizer received, in the `updates` phase; None in every other."""
    axis_name: str | None = None
    """The axis of replicas that run this hook on the same rows and may divide its work, if any."""
    mesh: Mesh | None = None
    """The mesh, for a hook that shards its own work instead of leaving it to the compiler."""


class Info(NamedTuple):
    """What one step produced, for `observe` and `report`."""

    loss: jax.Array
    """float32 []: the loss that was descended, penalties and replayed rows included."""
    outputs: Any
    """The model's outputs for the fresh rows, or None where the loss returns only a scalar."""
    task_grads: Params
    """The gradient of the unpenalised loss, replayed rows included, before methods change it."""
    grads: Params
    """The gradient that the optimizer received."""
    updates: Params
    """The change that was added to the parameters."""
    params: Params
    """The trainable parameters after this step."""
    batch: Batch
    """The fresh rows."""


def _init(ctx: Ctx, params: Params) -> tuple[Params, Any]:
    return params, ()


def _batch(state: Any, ctx: Ctx, batch: Batch) -> Batch:
    return batch


def _forward(state: Any, ctx: Ctx, apply: Apply) -> Apply:
    return apply


def _loss(state: Any, ctx: Ctx, loss_fn: LossFn) -> LossFn:
    return loss_fn


def _grads(state: Any, ctx: Ctx, grads: Params) -> Params:
    return grads


def _updates(state: Any, ctx: Ctx, updates: Params) -> Params:
    return updates


def _observe(state: Any, ctx: Ctx, info: Info) -> Any:
    return state


def _consolidate(state: Any, ctx: Ctx, params: Params, batches: Batch) -> tuple[Params, Any]:
    return params, state


def _report(state: Any, info: Info) -> dict[str, jax.Array]:
    return {}


def _idle(state: Any, ctx: Ctx) -> jax.Array | bool:
    return False


class Method(NamedTuple):
    """A continual-learning method. Every field but `name` has a default that changes nothing.

    The hooks' full signatures stand beside the fields; `state` is whatever `init` returned.

    Args:
      name: the key of its state in `State.methods`; it also seeds the method's random draws.
      init: makes the state, `(ctx, params) -> (params, state)`; may add adapters or prompts to the
        tree.
      batch: appends replayed rows after the fresh ones, whose number and place stay.
      forward: wraps the model, in training and in prediction.
      loss: wraps the loss, for distillation and for penalties that need a forward pass.
      grads: changes the gradient before the optimizer sees it, by a quadratic pull or a projection.
      updates: changes the optimizer's update before it is added, by a mask or a factor.
      observe: makes the next state from what the step produced: reservoirs, path integrals, means.
      consolidate: ends a stage: `batches` [n, B, ...] are its own data, and it may change both the
        parameters and the state.
      report: gives the finite scalars to log, float32 [] by name.
      idle: gives bool [], True while `batch` and `loss` would change nothing; a `lax.cond` then
        leaves their passes through the model out of the step, without a second trace.
      writes: whether `consolidate` changes the parameters; writers precede readers in a chain.
      needs: names of methods in the same chain whose state this one reads.
      reads: which of `READS` it draws on, of earlier stages; adapters and schedules draw on none.
      parts: the methods that `chain` composed, in order; empty for a single method.
    """

    name: str
    init: Callable[[Ctx, Params], tuple[Params, Any]] = _init
    batch: Callable[[Any, Ctx, Batch], Batch] = _batch
    forward: Callable[[Any, Ctx, Apply], Apply] = _forward
    loss: Callable[[Any, Ctx, LossFn], LossFn] = _loss
    grads: Callable[[Any, Ctx, Params], Params] = _grads
    updates: Callable[[Any, Ctx, Params], Params] = _updates
    observe: Callable[[Any, Ctx, Info], Any] = _observe
    consolidate: Callable[[Any, Ctx, Params, Batch], tuple[Params, Any]] = _consolidate
    report: Callable[[Any, Info], dict[str, jax.Array]] = _report
    idle: Callable[[Any, Ctx], jax.Array | bool] = _idle
    writes: bool = False
    needs: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    parts: tuple[Method, ...] = ()


READS = ("parameters", "gradients", "logits", "samples", "proxy")
"""What a method may draw on of earlier stages: their weights; statistics of gradients or
activations on their data; outputs on it; rows of it; rows of a public stand-in for it."""

PHASES = (
    "init",
    "batch",
    "forward",
    "loss",
    "grads",
    "updates",
    "observe",
    "consolidate",
    "report",
)
"""The hooks in the order in which they run: `init` once, `consolidate` at the end of a stage, the
others in every step."""


def defines(method: Method, phase: str) -> bool:
    """Whether `method` does anything in `phase`."""
    return getattr(method, phase) is not Method._field_defaults[phase]


def check(holds: bool | jax.Array, name: str, value: Any, wanted: str) -> None:
    """Refuses an argument with one sentence that names it, its value and what would be right.

    A traced `holds` passes, for its value isn't known yet.

    Raises:
      ValueError: if `holds` is False.
    """
    if not isinstance(holds, jax.core.Tracer) and not holds:
        raise ValueError(f"{name} is {value!r}, but must be {wanted}")
