"""What `jcl.fit` leaves in its folder is what the command's own tables and pages read."""

from __future__ import annotations

import csv
import runpy
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jcl
from jcl import cli, data, losses, methods, models, report
from jcl.measures.evaluation import accuracy, evaluator, nll
from jcl.runs.fitted import points_of

RNG = np.random.default_rng(0)
TASKS = [{"x": x, "y": (x[:, i] > 0).astype(np.int32)}
         for i, x in enumerate(RNG.normal(size=(2, 40, 4)).astype(np.float32))]  # fmt: skip
STREAM = data.from_arrays(TASKS, TASKS, 8, steps=4, names=("one", "two"))
PARAMS = models.mlp.init(jax.random.key(0), [4, 6, 2])
KEY = jax.random.key(1)


def program(strength: Any = 1.0) -> jcl.Program:
    method = methods.ewc(strength=strength)
    return jcl.make(method, models.mlp.apply, losses.cross_entropy(), optax.sgd(0.1))


def many(values: Any) -> tuple[Any, ...]:
    """The arguments of a run of as many members."""
    count = len(jax.tree.leaves(values)[0])
    swept = isinstance(values, dict)
    made = jcl.replicate(lambda v: program(v["strength"] if swept else 1.0), values, how="map")
    params = jax.tree.map(lambda x: jnp.stack([x] * count), PARAMS)
    return made, params, jax.random.split(KEY, count), data.members([STREAM] * count)


@pytest.mark.quick
def test_a_run_s_folder_is_read_by_the_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    score = evaluator(STREAM.test, accuracy())
    alone = jcl.fit(program(), PARAMS, KEY, STREAM, evaluate=score, out="alone")
    seeds = jcl.fit(*many(jnp.arange(3)), evaluate=score, out="seeds")
    (read,) = report.load(Path("alone"))
    np.testing.assert_allclose(read.scores[0, 0], alone.scores, rtol=1e-6)
    assert report.finished(Path("alone")) is not None
    facts = {"method": "ewc", "experiment": "jcl.fit", "measure": "accuracy", "seeds": 1}
    assert facts.items() <= read.summary.items() and read.summary["higher_is_better"] is True
    assert read.summary["tasks"] == ["one", "two"]
    with Path("alone/matrix.csv").open(newline="") as file:
        assert [row[0] for row in csv.reader(file)] == ["after", "before", "one", "two"]
    (three,) = report.load(Path("seeds"))
    np.testing.assert_allclose(three.scores[0], seeds.scores, rtol=1e-6)
    assert three.summary["average"]["ci95"] is not None
    assert cli.main(["report", "alone"]) == 0 and Path("alone/report.html").is_file()
    assert cli.main(["compare", "alone", "seeds", "--latex"]) == 0  # whose tasks are the same
    assert cli.main(["export", "alone", "--to", "model"]) == 2
    said = capsys.readouterr().err
    assert "it was trained from Python" in said and said.count("\n") == 1


@pytest.mark.quick
def test_floats_are_points_and_whole_numbers_are_seeds(tmp_path: Path) -> None:
    values = {"strength": jnp.array([0.0, 0.0, 9.0, 9.0]), "seed": jnp.array([0, 1, 0, 1])}
    score = evaluator(STREAM.test, nll())
    result = jcl.fit(*many(values), evaluate=score, out=tmp_path / "swept")
    (read,) = report.load(tmp_path / "swept")
    assert read.points == [{"strength": 0.0}, {"strength": 9.0}]
    assert read.labels == ["ewc with strength=0", "ewc with strength=9"]
    assert result.scores is not None
    np.testing.assert_allclose(read.scores, result.scores.reshape(2, 2, 3, 2), rtol=1e-6)
    assert read.summary["measure"] == "negative log-likelihood"
    lower = result.scores[:, -1].reshape(2, -1).mean(axis=1)
    assert read.best == int(lower.argmin())
    mixed = {"strength": jnp.array([0.0, 9.0, 0.0]), "seed": jnp.array([0, 0, 1])}
    points, seeds = points_of(many(mixed)[0])
    assert seeds == 1 and points[2] == {"member": 2.0, "strength": 0.0}


@pytest.mark.quick
def test_what_is_not_finished_or_has_other_tests_leaves_no_summary(tmp_path: Path) -> None:
    score = evaluator(STREAM.test, accuracy())
    out = tmp_path / "stopped"
    jcl.fit(program(), PARAMS, KEY, STREAM, evaluate=score, out=out, on_event=lambda e: "stop")
    assert not (out / "summary.json").exists()
    on = jcl.fit(program(), PARAMS, KEY, STREAM, evaluate=score, out=out, resume=True)
    assert not on.stopped and (out / "summary.json").is_file()

    def mean(program: jcl.Program, state: jcl.State) -> jax.Array:
        return score(program, state).mean(keepdims=True)

    with pytest.warns(UserWarning, match=r"evaluate gives 1 scores, but the stream has 2 tests"):
        jcl.fit(program(), PARAMS, KEY, STREAM, out=tmp_path / "one", evaluate=mean)


@pytest.mark.whole
def test_a_researcher_s_day_ends_with_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    day = runpy.run_path(str(Path(jcl.__file__).parents[1] / "experiments" / "day.py"))
    said = capsys.readouterr().out
    table = (day["FOLDER"] / "table.tex").read_text()
    assert "paired t test over seeds" in table and "naive" in table and "naive" in said
    assert (day["FOLDER"] / "comparison.png").is_file()
    assert day["strength"] == 100.0 and day["unsure"].shape == (day["SEEDS"], 5)
