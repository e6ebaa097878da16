"""Finds experiments' files, and sets up one compiled run of an experiment.

A file under `experiments/` has `Config`, a frozen dataclass whose documented fields become flags;
`METHODS`, the expressions that run side by side if none is given; and `build(config)`. A file that
has `nodes(config)` instead of the last two is a pipeline (see `jcl.runs.pipeline`).
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from jcl import data, trees
from jcl.chain import chain
from jcl.data import Stream
from jcl.measures import evaluation
from jcl.mechanisms import adapters
from jcl.method import Apply, Batch, Call, Method, Objective, Params, check
from jcl.parallel import processes
from jcl.program import Boundary, Evaluate, Program, State, make
from jcl.records import record
from jcl.replicate import replicate
from jcl.runs import expression, files
from jcl.runs.reading import first_batches, largest_difference, of_task
from jcl.trees import Trainable

MANY = 100
"""Of how many classes at most each one's score is measured."""


@record
class Experiment(NamedTuple):
    """What an experiment's file builds from its config: all that a run needs except the method."""

    name: str
    """What a report calls it."""
    scenario: str
    """What the stages are like, such as `class-incremental`."""
    stream: Callable[[int], Stream]
    """`seed -> Stream`."""
    init: Callable[[jax.Array], Params]
    """`key -> params`; it isn't jitted, so that loaded weights don't become constants."""
    apply: Apply
    """The model, as `make` takes it."""
    loss: Objective
    """The loss, as `make` takes it."""
    optimizer: Callable[[Any], optax.GradientTransformation]
    """`learning rate -> transformation`; the rate may be traced."""
    evaluate: Evaluate
    """`(program, state) -> scores [tasks]`."""
    evaluate_on: Callable[[Stream], Evaluate] | None = None
    """Makes `evaluate` for the run's stream, where seeds differ in their tests."""
    measure: str = "accuracy"
    """The name of the score, such as `bits per byte`."""
    higher_is_better: bool = True
    """Whether a higher score is the better one."""
    learning_rate: float = 1e-3
    """What `optimizer` is called with, unless a sweep varies it."""
    boundary: Boundary = "keep"
    """What happens to the optimizer's state at a boundary, see `make`."""
    microbatches: int = 1
    """Parts of a batch that are computed one after another, see `make`."""
    collections: Any = ()
    """What the model keeps beside its parameters, where training starts; see `jcl.fit`."""
    trainable: Trainable | None = None
    """Which leaves learn; None is all of them, or only adapters if there are any."""
    chunk: int = 100
    """How many steps a compiled call takes, and so between two lines of the log."""
    tokens_per_row: int | None = None
    """How many tokens a row has, if progress is to be shown in tokens/s."""
    model: Any = None
    """The `models.Model` that is trained, if it can be exported."""
    probe_names: tuple[str, ...] = ()
    """The names of the probes for general ability, which no stage trains on."""
    probe: Evaluate | None = None
    """`(program, state) -> shares of right answers [probes]`, asked before and after all stages."""
    validate: Evaluate | None = None
    """The like of `evaluate` on rows that no stage trains on and that are no test's, by which the
    best point of a sweep is then chosen, and the best state of a stage; a setting `validation` of
    the config holds them out."""


def evaluate_all(experiment: Experiment, stream: Stream | None = None) -> Evaluate:
    """`evaluate(program, state) -> [tasks + probes + tasks]`: scores, then probes and validation.

    The last two are there if the experiment has them. With validation, its attribute `validation`
    is the first column of that, by which `jcl.fit` then chooses states.

    Args:
      experiment: the experiment.
      stream: the run's, from `setup`, whose tests are scored if seeds differ in them; None takes
        those of seed 0.
    """
    made = experiment.evaluate_on
    parts = [experiment.evaluate if made is None or stream is None else made(stream)]
    if experiment.probe is not None:
        parts.append(experiment.probe)
    if experiment.validate is not None:
        parts.append(experiment.validate)
    if len(parts) == 1:
        return parts[0]

    def evaluate(program: Program, state: State) -> jax.Array:
        return jnp.concatenate([part(program, state) for part in parts], axis=-1)

    found: Any = evaluate
    if experiment.validate is not None:
        tests = (experiment.stream(0) if stream is None else stream).tests
        found.validation = len(tests) + len(experiment.probe_names)
    return found


def folder() -> Path:
    """The folder of the built-in experiments: beside the package, or inside it in a wheel."""
    package = Path(__file__).parents[1]
    inside = package / "experiments"
    return inside if inside.is_dir() else package.parent / "experiments"


def available() -> dict[str, Path]:
    """The files of the built-in experiments by name."""
    kinds = ("def build(", "def nodes(")
    files = sorted(folder().glob("*.py"))
    return {p.stem: p for p in files if any(kind in p.read_text() for kind in kinds)}


def headline(path: Path) -> str:
    """The first line of an experiment's docstring, without importing it."""
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    return text.partition("\n")[0]


