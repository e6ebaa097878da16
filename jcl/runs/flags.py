"""Flags as typed configs through tyro, whose errors become one sentence."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import inspect
import io
import itertools
import json
import re
import typing
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, UseAppendAction, arg

from jcl import report
from jcl.data.packages import needed
from jcl.method import check
from jcl.parallel import processes
from jcl.report import trackers
from jcl.runs import expression, own


@dataclasses.dataclass(frozen=True)
class Options:
    """The options that every run takes."""

    method: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="EXPR")] = ()
    """A method, such as "er(capacity=500, rows=16) + ewc(strength=100.)"; repeat the flag to run
    several side by side. By default the experiment's own METHODS. A function of your own file is
    "./mine.py:pull(0.1) + er()"."""
    seeds: int = 1
    """How many seeds, in one compiled function."""
    sweep: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="KEY=V,V,...")] = ()
    """Values to try: ewc.strength=0,1,10,100, or lr=1e-3,1e-2, or a setting below; repeat the flag
    for a grid."""
    select_on: Literal["test", "validation"] = "test"
    """By which rows a sweep's best point is chosen, and what --keep and --patience go by: the final
    test's own, which is optimistic, or a tenth of each stage's training rows, held out (or as many
    as --validation says)."""
    evaluate_every: int | None = None
    """Steps of a stage after which it is also evaluated, beside its last; by default only then."""
    keep: Literal["last", "best"] = "last"
    """In which state a stage ends: its last, or that of its best evaluation by the mean score over
    the tasks seen so far, on the rows that --select-on says. It takes the room of a second state
    and needs --evaluate-every."""
    patience: int | None = None
    """End a stage after so many evaluations in a row without a better one, in all members; needs
    --evaluate-every."""
    out: Annotated[Path | None, arg(metavar="DIR")] = None
    """Folder for the results; by default a new one under runs/."""
    resume: FlagCreatePairsOff[bool] = False
    """Go on with the run in --out, from its last checkpoint; begins if there is none."""
    checkpoint_every: int = 1000
    """Steps between checkpoints; after each stage there is one besides."""
    mesh: Annotated[str | None, arg(metavar="AXIS=N,...")] = None
    """Train over many devices: fsdp=16,tensor=4 for example; axes are data, fsdp, tensor, expert
    and sequence, and -1 is what is left. A run may be resumed on another mesh."""
    distributed: Annotated[str | None, arg(metavar="WHO")] = None
    """Be one of several processes: auto on a TPU pod, Slurm, Kubernetes or Open MPI, else
    HOST:PORT,PROCESSES,INDEX, where HOST is process 0's. Without --mesh it is data=-1."""
    gradient_norm: FlagCreatePairsOff[bool] = False
    """Log the norm of the gradient that the optimizer gets in each step."""
    tensorboard: FlagCreatePairsOff[bool] = False
    """Write event files for TensorBoard beside the results; pip install 'jcl-kit[tensorboard]'."""
    wandb: Annotated[str | None, arg(metavar="PROJECT")] = None
    """Write a run of Weights & Biases into this project of theirs; pip install 'jcl-kit[wandb]'."""
    wandb_offline: FlagCreatePairsOff[bool] = False
    """Keep W&B's files beside the results, for wandb sync to send."""
    set: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="KEY=VALUE")] = ()
    """Another way to give a setting of the experiment."""


