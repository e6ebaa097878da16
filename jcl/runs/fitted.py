"""`jcl.fit`: the loop of `jcl.training.fit`, which here leaves what reports and tables read."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec

import jax
import jax.numpy as jnp
import numpy as np

from jcl import report
from jcl.chain import explain
from jcl.data import Stream
from jcl.parallel import processes
from jcl.program import Program
from jcl.training.fit import Result
from jcl.training.fit import fit as train
from jcl.training.inputs import as_stream

P = ParamSpec("P")


def _leaving(train: Callable[P, Result]) -> Callable[P, Result]:
    """`train`, after which the run's folder has summary.json, scores.csv and matrix.csv too."""

    @functools.wraps(train)
    def fit(*args: P.args, **named: P.kwargs) -> Result:
        result = train(*args, **named)
        if result.out is not None and result.scores is not None and not result.stopped:
            given = inspect.signature(train).bind(*args, **named).arguments
            stream = as_stream(given["stream"], given["program"])
            if processes.is_leader():
                leave(given["program"], stream, result, given["evaluate"], given)
        return result

    return fit


fit = _leaving(train)


def leave(
    program: Program, stream: Stream, result: Result, evaluate: Any, given: Mapping[str, Any]
) -> None:
    """Writes a finished run's scores and facts into its folder, as `jcl run` does.

    `given` has the arguments that `fit` was called with, by name. Members that `replicate` made of
    whole numbers are seeds; those that it made of floats are points of a sweep, with as many seeds
    as come one after another for each.
    """
    assert result.out is not None and result.scores is not None
    tests = len(stream.tests)
    if result.scores.shape[-1] < tests:
        warnings.warn(
            f"evaluate gives {result.scores.shape[-1]} scores, but the stream has {tests} tests, "
            f"so {result.out} gets no summary",
            stacklevel=4,
        )
        return
    points, seeds = points_of(program)
    name = program.method.name
    facts = {
        "method": name,
        "experiment": "jcl.fit",
        "scenario": "from Python",
        "measure": getattr(evaluate, "measure", "score"),
        "higher_is_better": getattr(evaluate, "higher_is_better", True),
        "seeds": seeds,
        "family": name,
        "outer": {},
        **result_facts(program, stream, result),
        **stages_end(
            given.get("evaluate_every"),
            given.get("keep", "last"),
            given.get("patience"),
            held_out=getattr(evaluate, "validation", 0) > 0,
        ),
    }
    values = [", ".join(f"{k}={v:g}" for k, v in point.items()) for point in points]
    labels = [f"{name} with {said}" if said else name for said in values]
    scores = result.scores[..., :tests]
    scores = scores.reshape(len(points), seeds, *scores.shape[-2:])
    report.write(result.out, facts, points, labels, scores)


def result_facts(program: Program, stream: Stream, result: Result) -> dict[str, Any]:
    """What a summary says of every run, whoever began it."""
    return {
        "stages": list(stream.names),
        "stage_tasks": list(stream.tasks),
        "tasks": list(stream.tests),
        "wall_seconds": result.wall_seconds,
        "compile_seconds": result.compile_seconds,
        "examples_per_second": result.examples_per_second,
        "step_traces": result.step_traces,
        "peak_memory_bytes": result.peak_memory_bytes,
        "pipeline": explain(program.method, state=result.state),
    }


def stages_end(
    evaluate_every: int | None, keep: str, patience: int | None, held_out: bool
) -> dict[str, str]:
    """What a summary says of stages that end by their evaluations; nothing of others.

    Args:
      evaluate_every: as for `jcl.fit`.
      keep: likewise.
      patience: likewise.
      held_out: whether they are on rows held out of training, and not on the tests.

    >>> stages_end(10, "best", None, held_out=True)["stages_end"]
    'in the best of its states every 10 steps, by rows held out of training, not by the test'
    """
    if keep == "last" and patience is None:
        return {}
    how = "the best" if keep == "best" else "the last"
    said = f"in {how} of its states every {evaluate_every} steps"
    if patience is not None:
        said += f", early after {patience} without a better one"
    by = "rows held out of training, not by the test"
    by = by if held_out else "the final test scores themselves, so it is optimistic"
    return {"stages_end": f"{said}, by {by}"}


def points_of(program: Program) -> tuple[list[dict[str, float]], int]:
    """The points of a sweep whose members a program has, and how many seeds each of them has.

    >>> import jax.numpy as jnp, optax
    >>> from jcl import losses, make, methods, replicate
    >>> apply, tx = lambda params, batch: batch["x"], optax.sgd(0.1)
    >>> build = lambda v: make(methods.ewc(v["strength"]), apply, losses.squared_error, tx)
    >>> values = {"strength": jnp.array([0.0, 0.0, 9.0, 9.0]), "seed": jnp.array([0, 1, 0, 1])}
    >>> points_of(replicate(build, values))
    ([{'strength': 0.0}, {'strength': 9.0}], 2)
    """
    if program.members is None:
        return [{}], 1
    swept = _swept(getattr(program.over_members, "values", ()))
    rows = [{k: float(v[m]) for k, v in swept.items()} for m in range(program.members)]
    points = [row for m, row in enumerate(rows) if m == 0 or row != rows[m - 1]]
    seeds, rest = divmod(program.members, len(points))
    alike = not rest and all(row == points[m // seeds] for m, row in enumerate(rows))
    if alike and len({tuple(p.items()) for p in points}) == len(points):
        return points, seeds
    return [{"member": float(m), **row} for m, row in enumerate(rows)], 1


def _swept(values: Any) -> dict[str, np.ndarray]:
    """Of what `replicate` was given the floating numbers [members], by name."""
    leaves = jax.tree_util.tree_leaves_with_path(values)
    found = {jax.tree_util.keystr(p, simple=True, separator="."): x for p, x in leaves}
    return {
        name or "value": np.asarray(x)
        for name, x in found.items()
        if np.ndim(x) == 1 and jnp.issubdtype(jnp.result_type(x), jnp.floating)
    }
