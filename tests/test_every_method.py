"""Every method × every invariant. A new method is one file, one row here, and its own checks.

The problem: a multilayer perceptron, three tasks of five steps, Adam; for adapters a decoder whose
base is frozen. Compiled work is shared by a module-scoped fixture, so that a row costs one
compilation of each function it needs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

import jcl
from jcl import adapters, checkpoint, losses, mesh, methods, models, preference, trees
from jcl.method import READS

TASKS, STEPS, ROWS, FEATURES, HIDDEN, CLASSES = 3, 5, 8, 16, 32, 8


class Problem(NamedTuple):
    """What learns."""

    apply: Callable[..., Any]
    params: Any
    trainable: trees.Trainable = trees.every_leaf
    loss: Any = losses.cross_entropy()


def decoder() -> Problem:
    """Classes [B, C] after the last of a few tokens; only adapters learn."""
    config = models.decoder.Config(
        vocabulary=CLASSES, layers=2, width=16, heads=2, kv_heads=1, hidden=24
    )
    whole = models.decoder.apply_fn(config)
    params = models.decoder.init(jax.random.key(1), config)
    params = {**params, "embed": {"table": 20 * params["embed"]["table"]}}
    return Problem(lambda p, b, tap: whole(p, b, tap)[:, -1], params, adapters.is_adapter)


def viewer() -> Problem:
    """Classes [B, C] after an image and a few tokens; only the projector and adapters learn."""
    config = models.multimodal.Config(
        models.vision.Config(image=4, patch=2, layers=1, width=16, heads=2, hidden=24),
        models.decoder.Config(
            vocabulary=CLASSES, layers=2, width=16, heads=2, kv_heads=1, hidden=24
        ),
    )
    whole = models.multimodal.apply_fn(config)
    params = models.multimodal.init(jax.random.key(1), config)
    params = {**params, "embed": {"table": 20 * params["embed"]["table"]}}

    def apply(params: Any, batch: Any, tap: Any) -> Any:
        return whole(params, {**batch, "image": batch["x"].reshape(-1, 4, 4, 1)}, tap)[:, -1]

    return Problem(apply, params, models.multimodal.projector_and_adapters)


def ranker() -> Problem:
    """The decoder whole, ranking the tokens of a row over those of another."""
    config = models.decoder.Config(
        vocabulary=CLASSES, layers=2, width=16, heads=2, kv_heads=1, hidden=24
    )
    return Problem(models.decoder.apply_fn(config), DECODER.params, loss=preference.ranking())


MLP = Problem(
    models.mlp.apply, models.mlp.init(jax.random.key(1), [FEATURES, HIDDEN, HIDDEN, CLASSES])
)
DECODER = decoder()
RANKER = ranker()
VIEWER = viewer()
DENSE = r"dense_\d"
FROZEN = "plain fine-tuning trains the base, which stands still here"


def disturb(states: Any) -> Any:
    """Another value in every float leaf: another anchor, buffer, running mean."""
    return jax.tree.map(
        lambda x: x * 1.5 + 0.5 if jnp.issubdtype(x.dtype, jnp.floating) else x, states
    )


def flip(states: Any) -> Any:
    """Another mask: what was owned, used or seen is not, and the reverse."""
    return jax.tree.map(
        lambda x: ~x if x.dtype == bool else -1 - x if x.dtype == jnp.int8 else x, states
    )


@dataclass(frozen=True)
class Row:
    """One method under test."""

    name: str
    build: Callable[..., jcl.Method]
    arguments: dict[str, Any] = field(default_factory=dict)
    neutral: dict[str, Any] | str = "why it has no neutral strength"
    """Arguments at which it equals plain fine-tuning bit for bit, or the reason why none exist."""
    bad: tuple[dict[str, Any], ...] = ()
    """Arguments that must be refused."""
    disturb: Callable[[Any], Any] | str = disturb
    """Changes the method's state between tasks, or the reason why it has nothing to change."""
    tolerance: float = 1e-5
    """Of parameters, between programs that differ in rounding only."""
    at_boundary: bool = False
    """Whether its state acts on the parameters at a boundary, not in a step."""
    problem: Problem = MLP

    def make(self, **changes: Any) -> jcl.Method:
        return self.build(**{**self.arguments, **changes})


