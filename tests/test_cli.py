import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from own_method import MINE, write_mine

import jcl
from jcl import cli, data, models, report
from jcl.measures.evaluation import accuracy, evaluator
from jcl.report import screen
from jcl.runs import experiment, expression, launch
from jcl.training import folder

TOY = '''
"""A toy, for tests."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import optax

from jcl import data, losses
from jcl.measures.evaluation import accuracy, evaluator
from jcl.runs.experiment import Experiment
from jcl.models import mlp

METHODS = ("naive()", "er(capacity=20, rows=4)")


@dataclass(frozen=True)
class Config:
    """Settings of the toy."""

    scenario: Literal["domain", "class"] = "domain"
    """Which."""
    steps: int = 6
    """Steps a task."""
    batch: int = 8
    """Rows a step."""
    lr: float = 0.05
    """Learning rate."""
    hidden: tuple[int, ...] = (5,)
    """Widths."""
    flip: bool = False
    """Whether to turn labels around."""


def build(config):
    rng = np.random.default_rng(0)
    if config.batch > 40:
        raise ValueError(f"batch is {config.batch}, but must be at most 40")

    def task(sign):
        x = rng.normal(size=(40, 4)).astype(np.float32)
        return {"x": x, "y": (sign * x[:, 0] > 0).astype(np.int32) ^ config.flip}

    tasks = [task(1), task(-1), task(1)]

    def stream(seed):
        return data.from_arrays(
            tasks, tasks, config.batch, steps=config.steps, seed=seed,
            names=("one", "two", "three"),
        )

    return Experiment(
        name="toy",
        scenario=config.scenario,
        stream=stream,
        init=lambda key: mlp.init(key, (4, *config.hidden, 2)),
        apply=mlp.apply,
        loss=losses.cross_entropy(),
        optimizer=optax.sgd,
        evaluate=evaluator(stream(0).test, accuracy()),
        learning_rate=config.lr,
    )
'''


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    path = tmp_path_factory.mktemp("toy") / "toy.py"
    path.write_text(TOY)
    return str(path)


