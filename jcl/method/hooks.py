"""The hooks of a method, one Protocol each: what it is given, what it returns, and when it runs.

In all of them `state` is what `init` or the last `observe` or `consolidate` returned, a pytree of
arrays whose shapes and dtypes never change, and `ctx` is the moment (see `Ctx`). A plain function
will do: arguments are given by position, in the order that stands here. Hooks are traced by
`jax.jit`, once for all steps, so that what depends on the stage is a `jnp.where` on `ctx.stage` and
no `if`. They are named in the order in which they run, as in `PHASES`.
"""

from __future__ import annotations

from typing import Any, Protocol

import jax

from jcl.method.given import Apply, Batch, Ctx, Info, LossFn, Params


class Init(Protocol):
    """`init(ctx, params) -> (params, state)` makes a method's state, once, before the first step.

    It may also add leaves to the tree of parameters, such as adapters, or give leaves more axes; so
    a method that does comes before those whose state is shaped like the parameters. It is traced by
    `jax.eval_shape` too, so it reads shapes and static facts, and raises a `ValueError` where the
    method can't work on this model.

    Users: `ewc` returns zeros for its anchors; `lora` adds pairs; `er` an empty memory, shaped like
    `ctx.batch`; `packnet` refuses a model of which it could prune nothing.
    """

    def __call__(self, ctx: Ctx, params: Params, /) -> tuple[Params, Any]:
        """Makes the state.

        Args:
          ctx: the moment before training; `ctx.batch` is a batch of zeros, to read shapes from, and
            `ctx.structure` the model's word about itself.
          params: the leaves that learn, those of earlier methods in the chain included; None stands
            for a frozen leaf, which is in `ctx.frozen`.

        Returns:
          The leaves that learn, with those that are new, and the state: any pytree of arrays, ()
          for none. Arrays that are kept are copies (`trees.copy`), for `params` may be donated.
        """
        ...


class Begin(Protocol):
    """`begin(state, ctx, params) -> (params, state)` starts a stage, in its first step.

    It runs in every stage but the first, before the step makes its rows, and only in chains with a
    method that `jumps`: one whose stages start elsewhere than at the model that the last boundary
    left. That one moves the parameters here, outside the optimizer, so that no mask, schedule or
    path takes the jump for an update. All others run after it, and may note where the stage starts.

    Users: `ties` goes back to θ₀, or on from the last expert; `si` starts its path there.
    """

    def __call__(self, state: Any, ctx: Ctx, params: Params, /) -> tuple[Params, Any]:
        """Starts a stage.

        Args:
          state: the method's state.
          ctx: the moment; `ctx.reached` are the leaves that the last boundary left, and `ctx.apply`
            the model with the parameters as earlier methods have moved them.
          params: the leaves that learn, as earlier methods have moved them.

        Returns:
          The leaves where the stage starts, and the state, both with the leaves that they had.
        """
        ...


class Skips(Protocol):
    """`skips(state, ctx) -> bool []` says in a step that `batch` and `loss` would change nothing.

    Where all methods of a chain that define either of them say so, a `lax.cond` takes the step
    without them, which saves their passes through the model in the same compiled step. It must be
    exact: True only if the step would give the same numbers.

    Users: `er` and `lwf`, in the first stage, which there is nothing to replay or to teach from.
    """

    def __call__(self, state: Any, ctx: Ctx, /) -> jax.Array | bool:
        """Whether the method's `batch` and `loss` change nothing in this step, bool [].

        Args:
          state: the method's state.
          ctx: the moment.
        """
        ...


class Rows(Protocol):
    """`batch(state, ctx, batch) -> batch` makes the rows that a step learns from.

    It runs first in a step, left to right in a chain, unless `skips`. It may append rows after the
    fresh ones (`memory.append`), and change weights and masks; the fresh rows stay where they are,
    in front, for what `Info` holds is theirs. The number of rows is static: an empty place is a row
    of weight 0, which no mean counts.

    Users: `er` and `der` append replayed rows; `ir_dro` weighs rows anew, and `rho` their tokens.
    """

    def __call__(self, state: Any, ctx: Ctx, batch: Batch, /) -> Batch:
        """Makes the rows of a step.

        Args:
          state: the method's state.
          ctx: the moment; `ctx.batch` are the fresh rows alone, and `ctx.key` is for draws.
          batch: the rows so far, leaves [B, ...], with those of earlier methods after the fresh.

        Returns:
          A dict with the same keys, leaves [B + n, ...], and perhaps further keys.
        """
        ...


class Forward(Protocol):
    """`forward(state, ctx, apply) -> apply` wraps the model, wherever it is called.

    That is in training, in prediction and evaluation, in other methods' `ctx.apply`, and in frozen
    references, which keep a copy of the state. In a chain the last method's wrapper is the
    outermost. Its `ctx.apply` is the model as wrapped so far. A wrapper hands `call` on, by which
    taps, keys and `training` reach the model; one that asks the model nothing new leaves unknown
    keys of a batch alone.

    Users: `lora` scales its pairs, `prompt_tuning` puts a prompt before the tokens, `packnet` shows
    each row the weights of its task, and `dpo` answers with rewards where the batch asks for them.
    """

    def __call__(self, state: Any, ctx: Ctx, apply: Apply, /) -> Apply:
        """Wraps the model.

        Args:
          state: the method's state; in a reference, as it was when the model was frozen.
          ctx: the moment, or the one at which a reference was frozen. `ctx.frozen` holds the leaves
            that don't learn, which `apply` merges in by itself.
          apply: the model so far, `(params, batch, call) -> outputs`, of the leaves that learn.

        Returns:
          A function with the same arguments and outputs of the same kind.
        """
        ...