TABLE = [
    Row("naive", methods.naive, neutral={}, disturb="it has no state"),
    Row(
        "ewc",
        methods.ewc,
        {"strength": 10.0},
        neutral={"strength": 0.0},
        bad=({"strength": -1.0}, {"labels": "mine"}),
    ),
    Row(
        "online_ewc",
        methods.online_ewc,
        {"strength": 10.0},
        neutral={"strength": 0.0},
        bad=({"strength": -1.0}, {"decay": 1.5}),
    ),
    Row(
        "si",
        methods.si,
        {"strength": 10.0},
        neutral={"strength": 0.0},
        bad=({"strength": -1.0}, {"damping": 0.0}),
    ),
    Row(
        "mas",
        methods.mas,
        {"strength": 10.0},
        neutral={"strength": 0.0},
        bad=({"strength": -1.0}, {"anchor": "first"}),
    ),
    Row(
        "rwalk",
        methods.rwalk,
        {"strength": 10.0, "interval": 3},
        neutral={"strength": 0.0},
        bad=(
            {"strength": -1.0},
            {"interval": 0},
            {"mix": 1.5},
            {"path": -1.0},
            {"damping": 0.0},
            {"labels": "mine"},
        ),
    ),
    Row(
        "l2sp",
        methods.l2sp,
        {"strength": 1.0},
        neutral={"strength": 0.0},
        bad=({"strength": -1.0}, {"start": -1}),
    ),
    Row(
        "recadam",
        methods.recadam,
        {"midpoint": 2.0, "speed": 1.0},
        neutral={"midpoint": -np.inf},
        bad=({"strength": 2.0}, {"speed": 0.0}, {"start": -1}),
    ),
    Row(
        "rewarm",
        methods.rewarm,
        {"warmup": 2, "steps": STEPS},
        neutral={"warmup": 0, "final": 1.0},
        bad=({"warmup": -1}, {"steps": 1}, {"peak": -1.0}, {"final": -1.0}),
        disturb="it has no state",
    ),
    Row(
        "constant",
        methods.constant,
        {"value": 0.5},
        neutral={"value": 1.0},
        bad=({"value": -1.0}, {"start": -1}),
        disturb="it has no state",
    ),
    Row(
        "infinite",
        methods.infinite,
        {"warmup": 2, "cooldown": 4, "anneal": 3},
        neutral={"warmup": 0, "level": 1.0},
        bad=(
            {"warmup": -1},
            {"cooldown": -1},
            {"anneal": 0},
            {"level": 0.0},
            {"final": 0.0},
            {"curve": "linear"},
        ),
        disturb=lambda states: {"infinite": states["infinite"]._replace(branched=jnp.int32(3))},
    ),
    Row(
        "er",
        methods.er,
        {"capacity": 12, "rows": 4},
        neutral={"start": TASKS},
        bad=(
            {"capacity": 0},
            {"rows": 0},
            {"weight": -1.0},
            {"start": -1},
            {"policy": "newest"},
            {"select": "first"},
            {"pool": 0},
        ),
    ),
    Row(
        "er + ewc",
        lambda strength=10.0, start=1: jcl.chain(
            methods.er(capacity=12, rows=4, start=start), methods.ewc(strength=strength)
        ),
        neutral={"strength": 0.0, "start": TASKS},
    ),
    Row(
        "agem",
        methods.agem,
        {"capacity": 12, "rows": 4},
        neutral="it has no strength: wherever the memory disagrees the gradient is projected",
        bad=({"capacity": 0}, {"rows": 0}, {"at": "loss"}, {"policy": "newest"}),
    ),
    Row(
        "er + agem",  # one buffer for both
        lambda: jcl.chain(
            methods.agem(capacity=12, rows=4, at="updates"), methods.er(rows=4, share="agem")
        ),
        neutral="it has no strength: wherever the memory disagrees the update is projected",
    ),
    Row(
        "der",
        methods.der,
        {"capacity": 12, "rows": 4},
        neutral={"alpha": 0.0},
        bad=({"capacity": 0}, {"rows": 0}, {"alpha": -1.0}, {"start": -1}, {"top_k": 0}),
    ),
    Row(
        "derpp",
        methods.derpp,
        {"capacity": 12, "rows": 4},
        neutral={"alpha": 0.0, "beta": 0.0},
        bad=({"beta": -1.0}, {"draws": 3}, {"policy": "herding"}),
    ),
    Row(
        "gem",
        methods.gem,
        {"tasks": TASKS, "capacity_per_task": 4},
        neutral="it has no strength: wherever a past stage disagrees the gradient is projected",
        bad=({"tasks": 0}, {"capacity_per_task": 0}, {"margin": -1.0}, {"at": "loss"}),
    ),
    Row(
        "gpm",
        methods.gpm,
        {"threshold": 0.7},
        neutral="biases stop after the first stage, whatever the threshold",
        bad=({"threshold": 0.0}, {"growth": -1.0}, {"rank": 0}, {"at": "loss"}),
    ),
    Row(
        "lwf",
        methods.lwf,
        neutral={"strength": 0.0},
        bad=({"strength": -1.0}, {"temperature": 0.0}),
    ),
    Row(
        "ogd",
        methods.ogd,
        {"directions": 12, "per_stage": 4},
        neutral="it has no strength: the span of the stored gradients is always removed",
        bad=({"directions": 0}, {"per_stage": 0}, {"of": "logit"}, {"at": "loss"}),
    ),
    Row(
        "packnet",
        methods.packnet,
        {"prune": 0.6, "tasks": TASKS, "retrain_steps": 3},
        neutral="a finished stage keeps some weights for ever, or the model is zero",
        bad=(
            {"prune": 1.0},
            {"tasks": 128},
            {"retrain_steps": -1},
            {"learning_rate": 0.0},
            {"momentum": 1.0},
        ),
        disturb=flip,
    ),
    Row(
        "hat",
        methods.hat,
        {"tasks": TASKS, "steps": STEPS},
        neutral="its gates act from the first step, whatever the strength of the regulariser",
        bad=({"tasks": 0}, {"steps": 0}, {"smax": 0.5}, {"strength": -1.0}),
        disturb=flip,
    ),
    Row(
        "mofo",
        methods.mofo,
        {"fraction": 0.2},
        neutral={"fraction": 1.0},
        bad=({"fraction": 0.0}, {"fraction": 1.5}, {"decay": 1.0}),
    ),
    Row(
        "migu",
        methods.migu,
        neutral={"fraction": 1.0},
        bad=({"fraction": 0.0}, {"at": "loss"}),
        disturb="it has no state",
    ),
    Row(
        "soft_mask",
        methods.soft_mask,
        neutral={"strength": 0.0, "at": "grads"},
        bad=({"strength": 1.5}, {"at": "loss"}),
        disturb=lambda states: jax.tree.map(lambda i: 1 - i, states),
    ),
    Row(
        "seq",
        methods.seq,
        {"warmup": 3},
        neutral="its backbone and its old classes are frozen after the first stage",
        bad=({"warmup": -1},),
        disturb=flip,
    ),
    Row(
        "ema",
        methods.ema,
        {"decay": 0.7},
        neutral={"decay": 0.0},
        bad=({"decay": 1.5},),
        at_boundary=True,
    ),
    Row(
        "wise_ft",
        methods.wise_ft,
        neutral={"alpha": 1.0},
        bad=({"alpha": -0.5}, {"anchor": "last"}),
        at_boundary=True,
    ),
    Row(
        "task_arithmetic",
        methods.task_arithmetic,
        neutral="every stage but the first starts from somewhere else",
        bad=({"scale": -1.0}, {"start": "merged"}, {"drop": 1.0}),
    ),
    Row(
        "ties",
        methods.ties,
        neutral="every stage but the first starts from somewhere else",
        bad=({"density": 1.5}, {"scale": -1.0}, {"start": "merged"}, {"scope": "layer"}),
    ),
    Row(
        "from_scratch",
        methods.from_scratch,
        neutral="every stage but the first starts from somewhere else",
    ),
    Row(
        "lora",
        methods.lora,
        {"rank": 2, "targets": DENSE},
        neutral={"alpha": 0.0},
        bad=({"rank": 0},),
        disturb="it has no state",
    ),
    Row(
        "lora + ewc",  # DoRA's, and the base frozen
        lambda: jcl.chain(
            methods.lora(rank=2, targets=DENSE, dora=True), methods.ewc(strength=10.0)
        ),
        neutral=FROZEN,
        problem=MLP._replace(trainable=adapters.is_adapter),
    ),
    Row(
        "inclora",
        methods.inclora,
        {"tasks": TASKS, "rank": 2, "targets": DENSE},
        neutral={"alpha": 0.0},
        bad=({"tasks": 1}, {"rank": 0}, {"predict": "sum"}),
    ),
    Row(
        "olora",
        methods.olora,
        {"tasks": TASKS, "rank": 2, "targets": DENSE},
        neutral={"alpha": 0.0},
        bad=(
            {"tasks": 1},
            {"rank": 0},
            {"orthogonality": -1.0},
            {"shrink": -1.0},
            {"form": "cube"},
        ),
    ),
    Row(
        "ia3",
        methods.ia3,
        {"outputs": "dense_0", "inputs": "dense_2"},
        neutral="its gains learn from the first step",
        bad=({"outputs": None, "inputs": None},),
        disturb="it has no state",
    ),
    Row(
        "bottleneck",
        methods.bottleneck,
        {"width": 4},
        neutral=FROZEN,
        bad=({"width": 0}, {"after": ("head",)}),
        disturb="it has no state",
        problem=DECODER,
    ),
    Row(
        "prompt_tuning",
        methods.prompt_tuning,
        {"length": 3},
        neutral=FROZEN,
        bad=({"length": 0},),
        disturb="it has no state",
        problem=DECODER,
    ),
    Row(
        "prefix_tuning",
        methods.prefix_tuning,
        {"length": 3},
        neutral=FROZEN,
        bad=({"length": 0},),
        disturb="it has no state",
        problem=DECODER,
    ),
    Row(
        "llama_pro",
        methods.llama_pro,
        {"layers": (1,)},
        neutral="all but the given blocks stand still from the first step",
        bad=({"layers": ()}, {"layers": (-1,)}),
        disturb="it has no state",
        problem=DECODER._replace(trainable=trees.every_leaf),
    ),
    Row(
        "rho",  # of rows; tokens in its own tests
        methods.rho,
        {"share": 0.5, "unit": "row"},
        neutral={"share": 1.0},
        bad=({"share": 0.0}, {"share": 1.5}, {"reference": "first"}, {"unit": "document"}),
    ),
    Row(
        "ir_dro",
        methods.ir_dro,
        neutral={"temperature": np.inf},
        bad=({"temperature": 0.0},),
        disturb="it has no state",
    ),
    Row(
        "dpo",
        methods.dpo,
        {"reference": "previous"},
        neutral="whatever its strength, pairs are scored against the reference",
        bad=({"beta": 0.0}, {"reference": "last"}),
        problem=RANKER,
    ),
    Row(
        "kl_to_reference",
        methods.kl_to_reference,
        {"strength": 1.0, "reference": "previous"},
        neutral={"strength": 0.0},
        bad=({"strength": -1.0}, {"reference": "last"}, {"direction": "both"}),
    ),
    Row(
        "copr",
        methods.copr,
        {"stages": TASKS, "capacity": 12},
        neutral="it takes the objective's place",
        bad=(
            {"stages": 0},
            {"beta": 0.0},
            {"reward": -1.0},
            {"sft": -1.0},
            {"capacity": 0},
            {"rows": 0},
            {"rate": -1.0},
        ),
        problem=RANKER,
    ),
    Row(
        "hma",
        methods.hma,
        neutral={"alpha": 1.0},
        bad=({"alpha": 1.5}, {"parts": 0}, {"steps": -1}, {"rate": 0.0}, {"anchor": "last"}),
        at_boundary=True,
        problem=DECODER._replace(trainable=trees.every_leaf),
    ),
    Row(
        "online_merging",
        methods.online_merging,
        {"density": 0.8},
        neutral={"alpha": 0.0, "density": 1.0},
        bad=({"alpha": 1.5}, {"density": 0.0}, {"form": "both"}),
    ),
    Row(
        "distil",
        lambda teacher=None, **options: methods.distil(
            jax.tree.map(lambda x: 1.1 * x, MLP.params), **options
        ),
        {"strength": 0.5},
        neutral={"strength": 0.0},
        bad=({"strength": 1.5}, {"temperature": 0.0}),
    ),
    Row(
        "moelora",
        methods.moelora,
        {"experts": 2, "rank": 4},
        neutral=FROZEN,
        bad=({"experts": 0}, {"rank": 3}),
        disturb="it has no state",
        problem=DECODER,
    ),
    Row(
        "eproj",
        methods.eproj,
        {"slots": TASKS},
        neutral="a stage's first step only looks",
        bad=({"slots": 0}, {"threshold": 1.5}, {"predict": "mine"}),
        disturb=partial(jax.tree.map, jnp.zeros_like),  # every projector is forgotten
        problem=VIEWER,
    ),
    Row(
        "progressive_prompts",
        methods.progressive_prompts,
        {"tasks": TASKS, "length": 2},
        neutral=FROZEN,
        bad=({"tasks": 0}, {"length": 0}, {"predict": "mine"}),
        problem=DECODER,
    ),
    Row(
        "infer_task",  # which reads, and leaves learning to another
        lambda tasks=TASKS: jcl.chain(
            methods.inclora(stages=TASKS, rank=2), methods.infer_task(tasks=tasks)
        ),
        neutral=FROZEN,
        bad=({"tasks": 0},),
        problem=DECODER,
    ),
]


