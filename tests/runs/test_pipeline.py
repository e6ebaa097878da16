"""Nodes one after another: what goes on from where, what is refused, what is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest

import jcl
from jcl import data, losses, models
from jcl.measures.budget import Budget
from jcl.measures.evaluation import accuracy, evaluator
from jcl.runs import experiment, expression
from jcl.runs.experiment import Experiment
from jcl.runs.pipeline import Gauge, Node, Result, ancestors, forgetting, gauges, run, table

SIZES = (12, 16, 4)


def made(seed: int, stages: int = 2, hidden: int = 16, probe: bool = False) -> Experiment:
    """A few random teachers over shifted inputs, a stage each."""
    rng = np.random.default_rng(seed)
    tasks = []
    for _ in range(stages):
        x = rng.standard_normal((40, SIZES[0])).astype(np.float32) + rng.standard_normal()
        teacher = rng.standard_normal((SIZES[0], SIZES[-1]))
        tasks.append({"x": x, "y": np.argmax(x @ teacher, -1).astype(np.int32)})

    def stream(seed: int) -> data.Stream:
        return data.from_arrays(tasks, tasks, 8, steps=6, seed=seed)

    general = evaluator(jax.tree.map(lambda x: x[:1], stream(0).test), accuracy())
    return Experiment(
        name=f"teachers {seed}", scenario="domain", stream=stream,
        init=lambda key: models.mlp.init(key, (SIZES[0], hidden, SIZES[-1])),
        apply=models.mlp.apply, loss=losses.cross_entropy(), optimizer=optax.adam,
        evaluate=evaluator(stream(0).test, accuracy()), learning_rate=1e-2, chunk=4,
        probe_names=("general",) if probe else (), probe=general if probe else None,
    )  # fmt: skip


A, B = made(1), made(2)


def test_one_node_is_the_experiment_alone(tmp_path: Path) -> None:
    made = experiment.setup(A, expression.parse("er(capacity=16, rows=4)"))
    alone = jcl.fit(*made, evaluate=A.evaluate, chunk=4)
    found = run([Node("a", A, "er(capacity=16, rows=4)")], tmp_path)
    assert found.scores.shape == (1, 1, 3, 2, 1)
    assert alone.scores is not None
    np.testing.assert_array_equal(found.scores[0, 0, :, :, 0], alone.scores)
    assert found.costs[0].examples == 16 and found.costs[0].flops == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("seeds", [1, 2])
def test_a_node_begins_where_the_one_before_it_ended(tmp_path: Path, seeds: int) -> None:
    nodes = [Node("a", A, "ewc()"), Node("b", B, "wise_ft(alpha=0.5)"), Node("c", B, after="a")]
    found = run(nodes, tmp_path, seeds=seeds)
    assert found.scores.shape == (seeds, 3, 3, 4, 1) and not np.isnan(found.scores).any()
    np.testing.assert_allclose(found.scores[:, 1, 0], found.scores[:, 0, -1], atol=1e-6)
    np.testing.assert_allclose(found.scores[:, 2, 0], found.scores[:, 0, -1], atol=1e-6)
    assert (found.scores[:, 1, -1] != found.scores[:, 2, -1]).any()
    if seeds == 2:
        assert (found.scores[0] != found.scores[1]).any()
    # a branch doesn't depend on its sibling
    again = run([nodes[0], nodes[2]], tmp_path / "again", seeds=seeds)
    np.testing.assert_array_equal(again.scores[:, 1, :, :2], found.scores[:, 2, :, :2])


def test_adapters_are_folded_in_between(tmp_path: Path) -> None:
    pytest.importorskip("grain")
    config = models.decoder.Config(vocabulary=64, layers=1, width=16, heads=2, kv_heads=1)
    params = models.decoder.init(jax.random.key(0), config)
    texts = {"low": (np.arange(400, dtype=np.uint8) % 7,) * 2}

    def stream(seed: int) -> data.Stream:
        return data.from_bytes(texts, 12, 4, 6, seed, boundary_batches=2, test_rows=8)

    score = evaluator(stream(0).test, jcl.evaluation.token_nll(), losses.with_targets)
    text = A._replace(
        stream=stream, init=lambda key: params, apply=models.decoder.apply_fn(config),
        loss=losses.fused_next_token(), evaluate=score, measure="nll", higher_is_better=False,
        learning_rate=0.1,
    )  # fmt: skip
    nodes = [Node("a", text, "lora(rank=2)"), Node("b", text, "lora(rank=2) + ewc()")]
    found = run(nodes, tmp_path)
    first, second = found.scores[0, :, :, 0, 0]
    assert first[1] < first[0] - 0.1 and second[1] < second[0]
    np.testing.assert_allclose(second[0], first[1], rtol=1e-5)


def test_carried_states_look_back_beyond_the_node(tmp_path: Path) -> None:
    strong = "ewc(strength=1e6)"
    first = Node("a", A, strong)
    free = run([first, Node("b", B, strong)], tmp_path / "free")
    held = run([first, Node("b", B, strong, carry=True)], tmp_path / "held")
    own, other = free.scores[0, 1, :, :2], held.scores[0, 1, :, :2]
    moved = [np.abs(rows[1] - rows[0]).sum() for rows in (own, other)]
    assert moved[1] < moved[0]


def test_carried_states_go_on_beside_the_adapters_that_they_are_of(tmp_path: Path) -> None:
    method = "lora(rank=2, targets='dense_0') + ewc(strength=10.0)"
    first = jcl.fit(*experiment.setup(A, expression.parse(method)), chunk=4).state
    setup = experiment.setup(B, expression.parse(method), params=first.params)
    alone = jcl.fit(*setup, evaluate=B.evaluate, carried=first, chunk=4)
    found = run([Node("a", A, method), Node("b", B, method, carry=True)], tmp_path)
    assert alone.scores is not None
    np.testing.assert_allclose(found.scores[0, 1, :, 2:, 0], alone.scores, atol=1e-6)


@contextmanager
def killed_in(node: Node) -> Iterator[Callable[[dict[str, Any]], None]]:
    def stop(event: dict[str, Any]) -> None:
        if node.name == "b" and event["kind"] == "progress" and event["step"] > 8:
            raise KeyboardInterrupt

    yield stop


def test_a_killed_pipeline_goes_on(tmp_path: Path) -> None:
    nodes = [
        Node("a", A, "er(capacity=16, rows=4)"),
        Node("b", B, "er(capacity=16, rows=4)", carry=True),
        Node("c", A, after="a"),
    ]
    expected = run(nodes, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(nodes, tmp_path / "cut", watch=killed_in)
    log = (tmp_path / "cut" / "a" / "metrics.jsonl").stat().st_mtime_ns
    found = run(nodes, tmp_path / "cut", resume=True)
    np.testing.assert_array_equal(found.scores, expected.scores)
    assert (tmp_path / "cut" / "a" / "metrics.jsonl").stat().st_mtime_ns == log
    # what is finished is only read
    np.testing.assert_array_equal(run(nodes, tmp_path / "cut", resume=True).scores, found.scores)


@pytest.mark.parametrize("seeds", [1, 2])
def test_what_a_model_keeps_goes_along(tmp_path: Path, seeds: int) -> None:
    def centred(params: Any, batch: Any, call: jcl.Call = jcl.Call()) -> Any:
        mean = call.collections["stats"]["mean"]
        outputs = models.mlp.apply(params, batch | {"x": batch["x"] - mean})
        if not call.training:
            return outputs
        seen = batch["weight"] @ batch["x"] / batch["weight"].sum()
        return outputs, {"stats": {"mean": 0.9 * mean + 0.1 * seen}}

    centred.structure = jcl.Structure(collections=("stats",))  # type: ignore[attr-defined]
    kept = {"stats": {"mean": np.zeros(SIZES[0], np.float32)}}
    one, two = (made._replace(apply=centred, collections=kept) for made in (A, B))
    nodes = [Node("a", one, "ewc()"), Node("b", two)]
    whole = run(nodes, tmp_path / "whole", seeds=seeds)
    np.testing.assert_allclose(whole.scores[:, 1, 0], whole.scores[:, 0, -1], atol=1e-6)
    assert (whole.scores[:, 1, -1] != whole.scores[:, 1, 0]).any()
    with pytest.raises(KeyboardInterrupt):
        run(nodes, tmp_path / "cut", seeds=seeds, watch=killed_in)
    found = run(nodes, tmp_path / "cut", seeds=seeds, resume=True)
    np.testing.assert_array_equal(found.scores, whole.scores)


REPLAY = "er(capacity=16, rows=8)"


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ([Node("a", A), Node("a", B)], "no other node has"),
        ([Node("../a", A)], "a name that a folder can have"),
        ([Node("a", A), Node("b", B, after="z")], "after is 'z', but must be one of ['a']"),
        ([Node("a", A, "ewc()"), Node("b", B, "si()", carry=True)], "both must have the same"),
        ([Node("a", A), Node("b", made(2, hidden=8))], "'b' has 'dense_0/bias' of shape (8,)"),
        ([Node("a", A, REPLAY, reads=("parameters",))], "er draws on samples of earlier stages"),
        ([Node("a", A, "ewc()", reads=())], "ewc draws on parameters and gradients"),
        ([Node("a", A, REPLAY, budget=Budget(examples=15))], "16 stored examples"),
        ([Node("a", A, "l2sp()", budget=Budget(bytes=100))], "stored bytes"),
        ([Node("a", A, REPLAY, budget=Budget(flops=0.5))], "it takes 1 FLOPs beside"),
        (
            [Node("a", A, "lora(rank=2, targets='dense_0')", budget=Budget(parameters=0))],
            "56 added",
        ),
        ([Node("a", A, "er(capacity=0)")], "capacity is 0"),
    ],
)
def test_what_is_refused_before_anything_runs(
    tmp_path: Path, nodes: list[Node], words: str
) -> None:
    with pytest.raises(ValueError) as error:
        run(nodes, tmp_path / "out")
    assert words in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.quick
def test_a_model_that_is_more_than_its_parameters_is_not_handed_on(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one that changes nothing but parameters"):
        run([Node("a", A, "hat(tasks=2, steps=6)"), Node("b", B)], tmp_path)


def test_forgetting_by_hand() -> None:
    first, second = made(1, probe=True), made(2)._replace(measure="nll", higher_is_better=False)
    nodes = [Node("a", first), Node("b", second), Node("c", made(3, probe=True), after="a")]
    assert [ancestors(nodes, i) for i in range(3)] == [[], ["a"], ["a"]]
    measured = gauges(nodes)
    assert [(g.node, g.measure) for g in measured] == [
        ("a", "accuracy"), ("b", "nll"), ("c", "accuracy"), ("", "accuracy"),
    ]  # fmt: skip
    probes = ("a/task 0", "a/task 1", "b/task 0", "b/task 1", "c/task 0", "c/task 1", "general")
    scores = np.full((1, 3, 3, 7, 2), np.nan, np.float32)
    scores[0, :, :, :2, 0] = [
        [[0.1, 0.1], [0.9, 0.2], [0.5, 0.8]],
        [[0.5, 0.8], [0.4, 0.5], [0.3, 0.4]],
        [[0.5, 0.8], [0.5, 0.9], [0.6, 0.9]],
    ]
    scores[0, :, :, 2:4, 1] = [[[3, 3], [3, 3], [3, 3]], [[3, 3], [1, 2], [2, 1]], [[3, 3]] * 3]
    scores[0, :, :, 4:6, 0] = 0.25
    scores[0, :, :, 6, 0] = [[0.5, 0.5, 0.4], [0.4, 0.3, 0.1], [0.4, 0.4, 0.6]]
    result = Result(("a", "b", "c"), probes, ("accuracy", "nll"), scores, (), ())
    np.testing.assert_allclose(table(result, measured[1], "b"), scores[:, 1, :, 2:4, 1])
    a, b, c = forgetting(nodes, result)
    np.testing.assert_allclose(a["horizontal"], [0.4], rtol=1e-6)
    assert set(a["vertical"]) == {"general"} and set(b["vertical"]) == {"a", "general"}
    np.testing.assert_allclose(a["vertical"]["general"], [0.1], rtol=1e-5)
    np.testing.assert_allclose(b["vertical"]["a"], [0.3], rtol=1e-5)
    np.testing.assert_allclose(b["vertical"]["general"], [0.3], rtol=1e-5)
    np.testing.assert_allclose(b["horizontal"], [1.0])
    np.testing.assert_allclose(c["vertical"]["a"], [-0.1], rtol=1e-5)
    assert isinstance(measured[0], Gauge)
