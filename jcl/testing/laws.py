"""What every method promises, a function for each law; the one that is broken says so.

Each takes a `Bench`, so that laws share compiled work, and raises `Broken` with one sentence that
names the law and the numbers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from copy import copy
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from jcl import trees
from jcl.mechanisms import adapters
from jcl.method import READS, Method
from jcl.methods import naive
from jcl.parallel import mesh
from jcl.program import State, run
from jcl.replicate import replicate
from jcl.testing.bench import FEATURES, STEPS, TASKS, Bench, exact, program_of
from jcl.training import checkpoint


class Broken(AssertionError):
    """A law that a method breaks, in one sentence."""


def hold(law: str, holds: bool, else_: str) -> None:
    """Raises Broken unless it holds."""
    if not holds:
        raise Broken(f"{law}: {else_}")


def raw(tree: Any) -> Any:
    """Keys as their data, so that leaves are plain arrays."""
    return jax.tree.map(
        lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x,
        tree,
    )


def same(law: str, found: Any, wanted: Any, tolerance: float = 0.0) -> None:
    """Two trees, bit for bit or to a tolerance that is both relative and absolute.

    Raises:
      Broken: naming the leaf that is farthest apart.
    """
    a, b = (jax.tree_util.tree_leaves_with_path(raw(tree)) for tree in (found, wanted))
    names = [[trees.path_name(path) for path, _ in leaves] for leaves in (a, b)]
    hold(law, names[0] == names[1], f"has the leaves {names[0]}, but must have {names[1]}")
    worst, where = -1.0, ""
    for (path, x), (_, y) in zip(a, b, strict=True):
        x, y = np.asarray(x), np.asarray(y)
        hold(law, x.shape == y.shape, f"{trees.path_name(path)} has shape {x.shape}, not {y.shape}")
        if x.size and not np.array_equal(x, y, equal_nan=x.dtype.kind == "f"):
            x, y = x.astype(np.float64), y.astype(np.float64)
            over = np.abs(x - y) / (1 + np.abs(y))
            apart = float(np.max(np.where(np.isnan(over), np.inf, over)))
            if apart > max(worst, tolerance):
                at = np.unravel_index(np.argmax(over), over.shape)
                worst, where = (
                    apart,
                    f"{trees.path_name(path) or 'it'} is {x[at]:.8g} and not {y[at]:.8g}",
                )
    bound = f"at most {tolerance:.0e} of 1 + its size" if tolerance else "no bit"
    hold(law, worst < 0, f"{where}, but may differ by {bound}")


def one_trace(bench: Bench) -> None:
    """`step` and `consolidate` are traced once for all stages."""
    hold("one trace", len(bench.states) == TASKS + 1, "a stage is missing")
    for name, count in bench.loop.traces.items():
        hold(
            "one trace", count == 1,
            f"{name} was traced {count} times in {TASKS} stages; a state must keep its structure, "
            "shapes and dtypes",
        )  # fmt: skip


def shapes_and_dtypes_stay(bench: Bench) -> None:
    """The state has the same leaves, of the same shapes and dtypes, for ever."""
    first = _shapes(bench.states[0])
    for stage, state in enumerate(bench.states[1:]):
        for name, (was, now) in _changes(first, _shapes(state)).items():
            raise Broken(f"shapes and dtypes stay: {name} is {now} after stage {stage}, was {was}")


def _shapes(state: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(raw(state))
    return {trees.path_name(p): (x.shape, str(x.dtype), x.weak_type) for p, x in leaves}


def _changes(was: dict[str, Any], now: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {k: (was.get(k), now.get(k)) for k in {**was, **now} if was.get(k) != now.get(k)}


def samples_are_said(bench: Bench) -> None:
    """`reads` names what is known, and "samples" exactly where rows are kept."""
    method = bench.program.method
    unknown = {word for part in method.parts for word in part.reads} - set(READS)
    hold("samples are said", not unknown, f"reads has {sorted(unknown)}, but may have {READS}")
    rows = {row.tobytes() for row in np.asarray(bench.loop.rows["x"][0]).reshape(-1, FEATURES)}
    leaves = [np.asarray(x) for x in jax.tree.leaves(raw(bench.states[1].methods))]
    wide = [x.reshape(-1, FEATURES) for x in leaves if x.shape[-1:] == (FEATURES,)]
    kept = sum(row.tobytes() in rows for x in wide for row in x)
    says = "samples" in method.reads
    hold(
        "samples are said", (kept > 0) == says,
        f"the state has {kept} rows of the first stage, and reads is {method.reads}",
    )  # fmt: skip


def training_moves(bench: Bench) -> None:
    """The first stage moves the parameters."""
    moved = trees.norm(trees.subtract(bench.states[1].params, bench.states[0].params))
    hold("training moves", float(moved) > 1e-3, f"the first stage moved them by {moved:.3g} only")


def writers_say_so(bench: Bench) -> None:
    """A boundary moves parameters only by a method that says that it writes."""
    method = bench.program.method
    if any(part.writes or part.renews for part in method.parts or (method,)):
        return
    ended, _ = bench.loop.steps(bench.states[0], 0)
    names = "consolidate moves the parameters, but the method doesn't say writes=True"
    for (path, was), now in zip(
        jax.tree_util.tree_leaves_with_path(ended.params),
        jax.tree.leaves(bench.states[1].params), strict=True,
    ):  # fmt: skip
        apart = float(jnp.max(jnp.abs(now.astype(jnp.float32) - was.astype(jnp.float32))))
        hold("writers say so", apart == 0, f"{names}: {trees.path_name(path)} by {apart:.3g}")


def plain_until_it_starts(bench: Bench) -> None:
    """Before the stage in which it says that it starts, training is plain fine-tuning."""
    if not all(part.starts > 0 for part in bench.program.method.parts):
        return
    loop = bench.loop_of(program_of(naive(), bench.problem))
    start = loop.init(loop.params, loop.batch(0, 0), jax.random.key(3), loop.collections)
    state, _ = loop.steps(start, 0)
    same("plain until it starts", bench.states[1].params, state.params, 1e-6)


def equal_arguments_equal_runs(bench: Bench) -> None:
    """Made, traced and run again, a method gives the same bits: nothing is drawn but from keys."""
    program = program_of(bench.make(), bench.problem)
    again, _ = bench.loop_of(program, bench.loop.params).stages()
    same("equal arguments, equal runs", again[-1], bench.states[-1])


def members_equal_runs(bench: Bench) -> None:
    """A scan is the loop, and seeds that are mapped are separate runs."""
    keys = jax.random.split(jax.random.key(11), 2)
    many = replicate(lambda _: bench.program, jnp.arange(2), how="vmap")

    def whole(program: Any, key: jax.Array) -> Any:
        return run(
            program, key=key, params=bench.problem.params, stream=bench.loop.rows,
            collections=bench.problem.collections,
        )  # fmt: skip

    states, _ = jax.jit(lambda k: many.over_members(whole, k))(keys)
    for i, key in enumerate(keys):
        member = jax.tree.map(lambda x, i=i: x[i], states)
        alone = bench.loop.stages(key)[0][-1].params
        same("members are separate runs", member.params, alone, bench.tolerance)


def plain_params(problem: Any) -> Any:
    """The last parameters of plain fine-tuning with `exact`."""
    return (
        Bench(naive, problem).loop_of(program_of(naive(), problem, exact())).stages()[0][-1].params
    )


def neutral_is_plain(bench: Bench, neutral: Mapping[str, Any], plain: Any) -> None:
    """With neutral arguments a method is plain fine-tuning, bit for bit."""
    program = program_of(bench.make(**neutral), bench.problem, exact())
    states, _ = bench.loop_of(program).stages()
    shared = {k: adapters.without_adapters(states[-1].params[k]) for k in plain}
    said = ", ".join(f"{k}={v}" for k, v in neutral.items())
    same(f"plain fine-tuning at {said}", shared, plain)


def sharded(bench: Bench) -> None:
    """Spread over eight devices it is the same, and what is shaped like a kernel is spread too."""
    law, problem = "eight devices", bench.problem
    program = program_of(bench.make(), problem, mesh=mesh.make(data=2, fsdp=2, tensor=2))
    assert program.layout is not None
    example, key = bench.loop.batch(0, 0), jax.random.key(3)
    state = jax.eval_shape(program.init, problem.params, example, key, problem.collections)
    spread = mesh.of_state(state, program.layout)
    states, _ = bench.loop_of(program, shardings=spread).stages()
    same(law, states[-1].params, bench.states[-1].params, 10 * bench.tolerance)
    leaves = jax.tree_util.tree_leaves_with_path(problem.params)
    whole = {trees.path_name(p): x for p, x in leaves}
    for path, leaf in jax.tree_util.tree_leaves_with_path(states[-1]):
        name = trees.path_name(path)
        for param, x in whole.items():
            if name.endswith(f"/{param}") and leaf.shape[leaf.ndim - x.ndim :] == x.shape:
                cuts = [n for n in mesh.spec(param, x.shape, program.layout) if n]
                held = leaf.addressable_shards[0].data.size * 2 ** len(cuts)
                hold(law, held == leaf.size, f"{name} lies whole on every device")
                hold(law, bool(cuts) or not param.endswith("kernel"), f"{name} is spread nowhere")


def replicas(bench: Bench) -> None:
    """On every replica of a named axis it is the same."""
    law = "four replicas"
    program = program_of(bench.make(), bench.problem, axis_name="replica")
    devices = jax.make_mesh((4,), ("replica",), axis_types=(jax.sharding.AxisType.Auto,))
    whole, rows = PartitionSpec(), PartitionSpec("replica")

    def over(fn: Callable[..., Any], rows: PartitionSpec) -> Callable[..., Any]:
        specs: Any = {"in_specs": (whole, rows), "out_specs": whole}
        return jax.shard_map(fn, mesh=devices, check_vma=False, **specs)

    step, consolidate = program.step, program.consolidate
    program = program._replace(
        step=over(step, rows), consolidate=over(consolidate, PartitionSpec(None, "replica"))
    )
    states, _ = bench.loop_of(program).stages()
    same(law, states[-1].params, bench.states[-1].params, 10 * bench.tolerance)
    shapes = [jax.tree.map(lambda x: x.shape, raw(s)) for s in (states[-1], bench.states[-1])]
    hold(law, shapes[0] == shapes[1], f"the state's shapes are {shapes[0]}, not {shapes[1]}")


def restored(bench: Bench) -> None:
    """Saved in the middle of a stage and restored it goes on bit for bit."""
    state, loop = bench.states[1], bench.loop
    for i in range(2):
        state, _ = loop.step(state, loop.batch(1, i))
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(Path(folder), 2, state)
        found = checkpoint.restore(Path(folder), state)
        assert found is not None and found[1] == 2
        other: State = found[0]
        for i in range(2, STEPS):
            state, _ = loop.step(state, loop.batch(1, i))
            other, _ = loop.step(other, loop.batch(1, i))
        same("saved and restored", other, state)


def microbatches(bench: Bench) -> None:
    """Four microbatches mean the same as one batch."""
    program = program_of(bench.make(), bench.problem, microbatches=4)
    states, _ = bench.loop_of(program).stages()
    same("four microbatches", states[-1].params, bench.states[-1].params, 10 * bench.tolerance)


def reports_are_finite(bench: Bench) -> None:
    """What is reported are finite scalars."""
    for step, aux in enumerate(bench.stages[1]):
        for name, value in aux.items():
            hold(
                "finite reports",
                value.shape == (),
                f"{name} has shape {value.shape}, but must be []",
            )
            hold("finite reports", bool(np.isfinite(value)), f"{name} is {value} in step {step}")


def padding_counts_nothing(bench: Bench) -> None:
    """What rows of weight 0 hold changes neither the parameters nor the reports."""
    rows = {name: np.array(x) for name, x in bench.loop.rows.items()}
    rows["weight"][:, :, -2:] = 0
    other = {name: x.copy() for name, x in rows.items()}
    other["x"][:, :, -2:] *= -3
    other["y"][:, :, -2:] = 0
    for name in ("tokens", "rejected_tokens"):
        other[name][:, :, -2:] = rows[name][:, :, 1::-1]
    loop, ends = copy(bench.loop), []  # which shares what is compiled
    for each in (rows, other):
        loop.rows = each
        ends.append(loop.stages()[0][-1].params)
    same("padding rows count nothing", ends[1], ends[0], 10 * bench.tolerance)


def bfloat16(bench: Bench) -> None:
    """Parameters in bfloat16 stay so, one trace, and what is reported stays finite."""
    law = "bfloat16"
    half = _halved(bench.problem.params)
    loop = bench.loop_of(bench.program, half)
    states, reports = loop.stages()
    for name, (was, now) in _changes(_shapes(states[0]), _shapes(states[-1])).items():
        raise Broken(f"{law}: {name} was {was} and is {now} at the end")
    hold(law, loop.traces["step"] == 1, f"step was traced {loop.traces['step']} times")
    for path, leaf in jax.tree_util.tree_leaves_with_path(states[-1].params):
        good = bool(jnp.isfinite(leaf.astype(jnp.float32)).all())
        hold(law, good, f"{trees.path_name(path)} isn't finite at the end")
    for step, aux in enumerate(reports):
        for name, value in aux.items():
            hold(law, bool(np.isfinite(value)), f"{name} is {value} in step {step}")


def _halved(params: Any) -> Any:
    """Floats as bfloat16."""
    return jax.tree.map(
        lambda x: x.astype(jnp.bfloat16) if jnp.issubdtype(x.dtype, jnp.floating) else x, params
    )


def refuses(make: Callable[..., Method], wrong: Mapping[str, Any]) -> None:
    """A wrong argument is refused by a sentence that names it, its value and what is right."""
    name, value = next(iter(wrong.items()))
    law = f"{name}={value!r} is refused"
    try:
        make(**wrong)
    except ValueError as error:
        said = str(error)
        wanted = (name in said, repr(value) in said, "must be" in said)
        hold(law, all(wanted), f"{said!r} must name {name}, {value!r} and what it must be")
        return
    except Exception as error:
        raise Broken(
            f"{law}: it raises {type(error).__name__}, but must raise ValueError"
        ) from error
    raise Broken(f"{law}: it is taken, but must raise ValueError")
