"""Every method × every invariant; the methods are the rows of `method_table`.

The problem: a multilayer perceptron, three tasks of five steps, Adam; for adapters a decoder whose
base is frozen. Compiled work is shared by a module-scoped fixture, so that a row costs one
compilation of each function it needs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec
from method_table import CLASSES, FEATURES, MLP, ROWS, STEPS, TABLE, TASKS, Problem, Row, disturb

import jcl
from jcl import adapters, checkpoint, merging, mesh, methods
from jcl.method import READS


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

    def steps(self, state: jcl.State, task: int) -> tuple[jcl.State, list[Any]]:
        reports = []
        for i in range(STEPS):
            state, aux = self.step(state, jax.tree.map(lambda x, i=i: x[task, i], STREAM))
            reports.append(aux)
        return state, reports

    def boundary(self, state: jcl.State, task: int) -> jcl.State:
        return self.consolidate(state, jax.tree.map(lambda x: x[task], STREAM))

    def stages(self, key: jax.Array = KEY) -> tuple[list[jcl.State], list[Any]]:
        states, reports = [self.init(self.params, EXAMPLE, key)], []
        for task in range(TASKS):
            state, new = self.steps(states[-1], task)
            states.append(self.boundary(state, task))
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
        kept = (bench.states[1].methods, bench.states[1].references)
        assert not jax.tree.leaves(kept), bench.row.disturb
        return
    state = bench.states[1]
    changed = state._replace(
        methods=bench.row.disturb(state.methods), references=disturb(state.references)
    )
    batch = jax.tree.map(lambda x: x[1, 0], STREAM)
    # the second step, for a pull towards an anchor is zero while the parameters stand on it
    a, b = (bench.loop.step(bench.loop.step(s, batch)[0], batch)[0] for s in (state, changed))
    if bench.row.at_boundary:
        batches = jax.tree.map(lambda x: x[1], STREAM)
        a, b = (bench.loop.consolidate(s, batches) for s in (a, b))
    apart = jcl.trees.norm(jcl.trees.subtract(a.params, b.params))
    assert float(apart) > 1e-6
    assert bench.loop.traces["step"] == 1


def test_before_it_starts_training_is_plain(bench: Bench) -> None:
    """So that `fit` and `run` are right to warn of it where no later stage comes."""
    if not all(m.starts > 0 for m in bench.program.method.parts):
        pytest.skip("it starts at once")
    problem = bench.row.problem
    loop = Loop(program_of(methods.naive(), problem), problem.params)
    state, _ = loop.steps(loop.init(loop.params, EXAMPLE, KEY), 0)
    assert_close(bench.states[1].params, state.params, 1e-6)


@pytest.fixture(scope="module")
def plain() -> jcl.State:
    return Loop(program_of(methods.naive(), optimizer=EXACT)).stages()[0][-1]


def test_at_neutral_strength_it_is_plain_fine_tuning(bench: Bench, plain: jcl.State) -> None:
    neutral = bench.row.neutral
    if isinstance(neutral, str):
        assert len(neutral) > 20 and neutral != Row.neutral, "say why"
        pytest.skip(neutral)
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


def test_ties_cuts_where_no_weight_is_near() -> None:
    # else the last bit decides which of two is kept, and bits differ between two compilations
    row = next(r for r in TABLE if r.name == "ties")
    loop = Loop(program_of(row.make(), row.problem), row.problem.params)
    state = loop.init(loop.params, EXAMPLE, KEY)
    for task in range(TASKS):
        state, _ = loop.steps(state, task)
        vector = merging.task_vector(state.params, state.methods["ties"].base)
        sizes = np.sort(np.abs(np.concatenate([np.ravel(x) for x in jax.tree.leaves(vector)])))
        kept = int(merging.whole_count(row.arguments["density"], len(sizes)))
        assert sizes[-kept] - sizes[-kept - 1] > 1e-5
        state = loop.boundary(state, task)


@pytest.mark.quick
def test_every_public_method_has_a_row() -> None:
    tested = " ".join(r.name for r in TABLE)
    missing = [n for n in methods.__all__ if n not in tested.replace("+", " ").split()]
    assert not missing
