"""What hooks are given: a batch, a model, its loss, the moment, and what a step produced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
from jax.sharding import Mesh

from jcl.records import record
from jcl.trees import Limits as Limits
from jcl.trees import Structure as Structure

Params = Any
"""A nested dict of arrays; `None` stands for a leaf of the other half after `trees.partition`."""
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
mask                [B, L] float32        which tokens are hidden; masked streams -> masked_token
bytes               [B] float32           bytes that a row predicts; packed streams -> evaluation
targets             [B, L] int32          tokens to score; losses, masked streams -> their models
logits              [B] float32           asks for all logits beside; losses -> language models
types               [B, L] int32          token types; the user -> encoder
embeddings          [B, P, d] float       what stands before the tokens; prompts, images -> models
embedding_segments  [B, P] int32          segments of these; prompts, images -> models
inputs              [B, S] int32          what t5 reads to write tokens; spans, generation -> t5
input_segments      [B, S] int32          segments of these; spans, generation -> t5
prefill             a model's Cache       keys and values to fill; generation -> models
cache               a model's Cache       keys and values to go on from; generation -> models
image               [B, H, W, C] float32  pixels, stored as uint8; images -> vision, multimodal
has_image           [B] int32             whether a row has an image; images -> multimodal
question            [B, L] int32          which tokens ask; editing's measures -> wise
answer              [B, L-1] float32      which predictions are the answer's; pairs -> preference
rejected_tokens     [B, L] int32          the prompt with the worse answer; pairs -> preference
rejected_segments   [B, L] int32          segments of these; pairs -> preference
rejected_answer     [B, L-1] float32      which of these predictions count; pairs -> preference
rewards             [B] float32           asks for rewards; preference -> forwards that define some
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
draw                [B] uint32            in a slice: seeds what is hidden; masking -> its fetch
"""
Tap = Callable[[str, Any, jax.Array], jax.Array]
"""`tap(site, layer, h) -> h`, which a model calls at its named sites (see `jcl.taps`)."""


def identity(site: str, layer: Any, h: jax.Array) -> jax.Array:
    """The tap that does nothing."""
    return h


@record
class Call(NamedTuple):
    """How a model is called: the third argument of every `Apply`; by default, as in prediction.

    It is a tap itself, so that a model that knows no more than a tap may take it for one. It holds
    functions and a static flag, so it is closed over and never goes through `jit` or `scan`.
    """

    tap: Tap = identity
    """Called at each named site with what flows there."""
    key: jax.Array | None = None
    """A typed PRNG key for what is random in this call, such as dropout; None draws nothing."""
    training: bool = False
    """Whether the model behaves as in training."""
    collections: Any = None
    """A dict of trees by the names of `Structure.collections`; None is the program's own. In
    training a model that declares any returns `(outputs, collections)`, else outputs alone."""

    def __call__(self, site: str, layer: Any, h: jax.Array) -> jax.Array:
        """What the tap makes of `h`."""
        return self.tap(site, layer, h)

    def _facts(self) -> dict[str, Any]:
        tap = None if self.tap is identity else self.tap
        return {"tap": tap, "key": self.key, "training": self.training or None}


def as_call(call: Call | Tap) -> Call:
    """A `Call` as it is, or one with the tap that was given in its place."""
    return call if isinstance(call, Call) else Call(call)


Apply = Callable[..., Any]
"""A model: `apply(params, batch, call=Call()) -> outputs`; see also `Call.collections`."""


@record
class Aux(NamedTuple):
    """What a loss gives beside its scalar."""

    outputs: Any
    """The model's outputs, a record of a kind (see `jcl.outputs`), or None."""
    collections: Any = ()
    """What the model keeps beside its parameters, as this call left it."""


LossFn = Callable[..., tuple[jax.Array, Aux]]
"""`loss_fn(params, batch, call) -> (scalar float32, aux)`; a wrapper hands `aux` on as it is."""


class Objective(Protocol):
    """What a user hands to `make`: a loss over a model's outputs.

    A plain function will do. A loss that exposes its predictive distribution, as `fisher` may ask
    for, also has `log_probs(outputs, batch)` and `relabel(batch, labels)` (see `jcl.losses`). One
    that makes several predictions a row also says by `predictions(batch)`, float32 [B, T], how much
    each counts in its row, which a Fisher per token needs where a batch has no `mask`.
    """

    def __call__(self, apply: Apply, params: Params, batch: Batch) -> Any:
        """Returns a scalar float32 [], or `(scalar, outputs)`.

        The outputs are best a record that says what they are, such as `losses.Logits(logits)`;
        others become `losses.Values`, with which methods that need logits don't work.
        """
        ...


def _none(path: str) -> None:
    return None