def parse(
    form: Any, args: list[str], prog: str, text: str | None, names: Sequence[str], **more: Any
) -> Any:
    """`tyro.cli`, whose complaints become one sentence each.

    Raises:
      ValueError: if the arguments are wrong.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            parsed, unknown = tyro.cli(
                form, args=args, prog=prog, description=text, return_unknown_args=True, **more
            )
    except SystemExit as stop:
        if not stop.code:  # after --help
            raise
        raise ValueError(_sentence(said.getvalue())) from None
    if unknown:
        flag = unknown[0].partition("=")[0]
        if not flag.startswith("-"):
            raise ValueError(f"{prog} doesn't take {flag!r}; see {prog} --help")
        near = expression.near(flag.lstrip("-"), [n.replace("_", "-") for n in names], "--")
        raise ValueError(f"{prog} has no flag {flag}{near}")
    return parsed


def with_default(args: Sequence[str], flag: str, value: str) -> list[str]:
    """The arguments, in which a flag without a value, at the end or before another, gets one.

    >>> with_default(["a", "--latex", "--out", "b"], "--latex", "-")
    ['a', '--latex=-', '--out', 'b']
    """
    after = [*args, "--"][1:]
    bare = [a == flag and next_.startswith("--") for a, next_ in zip(args, after, strict=True)]
    return [f"{a}={value}" if alone else a for a, alone in zip(args, bare, strict=True)]


def _sentence(box: str) -> str:
    """The message in a box of tyro's, without its frame, its title and the help below it."""
    lines = [line.strip("│ ") for line in box.splitlines()[1:]]
    rules = [not line.strip("─-╭╮╰╯") for line in lines]
    start = rules.index(False)
    stop = rules.index(True, start) if True in rules[start:] else len(rules)
    said = " ".join(lines[start:stop]).removeprefix("Error parsing ").removesuffix(".")
    kinds = {"invalid literal for int[^:]*": "a whole", "could not convert string to float": "a"}
    for theirs, kind in kinds.items():
        said = re.sub(rf": {theirs}: (.*)", rf" is \1, but must be {kind} number", said)
    return said


def expanded(args: Sequence[str], config: type) -> list[str]:
    """`--set key=value` as the flag that it stands for.

    Raises:
      ValueError: if the config has no such key.
    """
    hints = typing.get_type_hints(config)
    out: list[str] = []
    rest = list(args)
    while rest:
        head = rest.pop(0)
        if head != "--set" and not head.startswith("--set="):
            out.append(head)
            continue
        pair = head.partition("=")[2] if "=" in head else rest.pop(0) if rest else ""
        key, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"--set takes key=value, but got {pair!r}")
        if key not in hints:
            raise ValueError(f"the experiment has no setting {key!r}{expression.near(key, hints)}")
        flag = "--" + key.replace("_", "-")
        if hints[key] is bool:
            if value.lower() not in ("true", "false"):
                raise ValueError(f"{key} is {value!r}, but must be true or false")
            out.append(flag if value.lower() == "true" else f"--no-{flag[2:]}")
        elif typing.get_origin(hints[key]) in (tuple, list):
            out += [flag, *value.split(",")]
        else:
            out.append(f"{flag}={value}")
    return out


def read(name: str, module: ModuleType, args: list[str]) -> tuple[Options, Any]:
    """The options of a run and its experiment's config; with `--help`, prints both and exits.

    Raises:
      ValueError: if a flag isn't known or a value doesn't fit.
    """
    config: Any = module.Config
    flags = dataclasses.make_dataclass(
        "Flags",
        [
            ("run", Annotated[Options, OmitArgPrefixes]),
            ("experiment", Annotated[config, OmitArgPrefixes]),
        ],
        frozen=True,
    )
    names = [f.name for form in (Options, module.Config) for f in dataclasses.fields(form)]
    text = inspect.cleandoc(module.__doc__ or "")
    parsed = parse(flags, expanded(args, module.Config), f"jcl run {name}", text, names)
    return parsed.run, parsed.experiment


def wants_devices(args: Sequence[str]) -> bool:
    """Whether a run has members or a mesh, by its arguments or by those that it was begun with."""
    if any(a.startswith(("--seeds", "--sweep", "--mesh")) for a in args):
        return True
    given = [(*a.partition("=")[::2], b) for a, b in itertools.pairwise([*args, ""])]
    out = [value or following for flag, value, following in given if flag == "--out"]
    if "--resume" not in args or not out:
        return False
    try:
        saved = report.load_settings(Path(out[-1]))
    except ValueError:  # which is said later
        return False
    return bool(saved.get("mesh") or saved.get("sweep") or saved.get("seeds", 1) != 1)