def stream() -> dict[str, jax.Array]:
    """Leaves [TASKS, STEPS, ROWS, ...]: a linear teacher a task, over shifted inputs.

    `tokens` are what a decoder reads of them, half of each an answer that is preferred to another.
    """
    keys = jax.random.split(jax.random.key(7), 3)
    shape = (TASKS, STEPS, ROWS, FEATURES)
    shift = jax.random.normal(keys[0], (TASKS, 1, 1, FEATURES))
    x = jax.random.normal(keys[1], shape) + shift
    teacher = jax.random.normal(keys[2], (TASKS, FEATURES, CLASSES))
    y = jnp.argmax(jnp.einsum("tsbi,tio->tsbo", x, teacher), axis=-1)
    task = jnp.broadcast_to(jnp.arange(TASKS)[:, None, None], y.shape)
    tokens = jnp.clip(jnp.round(2 * x[..., :6]) + CLASSES // 2, 0, CLASSES - 1).astype(jnp.int32)
    batch = {"x": x, "y": y, "task": task, "weight": jnp.ones(y.shape), "tokens": tokens}
    answer = jnp.broadcast_to(jnp.arange(5) >= 2, (*y.shape, 5)).astype(jnp.float32)
    batch |= {"segments": jnp.ones_like(tokens), "answer": answer}
    batch |= {"rejected_segments": batch["segments"], "rejected_answer": answer}
    return batch | {"rejected_tokens": tokens.at[..., 3:].set(tokens[..., :3])}


STREAM = stream()
EXAMPLE = jax.tree.map(lambda x: x[0, 0], STREAM)
KEY = jax.random.key(3)


# Adam divides by |g| + eps: with the usual 1e-8 the rounding of a zero gradient becomes a step
OPTIMIZER = optax.adam(1e-2, eps=1e-3)
# products by powers of two are exact, so that sums have the same bits however they are fused
EXACT = optax.sgd(2**-6, momentum=0.5)


def program_of(
    method: jcl.Method,
    problem: Problem = MLP,
    optimizer: optax.GradientTransformation = OPTIMIZER,
    **options: Any,
) -> jcl.Program:
    options["trainable"] = problem.trainable
    return jcl.make(method, problem.apply, problem.loss, optimizer, **options)


class Loop:
    """The Python loop that a user would write: jitted `step` and `consolidate`, traces counted."""

    def __init__(
        self, program: jcl.Program, params: Any = MLP.params, shardings: Any = None
    ) -> None:
        self.params = params
        self.traces = {"step": 0, "consolidate": 0}
        out = {} if shardings is None else {"out_shardings": shardings}
        both = {} if shardings is None else {"out_shardings": (shardings, None)}
        self.init = jax.jit(program.init, **out)
        self.step = jax.jit(self._counted("step", program.step), **both)
        self.consolidate = jax.jit(self._counted("consolidate", program.consolidate), **out)

    def _counted(self, name: str, fn: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any) -> Any:
            self.traces[name] += 1
            return fn(*args)

        return counted

    def stage(self, state: jcl.State, task: int) -> tuple[jcl.State, list[Any]]:
        reports = []
        for i in range(STEPS):
            state, aux = self.step(state, jax.tree.map(lambda x, i=i: x[task, i], STREAM))
            reports.append(aux)
        return self.consolidate(state, jax.tree.map(lambda x: x[task], STREAM)), reports

    def stages(self, key: jax.Array = KEY) -> tuple[list[jcl.State], list[Any]]:
        states, reports = [self.init(self.params, EXAMPLE, key)], []
        for task in range(TASKS):
            state, new = self.stage(states[-1], task)
            states.append(state)
            reports += new
        return states, reports


class Bench:
    """A row's compiled work, done once."""

    def __init__(self, row: Row) -> None:
        self.row = row
        self.program = program_of(row.make(), row.problem)
        # said where they are, as a restored state is, so that both run the same compiled step
        params = jax.device_put(row.problem.params, jax.devices()[0])
        self.loop = Loop(self.program, params)

    @cached_property
    def stages(self) -> tuple[list[jcl.State], list[Any]]:
        return self.loop.stages()

    @property
    def states(self) -> list[jcl.State]:
        return self.stages[0]


@pytest.fixture(
    scope="module",
    params=[pytest.param(r, id=r.name, marks=pytest.mark.xdist_group(r.name)) for r in TABLE],
)
def bench(request: pytest.FixtureRequest) -> Bench:
    return Bench(request.param)


def raw(tree: Any) -> Any:
    """Keys as their data, so that leaves are plain arrays."""
    return jax.tree.map(
        lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x,
        tree,
    )


def assert_close(a: Any, b: Any, tolerance: float) -> None:
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True
    ):
        np.testing.assert_allclose(
            np.asarray(x), np.asarray(y), rtol=tolerance, atol=tolerance, err_msg=str(path)
        )


