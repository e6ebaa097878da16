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

from jcl.records import record

Params = Any
"""A nested dict of arrays; `None` stands where a leaf is frozen (see `trees.partition`)."""
Batch = dict[str, jax.Array]
"""Arrays with a leading example axis; always with `weight` [B] float32 and `task` [B] int32.

These are the keys with a meaning, of rows with L tokens; a user's model may take others besides.

key                 shape and dtype       what it is; who writes it -> who reads it
weight              [B] float32           how much it counts, 0 pads; streams, replay -> every mean
task                [B] int32             where it comes from; streams -> losses, memory, masks
stage               [B] int32             the last stage trained; program, evaluation -> losses
x                   [B, ...] float32      inputs; arrays -> mlp, users' models
y                   [B] int32             labels, or targets [B, D] float32; arrays -> losses
tokens              [B, L] int32          token ids; streams of text -> models, losses
segments            [B, L] int32          documents of a row, 0 pads; streams of text -> models
mask                [B, L-1] float32      which predictions count; streams of text, rho -> losses
bytes               [B] float32           bytes that a row predicts; packed streams -> evaluation
targets             [B, L] int32          tokens to score; losses, probes -> language models
types               [B, L] int32          token types; the user -> encoder
embeddings          [B, P, d] float       what stands before the tokens; prompts, images -> models
embedding_segments  [B, P] int32          segments of these; prompts, images -> models
inputs              [B, S] int32          what t5 reads, where it writes `tokens`; generation -> t5
input_segments      [B, S] int32          segments of these; generation -> t5
prefill             a model's Cache       keys and values to fill; generation -> models
cache               a model's Cache       keys and values to go on from; generation -> models
image               [B, H, W, C] float32  pixels, stored as uint8; images -> vision, multimodal
has_image           [B] int32             whether a row has an image; images -> multimodal
question            [B, L] int32          which tokens ask; editing's measures -> wise
answer              [B, L-1] float32      which predictions are the answer's; pairs -> preference
rejected_tokens     [B, L] int32          the prompt with the worse answer; pairs -> preference
rejected_segments   [B, L] int32          segments of these; pairs -> preference
rejected_answer     [B, L-1] float32      which of these predictions count; pairs -> preference
rewards             [B] float32           asks a model for rewards; preference -> dpo
reference           [B, L-1] float32      losses of a reference, or [B] of rows; the user -> rho
reference           [B] float32           margins of a reference; the user -> preference.margin
der/match           [B] int32             1 + the slot to match, 0 for none; der -> der
derpp/match         [B] int32             the same of derpp; der -> der
outputs             [B, ...] float        the model's, when a row was stored; der -> der
indices             [B, ..., k] int32     classes of the k largest outputs, if `top_k`; der -> der
copr/odds           [B] float32           log-odds of the optimal policy; copr -> copr
copr/new            [B] float32           1 where the row is fresh; copr -> copr
copr/stage          [B] int32             the stage that a stored row is of; copr -> copr
subject             [N, P] int32          place of the subject's last token; editing -> editors
essence             [N, L] int32          tokens of `SUBJECT is a`; editing -> editors
essence_segments    [N, L] int32          segments of these; editing -> editors
essence_subject     [N] int32             place of its subject's last token; editing -> editors
row                 [B] int32             in a slice: which row of the data; streams -> their fetch
start               [B] int32             in a slice: the first byte; byte streams -> their fetch
"""
Tap = Callable[[str, Any, jax.Array], jax.Array]
"""`tap(site, layer, h) -> h`, called by a model at its named sites (see `jcl.taps`)."""
Apply = Callable[..., Any]
"""`apply(params, batch, tap=identity) -> outputs`."""
LossFn = Callable[..., tuple[jax.Array, Any]]
"""`loss_fn(params, batch) -> (scalar float32, outputs)`."""


class Objective(Protocol):
    """What a user hands to `make`: a loss over a model's outputs.

    A plain function will do. Losses that expose their predictive distribution also have
    `log_probs(outputs, batch)` and `relabel(batch, labels)` (see `jcl.losses`).
    """

    def __call__(self, apply: Apply, params: Params, batch: Batch) -> Any:
        """Returns a scalar, or `(scalar, outputs)`."""
        ...


