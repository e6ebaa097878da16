"""Experiments: where they are found, what their files must have, and how a run is set up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jcl
from jcl import data, losses, mesh, models
from jcl.measures.evaluation import accuracy, evaluator
from jcl.method import defines
from jcl.runs import experiment, expression, reading

pytestmark = pytest.mark.quick


def made(**options: Any) -> experiment.Experiment:
    x = np.random.default_rng(0).normal(size=(2, 12, 4)).astype(np.float32)
    tasks = [{"x": rows, "y": (rows[:, 0] > 0).astype(np.int32)} for rows in x]

    def evaluate(program: jcl.Program, state: jcl.State) -> jax.Array:
        return jnp.arange(2.0)

    return experiment.Experiment(
        name="toy", scenario="domain",
        stream=lambda seed: data.from_arrays(tasks, tasks, 5, steps=3, seed=seed),
        init=lambda key: models.mlp.init(key, (4, 6, 2)), apply=models.mlp.apply,
        loss=losses.cross_entropy(), optimizer=optax.sgd, evaluate=evaluate,
    )._replace(**options)  # fmt: skip


def set_up(method: str, *args: Any, **options: Any) -> experiment.Setup:
    return experiment.setup(made(), expression.parse(method), *args, **options)


def test_the_built_in_ones_are_found_by_name_and_load(tmp_path: Path) -> None:
    known = experiment.available()
    assert {"digits", "domains"} <= set(known)
    assert experiment.find("digits") == known["digits"]
    assert experiment.headline(known["digits"]).endswith(".")
    module = experiment.load(known["digits"])
    assert callable(module.build) and module.Config()
    with pytest.raises(ValueError, match="no experiment is called 'digit'; did you mean digits"):
        experiment.find("digit")
    with pytest.raises(ValueError, match=r"there is no file nowhere/x\.py"):
        experiment.find("nowhere/x.py")


def test_a_file_may_import_what_lies_beside_it_and_must_be_whole(tmp_path: Path) -> None:
    (tmp_path / "beside_it.py").write_text("METHODS = ('naive()',)")
    path = tmp_path / "own.py"
    config = "from dataclasses import make_dataclass\nConfig = make_dataclass('Config', [])\n"
    own = f'"""First line.\n\nMore."""\n{config}from beside_it import METHODS\nbuild = 1'
    path.write_text(own)
    assert experiment.load(experiment.find(str(path))).METHODS == ("naive()",)
    assert experiment.headline(path) == "First line."
    for text, lacks in (("METHODS = ()", "Config"), ("Config = 1\nMETHODS = ()", "build"),
                        ("nodes = 1", "Config")):  # fmt: skip
        path.write_text(text)
        with pytest.raises(ValueError, match=f"has no {lacks}, which an experiment must define"):
            experiment.load(path)


def test_an_example_has_a_batch_s_shapes_whatever_the_members() -> None:
    one = made().stream(0)
    for stream in (one, data.members([one, made().stream(1)])):
        shapes = {k: x.shape for k, x in experiment.example(stream).items()}
        assert shapes == {"x": (5, 4), "y": (5,), "task": (5,), "weight": (5,)}


def test_probes_come_after_the_tests() -> None:
    program, *_ = set_up("naive()")
    assert experiment.evaluate_all(made())(program, None).tolist() == [0, 1]
    both = experiment.evaluate_all(made(probe=lambda program, state: jnp.array([7.0])))
    assert both(program, None).tolist() == [0, 1, 7]


def test_a_member_is_the_seed_and_point_that_it_is_alone() -> None:
    points = [{"ewc.strength": 1.0, "lr": 0.1}, {"ewc.strength": 2.0, "lr": 0.2}]
    many = set_up("ewc()", 3, points)
    assert many.program.members == many.stream.members == 6
    for seed in range(3):
        weights, key = jax.random.split(jax.random.key(seed))
        for point in range(2):
            member = 3 * point + seed
            assert (jax.random.key_data(many.key[member]) == jax.random.key_data(key)).all()
            mine = jax.tree.map(lambda x, m=member: x[m], many.params)
            jax.tree.map(np.testing.assert_array_equal, mine, made().init(weights))
            np.testing.assert_array_equal(
                many.stream.chunk(0, 0, 2)["row"][member], made().stream(seed).chunk(0, 0, 2)["row"]
            )


def test_where_a_method_brings_adapters_they_alone_learn() -> None:
    mlp = 4 * 6 + 6 + 6 * 2 + 2
    for method, learning in (("lora(rank=2, targets='dense_0')", 2 * (4 + 6)), ("ewc()", mlp)):
        calls = expression.parse(method)
        program, params, key, stream = experiment.setup(made(optimizer=optax.adam), calls)
        state = jax.eval_shape(program.init, params, experiment.example(stream), key)
        assert jcl.trees.size(state.optimizer) == 2 * learning + 1  # two moments, and a count


def test_what_can_not_be_set_up_is_refused() -> None:
    with pytest.raises(ValueError, match="strength is -1"):
        set_up("ewc(strength=1.)", 1, [{"ewc.strength": -1.0}])
    there = mesh.make(data=2)
    with pytest.raises(ValueError, match="seeds times points of a sweep is 2, but must be 1"):
        set_up("ewc()", 2, mesh=there)


def test_adapters_are_folded_into_the_parameters_and_what_can_not_be_is_refused() -> None:
    given = set_up("lora(rank=2, targets='dense_0')")
    batch = jax.tree.map(jnp.zeros_like, experiment.example(given.stream))
    state = given.program.init(given.params, batch, given.key)
    lora = state.params["dense_0"]["lora"]
    moved = {**lora, "b": jnp.ones_like(lora["b"])}
    state = state._replace(
        params={**state.params, "dense_0": {**state.params["dense_0"], "lora": moved}}
    )
    merged = experiment.merged_params(made(), given, state)
    kernel = given.params["dense_0"]["kernel"]
    change = np.asarray(merged["dense_0"]["kernel"] - kernel)
    product = np.asarray(lora["a"]) @ np.ones(lora["b"].shape)
    np.testing.assert_allclose(change / product, np.full_like(change, change[0, 0] / product[0, 0]),
                               rtol=1e-3)  # fmt: skip
    assert set(merged["dense_0"]) == {"kernel", "bias"}


DENSE = "targets='dense_0', rank=2"
FOLDS = (
    f"lora({DENSE}) + ewc()", f"lora({DENSE}, dora=True)", "ia3('dense_0', 'dense_1')",
    f"inclora(stages=2, {DENSE})", f"olora(stages=2, {DENSE})",
    f"svd_lora({DENSE})", f"oplora(preserved=1, {DENSE})", "osf(targets='dense_0')",
)  # fmt: skip
FOLDS_FOR_A_TASK = (
    "packnet(stages=2, retrain_steps=1)",
    f"inclora(stages=2, {DENSE}, predict='task')",
)
CANT = "changes nothing but parameters"
REFUSED = {
    "hat(tasks=2, steps=3)": CANT,
    "moelora(experts=2, rank=4, targets='blocks/query')": "blocks/query/lora/router",
    "bottleneck(width=4)": "blocks/attention_adapter/down",
    "prefix_tuning(length=2)": "blocks/prefix/key",
    "prompt_tuning(length=2)": "prompt/table",
    "progressive_prompts(stages=2, length=2)": "prompt/table",
    "eproj(slots=2)": r"leaves the shapes of \['projector/",
}
WITHOUT_TASKS = {
    "dpo": "its loss asks for pairs; the model answers as it did",
    "infer_task": "it says which task a row is of; beside it stands a method that goes by the task",
}
"""Of the methods that wrap the model those that leave it as it is where it is exported."""


def text_experiment(apply: Any = None, params: Any = None, **rows: Any) -> experiment.Experiment:
    """One of a tiny decoder, or of the model that is given, over rows of six tokens."""
    config = models.decoder.Config(vocabulary=8, layers=1, width=8, heads=2, kv_heads=1, hidden=8)
    rows = {"tokens": np.arange(18, dtype=np.int32).reshape(3, 6) % 8, **rows}
    start = models.decoder.init(jax.random.key(0), config) if params is None else params
    return made(
        stream=lambda seed: data.from_arrays([rows, rows], [rows, rows], 3, steps=1),
        init=lambda key: start, apply=apply or models.decoder.apply_fn(config),
        loss=losses.fused_next_token(),
    )  # fmt: skip


def seeing() -> experiment.Experiment:
    """One of a model of images and text."""
    text = models.decoder.Config(vocabulary=8, layers=1, width=8, heads=2, kv_heads=1, hidden=8)
    tower = models.vision.Config(image=4, patch=2, layers=1, width=8, heads=2, hidden=8)
    config = models.multimodal.Config(tower, text)
    params = models.multimodal.init(jax.random.key(0), config)
    apply = models.multimodal.apply_fn(config)
    return text_experiment(apply, params, image=np.ones((3, 4, 4, 1), np.float32))


def merged(method: str, task: int | None = None) -> tuple[Any, Any, Any]:
    """The setup, a state of random numbers after both stages, and the folded parameters."""
    dense = method.startswith(("hat", "packnet")) or "dense_0" in method
    built = made() if dense else text_experiment()
    if method.startswith("eproj"):
        built = seeing()
    given = experiment.setup(built, expression.parse(method))
    example = reading.first_batches(given.stream)[0]
    state = given.program.init(given.params, example, given.key)
    draw = np.random.default_rng(0)

    def stirred(x: jax.Array) -> jax.Array:
        if jnp.issubdtype(x.dtype, jnp.floating):
            return x + 0.3 * draw.normal(size=x.shape).astype(np.float32)
        return (jnp.arange(x.size).reshape(x.shape) % 2).astype(x.dtype)  # owners, last stages

    state = state._replace(params=jax.tree.map(stirred, state.params), stage=jnp.int32(2),
                           methods=jax.tree.map(stirred, state.methods))  # fmt: skip
    return built, given, (state, experiment.merged_params(built, given, state, task))


@pytest.mark.parametrize("method", FOLDS)
def test_what_can_be_folded_is(method: str) -> None:
    built, given, (state, params) = merged(method)
    batch = reading.first_batches(given.stream)[1]
    wanted = given.program.predict(state, batch)
    np.testing.assert_allclose(built.apply(params, batch), wanted, atol=1e-5)
    assert np.abs(wanted - built.apply(given.params, batch)).max() > 1e-2
    assert jax.tree.structure(params) == jax.tree.structure(given.params)


@pytest.mark.parametrize("method", FOLDS_FOR_A_TASK)
def test_what_reads_each_task_by_other_weights_is_folded_for_one(method: str) -> None:
    with pytest.raises(ValueError, match="reads the same parameters for every task, where no task"):
        merged(method)
    folded = []
    for task in (0, 1):
        built, given, (state, params) = merged(method, task)
        batch = reading.of_task(reading.first_batches(given.stream)[0], task)
        wanted = given.program.predict(state, batch)
        np.testing.assert_allclose(built.apply(params, batch), wanted, atol=1e-5)
        folded.append(wanted)
    assert np.abs(folded[0] - folded[1]).max() > 1e-2


@pytest.mark.parametrize("method", REFUSED)
def test_what_can_not_be_folded_is_refused(method: str) -> None:
    with pytest.raises(ValueError, match=REFUSED[method]):
        merged(method, None if method.startswith("eproj") else 1)


def test_every_method_folds_or_has_a_row() -> None:
    """One that wraps no model and adds no leaves of its own leaves plain parameters."""
    known = {*WITHOUT_TASKS, *(call.name for text in (*FOLDS, *FOLDS_FOR_A_TASK, *REFUSED)
                               for call in expression.parse(text))}  # fmt: skip
    needed = {"distil": {"teacher": {}}, "infinite": {"warmup": 2, "cooldown": 2, "anneal": 2},
              "copr": {"stages": 2}, "gem": {"stages": 2, "capacity_per_task": 4},
              "llama_pro": {"layers": (1,)}, "ogd": {"directions": 4, "per_stage": 2},
              "recadam": {"midpoint": 2.0}, "rewarm": {"warmup": 1, "steps": 3}}  # fmt: skip
    for name, factory in expression.factories().items():
        if name not in known:
            method = factory(**needed.get(name, {}))
            assert not defines(method, "forward") and method.learns is None, name


def test_a_report_has_the_sizes_of_tests_and_classes_that_differ() -> None:
    rng = np.random.default_rng(0)
    sets = []
    for count, y in ((30, 0), (6, 1)):
        x = rng.standard_normal((count, 4)).astype(np.float32)
        sets.append({"x": x, "y": np.full(count, y, np.int32)})

    def stream(seed: int) -> data.Stream:
        return data.from_arrays(sets, sets, 5, steps=3, seed=seed)

    score = evaluator(stream(0).test, accuracy())
    made_of = made(stream=stream, evaluate=score)
    setup = experiment.setup(made_of, expression.parse("naive()"), seeds=2)
    state = jcl.fit(*setup).state
    facts = experiment.test_facts(made_of, setup, state)
    assert facts["test_rows"] == facts["class_rows"] == [30, 6]  # here a class is a task
    np.testing.assert_allclose(facts["class_scores"], score(setup.program, state))
    # where all are alike, nothing is said, nor of labels that are no classes
    alike = experiment.setup(made(), expression.parse("naive()"))
    assert experiment.test_facts(made(), alike, jcl.fit(*alike).state) == {}
