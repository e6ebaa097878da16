"""The pure program of an experiment, and `run`, which scans it over a whole stream of stages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh

from jcl import trees
from jcl.chain import chain
from jcl.contexts import (
    BEGINNING,
    BOUNDARY,
    PREDICTION,
    START,
    STEP,
    Boundary,
    Scene,
    Settling,
    State,
    check_arguments,
    check_start,
    descend,
    with_call,
)
from jcl.method import (
    Apply,
    Batch,
    Call,
    Ctx,
    Info,
    LossFn,
    Method,
    Objective,
    Params,
    Reference,
    Structure,
    Tap,
    check,
    defines,
)
from jcl.outputs import check_kind
from jcl.parallel import mesh as meshes
from jcl.parallel.rows import Shares
from jcl.records import record
from jcl.refusals import check_added, scalars, warn_of_idle

Evaluate = Callable[["Program", "State"], Any]
"""`evaluate(program, state) -> scores`, pure; see `jcl.evaluator`."""
Fetch = Callable[[Any], Batch]
"""Maps a slice of a stream to a batch inside the trace, say by a gather from device arrays."""


@record
class Program(NamedTuple):
    """Pure functions that a driver jits, scans or maps; see `make`."""

    init: Callable[..., State]
    """`(params, batch, key, collections=()) -> state`: `batch` is an example, read for shapes and
    dtypes only; `collections` is what the model keeps beside its parameters, if it keeps any."""
    step: Callable[[State, Batch], tuple[State, dict[str, jax.Array]]]
    """`(state, batch) -> (state, reports)`: one optimizer step, and scalars to log by name."""
    consolidate: Callable[[State, Batch], State]
    """`(state, batches) -> state` at the end of a stage: `batches` [n, B, ...] are its own data."""
    predict: Callable[..., Any]
    """`(state, batch, call=Call()) -> outputs`, every method's `forward` included."""
    read_params: Callable[[State, Batch], Params]
    """`(state, batch) -> params`: the whole tree as the model reads it in `predict`, with pairs
    scaled, say; `batch` is an example. What methods do beside it, such as gates, isn't in it."""
    over_members: Callable[..., Any]
    """`over_members(fn, *args)` calls `fn(program, *args)` for every member; there is one, unless
    `replicate` made more."""
    method: Method
    """The chain of methods that it trains under."""
    members: int | None
    """How many members `replicate` made, None for a single program."""
    layout: meshes.Layout | None = None
    """How the state lies on a mesh; see `mesh.of_state`."""
    scene: Scene | None = None
    """What stays through a run, of what contexts are made: the loss and the model's own word."""
    member: jax.Array | None = None
    """Within `over_members`, which of the members it is, int32 []; None for a single program."""

    def _facts(self) -> dict[str, Any]:
        mesh = self.layout and ",".join(f"{a}={n}" for a, n in self.layout.mesh.shape.items())
        return {"method": self.method.name, "members": self.members, "mesh": mesh}


def fill_batch(batch: Batch) -> Batch:
    """Adds `weight` (ones, float32 [B]) and `task` (zeros, int32 [B]) where they are missing."""
    rows = next(len(x) for x in batch.values() if hasattr(x, "shape"))  # a cache has none
    filled = dict(batch)
    filled.setdefault("weight", jnp.ones(rows, jnp.float32))
    filled.setdefault("task", jnp.zeros(rows, jnp.int32))
    return filled


