"""Pipelines of nodes, one after another or branching, each a stream with its own objective.

An example is to pre-train, adapt to a domain, instruct and align. Every node starts from the model
that another node left, and is scored on the tests of all nodes. A pipeline is one job, which can be
resumed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jcl import trees
from jcl.measures import budget as budgets
from jcl.measures import metrics
from jcl.measures.budget import Budget, Costs
from jcl.method import READS, check
from jcl.parallel import signals
from jcl.program import Evaluate, State
from jcl.runs import expression, files
from jcl.runs.experiment import (
    Experiment,
    Setup,
    collections_of,
    example,
    merged_params,
    setup,
)
from jcl.training.fit import Event, fit, last_state
from jcl.training.folder import whole


class Node(NamedTuple):
    """One stream of a pipeline, and how it is trained on."""

    name: str
    experiment: Experiment
    """Its `init` gives the model's shapes, and the model itself if the node follows no other."""
    method: str = "naive()"
    """The method, as an expression."""
    after: str | None = None
    """The node from whose model it starts, methods' changes and adapters folded in; None is the one
    listed before, "" is the experiment's own start."""
    carry: bool = False
    """Whether the methods' states, such as anchors and memories, go on from that node's, which must
    have the same methods; its adapters then learn on as they are, for those states are of them.
    Otherwise they begin anew and know nothing of earlier nodes."""
    reads: tuple[str, ...] = READS
    """Which of `READS` its methods may draw on, of earlier stages; others are refused."""
    budget: Budget = Budget()
    """The limits of its methods; a method that takes more is refused."""


class Gauge(NamedTuple):
    """Tests on which every node is scored, before its first stage and after each."""

    names: tuple[str, ...]
    evaluate: Evaluate
    """`(program, state) -> float32 [names]`."""
    measure: str = "accuracy"
    higher_is_better: bool = True
    node: str = ""
    """The node whose tests these are; "" for general ability, which no node trains on."""


class Result(NamedTuple):
    """The scores of every node on every probe."""

    nodes: tuple[str, ...]
    """The nodes' names."""
    probes: tuple[str, ...]
    """The tests' names: `node/test`, or the name of a general probe."""
    measures: tuple[str, ...]
    """The names of the scores, such as `accuracy`."""
    scores: np.ndarray
    """float32 [seeds, nodes, stages + 1, probes, measures]; row 0 is before a node's training; NaN
    where a node has fewer stages, or a probe isn't scored by a measure."""
    costs: tuple[Costs, ...]
    """The costs of each node's methods."""
    clocks: tuple[dict[str, float], ...]
    """`wall_seconds` and other times of each node, see `jcl.Result`."""


_CLOCKS = (
    "wall_seconds", "compile_seconds", "examples_per_second", "step_traces", "peak_memory_bytes",
)  # fmt: skip
Watch = Callable[[Node], AbstractContextManager[Callable[[Event], None]]]


def nodes_of(module: ModuleType, config: Any) -> list[Node]:
    """The nodes of a pipeline's file.

    Raises:
      ValueError: if `nodes` raises anything, or returns something else.
    """
    found = files.call(module, "nodes", config)
    ok = isinstance(found, list | tuple) and all(isinstance(node, Node) for node in found)
    wanted = "a list of jcl.runs.pipeline.Node"
    check(ok, f"what nodes of {module.__file__} returns", found, wanted)
    return list(found)


def parent(nodes: Sequence[Node], index: int) -> str:
    """The name of the node that this one follows; "" if it follows none."""
    after = nodes[index].after
    if after is None:
        return nodes[index - 1].name if index else ""
    return after


def ancestors(nodes: Sequence[Node], index: int) -> list[str]:
    """The names of the nodes that a model has passed before this one, the nearest first."""
    names, found = [n.name for n in nodes], []
    while above := parent(nodes, index):
        found.append(above)
        index = names.index(above)
    return found


def gauges(nodes: Sequence[Node]) -> list[Gauge]:
    """The nodes' own tests, and their probes of general ability, each once.

    Nodes of one experiment share their tests, which have the first node's name.
    """
    found: list[Gauge] = []
    for node in nodes:
        e = node.experiment
        if all(g.evaluate is not e.evaluate for g in found):
            tests = e.stream(0).tests
            found.append(Gauge(tests, e.evaluate, e.measure, e.higher_is_better, node.name))
    seen: set[tuple[str, ...]] = set()
    for node in nodes:
        e = node.experiment
        if e.probe is not None and e.probe_names not in seen:
            seen.add(e.probe_names)
            found.append(Gauge(e.probe_names, e.probe))
    return found


def gauges_of(measured: Sequence[Gauge], node: Node) -> Gauge:
    """A node's own tests among `gauges`."""
    return next(g for g in measured if g.evaluate is node.experiment.evaluate)


def key(gauge: Gauge) -> str:
    """A gauge's name: its node or, for general ability, the names of its probes."""
    return gauge.node or ", ".join(gauge.names)