@record
class Ctx(NamedTuple):
    """What a hook may read. Built anew inside every trace; never stored."""

    params: Params
    """The trainable parameters before this step (`None` where a leaf is frozen)."""
    frozen: Params
    """The other leaves, with `None` where a leaf is trainable."""
    stage: jax.Array
    """int32 []: how many stages are finished, which is the index of the present one."""
    stage_step: jax.Array
    """int32 []: steps taken in this stage."""
    step: jax.Array
    """int32 []: steps taken in all."""
    key: jax.Array
    """A key of this method's own, for this phase of this step."""
    batch: Batch
    """The fresh rows, before any replay. In `init` an example, read for shapes only."""
    apply: Apply
    """`(params, batch, tap=identity) -> outputs`, every method's `forward` included."""
    loss: LossFn
    """`(params, batch, tap=identity) -> (scalar, outputs)`: the task's loss, unpenalised."""
    objective: Objective
    """The loss object that was handed to `make`."""
    states: dict[str, Any]
    """Every method's state by name, read only: how two methods share one buffer."""
    training: bool
    """Static: True inside `step`, False in `predict`, `consolidate` and `init`."""
    grads: Params = None
    """What the optimizer received, in the `updates` phase; None in every other."""
    axis_name: str | None = None
    """Of the replicas that run the same hook on the same rows, so that they may share its work."""
    mesh: Mesh | None = None
    """What the program is spread over, for a hook that knows better than the compiler how."""


@record
class Info(NamedTuple):
    """What one step produced, for `observe` and `report`."""

    loss: jax.Array
    """float32 []: the loss that was descended, penalties and replayed rows included."""
    outputs: Any
    """The model's outputs for the fresh rows, or None where the loss returns only a scalar."""
    task_grads: Params
    """Gradient of the unpenalised loss, before any method touched it."""
    grads: Params
    """What the optimizer received."""
    updates: Params
    """What was added to the parameters."""
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


@record
class Method(NamedTuple):
    """A continual-learning method; every field but `name` defaults to what changes nothing.

    Args:
      name: how its state is keyed in `State.methods`, and the seed of its random draws.
      init: `(ctx, params) -> (params, state)`; may add adapters or prompts to the tree.
      batch: appends replayed rows after the fresh ones, whose number and place stay.
      forward: wraps the model, in training and in prediction.
      loss: wraps the loss: distillation, penalties that need a forward pass.
      grads: before the optimizer: quadratic pulls, projections.
      updates: after the optimizer: isolation, re-warming.
      observe: after the step: reservoirs, path integrals, running means.
      consolidate: at a boundary, `batches` [n, B, ...] being the finished stage's own data.
      report: finite scalars to log.
      idle: bool [], True while `batch` and `loss` would change nothing; their passes through the
        model are then left out of the step by a `lax.cond`, without a second trace.
      writes: whether `consolidate` changes the parameters; writers precede readers in a chain.
      needs: names of methods in the same chain whose state this one reads.
      reads: what of earlier stages it draws on, some of `READS`; adapters and schedules nothing.
      parts: what `chain` composed, in order; empty for a method of its own.
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

    def _facts(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "phases": " ".join(phase for phase in PHASES if defines(self, phase)),
            "reads": self.reads,
            "needs": self.needs,
            "writes": self.writes or None,
        }


READS = ("parameters", "gradients", "logits", "samples", "proxy")
"""What of earlier stages may be drawn on: weights; statistics of gradients or activations on their
data; outputs; rows of their data; rows of a public stand-in for it."""

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
"""The hooks in the order in which a step runs them."""


def defines(method: Method, phase: str) -> bool:
    """Whether `method` does anything in `phase`."""
    return getattr(method, phase) is not Method._field_defaults[phase]


def check(holds: bool | jax.Array, name: str, value: Any, wanted: str) -> None:
    """Refuses an argument with one sentence that names it, its value and what would be right.

    A traced value can't be looked at and passes.

    Raises:
      ValueError: if `holds` is False.
    """
    if not isinstance(holds, jax.core.Tracer) and not holds:
        raise ValueError(f"{name} is {value!r}, but must be {wanted}")