def find(name: str) -> Path:
    """The file of an experiment, by name or by path.

    Raises:
      ValueError: if there is none; the message names similar ones.
    """
    known = available()
    if name in known:
        return known[name]
    path = Path(name)
    if path.suffix == ".py" or "/" in name:
        if not path.is_file():
            raise ValueError(f"there is no file {name}")
        return path
    raise ValueError(f"no experiment is called {name!r}{expression.near(name, known)}")


def load(path: Path) -> ModuleType:
    """Imports an experiment's file.

    Raises:
      ValueError: if it raises anything, or lacks `Config`, or `METHODS` and `build` without having
        `nodes`, or one of them isn't what it must be.
    """
    module = files.run(path, f"jcl_experiment_{path.stem}")
    needs = ("Config",) if hasattr(module, "nodes") else ("Config", "METHODS", "build")
    for needed in needs:
        if not hasattr(module, needed):
            raise ValueError(f"{path} has no {needed}, which an experiment must define")
    config, methods = module.Config, getattr(module, "METHODS", ("",))
    ok = isinstance(config, type) and dataclasses.is_dataclass(config)
    check(ok, f"Config of {path}", config, "a dataclass, whose fields are the settings")
    ok = isinstance(methods, tuple | list) and all(isinstance(m, str) for m in methods)
    check(ok and len(methods) > 0, f"METHODS of {path}", methods, "a tuple of expressions")
    return module


def build(module: ModuleType, config: Any) -> Experiment:
    """What an experiment's file builds from its config.

    Raises:
      ValueError: if `build` raises anything, or returns something else than an `Experiment`.
    """
    found = files.call(module, "build", config)
    ok = isinstance(found, Experiment)
    check(ok, f"what build of {module.__file__} returns", found, "a jcl.runs.experiment.Experiment")
    return found


def example(stream: Stream) -> Batch:
    """The shapes and dtypes of a batch, without a stream's axis of members."""
    axes = 1 if stream.members is None else 2
    rows = jax.tree.map(lambda x: x[(0,) * axes], stream.chunk(0, 0, 1))
    return jax.eval_shape(stream.fetch, stream.source, rows)


class Setup(NamedTuple):
    """The first four arguments of `jcl.fit`."""

    program: Program
    params: Params
    key: jax.Array
    stream: Stream


def setup(
    experiment: Experiment,
    calls: Iterable[expression.Call],
    seeds: int = 1,
    points: Sequence[Mapping[str, float]] = ({},),
    params: Params = None,
    mesh: Mesh | None = None,
    gradient_norm: bool = False,
) -> Setup:
    """Sets up one compiled run, with a member for each seed of each point of a sweep.

    Args:
      experiment: the experiment, built from its config.
      calls: the method, from `expression.parse`.
      seeds: how many seeds; member `p * seeds + s` is point p with seed s.
      points: values by `method.argument` or `lr`, with the same names in each point; they are
        traced if there is more than one member.
      params: where training starts, with an axis of members if there are several; None is the
        experiment's own start.
      mesh: the mesh over which the run is spread, which must have one member then.
      gradient_norm: whether each step reports it, see `make`.

    Raises:
      ValueError: if a value is out of range, or the methods don't compose.
    """
    calls, given = list(calls), params
    alone = mesh is None or seeds * len(points) == 1
    check(alone, "seeds times points of a sweep", seeds * len(points), "1 with a mesh")

    learns = experiment.trainable

    def member(value: Mapping[str, Any]) -> Program:
        method = expression.build(calls, {k: v for k, v in value.items() if "." in k})
        rate = value.get("lr", experiment.learning_rate)
        return _program(experiment, method, rate, learns, mesh, gradient_norm)

    for point in points:  # checks the values while they aren't traced yet
        member(point)

    def start(seed: int) -> tuple[Params, jax.Array]:
        weights, run = jax.random.split(jax.random.key(seed))
        return experiment.init(weights), run

    params, key = start(0)
    stream = experiment.stream(0)
    learns = _learns(experiment, params)
    if seeds * len(points) == 1:
        return Setup(member(points[0]), params if given is None else given, key, stream)
    # not vectorised, so that a seed draws the same as in a run by itself
    each = [start(seed) for seed in range(seeds)]
    params, keys = jax.tree.map(lambda *x: jnp.stack(x * len(points)), *each)
    values = {
        name: jnp.repeat(jnp.asarray([p[name] for p in points], jnp.float32), seeds)
        for name in points[0]
    }
    values["seed"] = jnp.asarray(np.tile(np.arange(seeds), len(points)))
    streams = [experiment.stream(seed) for seed in range(seeds)]
    params = params if given is None else given
    return Setup(replicate(member, values), params, keys, data.members(streams * len(points)))


def _learns(experiment: Experiment, params: Params) -> Trainable | None:
    """Which leaves learn: what the experiment says, or adapters that its model brought along."""
    brought = bool(adapters.paths_with(params, adapters.NAMES))
    return adapters.is_adapter if experiment.trainable is None and brought else experiment.trainable