@pytest.fixture
def run(toy, tmp_path, monkeypatch, capsys):
    """Runs the toy, in a folder of its own; returns the exit code, what was said, and where."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch, "split_cpu", lambda: None)  # devices are there already

    def call(*args, out="out"):
        code = cli.main(["run", toy, *args, *(["--out", out] if out else [])])
        return code, capsys.readouterr(), tmp_path / (out or "runs")

    return call


def _summary(folder):
    return json.loads((folder / "summary.json").read_text())


def _by_hand(toy, method, seed=0, **settings):
    """The final scores that jcl.fit gives without the command line."""
    module = experiment.load(experiment.find(toy))
    built = module.build(module.Config(**settings))
    weights, key = jax.random.split(jax.random.key(seed))
    program = jcl.make(
        expression.build(expression.parse(method)), built.apply, built.loss,
        built.optimizer(built.learning_rate),
    )  # fmt: skip
    result = jcl.fit(program, built.init(weights), key, built.stream(seed), evaluate=built.evaluate)
    return result


def test_a_run_leaves_a_complete_folder(run, toy):
    code, said, out = run("--method", "ewc(strength=3.0)")
    assert code == 0 and not said.err
    for name in (
        "config.json", "metrics.jsonl", "matrix.csv", "scores.csv", "summary.json", "report.html",
        "curves.png", "forgetting.png", "matrix.png", "checkpoints",
    ):  # fmt: skip
        assert (out / name).exists(), name
    saved = _summary(out)
    expected = _by_hand(toy, "ewc(strength=3.0)")
    np.testing.assert_allclose(saved["matrix"], expected.scores, rtol=1e-6)
    assert saved["method"] == "ewc(strength=3.0)" and saved["experiment"] == "toy"
    assert saved["tasks"] == ["one", "two", "three"] and saved["scenario"] == "domain"
    assert saved["seeds"] == 1 and saved["step_traces"] == 1
    for key in ("wall_seconds", "compile_seconds", "examples_per_second", "peak_memory_bytes"):
        assert saved[key] > 0
    config = json.loads((out / "config.json").read_text())
    assert config["config"]["steps"] == 6 and config["versions"]["jax"] == jax.__version__
    assert config["command"].startswith("jcl run ") and config["methods"] == ["ewc(strength=3.0)"]
    assert "after three" in said.out and "average" in said.out


def test_methods_run_side_by_side_by_default(run, toy):
    code, _, out = run()
    assert code == 0
    assert sorted(p.name for p in out.iterdir() if p.is_dir()) == ["er", "naive"]
    assert (out / "comparison.png").exists() and (out / "report.html").exists()
    saved = _summary(out)["runs"]
    for name, method in (("naive", "naive()"), ("er", "er(capacity=20, rows=4)")):
        np.testing.assert_allclose(saved[name]["matrix"], _by_hand(toy, method).scores, rtol=1e-6)


def test_seeds_are_members_equal_to_separate_runs(run, toy):
    code, _, out = run("--method", "er(capacity=20, rows=4)", "--seeds", "2")
    assert code == 0
    (loaded,) = report.load(out)
    assert loaded.scores.shape == (1, 2, 4, 3)
    for seed in range(2):
        alone = _by_hand(toy, "er(capacity=20, rows=4)", seed).scores
        np.testing.assert_allclose(loaded.scores[0, seed], alone, rtol=1e-6)
    saved = _summary(out)
    assert saved["seeds"] == 2 and saved["average"]["ci95"] is not None
    assert saved["step_traces"] == 1


def test_a_traced_sweep_equals_separate_runs(run, toy):
    sweeps = ("--sweep", "ewc.strength=0,5", "--sweep", "lr=0.05,0.2")
    code, said, out = run("--method", "ewc()", *sweeps, "--seeds", "2")
    assert code == 0, said.err
    (loaded,) = report.load(out)
    assert loaded.scores.shape == (4, 2, 4, 3)
    assert loaded.summary["step_traces"] == 1
    keys = [(0, 0.05), (0, 0.2), (5, 0.05), (5, 0.2)]
    assert loaded.points == [{"ewc.strength": s, "lr": r} for s, r in keys]
    for p in (1, 2):
        strength, rate = keys[p]
        alone = _by_hand(toy, f"ewc({strength})", seed=1, lr=rate).scores
        # but for one of 40 rows, which rounding may tip over
        np.testing.assert_allclose(loaded.scores[p, 1], alone, atol=0.026)
    assert not np.allclose(loaded.scores[0], loaded.scores[1], atol=0.026)
    assert len(_summary(out)["sweep"]) == 4


def test_a_point_is_chosen_by_rows_that_no_stage_trains_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch, "split_cpu", lambda: None)  # devices are there already
    rates = ["--sweep", "lr=0.0,0.01", "--steps", "20", "--tasks", "2", "--select-on", "validation"]
    assert cli.main(["run", "digits", "--method", "naive()", *rates, "--out", "out"]) == 0
    saved = _summary(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["config"]["validation"] == 0.1
    held = [point["validation"]["mean"] for point in saved["sweep"]]
    assert saved["selected"] == {"lr": 0.01} and held[1] > held[0]
    assert "chosen by rows held out" in (tmp_path / "out" / "report.html").read_text()
    train, rest = data.hold_out(data.split(*data.digits(), tasks=2), 0.1)
    module = experiment.load(experiment.find("digits"))
    built = module.build(module.Config(steps=20, tasks=2, lr=0.01, validation=0.1))
    exam = evaluator(data.pack(rest.test), accuracy(train.classes, "seen"))
    stream = data.from_scenario(train, 32, steps=20)
    weights, key = jax.random.split(jax.random.key(0))
    program = jcl.make(jcl.methods.naive(), built.apply, built.loss, built.optimizer(0.01))
    alone = jcl.fit(program, built.init(weights), key, stream, evaluate=exam)
    assert held[1] == pytest.approx(alone.scores[-1].mean(), abs=0.02)  # of 72 rows each


def test_the_best_state_is_kept_and_an_interrupted_run_keeps_the_same(run, monkeypatch):
    flags = ("--method", "naive()", "--steps", "12", "--lr", "2.0", "--patience", "3")
    flags += ("--evaluate-every", "2", "--keep", "best", "--checkpoint-every", "5")
    code, said, whole = run(*flags, out="whole")
    assert code == 0, said.err
    lines = [json.loads(line) for line in (whole / "evaluations.jsonl").read_text().splitlines()]
    ends = report.load(whole)[0].scores[0, 0]
    for stage in range(3):
        seen = [np.mean(x["scores"][: stage + 1]) for x in lines if x["stage"] == stage]
        assert ends[stage + 1, : stage + 1].mean() == pytest.approx(max(seen))
    assert any(line["step"] % 12 for line in lines) and lines[-1]["step"] <= 36
    assert "by the final test scores themselves" in (whole / "report.html").read_text()
    _interrupt_at(monkeypatch, 8)
    assert run(*flags)[0] == 130
    code, said, out = run("--resume", "--keep", "best")  # said again, and the same
    assert code == 0, said.err
    for name in ("evaluations.jsonl", "metrics.jsonl", "matrix.csv"):
        assert (out / name).read_text() == (whole / name).read_text(), name
    code, said, _ = run("--resume", "--patience", "4")
    assert code == 2 and "was begun with patience 3, so it can't go on with 4" in said.err


def test_states_are_chosen_by_rows_held_out_where_there_are_some(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch, "split_cpu", lambda: None)  # devices are there already
    flags = ["--steps", "8", "--tasks", "2", "--evaluate-every", "4", "--keep", "best"]
    flags += ["--method", "naive()", "--select-on", "validation", "--out", "out"]
    assert cli.main(["run", "digits", *flags]) == 0
    lines = (tmp_path / "out" / "evaluations.jsonl").read_text().splitlines()
    assert {len(json.loads(line)["scores"]) for line in lines} == {4}  # of two tests, and held out
    ends = _summary(tmp_path / "out")["stages_end"]
    assert ends.endswith("every 4 steps, by rows held out of training, not by the test")
    assert len(_summary(tmp_path / "out")["matrix"][0]) == 2


def test_flags_have_the_norm_logged_and_events_written_for_tensorboard(run):
    pytest.importorskip("tensorboardX")
    flags = ("--method", "naive()", "--steps", "2", "--tensorboard", "--gradient-norm")
    code, said, out = run(*flags)
    assert code == 0, said.err
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 3 and all(line["gradient_norm"] > 0 for line in lines)
    (events,) = (out / "tensorboard").iterdir()
    raw = events.read_bytes()
    assert b"gradient_norm" in raw and b"score/two" in raw and b"learning" not in raw
    assert json.loads((out / "config.json").read_text())["gradient_norm"] is True


def test_shapes_loop_outside(run):
    code, _, out = run("--method", "er(rows=4)", "--sweep", "er.capacity=5,10", "--steps", "2")
    assert code == 0
    runs = report.load(out)
    assert [r.summary["outer"] for r in runs] == [{"er.capacity": 5}, {"er.capacity": 10}]
    assert (out / "sweep.png").exists()


def test_settings_can_be_given_as_flags_or_with_set(run):
    code, _, out = run(
        "--method", "naive()", "--set", "hidden=3,2", "--set", "flip=true", "--set=scenario=class",
        "--steps", "2",
    )  # fmt: skip
    assert code == 0
    config = json.loads((out / "config.json").read_text())["config"]
    assert config["hidden"] == [3, 2] and config["flip"] is True
    assert config["scenario"] == "class" and config["steps"] == 2


def test_the_default_folder_is_new_each_time(run, tmp_path):
    (tmp_path / "runs" / "toy-naive-7").mkdir(parents=True)
    code, _, runs = run("--method", "naive()", "--steps", "2", out=None)
    assert code == 0
    assert (runs / "toy-naive-8" / "summary.json").exists()


def _interrupt_at(monkeypatch, step):
    """Ctrl-C, once, when a run has come to a step."""
    show = screen.Watch.__call__
    sent = []

    def watch(self, event):
        show(self, event)
        if event["kind"] == "progress" and event["step"] >= step and not sent:
            sent.append(step)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(screen.Watch, "__call__", watch)


def test_ctrl_c_saves_and_resume_goes_on_to_the_same_end(run, monkeypatch, toy):
    _interrupt_at(monkeypatch, 8)
    code, said, out = run("--method", "er(capacity=20, rows=4)", "--steps", "7")
    assert code == 130
    assert "--resume" in said.err and "Traceback" not in said.err
    assert list((out / "checkpoints").glob("step_*.json")) and not (out / "summary.json").exists()
    code, said, out = run("--resume")
    assert code == 0, said.err
    alone = _by_hand(toy, "er(capacity=20, rows=4)", steps=7).scores
    np.testing.assert_array_equal(
        report.load(out)[0].scores[0, 0], alone.astype(np.float64).round(7)
    )
    before = (out / "metrics.jsonl").read_text()
    assert run("--resume")[0] == 0  # finished: nothing is trained again
    assert (out / "metrics.jsonl").read_text() == before


def test_resume_of_several_runs_keeps_the_finished_ones(run, monkeypatch):
    _interrupt_at(monkeypatch, 10)
    code, _, out = run("--method", "naive()", "--method", "er(capacity=20, rows=4)")
    assert code == 130
    code, _, out = run("--resume")
    assert code == 0
    assert [r.summary["method"] for r in report.load(out)] == ["naive()", "er(capacity=20, rows=4)"]


def test_a_second_run_in_the_same_folder_is_refused_by_a_sentence(run, tmp_path):
    (tmp_path / "out").mkdir()
    held = subprocess.Popen(
        [sys.executable, "-c", "import sys, pathlib\nfrom jcl.training import folder\n"
         "with folder.hold(pathlib.Path('out')): print('held', flush=True); sys.stdin.read()"],
        cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert held.stdout.readline() == "held\n"
    for more in ([], ["--resume"]):
        code, said, _ = run("--method", "naive()", *more)
        assert code == 2 and said.err.count("\n") == 1
        assert f"in use by process {held.pid} on " in said.err
    held.communicate("")
    assert run("--method", "naive()")[0] == 0


@pytest.mark.parametrize("name", ["summary.json", "scores.csv", "matrix.csv", "report.html"])
@pytest.mark.parametrize("how", ["missing", "cut"])
def test_a_file_that_is_missing_or_cut_is_written_again(run, whole_run, name, how):
    out = whole_run.parent / "out"
    shutil.copytree(whole_run, out)
    text = (out / name).read_text()
    (out / name).unlink()
    if how == "cut":
        (out / name).write_text(text[: len(text) // 2])
    code, said, _ = run("--resume")
    assert code == 0, said.err
    for one in ("scores.csv", "matrix.csv"):
        assert (out / one).read_text() == (whole_run / one).read_text()
    assert _summary(out)["matrix"] == _summary(whole_run)["matrix"]
    assert "</html>" in (out / "report.html").read_text()


@pytest.fixture
def whole_run(run, tmp_path):
    """The folder of a finished run."""
    assert run("--method", "naive()", out="whole")[0] == 0
    return tmp_path / "whole"


def test_resume_saves_as_often_as_the_run_was_begun_with(run, monkeypatch):
    seen = []
    fit = launch.fit
    monkeypatch.setattr(
        launch, "fit", lambda *a, **k: seen.append(k["checkpoint_every"]) or fit(*a, **k)
    )
    run("--method", "naive()", "--checkpoint-every", "2")
    for more, every in (([], 2), (["--checkpoint-every", "3"], 3)):
        (Path("out") / "summary.json").unlink()
        assert run("--resume", *more)[0] == 0 and seen[-1] == every


def test_resume_notices_another_experiment(run, tmp_path, capsys):
    mine = tmp_path / "mine.py"
    mine.write_text(TOY)
    args = ["run", str(mine), "--method", "naive()", "--out", "out"]
    assert cli.main(args) == 0
    mine.write_text(TOY.replace("(4, *config.hidden, 2)", "(4, *config.hidden, 3)"))
    assert cli.main([*args, "--resume"]) == 2
    assert f"was begun with {mine}, which has changed since" in capsys.readouterr().err


def test_resume_removes_what_saves_that_were_cut_short_left(run, whole_run, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(whole_run, out)
    (out / "summary.json").unlink()
    kept = sorted(p.name for p in (out / "checkpoints").iterdir())
    (out / "checkpoints" / "step_000000099").mkdir()
    (out / "checkpoints" / "step_000000099.orbax-checkpoint-tmp").mkdir()
    (out / "checkpoints" / "step_000000099.partial").write_text("{")
    assert run("--resume")[0] == 0
    assert sorted(p.name for p in (out / "checkpoints").iterdir()) == kept


def test_resume_refuses_other_settings_and_begins_where_nothing_was(run):
    assert run("--method", "naive()", "--resume")[0] == 0
    for flags, says in (
        (["--steps", "9"], "steps 6"),
        (["--set", "steps=9"], "steps 6"),
        (["--method", "ewc()"], "methods ['naive()']"),
        (["--seeds", "2"], "seeds 1"),
    ):
        code, said, _ = run("--resume", *flags)
        assert code == 2 and says in said.err
    assert run("--resume", "--steps", "6")[0] == 0  # said again, but the same


def test_checkpoints_are_as_far_apart_as_is_asked(run):
    code, _, out = run("--method", "naive()", "--steps", "250", "--checkpoint-every", "100")
    assert code == 0
    kept = sorted(int(p.stem.partition("_")[2]) for p in (out / "checkpoints").glob("step_*.json"))
    assert kept[-2:] == [700, 750]  # in mid-stage, and at its end


def test_a_point_that_diverges_is_marked_and_the_others_go_on(run):
    code, said, out = run("--method", "naive()", "--sweep", "lr=0.05,1e30,0.1", "--seeds", "2")
    assert code == 0 and said.err.count("\n") == 1 and "diverged at step" in said.err
    summary = _summary(out)
    best, lost, _ = summary["sweep"]
    assert "diverged" in lost["label"] and lost["average"]["mean"] is None
    assert lost["matrix"][1] == [None] * 3 and summary["selected"] != lost["values"]
    alone = run("--method", "naive()", "--sweep", "lr=0.05,0.1", "--seeds", "2", out="two")[2]
    assert best["matrix"] == _summary(alone)["sweep"][0]["matrix"]
    assert lost["diverged"] == 2 and ">2 diverged<" in (out / "report.html").read_text()
    assert "NaN" not in (out / "summary.json").read_text()
    assert report.load(out)[0].best == summary["sweep"].index(
        next(point for point in summary["sweep"] if point["values"] == summary["selected"])
    )


def test_a_diverged_run_exits_with_3(run):
    code, said, _ = run("--method", "naive()", "--lr", "1e30")
    assert code == 3
    assert "'one'" in said.err and "step" in said.err and "checkpoint" in said.err
    assert said.err.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--method", "ewk()"], "did you mean ewc"),
        (["--method", "ewc(lamda=1)"], "strength, labels and per"),
        (["--method", "er(capacity=0)"], "capacity is 0"),
        (["--bogus", "1"], "--batch"),
        (["--stpes", "1"], "did you mean --steps"),
        (["--steps", "many"], "many"),
        (["--steps"], "--steps"),
        (["--scenario", "clas"], "'domain', 'class'"),
        (["--set", "stpes=1"], "did you mean steps"),
        (["--set", "steps"], "key=value"),
        (["--set", "flip=maybe"], "true or false"),
        (["--seeds", "0"], "at least 1"),
        (["--checkpoint-every", "0"], "checkpoint-every is 0"),
        (["--batch", "50"], "at most 40"),
        (["--steps", "0"], "steps is 0"),
        (["--sweep", "er.rows=1.5,2"], "whole number"),
        (["extra"], "'extra'"),
    ],
)
def test_what_is_given_wrongly_is_one_sentence_and_leaves_no_folder(run, args, says):
    code, said, out = run(*args)
    assert code == 2
    assert says in said.err and said.err.startswith("jcl: ") and said.err.count("\n") == 1
    assert not said.out and not out.exists()


@pytest.mark.quick
def test_folders_that_cannot_be_used_are_refused(run, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").write_text("")
    for out, says in (("file", "is a file"), ("full", "isn't empty"), ("file/under", "file/under")):
        code, said, _ = run("--method", "naive()", out=out)
        assert code == 2 and says in said.err and said.err.count("\n") == 1
    assert run("--resume", out=None)[0] == 2

    def no_space(out):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder, "make", no_space)
    code, said, _ = run("--method", "naive()", out="new")
    assert code == 2 and "No space left" in said.err and said.err.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["rum"], "did you mean run"),
        (["run", "digit"], "did you mean digits"),
        (["run", "none.py"], "there is no file none.py"),
        (["run", "--seeds", "2"], "comes first"),
        (["explain", "--method", "ewk()"], "did you mean ewc"),
        (["explain"], "--method"),
        (["compare"], "needs folders"),
        (["compare", "nowhere"], "no summary.json"),
        (["report", "nowhere"], "no summary.json"),
        (["list", "extra"], "'extra'"),
        (["shardings", "--model", "tiny", "--mesh", "fsd=2"], "mesh is 'fsd=2'"),
        (["shardings", "--model", "tinny", "--mesh", "fsdp=2"], "there is no folder 'tinny'"),
        (
            ["shardings", "--model", "tiny", "--mesh", "fsdp=2", "--method", "ewk"],
            "did you mean ewc",
        ),
    ],
)
def test_other_commands_refuse_in_one_sentence_too(args, says, capsys):
    assert cli.main(args) == 2
    said = capsys.readouterr()
    assert says in said.err and said.err.count("\n") == 1 and not said.out


def test_shardings_shows_what_a_device_holds(tmp_path, capsys):
    args = [
        "--model",
        "llama-8b",
        "--mesh",
        "fsdp=16,tensor=4",
        "--method",
        "ewc + er(capacity=64)",
    ]
    assert cli.main(["shardings", *args, "--json", str(tmp_path / "x.json")]) == 0
    said = capsys.readouterr().out
    assert "blocks/down/kernel" in said and "-, tensor, fsdp" in said
    found = json.loads((tmp_path / "x.json").read_text())
    totals = {part["part"]: part for part in found["totals"]}
    # 8,030,261,248 parameters: meta-llama/Llama-3.1-8B's model card
    assert totals["parameters"]["bytes"] == 4 * 8_030_261_248
    assert totals["ewc"]["bytes"] == 2 * totals["parameters"]["bytes"]
    share = totals["ewc"]["bytes"] / totals["ewc"]["bytes_per_device"]
    assert 63 < share <= 64
    rows = {row["path"]: row for row in found["parameters"]}
    assert rows["blocks/down/kernel"]["spec"] == [None, "tensor", "fsdp"]


PRETRAINED = '''
"""A folder's Llama learns tokens."""