def make(
    method: Method,
    apply: Apply,
    loss: Objective,
    tx: optax.GradientTransformation,
    *,
    trainable: trees.Trainable | None = None,
    microbatches: int = 1,
    boundary: Boundary = "keep",
    collections: Settling = "recompute",
    mesh: Mesh | None = None,
    rules: meshes.Rules = meshes.RULES,
    axis_name: str | None = None,
    structure: Structure | None = None,
    gradient_norm: bool = False,
) -> Program:
    """The pure program that trains `apply` on `loss` with optimizer `tx` under `method`.

    Args:
      method: one method or a `chain`; `chain()` is plain fine-tuning.
      apply: `(params, batch) -> outputs`, or with a third argument `call` (see `jcl.Call`), which
        says whether it is trained, and has a key for what is random and a tap for its sites.
      loss: `(apply, params, batch) -> scalar` or `(scalar, outputs)`; the outputs should be a
        record of their kind, such as `losses.Logits(logits)` (see `jcl.outputs`).
      tx: any optax transformation but a line search; it sees trainable leaves only. One that asks
        for the loss as `value`, such as `optax.contrib.reduce_on_plateau`, gets it.
      trainable: static predicate over leaf paths such as `blocks/up/kernel`; other leaves get no
        gradient, no moments and no method state. None is what the methods say (`Method.learns`):
        adapters where one adds any, else every leaf.
      microbatches: into how many parts the batch is split, over which gradients are accumulated.
      boundary: what happens to the optimizer's state at the end of a stage: `keep` it, `reset` it,
        or `reset_moments` and keep the counts that schedules read.
      collections: what happens to what the model keeps beside its parameters, such as batch norms'
        running averages, when a method has moved the parameters at a boundary: `recompute` it over
        the stage's data (see `contexts.recompute`), `keep` what training left, or `average` it as
        the method averages the parameters, if it does (`ema`, `wise_ft`, `hma`).
      mesh: the devices over which the compiler spreads the program; the numbers are those of one
        device, to rounding (see `jcl.mesh`).
      rules: where parameters lie on the mesh.
      axis_name: for scripts in the manner of `jax.pmap` or `jax.shard_map(..., check_vma=False)`:
        `step` and `consolidate` then run on every replica of the named axis, each given its part
        of the rows and the whole state, and average over it. Methods see all replicas' rows, so
        that a strength or a buffer means what it means on one device; what they measure example by
        example, such as a Fisher, is divided among the replicas.
      structure: the model's word about itself, which layer is its head and which of its leaves are
        stacked layers; None is `apply.structure`, or the default if it has none.
      gradient_norm: whether each step reports the norm of the gradient that the optimizer gets.

    Raises:
      ValueError: if an argument isn't what it must be, `boundary` or `collections` is none of its
        words, or both `mesh` and `axis_name` are given; or as `chain` does.

    >>> import jax, jax.numpy as jnp, optax
    >>> from jcl import losses, methods
    >>> apply = lambda params, batch: batch["x"] @ params["w"]
    >>> program = make(methods.ewc(strength=1.0), apply, losses.squared_error, optax.sgd(0.1))
    >>> batch = {"x": jnp.ones((4, 2)), "y": jnp.ones((4, 1))}
    >>> state = program.init({"w": jnp.zeros((2, 1))}, batch, jax.random.key(0))
    >>> state, aux = jax.jit(program.step)(state, batch)
    >>> float(aux["loss"])
    0.5
    """
    check_arguments(method, apply, loss, tx, boundary, collections)
    check(microbatches >= 1, "microbatches", microbatches, "at least 1")
    none = mesh is None or axis_name is None
    check(none, "axis_name", axis_name, "None with a mesh, which needs no such name")
    method, tx = chain(method), optax.with_extra_args_support(tx)
    learns = trainable or method.learns or trees.every_leaf
    layout = None if mesh is None else meshes.Layout(mesh, rules)
    shares = Shares(microbatches, axis_name, layout)
    model = meshes.constrain(with_call(apply), layout)
    said: Structure = getattr(apply, "structure", Structure()) if structure is None else structure
    scene = Scene(method, loss, said, axis_name, mesh, collections)

    def split(params: Params) -> tuple[Params, Params]:
        return trees.partition(params, learns)

    def context(state: State, batch: Batch, phase: int, model: Apply = model) -> Ctx:
        return scene.context(state, split(state.params), batch, phase, model)

    def renew(references: dict[str, Reference], state: State, batch: Batch) -> dict[str, Reference]:
        """`references` with the model of `state` as the previous one, where it is asked for."""
        if "previous" not in method.recalls:
            return references
        ctx = context(state, batch, PREDICTION)
        return {**references, "previous": ctx.freeze(ctx.params)}

    def init(params: Params, batch: Batch, key: jax.Array, collections: Any = ()) -> State:
        check_start(params, learns, collections, method, said)
        batch = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), fill_batch(batch))
        # three separate zeros, because a donated state must not hold one buffer twice
        counts = (jnp.int32(0), jnp.int32(0), jnp.int32(0))
        state = State(params, (), {}, *counts, key, {}, collections)
        learning, frozen = split(params)
        ctx = context(state, batch, START)
        if any(m.wants for m in method.parts):
            outputs = jax.eval_shape(ctx.loss, learning, batch)[1].outputs
            for part in method.parts:
                check_kind(part, loss, outputs)
        grown, states = method.init(ctx, learning)
        trees.chosen(trees.merge(grown, frozen), learns, "trainable")  # for its error
        check_added(method, learning, grown, learns)
        grown, frozen = split(trees.merge(grown, frozen))  # what a method added may be frozen
        params = trees.merge(grown, frozen)
        state = state._replace(params=params, optimizer=tx.init(grown), methods=states)
        references = {}
        if "initial" in method.recalls:
            references["initial"] = context(state, batch, PREDICTION).freeze(grown)
        return state._replace(references=renew(references, state, batch))

    def begin(state: State, batch: Batch) -> State:
        """The state where a stage starts, in the first step of a later one."""
        names = [m.name for m in method.parts if defines(m, "begin")]

        def jump() -> tuple[Params, dict[str, Any]]:
            ctx = context(state, batch, BEGINNING)
            params, states = method.begin(state.methods, ctx, ctx.params)
            return params, {name: states[name] for name in names}

        def stay() -> tuple[Params, dict[str, Any]]:
            return split(state.params)[0], {name: state.methods[name] for name in names}

        starts = (state.stage > 0) & (state.stage_step == 0)
        learning, states = lax.cond(starts, jump, stay)
        params = trees.merge(learning, split(state.params)[1])
        return state._replace(params=params, methods={**state.methods, **states})

    penalised, may_skip = defines(method, "loss"), defines(method, "skips")

    def step(state: State, batch: Batch) -> tuple[State, dict[str, jax.Array]]:
        fresh = shares.gather(fill_batch(batch))
        rows = fresh["weight"].shape[0]
        if defines(method, "begin"):
            state = begin(state, fresh)
        learning, frozen = split(state.params)
        ctx = context(state, fresh, STEP)

        def slope(loss_fn: LossFn) -> Callable[..., Any]:
            return shares.value_and_grad(loss_fn, ctx.call, state.collections)

        def work(_: None) -> Any:
            mixed = method.batch(state.methods, ctx, fresh)
            loss_fn = method.loss(state.methods, ctx, ctx.loss)
            (value, aux), grads = slope(loss_fn)(learning, mixed)
            task_grads = grads
            if penalised:  # XLA drops this second gradient unless a method reads it
                task_grads = slope(ctx.loss)(learning, mixed)[1]
            outputs = jax.tree.map(lambda o: o[:rows], aux.outputs)
            return value, aux._replace(outputs=outputs), task_grads, grads

        def rest(_: None) -> Any:
            (value, aux), grads = slope(ctx.loss)(learning, fresh)
            return value, aux, grads, grads

        if may_skip:
            skips = method.skips(state.methods, ctx)
            value, aux, task_grads, grads = lax.cond(skips, rest, work, None)
        else:
            value, aux, task_grads, grads = work(None)
        grads = method.grads(state.methods, ctx, grads)

        updates, opt = descend(tx, grads, state.optimizer, learning, value)
        updates = method.updates(state.methods, ctx._replace(grads=grads), updates)
        learned = optax.apply_updates(learning, updates)
        applied = jax.tree.map(trees.applied, learning, learned)
        info = Info(value, aux.outputs, task_grads, grads, applied, learned, fresh, aux.collections)
        states = method.observe(state.methods, ctx, info)
        norm = {"gradient_norm": trees.norm(grads)} if gradient_norm else {}
        reports = scalars({"loss": value, **norm, **method.report(states, info)})
        after = state._replace(
            params=trees.merge(learned, frozen), optimizer=opt, methods=states,
            stage_step=state.stage_step + 1, step=state.step + 1, collections=aux.collections,
        )  # fmt: skip
        return after, reports

    def consolidate(state: State, batches: Batch) -> State:
        batches = shares.gather(jax.vmap(fill_batch)(batches), axis=1)
        batches = meshes.constrain_batch(batches, layout, leading=1)
        first = jax.tree.map(lambda x: x[0], batches)
        learning, frozen = split(state.params)
        ctx = context(state, first, BOUNDARY)
        learned, states, *kept = method.consolidate(state.methods, ctx, learning, batches)
        opt = state.optimizer
        if boundary == "reset":
            opt = tx.init(learned)
        elif boundary == "reset_moments":
            opt = optax.tree.map_params(tx, jnp.zeros_like, opt)
        state = state._replace(
            params=trees.merge(learned, frozen), optimizer=opt, methods=states,
            stage=state.stage + 1, stage_step=jnp.zeros_like(state.stage_step),
            collections=kept[0] if kept else state.collections,
        )  # fmt: skip
        return state._replace(references=renew(state.references, state, first))

    def predict(state: State, batch: Batch, call: Call | Tap = Call()) -> Any:
        batch = fill_batch(batch)
        ctx = context(state, batch, PREDICTION)
        return ctx.apply(ctx.params, batch, call)

    def read_params(state: State, batch: Batch) -> Params:
        def read(params: Params, rows: Batch, call: Call) -> Params:
            model(params, rows, call)  # methods ask for its sites; XLA drops what it computes
            return params

        batch = fill_batch(batch)
        ctx = context(state, batch, PREDICTION, read)
        return ctx.apply(ctx.params, batch)

    program = Program(
        init, step, consolidate, predict, read_params,
        lambda fn, *args: fn(program, *args), method, None, layout, scene,
    )  # fmt: skip
    return program