def _program(
    experiment: Experiment,
    method: Method,
    rate: Any,
    learns: Trainable | None,
    mesh: Mesh | None = None,
    gradient_norm: bool = False,
) -> Program:
    return make(
        method, experiment.apply, experiment.loss, experiment.optimizer(rate), trainable=learns,
        microbatches=experiment.microbatches, boundary=experiment.boundary, mesh=mesh,
        gradient_norm=gradient_norm,
    )  # fmt: skip


def unrouted(experiment: Experiment, made: Setup, state: State) -> tuple[Setup, State]:
    """A run of one member without the methods that say which task a row is of.

    There a row is of the task that it names, so that predictions are those for a known task.

    Args:
      experiment: the run's experiment, maybe with another `apply` of the same structure.
      made: the run's setup.
      state: a state of the run.
    """
    parts = [part for part in made.program.method.parts if not part.routes]
    learns = _learns(experiment, made.params)
    program = _program(experiment, chain(*parts), experiment.learning_rate, learns)
    kept = {part.name: state.methods[part.name] for part in parts if part.name in state.methods}
    return made._replace(program=program), state._replace(methods=kept)


def test_facts(experiment: Experiment, made: Setup, state: State) -> dict[str, Any]:
    """What a report says of tests whose tasks or classes differ in size; nothing of others.

    Rows of no label, whose share in a score isn't that of a row, are left out, and so are tests
    that seeds differ in, and runs of several processes.

    Returns:
      `test_rows` [tasks], the rows of each task's test; `class_rows` [classes] and `class_scores`
      [members][classes], those of each class over all tasks, in the end.
    """
    test = made.stream.test
    y: Any = test.get("y") if isinstance(test, Mapping) else None
    one_label = np.ndim(y) == 3 and np.issubdtype(np.asarray(y).dtype, np.integer)
    if not one_label or processes.has_peers():
        return {}
    sizes = evaluation.test_sizes(test)
    facts: dict[str, Any] = {}
    if evaluation.differ(sizes):
        facts["test_rows"] = sizes.astype(int).tolist()
    each = np.bincount(np.asarray(y)[np.asarray(test["weight"]) > 0])
    on = experiment.evaluate_on
    judge = experiment.evaluate if on is None else on(made.stream)
    if hasattr(judge, "by_label") and len(each) <= MANY and evaluation.differ(each):
        scores = jax.jit(partial(judge.by_label(len(each)), made.program))(state)
        facts["class_rows"] = each.tolist()
        facts["class_scores"] = np.asarray(scores).reshape(-1, len(each)).tolist()
    return facts


def collections_of(experiment: Experiment, program: Program) -> Any:
    """The experiment's collections as `jcl.fit` takes them: with the program's axis of members."""
    if program.members is None:
        return experiment.collections
    each = (program.members,)
    return jax.tree.map(lambda x: jnp.broadcast_to(x, each + x.shape), experiment.collections)


def merged_params(
    experiment: Experiment, setup: Setup, state: State, task: int | None = None
) -> Params:
    """The parameters of a run's final model, with methods' changes and adapters folded in.

    Args:
      experiment: the run's experiment.
      setup: the run's setup.
      state: the last state. It has an axis of members if there are several, and so does the result.
      task: the test task for whose rows the model is read, in a run of one member; None is for
        methods that read all rows by the same parameters.

    Raises:
      ValueError: if the methods do more to the model than kernels can hold: bottlenecks, prompts,
        gates; or if they read other parameters for another task, and none is named.
    """
    batches = first_batches(setup.stream)
    if task is not None:
        setup, state = unrouted(experiment, setup, state)
        batches = [of_task(batches[0], task)]

    def fold(program: Program, state: State) -> Params:
        return adapters.merge(program.read_params(state, batches[0]), 1.0)  # read with their factor

    def compare(state: State, params: Params, batch: Batch) -> jax.Array:
        def one(program: Program, state: State, params: Params) -> jax.Array:
            call = (Call(collections=state.collections),) if state.collections else ()
            wanted, found = program.predict(state, batch), experiment.apply(params, batch, *call)
            read = [program.read_params(state, rows) for rows in (batches[0], batch)]
            return jnp.stack([largest_difference(wanted, found), largest_difference(*read)])

        return setup.program.over_members(one, state, params)

    params = jax.jit(partial(setup.program.over_members, fold))(state)
    name = setup.program.method.name
    start = {path: x.shape for path, x in trees.by_path(setup.params).items()}
    shapes = {path: x.shape for path, x in trees.by_path(params).items()}
    other = [path for path in shapes if start.get(path, shapes[path]) != shapes[path]]
    check(not other, "method", name, f"one that leaves the shapes of {other} as they are")
    compared = jax.jit(compare)
    apart = np.stack([np.asarray(compared(state, params, batch)) for batch in batches])
    alike = "one that reads the same parameters for every task, where no task is named"
    check(bool((apart[..., 1] < 1e-6).all()), "method", name, alike)
    wanted = "one that changes nothing but parameters, for the model to be used without it"
    check(bool((apart[..., 0] < 1e-2).all()), "method", name, wanted)
    return params