def check_options(options: Options) -> None:
    """Refuses flags that can't be followed, before a run has a folder.

    Raises:
      ImportError: if a library isn't installed.
      ValueError: if a value is out of range, or a flag lacks another.
    """
    check(options.seeds >= 1, "seeds", options.seeds, "at least 1")
    check(options.checkpoint_every >= 1, "checkpoint-every", options.checkpoint_every, "at least 1")
    for flag, value in (
        ("evaluate-every", options.evaluate_every),
        ("patience", options.patience),
    ):
        check(value is None or value >= 1, flag, value, "at least 1")
    if options.wandb_offline and options.wandb is None:
        raise ValueError("--wandb-offline needs --wandb PROJECT, whose files it keeps here")
    asked = {"tensorboard": ("tensorboardX", options.tensorboard),
             "wandb": ("wandb", options.wandb is not None)}  # fmt: skip
    for flag, (package, given) in asked.items():
        with needed(f"--{flag}", package, flag):
            if given and importlib.util.find_spec(package) is None:
                raise ImportError(package)


def listeners(
    options: Options, place: Path, name: str, columns: Sequence[str]
) -> list[trackers.Tracker]:
    """What the flags ask to be told of a run beside the screen, on process 0."""
    found = []
    if options.tensorboard and processes.is_leader():
        found.append(trackers.tensorboard(place / "tensorboard", columns))
    if options.wandb is not None and processes.is_leader():
        config = {"method": name, **report.load_settings(place)}
        found.append(trackers.wandb(
            options.wandb, place, name=name, offline=options.wandb_offline, config=config,
            columns=columns,
        ))  # fmt: skip
    return found


FIXED = ("gradient_norm", "evaluate_every", "keep", "patience")
"""Options with which a run goes on as it was begun."""


def fixed(options: Options) -> dict[str, Any]:
    """The options of `FIXED`, for config.json."""
    return {name: getattr(options, name) for name in FIXED}


def within(options: Options) -> dict[str, Any]:
    """What `jcl.fit` is told of evaluations within stages."""
    return {name: getattr(options, name) for name in ("evaluate_every", "keep", "patience")}


HELD_OUT = 0.1
"""The share of each task's training rows that `--select-on validation` holds out by itself."""


def with_validation(name: str, config: Any) -> Any:
    """The config with rows held out of training, by which points of sweeps and states are chosen.

    Raises:
      ValueError: if the experiment can't hold rows out.
    """
    if not hasattr(config, "validation"):
        raise ValueError(
            f"--select-on is 'validation', but {name} has no setting validation, by which rows are "
            "held out of training"
        )
    return dataclasses.replace(config, validation=config.validation or HELD_OUT)


def check_choice(options: Options, points: int) -> None:
    """Refuses what chooses by nothing, or among nothing.

    Args:
      options: the run's, where it is resumed those that it was begun with.
      points: how many points of a sweep are in one compiled run, at most.

    Raises:
      ValueError: if states are to be chosen without evaluations, or there is nothing to choose.
    """
    chooses = {"--keep best": options.keep == "best", "--patience": options.patience is not None}
    chosen = [flag for flag, given in chooses.items() if given]
    if chosen and options.evaluate_every is None:
        raise ValueError(
            f"{expression.listed(chosen, 'and')} must come with --evaluate-every N, the steps from "
            "one evaluation of a stage to the next"
        )
    if options.select_on == "validation" and points < 2 and not chosen:
        raise ValueError(
            "--select-on is 'validation', but there is nothing to choose; give --sweep several "
            "values of a method's float or of lr, or --keep best or --patience"
        )