def advance(
    program: Program,
    state: State,
    chunk: Any,
    fetch: Fetch | None = None,
    count: jax.Array | None = None,
) -> tuple[State, dict[str, jax.Array]]:
    """Takes many steps of one program in one compiled loop.

    Args:
      program: a single program.
      state: where to start.
      chunk: leaves [n, ...], one slice a step, which `fetch` maps to a batch.
      fetch: see `Fetch`; None takes the chunk's slices as batches.
      count: int32 [], how many of the n steps to take, so that a short last chunk has the shape
        of the others and needs no second trace; None takes all.

    Returns:
      The state after the steps, and what each reported, leaves [n], 0 for steps not taken.
    """
    fetch = fetch or (lambda batch: batch)

    def one(state: State, rows: Any) -> tuple[State, dict[str, jax.Array]]:
        return program.step(state, fetch(rows))

    if count is None:
        return lax.scan(one, state, chunk)
    steps = jax.tree.leaves(chunk)[0].shape[0]
    _, shapes = jax.eval_shape(one, state, jax.tree.map(lambda x: x[0], chunk))
    blank = jax.tree.map(lambda a: jnp.zeros((steps, *a.shape), a.dtype), shapes)

    def body(i: jax.Array, carry: Any) -> Any:
        state, reports = carry
        state, aux = one(state, jax.tree.map(lambda x: x[i], chunk))
        return state, jax.tree.map(lambda all, new: all.at[i].set(new), reports, aux)

    return lax.fori_loop(0, count, body, (state, blank))