def assert_identical(a: Any, b: Any) -> None:
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(raw(a)), jax.tree.leaves(raw(b)), strict=True
    ):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y), err_msg=str(path))


def test_one_trace_across_all_boundaries(bench: Bench) -> None:
    assert len(bench.states) == TASKS + 1
    assert bench.loop.traces == {"step": 1, "consolidate": 1}


def test_shapes_and_dtypes_stay(bench: Bench) -> None:
    shapes = [jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), raw(s)) for s in bench.states]
    assert all(s == shapes[0] for s in shapes[1:])


def test_that_it_keeps_samples_is_said(bench: Bench) -> None:
    method = bench.program.method
    assert set(method.reads) <= set(READS)
    rows = {row.tobytes() for row in np.asarray(STREAM["x"][0]).reshape(-1, FEATURES)}
    leaves = [np.asarray(x) for x in jax.tree.leaves(raw(bench.states[1].methods))]
    wide = [x.reshape(-1, FEATURES) for x in leaves if x.shape[-1:] == (FEATURES,)]
    assert any(row.tobytes() in rows for x in wide for row in x) == ("samples" in method.reads)


def test_training_moves_the_parameters(bench: Bench) -> None:
    moved = jcl.trees.norm(jcl.trees.subtract(bench.states[1].params, bench.states[0].params))
    assert float(moved) > 1e-3