def _scored(measured: Sequence[Gauge]) -> Evaluate:
    return lambda program, state: jnp.concatenate(
        [g.evaluate(program, state) for g in measured], axis=-1
    )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {trees.path_name(p): x.shape for p, x in jax.tree_util.tree_leaves_with_path(tree)}


def examine(nodes: Sequence[Node]) -> list[Costs]:
    """Checks a pipeline, and gives the costs of each node's methods; nothing is compiled or run.

    Raises:
      ValueError: if names don't fit, nodes train different models, or a node's methods draw on more
        of earlier stages than it may read, or exceed its budget.
    """
    check(len(nodes) >= 1, "number of nodes", len(nodes), "at least 1")
    names = [node.name for node in nodes]
    found: list[Costs] = []
    shapes: dict[str, Any] = {}
    methods: dict[str, str] = {}
    for i, node in enumerate(nodes):
        plain = node.name and not set(node.name) & set('/\\<>:"|?*') and node.name[0] != "."
        check(bool(plain), "node", node.name, "a name that a folder can have")
        check(node.name not in names[:i], "node", node.name, "a name that no other node has")
        above = parent(nodes, i)
        check(not above or above in names[:i], "after", above, f"one of {names[:i]}, listed before")
        if node.carry and methods.get(above) != node.method:
            raise ValueError(
                f"node {node.name!r} carries the states of {node.method!r}, but the node before it "
                f"has {methods.get(above)!r}; both must have the same"
            )
        made = setup(node.experiment, expression.parse(node.method))
        try:
            found.append(cost(node, made))
        except ValueError as error:
            raise ValueError(f"node {node.name!r}: {error}") from error
        mine = _shapes(made.params)
        for path in sorted(mine.keys() | shapes.get(above, mine).keys()):
            there = shapes.get(above, mine).get(path)
            if there != mine.get(path):
                raise ValueError(
                    f"node {node.name!r} has {path!r} of shape {mine.get(path)}, where {above!r} "
                    f"leaves {there}; nodes must train one model"
                )
        shapes[node.name], methods[node.name] = mine, node.method
        for part in made.program.method.parts:
            lacking = [r for r in part.reads if r not in node.reads]
            if lacking:
                raise ValueError(
                    f"node {node.name!r}: {part.name} draws on {' and '.join(lacking)} of earlier "
                    f"stages, but may read {' and '.join(node.reads) or 'nothing'} only"
                )
        more = budgets.excess(found[-1], node.budget)
        if more:
            raise ValueError(f"node {node.name!r}, {node.method}: {more}")
    return found


def cost(node: Node, made: Setup | None = None) -> Costs:
    """What a node's methods keep and cost; nothing is compiled or run.

    Args:
      node: the node.
      made: its setup, if it is made already.
    """
    made = setup(node.experiment, expression.parse(node.method)) if made is None else made
    stream = made.stream
    fetch = jax.vmap(lambda rows: stream.fetch(stream.source, rows))
    boundary = jax.eval_shape(fetch, stream.boundary(0))
    plain = setup(node.experiment, expression.parse("naive()"))
    return budgets.costs(
        made.program, plain.program, made.params, example(stream), boundary,
        round(sum(stream.steps) / len(stream.steps)), node.experiment.collections,
    )  # fmt: skip