def check_pipeline(name: str, options: Options) -> None:
    """Refuses options that the nodes of a pipeline don't take.

    Raises:
      ValueError: if one is given.
    """
    if options.method or options.sweep:
        raise ValueError(f"{name} is a pipeline, whose nodes have their methods; see its settings")
    usual = Options()
    given = [f for f in FIXED if getattr(options, f) != getattr(usual, f)]
    if given:
        flags = expression.listed([f"--{f.replace('_', '-')}" for f in given], "and")
        raise ValueError(f"{name} is a pipeline, whose nodes don't take {flags}; leave it out")


def check_resume(
    options: Options, module: ModuleType, request: dict[str, Any], args: Sequence[str]
) -> tuple[dict[str, Any], Any]:
    """The request and config that a folder was begun with, after comparing them with the new ones.

    Raises:
      ValueError: if there is no folder, a flag that is given again differs, other than the mesh, or
        a file of methods isn't what it was.
    """
    if options.out is None:
        raise ValueError("--resume needs --out, the folder of the run to go on with")
    try:
        told = report.load_settings(options.out)
    except ValueError as error:
        raise ValueError(f"{error}; remove it, and give all settings of the run again") from error
    if not told and not (options.out / "config.json").exists():
        # a new folder is no error, so that one command serves every restart
        return request, module.Config(**request["config"])
    check_settings(told, options.out)
    every = options.checkpoint_every
    older = {"files": {}, "checkpoint_every": every, "mesh": None, **fixed(Options())}
    saved = {**older, **told}
    own.check_same(saved["files"], options.out)
    now = json.loads(json.dumps(request))
    flagged = [a.partition("=")[0] for a in expanded(args, module.Config) if a.startswith("--")]
    given = {flag[2:].removeprefix("no-").replace("-", "_") for flag in flagged}
    if options.select_on == "validation" and not saved["config"].get("validation"):
        raise ValueError(
            f"{options.out} was begun without rows held out of training, so it can't go on with "
            "--select-on validation"
        )
    asked_for = ("experiment", "methods", "seeds", "sweep", *FIXED)
    pairs = {k: (saved[k], now[k]) for k in asked_for if k in now}
    pairs |= {k: (v, now["config"].get(k)) for k, v in saved["config"].items()}
    for key, (old, new) in pairs.items():
        asked = key == "experiment" or {"methods": "method"}.get(key, key) in given
        if asked and old != new:
            raise ValueError(
                f"{options.out} was begun with {key} {old!r}, so it can't go on with {new!r}"
            )
    free = {"mesh": request["mesh"] or saved["mesh"]}  # what may differ
    if "checkpoint_every" in given:
        free["checkpoint_every"] = options.checkpoint_every
    return {**{k: saved[k] for k in request}, **free}, restored(module, saved)


def check_settings(saved: dict[str, Any], folder: Path) -> None:
    """Refuses a `config.json` that no run wrote, such as a model's.

    Raises:
      ValueError: if it hasn't what every run was begun with.
    """
    asked = {"experiment": str, "config": dict, "methods": list, "seeds": int, "sweep": list}
    wrong = [name for name, kind in asked.items() if not isinstance(saved.get(name), kind)]
    if wrong:
        raise ValueError(
            f"{folder / 'config.json'} has no {expression.listed(wrong)} that a run is begun with, "
            "so it is no run's; choose another folder"
        )


def restored(module: ModuleType, saved: dict[str, Any]) -> Any:
    """The experiment's config from the contents of a run's `config.json`.

    Raises:
      ValueError: if the experiment hasn't all the settings that the run was begun with.
    """
    config = module.Config()
    lacking = saved["config"].keys() - {f.name for f in dataclasses.fields(config)}
    if lacking:
        raise ValueError(
            f"the run was begun with {expression.listed(sorted(lacking), 'and')}, which the "
            "experiment doesn't have"
        )
    fields = {
        k: tuple(v) if isinstance(getattr(config, k, None), tuple) else v
        for k, v in saved["config"].items()
    }
    return module.Config(**fields)
