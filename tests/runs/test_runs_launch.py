"""What `jcl run` does before it trains: its usage, its folder, its devices and its cache."""

import os
from pathlib import Path

import pytest

from jcl.runs import experiment, flags, launch

pytestmark = pytest.mark.quick


def test_cores_become_devices_unless_the_user_has_said_otherwise(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_foo=1")
    launch.split_cpu()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    wanted = f"--xla_foo=1 --xla_force_host_platform_device_count={cores}"
    assert os.environ["XLA_FLAGS"] == wanted
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=3")
    launch.split_cpu()
    assert os.environ["XLA_FLAGS"] == "--xla_force_host_platform_device_count=3"


def test_without_an_experiment_it_names_those_that_there_are(capsys):
    assert launch.run([]) == 2 and launch.run(["--help"]) == 0
    shown = capsys.readouterr().out
    for name, path in experiment.available().items():
        assert shown.count(f"  {name:<12} {experiment.headline(path)}\n") == 2
    with pytest.raises(ValueError, match="the experiment comes first, as in: jcl run digits"):
        launch.run(["--seeds", "3", "digits"])


def made(options: flags.Options, names: list[str]) -> Path:
    with launch._folder(options, "toy", names) as out:
        return out


def test_two_that_begin_at_once_get_folders_of_their_own(monkeypatch, tmp_path):
    """The second finds the name of the first taken between its look and its making it."""
    monkeypatch.chdir(tmp_path)
    glob = Path.glob
    monkeypatch.setattr(
        Path, "glob", lambda self, pattern: iter(()) if "toy-er" in pattern else glob(self, pattern)
    )
    assert made(flags.Options(), ["er"]) == Path("runs/toy-er-1")
    assert made(flags.Options(), ["er"]) == Path("runs/toy-er-2")


def test_a_folder_of_one_s_own_is_the_next_that_is_free(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for taken in ("toy-er-1", "toy-er-10", "toy-er-last", "toy-ewc-30"):
        (tmp_path / "runs" / taken).mkdir(parents=True)
    assert made(flags.Options(), ["er"]) == Path("runs/toy-er-11")
    assert made(flags.Options(), ["er"]) == Path("runs/toy-er-12")
    many = [f"method-{i}" for i in range(9)]
    assert made(flags.Options(), many) == Path("runs/toy-9-runs-1")
    assert (tmp_path / "runs" / "toy-9-runs-1").is_dir()


def test_a_folder_in_use_is_refused_unless_it_is_gone_on_with(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="isn't empty; go on with --resume, or choose another"):
        made(flags.Options(out=tmp_path), ["er"])
    assert made(flags.Options(out=tmp_path, resume=True), []) == tmp_path
    with pytest.raises(ValueError, match=r"config\.json is a file, but must be a folder"):
        made(flags.Options(out=tmp_path / "config.json"), ["er"])
