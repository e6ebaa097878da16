"""Infers the task of a row that doesn't name it: the one whose inputs it resembles most."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jcl import trees
from jcl.method import Apply, Batch, Call, Ctx, Info, Method, Params, check


class InferTaskState(NamedTuple):
    """The state of `infer_task`."""

    total: jax.Array
    """float32 [tasks, d]: the sum of the features of each task's rows."""


def infer_task(tasks: int, prompts: bool = True) -> Method:
    """Task inference: in prediction, a row's `task` is argmax_t cos(f(row), Σ_{rows of t} f).

    f is the mean of the embeddings of a row's tokens, each row's scaled to length 1. Chain it with
    a method that goes by the task, such as `inclora(predict="task")`, which has to come first for
    it adds parameters, or `packnet`.
    Tasks without a row so far are never inferred. The scores still group rows by the `task` that
    the data names. A generation with a cache takes the `task` that it is given.

    Source: Rebuffi et al., arXiv 1611.07725, algorithm 1, the nearest mean of exemplars, here over
    tasks in place of classes. Wang et al., ACL 2023, "Rehearsal-free continual language learning
    via efficient parameter isolation", choose a task's parameters so, by a Mahalanobis distance.

    Args:
      tasks: how many tasks there are.
      prompts: whether f is over the tokens that aren't predicted, the instruction, only; False
        takes all tokens.

    Raises:
      ValueError: if an argument is out of range, or, at `init`, there is no `embed/table`.
    """
    check(tasks >= 1, "tasks", tasks, "at least 1")

    def features(ctx: Ctx, params: Params, batch: Batch) -> jax.Array:
        table = trees.merge(params, ctx.frozen)["embed"]["table"]
        real = jnp.ones(batch["tokens"].shape, jnp.float32)
        if "segments" in batch:
            real = (batch["segments"] > 0).astype(jnp.float32)
        if prompts and "mask" in batch:
            real = real.at[:, 1:].multiply(1 - batch["mask"])
        embedded = table[batch["tokens"]].astype(jnp.float32)
        return _unit(jnp.einsum("bl,bld->bd", real, embedded))

    def init(ctx: Ctx, params: Params) -> tuple[Params, InferTaskState]:
        whole = trees.merge(params, ctx.frozen)
        there = "embed" in whole and "table" in whole["embed"]
        check(there, "parameters", sorted(whole), "a language model's, with embed/table")
        return params, InferTaskState(jnp.zeros((tasks, whole["embed"]["table"].shape[1])))

    def forward(state: InferTaskState, ctx: Ctx, apply: Apply) -> Apply:
        def apply_with_task(params: Params, batch: Batch, call: Call = Call()) -> Any:
            if call.training or "cache" in batch:
                return apply(params, batch, call)
            likeness = features(ctx, params, batch) @ _unit(state.total).T
            known = jnp.any(state.total != 0, axis=-1)
            found = jnp.argmax(jnp.where(known, likeness, -jnp.inf), axis=-1)
            return apply(params, {**batch, "task": found.astype(jnp.int32)}, call)

        return apply_with_task

    def observe(state: InferTaskState, ctx: Ctx, info: Info) -> InferTaskState:
        seen = features(ctx, info.params, info.batch) * (info.batch["weight"] > 0)[:, None]
        return InferTaskState(state.total.at[info.batch["task"]].add(seen, mode="drop"))

    return Method(
        "infer_task", init=init, forward=forward, observe=observe, reads=("gradients",), routes=True
    )


def _unit(x: jax.Array) -> jax.Array:
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