def run(
    program: Program,
    params: Params,
    key: jax.Array,
    stream: Any,
    *,
    evaluate: Evaluate | None = None,
    fetch: Fetch | None = None,
    boundary_batches: int | None = None,
    collections: Any = (),
) -> tuple[State, dict[str, Any]]:
    """The whole experiment as one pure function: a scan over stages of a scan over steps.

    Jit it; vmap it over keys or orders of stages; build the program inside to vmap over strengths.

    Args:
      program: from `make`.
      params: where training starts.
      key: a typed PRNG key.
      stream: leaves [stages, steps, ...], or [stages, steps, B, ...] without `fetch`.
      evaluate: called before training and at the end of every stage, after `consolidate`.
      fetch: see `Fetch`; None takes the stream's slices as batches.
      boundary_batches: how many of a stage's first batches `consolidate` gets; None is all.
      collections: what the model keeps beside its parameters, where training starts.

    Returns:
      The last state, and `{"steps": reports [stages, steps], "scores": [stages + 1, ...] or None}`.
    """
    warn_of_idle(program.method, jax.tree.leaves(stream)[0].shape[0])
    fetch = fetch or (lambda batch: batch)
    example = jax.eval_shape(fetch, jax.tree.map(lambda x: x[0, 0], stream))
    state = program.init(params, example, key, collections)
    scores: Any = evaluate(program, state) if evaluate else None

    def stage(state: State, chunk: Any) -> Any:
        state, aux = advance(program, state, chunk, fetch)
        first = jax.tree.map(lambda x: x[:boundary_batches], chunk)
        state = program.consolidate(state, jax.vmap(fetch)(first))
        return state, (aux, evaluate(program, state) if evaluate else None)

    state, (aux, later) = lax.scan(stage, state, stream)
    if evaluate:
        scores = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), scores, later)
    return state, {"steps": aux, "scores": scores}