def test_scan_equals_loop_and_mapped_seeds_equal_separate_ones(bench: Bench) -> None:
    keys = jax.random.split(jax.random.key(11), 2)
    many = jcl.replicate(lambda _: bench.program, jnp.arange(2), how="vmap")
    run = partial(jcl.run, params=bench.row.problem.params, stream=STREAM)
    states, _ = jax.jit(lambda k: many.over_members(lambda p, key: run(p, key=key), k))(keys)
    for i, key in enumerate(keys):
        member = jax.tree.map(lambda x, i=i: x[i], states)
        assert_close(bench.loop.stages(key)[0][-1].params, member.params, bench.row.tolerance)


def test_a_changed_state_changes_the_next_step(bench: Bench) -> None:
    if isinstance(bench.row.disturb, str):
        assert not jax.tree.leaves(bench.states[1].methods), bench.row.disturb
        return
    state = bench.states[1]
    changed = state._replace(methods=bench.row.disturb(state.methods))
    batch = jax.tree.map(lambda x: x[1, 0], STREAM)
    # the second step, for a pull towards an anchor is zero while the parameters stand on it
    a, b = (bench.loop.step(bench.loop.step(s, batch)[0], batch)[0] for s in (state, changed))
    if bench.row.at_boundary:
        batches = jax.tree.map(lambda x: x[1], STREAM)
        a, b = (bench.loop.consolidate(s, batches) for s in (a, b))
    apart = jcl.trees.norm(jcl.trees.subtract(a.params, b.params))
    assert float(apart) > 1e-6
    assert bench.loop.traces["step"] == 1


