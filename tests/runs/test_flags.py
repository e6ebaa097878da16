"""Flags: typed settings, the other way to give them, and what a resumed run may change."""

import dataclasses
import json
from types import SimpleNamespace
from typing import Literal

import pytest

from jcl.runs import flags

pytestmark = pytest.mark.quick


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of a toy."""

    kind: Literal["domain", "class"] = "domain"
    """Which."""
    hidden: tuple[int, ...] = (5,)
    """Widths."""
    flip: bool = False
    """Whether."""
    batch_size: int = 8
    """Rows."""


MODULE = SimpleNamespace(Config=Config, __doc__="A toy.\n\nMore of it.")


def read(*args):
    return flags.read("toy", MODULE, list(args))


def test_flags_are_typed_and_repeat():
    options, config = read(
        "--method", "er()", "--hidden", "7", "3", "--method", "ewc()", "--flip", "--seeds", "3"
    )
    assert options.method == ("er()", "ewc()") and options.seeds == 3 and not options.resume
    assert config == Config(hidden=(7, 3), flip=True)
    assert read() == (flags.Options(), Config())


@pytest.mark.parametrize(
    "given, wanted",
    [
        (["--set", "batch_size=3"], ["--batch-size=3"]),
        (["--set=hidden=7,3", "--seeds", "2"], ["--hidden", "7", "3", "--seeds", "2"]),
        (["--set", "flip=TRUE"], ["--flip"]),
        (["--set", "flip=false"], ["--no-flip"]),
        (["--set", "kind=a=b"], ["--kind=a=b"]),
    ],
)
def test_set_stands_for_the_flag(given, wanted):
    assert flags.expanded(given, Config) == wanted


@pytest.mark.parametrize(
    "args, said",
    [
        (["--set"], "--set takes key=value, but got ''"),
        (["--set", "flip"], "--set takes key=value, but got 'flip'"),
        (["--set", "flips=true"], "the experiment has no setting 'flips'; did you mean flip"),
        (["--set", "flip=1"], "flip is '1', but must be true or false"),
        (["--batch-sise", "3"], "jcl run toy has no flag --batch-sise; did you mean --batch-size"),
        (["more"], "jcl run toy doesn't take 'more'; see jcl run toy --help"),
        (["--seeds", "many"], "many"),
        (["--kind", "task"], "task"),
    ],
)
def test_what_is_wrong_is_one_sentence(args, said):
    with pytest.raises(ValueError) as refused:
        read(*args)
    assert said in str(refused.value) and "\n" not in str(refused.value)
    assert not set("│╭─") & set(str(refused.value))


def begun(folder, **changes):
    """A request, and the same noted in a folder as of an earlier call."""
    request = {
        "experiment": "toy", "config": dataclasses.asdict(Config(hidden=(7, 3))),
        "methods": ["er()"], "seeds": 2, "sweep": [], "mesh": None,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps({**request, "command": "x"}))
    return {**request, **changes}


def test_what_is_not_given_again_is_as_it_was(tmp_path):
    options = flags.Options(out=tmp_path, resume=True)
    asked = begun(tmp_path, seeds=1, methods=["ewc()"], config=dataclasses.asdict(Config()))
    request, config = flags.check_resume(options, MODULE, asked, ["--out", str(tmp_path)])
    assert request["seeds"] == 2 and request["methods"] == ["er()"]
    assert config == Config(hidden=(7, 3))
    # the mesh is free
    request, _ = flags.check_resume(options, MODULE, {**asked, "mesh": "fsdp=2"}, [])
    assert request["mesh"] == "fsdp=2"


@pytest.mark.parametrize(
    "args, changes, said",
    [
        (["--seeds", "3"], {"seeds": 3}, "begun with seeds 2, so it can't go on with 3"),
        (["--method", "ewc()"], {"methods": ["ewc()"]}, r"methods \['er\(\)'\], so"),
        (["--no-flip"], {"config": {**dataclasses.asdict(Config(flip=True))}}, "begun with flip"),
        ([], {"experiment": "other"}, "begun with experiment 'toy'"),
    ],
)
def test_what_is_given_again_must_be_the_same(tmp_path, args, changes, said):
    options = flags.Options(out=tmp_path, resume=True)
    with pytest.raises(ValueError, match=said):
        flags.check_resume(options, MODULE, begun(tmp_path, **changes), args)


@pytest.mark.parametrize(
    "begun, wanted",
    [({}, False), ({"seeds": 3}, True), ({"sweep": ["lr=1,2"]}, True), ({"mesh": "data=2"}, True)],
)
def test_a_resumed_run_gets_the_devices_that_it_began_with(tmp_path, begun, wanted):
    plain = {"seeds": 1, "sweep": [], "mesh": None}
    (tmp_path / "config.json").write_text(json.dumps({**plain, **begun}))
    for out in (["--out", str(tmp_path)], [f"--out={tmp_path}"]):
        assert flags.wants_devices([*out, "--resume"]) == wanted
        assert not flags.wants_devices(out)
    assert flags.wants_devices(["--seeds", "3"]) and flags.wants_devices(["--mesh=data=2"])
    (tmp_path / "config.json").write_text("{")
    assert not flags.wants_devices(["--out", str(tmp_path), "--resume"])


def test_resuming_needs_a_folder_and_begins_where_there_is_nothing(tmp_path):
    with pytest.raises(ValueError, match="--resume needs --out"):
        flags.check_resume(flags.Options(resume=True), MODULE, {"config": {}}, [])
    request = {"config": dataclasses.asdict(Config())}
    options = flags.Options(out=tmp_path / "new", resume=True)
    assert flags.check_resume(options, MODULE, request, []) == (request, Config())