from dataclasses import dataclass

import jax
import numpy as np
import optax

from jcl import data, losses, models
from jcl.measures.evaluation import evaluator, token_nll
from jcl.runs.experiment import Experiment

METHODS = ("ewc()",)
HELD = []


@dataclass(frozen=True)
class Config:
    """None."""

    folder: str = ""
    """Of the model."""


def build(config):
    model = models.load(config.folder)
    HELD.append({x.addressable_shards[0].data.nbytes / x.nbytes
                 for x in jax.tree.leaves(model.params) if x.ndim == 3})
    tokens = np.random.default_rng(0).integers(0, 64, (2, 16, 12)).astype(np.int32)
    tasks = [{"tokens": x} for x in tokens]
    stream = data.from_arrays(tasks, tasks, 8, steps=3)
    return Experiment(
        name="pretrained", scenario="domain", stream=lambda seed: stream,
        init=lambda key: model.params, apply=model.apply, loss=losses.next_token,
        optimizer=optax.sgd, evaluate=evaluator(stream.test, token_nll(), losses.with_targets),
    )
'''


def test_a_pretrained_model_is_loaded_onto_the_mesh(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "split_cpu", lambda: None)
    config = models.decoder.Config(
        vocabulary=64, layers=2, width=32, heads=4, hidden=64, head_width=8
    )
    params = models.decoder.init(jax.random.key(0), config)
    models.save(models.of(config, params), params, tmp_path / "model")
    path = tmp_path / "pretrained.py"
    path.write_text(PRETRAINED)
    for name, more, part in (("alone", [], 1), ("spread", ["--mesh", "fsdp=4,tensor=2"], 1 / 8)):
        call = ["run", str(path), "--folder", str(tmp_path / "model"), *more]
        assert cli.main([*call, "--out", str(tmp_path / name)]) == 0
        [held] = sys.modules["jcl_experiment_pretrained"].HELD
        assert held == {part}  # of every kernel, on the first device
    alone, spread = (_summary(tmp_path / name)["average"]["mean"] for name in ("alone", "spread"))
    assert spread == pytest.approx(alone, rel=1e-5)


@pytest.mark.quick
def test_a_file_that_is_no_experiment_is_refused(tmp_path, capsys):
    (tmp_path / "a.py").write_text("METHODS = ()")
    assert cli.main(["run", str(tmp_path / "a.py")]) == 2
    assert "has no Config" in capsys.readouterr().err


def test_help_shows_the_settings_of_the_experiment(toy, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["run", toy, "--help"])
    assert not stop.value.code
    shown = capsys.readouterr().out
    for words in ("A toy, for tests.", "--hidden", "--sweep", "--resume", "Steps a task."):
        assert words in shown
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"jcl {command}" in shown for command in cli.COMMANDS)


def test_list_names_everything_with_a_line_each(capsys):
    assert cli.main(["list"]) == 0
    shown = capsys.readouterr().out
    for words in (
        "digits", "domains", "ewc(strength=100.0, labels='empirical', per='token')", "split(",
        "mlp",
        "EWC: ½ λ", "[n, 64]",
    ):  # fmt: skip
        assert words in shown
    assert " at 0x" not in shown


def test_explain_prints_the_pipeline(capsys):
    assert cli.main(["explain", "--method", "er(capacity=9) + ewc()"]) == 0
    shown = capsys.readouterr().out
    method = jcl.chain(jcl.methods.er(capacity=9), jcl.methods.ewc())
    assert shown.strip() == jcl.explain(method)


def test_compare_and_report_read_what_run_wrote(run, tmp_path, capsys):
    run("--method", "naive()", out="a")
    run("--method", "ewc()", out="b")
    assert cli.main(["compare", "a", "b"]) == 0
    shown = capsys.readouterr().out
    assert "naive()" in shown and "ewc()" in shown and "forgetting" in shown
    assert (tmp_path / "comparison.png").stat().st_size > 10_000
    assert cli.main(["compare", "a", "b", "--latex", "--baseline", "naive"]) == 0
    shown = capsys.readouterr().out  # alone, so that it can be sent into a file
    assert shown.startswith("\\begin{table}") and shown.endswith("\\end{table}\n")
    assert cli.main(["compare", "a", "b", "--latex", "t.tex", "--baseline", "naive"]) == 0
    assert (tmp_path / "t.tex").read_text() == shown
    assert "nothing is tested" in capsys.readouterr().out
    (tmp_path / "a" / "report.html").unlink()
    assert cli.main(["report", "a"]) == 0
    assert (tmp_path / "a" / "report.html").exists()


def test_the_command_line_loads_without_what_only_a_run_needs():
    code = (
        "import sys; from jcl import cli; cli.main(['--help']); import jax._src.xla_bridge as b; "
        "late = {'matplotlib', 'sklearn', 'orbax', 'flax'} & set(sys.modules); "
        "assert not late, late; assert not b._backends"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="libtpu isn't installed")
@pytest.mark.skipif(
    any(map(os.path.exists, ("/dev/accel0", "/dev/vfio/0"))), reason="there is a TPU"
)
@pytest.mark.slow
def test_libtpu_says_nothing_where_there_is_no_tpu(tmp_path):
    own = ("JAX_PLATFORMS", "XLA_FLAGS", "TPU_LIBRARY_PATH")  # as a user's shell hasn't them
    code = "import sys; from jcl.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, "run", "digits", "--epochs", "1", "--method", "naive()"],
        env={k: v for k, v in os.environ.items() if k not in own},
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and "results: runs" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    "platforms, files, hidden",
    [
        (None, [], True),
        (None, ["/dev/accel0"], False),  # a chip that JAX doesn't know
        ("tpu,cpu", [], False),  # JAX has found one
        ("", [], False),  # the user wants JAX's own search
    ],
)
def test_libtpu_stays_where_there_is_a_tpu(monkeypatch, platforms, files, hidden):
    config = types.SimpleNamespace(jax_platforms=platforms)
    monkeypatch.setattr(cli, "jax", types.SimpleNamespace(config=config))
    monkeypatch.setattr(cli.glob, "glob", lambda text: [f for f in files if f[:8] == text[:8]])
    monkeypatch.setitem(sys.modules, "libtpu", types.ModuleType("libtpu"))
    monkeypatch.setenv("TPU_LIBRARY_PATH", "libtpu.so")
    cli._hide_libtpu()
    assert (sys.modules["libtpu"] is None) == hidden
    assert ("TPU_LIBRARY_PATH" not in os.environ) == hidden


def test_members_share_the_data_and_differ_in_their_order(toy):
    module = experiment.load(experiment.find(toy))
    built = module.build(module.Config())
    setup = experiment.setup(built, expression.parse("ewc()"), 2, [{"lr": 0.1}, {"lr": 0.2}])
    assert setup.program.members == setup.stream.members == 4
    chunk = setup.stream.chunk(0, 0, 2)["row"]
    np.testing.assert_array_equal(chunk[0], chunk[2])
    assert (chunk[0] != chunk[1]).any()
    np.testing.assert_array_equal(chunk[1], built.stream(1).chunk(0, 0, 2)["row"])


@pytest.fixture
def mine(tmp_path):
    return write_mine(tmp_path)


def test_an_own_method_runs_sweeps_and_resumes_while_its_file_stays(run, mine):
    code, said, out = run(
        "--method", "./mine.py:pull() + er(capacity=9)", "--sweep", "pull.strength=0,0.5",
        "--steps", "2",
    )  # fmt: skip
    assert code == 0, said.err
    config = json.loads((out / "config.json").read_text())
    assert config["methods"] == [f"{mine}:pull() + er(capacity=9)"]
    assert config["files"][str(mine)] == hashlib.sha256(mine.read_bytes()).hexdigest()
    (loaded,) = report.load(out)
    assert loaded.points == [{"pull.strength": 0.0}, {"pull.strength": 0.5}]
    assert loaded.labels[1] == "mine.py:pull(strength=0.5) + er(capacity=9)"
    alone = run("--method", "er(capacity=9)", "--steps", "2", out="alone")[2]
    np.testing.assert_allclose(loaded.scores[0], report.load(alone)[0].scores[0], atol=0.026)
    assert run("--resume")[0] == 0
    mine.write_text(MINE + "\n")
    code, said, _ = run("--resume")
    assert code == 2 and "mine.py, which has changed since" in said.err
    assert said.err.count("\n") == 1


def test_own_methods_that_cannot_be_leave_no_folder(run, mine):
    for text, says in (
        ("./none.py:pull()", "there is no file"),
        ("./mine.py:pul()", "did you mean pull"),
        ("./mine.py:number()", "must return a jcl.Method"),
        ("./mine.py:fails()", "fails: RuntimeError: oh no"),
    ):
        code, said, out = run("--method", text)
        assert code == 2 and says in said.err and said.err.count("\n") == 1
        assert not said.out and not out.exists()
    code, said, _ = run("--method", "./mine.py:branches()", "--sweep", "branches.strength=0,1")
    assert code == 2 and "branches in Python on strength, which is swept" in said.err
    code, said, _ = run(
        "--method", "./mine.py:pull()", "--method", "./other.py:pull()",
        "--sweep", "pull.strength=0,1", out="two",
    )  # fmt: skip
    assert code == 2 and "there is no file" in said.err
    write_mine(mine.parent, MINE + "\n").rename(mine.parent / "other.py")
    write_mine(mine.parent)
    code, said, _ = run(
        "--method", "./mine.py:pull()", "--method", "./other.py:pull()",
        "--sweep", "pull.strength=0,1", out="two",
    )  # fmt: skip
    assert code == 2 and "two methods that are called pull" in said.err