@pytest.fixture(scope="module")
def plain() -> jcl.State:
    return Loop(program_of(methods.naive(), optimizer=EXACT)).stages()[0][-1]


def test_at_neutral_strength_it_is_plain_fine_tuning(bench: Bench, plain: jcl.State) -> None:
    neutral = bench.row.neutral
    if isinstance(neutral, str):
        assert len(neutral) > 20 and neutral != Row.neutral, "say why"
        return
    states, _ = Loop(program_of(bench.row.make(**neutral), optimizer=EXACT)).stages()
    shared = {k: adapters.without_adapters(states[-1].params[k]) for k in plain.params}
    assert_identical(shared, plain.params)


def test_sharded_over_eight_devices(bench: Bench) -> None:
    params = bench.row.problem.params
    program = program_of(
        bench.row.make(), bench.row.problem, mesh=mesh.make(data=2, fsdp=2, tensor=2)
    )
    state = jax.eval_shape(program.init, params, EXAMPLE, KEY)
    states, _ = Loop(program, params, mesh.of_state(state, program.layout)).stages()
    assert_close(states[-1].params, bench.states[-1].params, 10 * bench.row.tolerance)
    whole = {jcl.trees.path_name(p): x for p, x in jax.tree_util.tree_leaves_with_path(params)}
    for path, leaf in jax.tree_util.tree_leaves_with_path(states[-1]):
        name = jcl.trees.path_name(path)
        for param, x in whole.items():
            if name.endswith(f"/{param}") and leaf.shape[leaf.ndim - x.ndim :] == x.shape:
                cuts = [n for n in mesh.spec(param, x.shape, program.layout) if n]
                held = leaf.addressable_shards[0].data.size
                assert held * 2 ** len(cuts) == leaf.size, name
                assert cuts or not param.endswith("kernel"), name