class Loss(Protocol):
    """`loss(state, ctx, loss_fn) -> loss_fn` wraps the loss that a step descends.

    It is for what needs a pass through the model: distillation, or a penalty on outputs. A penalty
    on the parameters alone is cheaper in `grads`. It runs once a trace; the function that it
    returns is then called, and differentiated, on the step's rows, or on a part of them where a
    batch is split into microbatches, so it must be a mean by the rows' weights (`losses.mean_of`,
    `losses.batch_mean`). `ctx.loss` stays the task's own loss, and `Info.task_grads` its gradient.

    Users: `lwf` adds the divergence from its teacher, `der` the distance from the outputs that were
    stored; as in

        def loss(state, ctx, loss_fn):
            def with_penalty(params, batch, call):
                value, aux = loss_fn(params, batch, call)
                return value + strength * losses.mean_of(distance(aux.outputs), aux.outputs), aux

            return with_penalty
    """

    def __call__(self, state: Any, ctx: Ctx, loss_fn: LossFn, /) -> LossFn:
        """Wraps the loss.

        Args:
          state: the method's state.
          ctx: the moment.
          loss_fn: the loss so far, `(params, batch, call) -> (scalar float32, aux)`, with `aux` an
            `Aux`: the outputs, a record of a kind that the method `wants` or None, and what the
            model keeps beside its parameters.

        Returns:
          A function of the same form, which hands on the `aux` that it got.
        """
        ...


class Grads(Protocol):
    """`grads(state, ctx, grads) -> grads` changes the gradient before the optimizer sees it.

    It runs once a step, left to right in a chain, after all microbatches and replicas are summed. A
    quadratic penalty ½ λ ‖θ - μ‖² adds its slope λ (θ - μ) here, which costs no pass through the
    model, and projections are taken here.

    Users: `ewc` and `si` pull towards their anchors; `agem` and `gpm` project.
    """

    def __call__(self, state: Any, ctx: Ctx, grads: Params, /) -> Params:
        """Changes the gradient.

        Args:
          state: the method's state.
          ctx: the moment; `ctx.params` is where the gradient was taken.
          grads: the gradient so far, shaped like the leaves that learn, in their dtype.

        Returns:
          A gradient with the same leaves.
        """
        ...


class Updates(Protocol):
    """`updates(state, ctx, updates) -> updates` changes what the optimizer adds to the parameters.

    It runs after the optimizer, left to right in a chain. What is held still must be held here: an
    optimizer with momentum or weight decay moves a parameter whose gradient is 0.

    Users: `packnet` and `mofo` mask the update, `rewarm` scales it by stage and step.
    """

    def __call__(self, state: Any, ctx: Ctx, updates: Params, /) -> Params:
        """Changes the update.

        Args:
          state: the method's state.
          ctx: the moment; `ctx.grads` is the gradient that the optimizer received, and `ctx.params`
            the leaves before the update.
          updates: what will be added so far, shaped like the leaves that learn; the learning rate's
            sign is in it.

        Returns:
          An update with the same leaves.
        """
        ...


class Observe(Protocol):
    """`observe(state, ctx, info) -> state` makes the next state from what a step produced.

    It runs at the end of every step, once the parameters have moved. It changes no parameters.

    Users: `er` puts the fresh rows into its memory, `si` adds to its path integral, `ema` moves its
    average.
    """

    def __call__(self, state: Any, ctx: Ctx, info: Info, /) -> Any:
        """Makes the next state.

        Args:
          state: the method's state.
          ctx: the moment of the step, with the parameters before it.
          info: the loss, outputs, gradients, the update as it was applied, the parameters after it,
            and the fresh rows. Of padding, rows of weight 0, nothing should be kept.

        Returns:
          The state, with the leaves that it had.
        """
        ...


class Consolidate(Protocol):
    """`consolidate(state, ctx, params, batches) -> (params, state)` ends a stage.

    It runs once at the end of each stage, left to right in a chain, with the stage's own data. Only
    a method that `writes` returns other parameters. One that averages models may give, as a third
    thing, what the model keeps beside its parameters, averaged likewise (see
    `make(collections=)`). The model is evaluated after it.

    Users: `ewc` measures its Fisher, `packnet` prunes and retrains, `ties` merges, and `inclora`
    banks its pairs and draws fresh ones; `ema` gives the third thing too.
    """

    def __call__(self, state: Any, ctx: Ctx, params: Params, batches: Batch, /) -> tuple[Any, ...]:
        """Ends a stage.

        Args:
          state: the method's state.
          ctx: the moment; `ctx.stage` is still the stage that ends, `ctx.reached` are the leaves
            where training ended, and `ctx.apply` and `ctx.loss` the model that earlier methods have
            left. Of leaves for which `ctx.renewed(path)` names a method the past is void.
          params: the leaves that learn, as earlier methods have left them.
          batches: the stage's batches, or as many of them as the run keeps, leaves [n, B, ...].

        Returns:
          The parameters and the state, both with the leaves that they had; perhaps the collections.
        """
        ...


class Report(Protocol):
    """`report(state, info) -> {name: scalar}` gives what is logged of a method in each step.

    It runs last in a step, after `observe`. A chain puts the method's name before each name, as in
    `ewc/fisher`.

    Users: `ewc` reports its Fisher's norm, `er` how many slots are filled.
    """

    def __call__(self, state: Any, info: Info, /) -> dict[str, jax.Array]:
        """Gives finite scalars, float32 [] by name, the same names in each step.

        Args:
          state: the method's state after the step.
          info: what the step produced, as in `observe`.
        """
        ...
