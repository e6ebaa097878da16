"""The experiment with a residual network, on a few images drawn at random."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import Any

import jax
import numpy as np
import pytest

import jcl
from jcl import data
from jcl.models import resnet
from jcl.runs import experiment, expression


@pytest.fixture
def fashion(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The experiment's file, with two blocks, and 12 images of each class to train on."""
    rng = np.random.default_rng(0)
    patterns = rng.random((10, 784), np.float32)

    def images(each: int) -> dict[str, Any]:
        y = np.tile(np.arange(10, dtype=np.int32), each)
        return {"x": patterns[y] * rng.random((len(y), 1), np.float32), "y": y}

    monkeypatch.setattr(data, "fashion_mnist", lambda: (images(12), images(2)))
    monkeypatch.setattr(resnet, "ResNet", partial(resnet.ResNet, blocks=(1, 1)))
    return experiment.load(experiment.find("fashion"))


def tiny(fashion: ModuleType, **settings: Any) -> experiment.Experiment:
    config = replace(fashion.Config(), steps=1, batch=6, width=1, tasks=2, lr=0.01, **settings)
    return fashion.build(config)


def test_it_trains_members_and_the_averages_of_the_batch_norms(fashion: ModuleType) -> None:
    built = tiny(fashion)
    setup = experiment.setup(built, expression.parse("er(capacity=8, rows=2)"), 2)
    kept = experiment.collections_of(built, setup.program)
    result = jcl.fit(*setup, evaluate=built.evaluate, chunk=1, collections=kept)
    assert result.scores is not None and result.scores.shape == (2, 3, 2)
    before, after = (jax.tree.leaves(x["batch_stats"]) for x in (kept, result.state.collections))
    assert before and all(x.shape == (2, *x.shape[1:]) for x in before)
    for old, new in zip(before, after, strict=True):
        assert (np.asarray(old) != np.asarray(new)).any(axis=-1).all()


@pytest.mark.parametrize(("scenario", "outputs"), [("class", 10), ("task", 10), ("domain", 5)])
def test_each_scenario_has_its_outputs(fashion: ModuleType, scenario: str, outputs: int) -> None:
    built = tiny(fashion, scenario=scenario)
    setup = experiment.setup(built, expression.parse("naive()"))
    assert setup.params["head"]["kernel"].shape == (2, outputs)
    assert setup.program.method.name and built.scenario == f"{scenario}-incremental"
    batch = experiment.example(setup.stream)
    assert batch["x"].shape == (6, 28, 28, 1)
    state = jax.eval_shape(setup.program.init, setup.params, batch, setup.key, built.collections)
    _, aux = jax.eval_shape(setup.program.step, state, batch)
    assert aux["loss"].shape == ()


def test_the_presets_say_how_much_is_read_unless_it_is_given(fashion: ModuleType) -> None:
    assert fashion.SIZES["small"] == (10_000, 2_000, 1)
    for given, rows in ((None, 120), (50, 50)):
        built = fashion.build(replace(fashion.Config(), width=1, batch=6, images=given))
        assert {len(x) for x in jax.tree.leaves(built.stream(0).source)} == {rows}
    full = fashion.build(replace(fashion.Config(), width=1, preset="full", batch=6))
    assert full.stream(0).steps == (5 * 24 // 6,) * 5  # five epochs of 24 images a task


def test_without_flax_it_says_what_to_install(
    fashion: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "flax", None)
    monkeypatch.delitem(sys.modules, "jcl.models.resnet", raising=False)
    with pytest.raises(ImportError, match=r"fashion needs flax.*pip install 'jcl-kit\[flax\]'"):
        tiny(fashion)