def test_on_every_replica_of_a_named_axis_it_is_the_same(bench: Bench) -> None:
    params = bench.row.problem.params
    program = program_of(bench.row.make(), bench.row.problem, axis_name="replica")
    replicas = jax.make_mesh((4,), ("replica",), axis_types=(jax.sharding.AxisType.Auto,))
    whole, rows = PartitionSpec(), PartitionSpec("replica")

    def over(fn: Callable[..., Any], rows: PartitionSpec) -> Callable[..., Any]:
        specs: Any = {"in_specs": (whole, rows), "out_specs": whole}
        return jax.shard_map(fn, mesh=replicas, check_vma=False, **specs)

    step, consolidate = program.step, program.consolidate
    program = program._replace(
        step=over(step, rows), consolidate=over(consolidate, PartitionSpec(None, "replica"))
    )
    states, _ = Loop(program, params).stages()
    assert_close(states[-1].params, bench.states[-1].params, 10 * bench.row.tolerance)
    shapes = [jax.tree.map(lambda x: x.shape, raw(s)) for s in (states[-1], bench.states[-1])]
    assert shapes[0] == shapes[1]


def test_saved_in_mid_task_and_restored_it_goes_on_identically(bench: Bench, tmp_path: Any) -> None:
    state = bench.states[1]
    batches = [jax.tree.map(lambda x, i=i: x[1, i], STREAM) for i in range(STEPS)]
    for batch in batches[:2]:
        state, _ = bench.loop.step(state, batch)
    checkpoint.save(tmp_path, 2, state)
    restored, step = checkpoint.restore(tmp_path, state)
    assert step == 2
    for batch in batches[2:]:
        state, _ = bench.loop.step(state, batch)
        restored, _ = bench.loop.step(restored, batch)
    assert_identical(state, restored)


def test_four_microbatches_mean_the_same_as_one(bench: Bench) -> None:
    problem = bench.row.problem
    program = program_of(bench.row.make(), problem, microbatches=4)
    states, _ = Loop(program, problem.params).stages()
    assert_close(states[-1].params, bench.states[-1].params, 10 * bench.row.tolerance)


def test_reports_are_finite_scalars(bench: Bench) -> None:
    for aux in bench.stages[1]:
        for name, value in aux.items():
            assert value.shape == () and np.isfinite(value), name


@pytest.mark.quick
@pytest.mark.parametrize(
    "row, wrong", [pytest.param(r, w, id=f"{r.name}-{w}") for r in TABLE for w in r.bad]
)
def test_bad_arguments_are_refused_by_name(row: Row, wrong: dict[str, Any]) -> None:
    (name, value) = next(iter(wrong.items()))
    with pytest.raises(ValueError) as refused:
        row.make(**wrong)
    assert name in str(refused.value) and repr(value) in str(refused.value)
    assert "must be" in str(refused.value)


@pytest.mark.quick
def test_every_public_method_has_a_row() -> None:
    tested = " ".join(r.name for r in TABLE)
    missing = [n for n in methods.__all__ if n not in tested.replace("+", " ").split()]
    assert not missing