@record
class Reference(NamedTuple):
    """A frozen model: arrays alone, so that it is saved like any state. See `Ctx.freeze`."""

    params: Params
    """A copy of the leaves that learn; the others are the program's own, which never change."""
    states: dict[str, Any]
    """Copies of the states, by name, of the methods whose `forward` shapes the model."""
    stage: jax.Array
    """int32 []: the stage that it predicts as."""
    stage_step: jax.Array
    """int32 []: the step of that stage."""
    collections: Any = ()
    """A copy of what the model kept beside its parameters."""


def with_structure(apply: Apply, structure: Structure) -> Apply:
    """The same function, whose `structure` is what the model says of itself.

    A wrapper that is decorated with `functools.wraps(apply)` says the same.
    """
    apply.structure = structure  # type: ignore[attr-defined]
    return apply


@record
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
    `(params, batch, call=Call()) -> outputs`, of the trainable parameters, by default as in
    prediction. At a boundary a hook
    sees the model that earlier methods have left already, and its own as the stage leaves it."""
    loss: LossFn
    """The objective's loss, without any method's penalty: `(params, batch, call) -> (scalar
    float32, outputs)`, whose default is this context's own `call`; the outputs are of a kind (see
    `jcl.outputs`). At a boundary its masks are the finished stage's."""
    objective: Objective
    """The loss object that was handed to `make`."""
    states: dict[str, Any]
    """Every method's state by its name, to be read only. So two methods may share one buffer."""
    references: dict[str, Reference]
    """The frozen models that the chain's methods ask for; see `Method.recalls`."""
    call: Call
    """How this phase calls the model: inside `step` as in training, with a key; else as in
    prediction."""
    freeze: Callable[[Params], Reference]
    """`freeze(params)` is a frozen copy of the model as it is now with these parameters. Reference
    models of a usual moment are declared by `Method.recalls` instead, and so shared in a chain."""
    recall: Callable[[Reference, Batch], Any]
    """`recall(reference, batch)` are the outputs of a frozen model, as in prediction; they never
    change, whatever the chain does, and no gradient passes."""
    anew: Callable[..., Ctx]
    """`anew(params, states, finished=())`: the context of the same moment with other parameters and
    states, and of a model in which the methods named by `finished` have ended the stage already.
    It is the one way in which contexts are made; `chain` calls it between its parts."""
    finished: tuple[str, ...] = ()
    """The methods that have ended the stage already, at a boundary."""
    renewed: Callable[[str], str | None] = _none
    """Of a leaf's path: the name of an earlier method in the chain that gives it another meaning at
    each boundary, such as a bank's fresh pair; None if there is none. See `Method.renews`."""
    added: Callable[[str], str | None] = _none
    """In `init`, of a leaf's path: the name of an earlier method in the chain that added it to the
    tree; None if there is none."""
    grown: Callable[[str], str | None] = _none
    """In `init`, of a leaf's path: the name of an earlier method in the chain that gave it more
    axes, such as a projector for each task; None if there is none."""
    jumps: bool = False
    """Whether an earlier method in the chain starts stages elsewhere than where the last ended."""
    reached: Params = None
    """In `consolidate`: the trainable parameters where training ended, before any method moved
    them; in `begin` those that the last boundary left; None in every other phase."""
    grads: Params = None
    """The gradient that the optimizer received, in the `updates` phase; None in every other."""
    axis_name: str | None = None
    """The axis of replicas that run this hook on the same rows and may divide its work, if any."""
    mesh: Mesh | None = None
    """The mesh, for a hook that shards its own work instead of leaving it to the compiler."""
    structure: Structure = Structure()
    """The model's own word about itself: which layer is its head, which leaves are stacked."""
    collections: Any = ()
    """What the model keeps beside its parameters; only the loss that is descended changes it."""
    settle: Callable[..., Any] = _none
    """For `chain` at a boundary: see `contexts.Scene.settle`."""


@record
class Info(NamedTuple):
    """What one step produced, for `observe` and `report`."""

    loss: jax.Array
    """float32 []: the loss that was descended, penalties and replayed rows included."""
    outputs: Any
    """The model's outputs for the fresh rows, a record of the kind that the loss gives, such as
    `losses.Logits` with its `values`; None where the loss returns only a scalar."""
    task_grads: Params
    """The gradient of the unpenalised loss, replayed rows included, before methods change it."""
    grads: Params
    """The gradient that the optimizer received."""
    updates: Params
    """What was added to the parameters, float32: 0 where their dtype rounds an update away."""
    params: Params
    """The trainable parameters after this step."""
    batch: Batch
    """The fresh rows."""
    collections: Any = ()
    """What the model keeps beside its parameters, after this step."""


@runtime_checkable
class KeepsRows(Protocol):
    """A node of a method's state that keeps rows, such as `memory.Buffer`, and says so itself.

    A mesh divides them as it divides a batch's rows, and a budget counts them as stored examples.
    Any NamedTuple may have such a property.
    """

    @property
    def row_fields(self) -> tuple[str, ...]:
        """The names of its fields whose leaves all have the node's slots in front."""
        ...