def run(
    nodes: Sequence[Node],
    out: str | Path,
    *,
    seeds: int = 1,
    resume: bool = False,
    costs: Sequence[Costs] | None = None,
    watch: Watch = lambda node: nullcontext(lambda event: None),
    mesh: Mesh | None = None,
    checkpoint_every: int = 1000,
) -> Result:
    """Trains the nodes of a pipeline in the order in which they are listed.

    Args:
      nodes: the nodes, each listed after the one that it follows; several may follow the same.
      out: the pipeline's folder. Each node has a folder in it, as `jcl.fit` writes it, with
        `node.json` once it is finished.
      seeds: how many seeds are trained together, see `replicate`.
      resume: whether to go on in `out`: finished nodes are read, an unfinished one goes on from
        its last checkpoint.
      costs: the result of `examine`, if it was called before.
      watch: gives a context that takes a node's events, such as `jcl.report.screen.Watch`.
      mesh: the mesh over which every node is spread, see `jcl.mesh`; seeds must be 1 then.
      checkpoint_every: steps between checkpoints, as for `jcl.fit`.

    Raises:
      ValueError: as `examine` does, before anything is trained; and if a node's methods do more to
        the model than parameters can hold, which the nodes after it start from.
    """
    check(seeds >= 1, "seeds", seeds, "at least 1")
    costs = examine(nodes) if costs is None else costs
    measured = gauges(nodes)
    evaluate = _scored(measured)
    calls = {n.name: expression.parse(n.method) for n in nodes}  # now: a file may change meanwhile
    ends: dict[str, tuple[Setup, State]] = {}
    rows: list[np.ndarray] = []
    clocks: list[dict[str, float]] = []

    def end(name: str) -> tuple[Setup, State]:
        """A finished node's setup and last state, read from its folder if they aren't in memory."""
        if name not in ends:
            node = next(n for n in nodes if n.name == name)
            made = setup(node.experiment, calls[name], seeds, mesh=mesh)
            kept = collections_of(node.experiment, made.program)
            ends[name] = made, last_state(*made, evaluate, Path(out) / name, kept)
            signals.stop()
        return ends[name]

    for i, node in enumerate(nodes):
        folder = Path(out) / node.name
        finished = folder / "node.json"
        above = parent(nodes, i)
        saved = _saved(finished) if resume else None
        if saved is not None:
            rows.append(np.asarray(saved["scores"], np.float32))
            clocks.append(saved["clocks"])
            continue
        params, kept, carried = None, None, None
        if above:
            made, state = end(above)
            before = next(n for n in nodes if n.name == above)
            if node.carry:  # anchors and memories go on beside the parameters that they are of
                params, carried = state.params, state
            else:
                params = merged_params(before.experiment, made, state)
            signals.stop()
            kept = state.collections
        made = setup(node.experiment, calls[node.name], seeds, params=params, mesh=mesh)
        kept = collections_of(node.experiment, made.program) if kept is None else kept
        signals.stop()
        with watch(node) as emit:
            done = fit(
                *made, evaluate=evaluate, out=folder, resume=resume, chunk=node.experiment.chunk,
                checkpoint_every=checkpoint_every, on_event=emit, carried=carried,
                collections=kept,
            )  # fmt: skip
        assert done.scores is not None
        scores = done.scores.reshape(seeds, *done.scores.shape[-2:])
        clock = {name: float(getattr(done, name)) for name in _CLOCKS}
        with whole(finished) as partial:
            partial.write_text(json.dumps({"scores": scores.tolist(), "clocks": clock}))
        signals.stop()
        rows.append(scores)
        clocks.append(clock)
        waiting = {parent(nodes, j) for j in range(i + 1, len(nodes))}
        ends[node.name] = made, done.state
        ends = {name: kept for name, kept in ends.items() if name in waiting}
    return _result(nodes, measured, rows, costs, clocks)


def _saved(path: Path) -> dict[str, Any] | None:
    """A finished node's `node.json`; None if it isn't there, or is cut, and is made again."""
    try:
        saved = json.loads(path.read_text())
        return saved if saved.keys() >= {"scores", "clocks"} else None
    except (OSError, ValueError):
        return None


def _result(
    nodes: Sequence[Node],
    measured: Sequence[Gauge],
    rows: Sequence[np.ndarray],
    costs: Sequence[Costs],
    clocks: Sequence[dict[str, float]],
) -> Result:
    probes = tuple(f"{g.node}/{name}" if g.node else name for g in measured for name in g.names)
    measures = tuple(dict.fromkeys(g.measure for g in measured))
    which = [measures.index(g.measure) for g in measured for _ in g.names]
    longest = max(r.shape[1] for r in rows)
    shape = (rows[0].shape[0], len(nodes), longest, len(probes), len(measures))
    scores = np.full(shape, np.nan, np.float32)
    for n, r in enumerate(rows):
        scores[:, n, : r.shape[1], np.arange(len(probes)), which] = np.moveaxis(r, -1, 0)
    names = tuple(n.name for n in nodes)
    return Result(names, probes, measures, scores, tuple(costs), tuple(clocks))


def table(result: Result, gauge: Gauge, node: str) -> np.ndarray:
    """The scores of a node on a gauge, [seeds, stages + 1, names]."""
    names = [f"{gauge.node}/{name}" if gauge.node else name for name in gauge.names]
    columns = [result.probes.index(name) for name in names]
    rows = result.scores[:, result.nodes.index(node), :, columns]
    rows = np.moveaxis(rows[..., result.measures.index(gauge.measure)], 0, -1)
    return rows[:, ~np.isnan(rows).all(axis=(0, 2))]


def forgetting(nodes: Sequence[Node], result: Result) -> list[dict[str, Any]]:
    """What each node forgot, horizontally and vertically, in the gauges' own units.

    Horizontal forgetting is `metrics.forgetting` of its own earlier stages. Vertical forgetting is
    by how much the tests of the nodes before it, and the general probes, got worse through it, the
    mean over a gauge's names. Positive is forgetting, for scores of either direction.

    Returns:
      For each node `{"node", "after", "horizontal": [seeds], "vertical": {key: [seeds]}}`.
    """
    out = []
    measured = gauges(nodes)
    for i, node in enumerate(nodes):
        past = ancestors(nodes, i)
        mine = gauges_of(measured, node)
        sign = 1 if mine.higher_is_better else -1
        tasks = node.experiment.stream(0).tasks
        vertical = {}
        for g in measured:
            if not g.node or (g is not mine and g.node in past):
                P = table(result, g, node.name) * (1 if g.higher_is_better else -1)
                vertical[key(g)] = metrics.vertical_forgetting(P)
        out.append({
            "node": node.name,
            "after": parent(nodes, i),
            "horizontal": metrics.forgetting(sign * table(result, mine, node.name), tasks),
            "vertical": vertical,
        })  # fmt: skip
    return out
