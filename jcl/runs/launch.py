"""The command `jcl run`: reads the arguments, trains, and leaves a folder with the results."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import platform
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
from jax.sharding import Mesh

from jcl import report
from jcl.parallel import mesh as meshes
from jcl.parallel import processes, signals
from jcl.report import screen
from jcl.runs import experiment, files, flags, own, plan
from jcl.runs.cache import cache
from jcl.runs.fitted import result_facts, stages_end
from jcl.training import folder
from jcl.training.fit import Diverged, fit


def run(args: list[str]) -> int:
    """Trains through a stream of stages, as the arguments say, and returns the exit code.

    Raises:
      ValueError: if an argument is wrong.
      OSError: if the other processes can't be reached, or the results can't be written.
    """
    if not args or args[0].startswith("-"):
        if args and args[0] not in ("-h", "--help"):
            raise ValueError("the experiment comes first, as in: jcl run digits --seeds 3")
        print(
            "usage: jcl run EXPERIMENT|FILE.py ...\n\nexperiments (each has a --help of its own):"
        )
        for name, path in experiment.available().items():
            print(f"  {name:<12} {experiment.headline(path)}")
        return 0 if args else 2
    name, rest = args[0], args[1:]
    path = experiment.find(name)
    distributed = any(a.startswith("--distributed") for a in rest)
    if not distributed and flags.wants_devices(rest):
        split_cpu()
    cache()
    module = experiment.load(path)
    options, config = flags.read(path.stem, module, rest)
    flags.check_options(options)
    if options.distributed is not None:
        join(options.distributed)
    if options.select_on == "validation":
        config = flags.with_validation(path.stem, config)
    given = options.method or getattr(module, "METHODS", ())
    beside = Path.cwd() if options.method else path.parent.resolve()
    methods = [own.absolute(text, beside) for text in given]
    request: dict[str, Any] = {
        "experiment": path.stem,
        "file": str(path.resolve()),
        "config": dataclasses.asdict(config),
        "methods": methods,
        "files": own.digests(methods) | _experiment_file(path),
        "seeds": options.seeds,
        "sweep": list(options.sweep),
        "mesh": options.mesh,
        "checkpoint_every": options.checkpoint_every,
        **flags.fixed(options),
    }
    processes.check_same("command", request)
    if options.resume:
        request = processes.from_leader(
            lambda: flags.check_resume(options, module, request, rest)[0]
        )
        config = flags.restored(module, request)
        kept = {name: request[name] for name in ("checkpoint_every", *flags.FIXED)}
        options = dataclasses.replace(options, **kept)
    axes = request["mesh"] = processes.axes_or_all(request["mesh"])
    mesh = meshes.make(None, **meshes.parse(axes)) if axes is not None else None
    if hasattr(module, "nodes"):
        return _pipeline(module, config, name, rest, options, request, mesh)
    found = plan.plans(request["methods"], request["sweep"], config)
    flags.check_choice(options, max(len(one.points) for one in found))
    # built once for equal configs, and before a folder is made, for it may raise an error
    with _mesh_context(mesh):
        built = {repr(one.config): experiment.build(module, one.config) for one in _distinct(found)}
    signals.stop()
    with (
        _folder(options, path.stem, plan.folders(found)) as out,
        _exit_code(name, out) as code,
        _begun(out, name, rest, request),
    ):
        signals.stop()
        _train(built, found, request["seeds"], out, options, mesh)
    return code[0]


def join(distributed: str) -> None:
    """Makes this process one of several, of which process 0 alone speaks."""
    processes.start(distributed)
    if not processes.is_leader():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 process 0 says it


def _mesh_context(mesh: Mesh | None) -> contextlib.AbstractContextManager[Any]:
    """Loads models in shards, so that no device must hold one whole."""
    return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def _pipeline(
    module: ModuleType,
    config: Any,
    name: str,
    args: list[str],
    options: flags.Options,
    request: dict[str, Any],
    mesh: Mesh | None,
) -> int:
    """Trains the nodes of a pipeline, one after another."""
    from jcl.runs import pipeline, pipeline_report

    if processes.has_peers():
        raise ValueError(
            f"{name} is a pipeline, which runs in one process; leave out --distributed"
        )
    flags.check_pipeline(name, options)
    with _mesh_context(mesh):
        listed = pipeline.nodes_of(module, config)
    beside = Path(request["file"]).parent
    listed = [node._replace(method=own.absolute(node.method, beside)) for node in listed]
    request["files"] |= own.digests(node.method for node in listed)
    costs = pipeline.examine(listed)  # before there is a folder: it may object
    names = [test for gauge in pipeline.gauges(listed) for test in gauge.names]

    def watch(node: pipeline.Node) -> screen.Watch:
        each = node.experiment.tokens_per_row
        unit = ("tokens", each) if each else ("examples", 1)
        stages = len(node.experiment.stream(0).names)
        return screen.Watch(f"{node.name}: {own.brief(node.method)}", stages, names, unit)

    with (
        _folder(options, request["experiment"], ["pipeline"]) as out,
        _exit_code(name, out) as code,
        _begun(out, name, args, request),
    ):
        seeds = request["seeds"]
        result = pipeline.run(
            listed, out, seeds=seeds, resume=options.resume, costs=costs, watch=watch, mesh=mesh,
            checkpoint_every=options.checkpoint_every,
        )  # fmt: skip
        summary = pipeline_report.write(out, request["experiment"], listed, result)
        html = pipeline_report.draw(out, listed, result, summary)
        signals.look()  # the last: all files are written
        pipeline_report.show(summary)
        screen.console().print(f"results: {out}\nreport:  {html}", soft_wrap=True)
    return code[0]


@contextlib.contextmanager
def _begun(out: Path, name: str, args: Sequence[str], request: dict[str, Any]) -> Iterator[None]:
    """Writes the request with which a folder is begun, unless it has one.

    It is taken back where the run is refused before it has written anything, so that the same
    folder can be had once the mistake is mended.
    """
    path = out / "config.json"
    new = processes.is_leader() and not path.exists()
    if new:
        command = shlex.join(["jcl", "run", name, *args])
        report.save_json(path, {"command": command, **request, **versions()})
    try:
        yield
    except ValueError:
        files_of_run = {p.name for p in out.rglob("*") if p.is_file()}
        if new and files_of_run <= {path.name, folder.LOCK, folder.HOLDER}:
            path.unlink()
        raise


@contextlib.contextmanager
def _exit_code(name: str, out: Path) -> Iterator[list[int]]:
    """Collects the exit code of a run that may stop early or diverge."""
    code = [0]
    again = "go on with: " + shlex.join(["jcl", "run", name, "--out", str(out), "--resume"])
    signals.hold(again)

    def say(text: str) -> None:
        if processes.is_leader():  # the others end alike
            print(f"jcl: {text}", file=sys.stderr)

    try:
        yield code
    except KeyboardInterrupt:
        say(f"stopped, what was trained is saved; {again}")
        code[0] = signals.INTERRUPTED
    except signals.Preempted:
        say(f"told to stop by SIGTERM, what was trained is saved; {again}")
        code[0] = signals.PREEMPTED
    except Diverged as error:
        say(str(error))
        code[0] = 3


def _experiment_file(path: Path) -> dict[str, str]:
    """The sha256 of a user's own experiment by its path; the built-in ones go with the version."""
    if path.resolve().parent == experiment.folder().resolve():
        return {}
    return {str(path.resolve()): files.digest(path)}


def _distinct(found: Sequence[plan.Plan]) -> list[plan.Plan]:
    """One plan for each config."""
    return list({repr(one.config): one for one in found}.values())


def split_cpu() -> None:
    """Makes a host device for each core, so that members on CPU are trained side by side."""
    given = os.environ.get("XLA_FLAGS", "")
    if "xla_force_host_platform_device_count" not in given:  # what a user has set stays
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        os.environ["XLA_FLAGS"] = f"{given} --xla_force_host_platform_device_count={cores}".strip()


def versions() -> dict[str, Any]:
    """What a run was computed with, for config.json."""
    names = ("jcl-kit", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    found = {dist.metadata["Name"]: dist.version for dist in metadata.distributions()}
    versions = {name: found[name] for name in names if name in found}
    device = jax.devices()[0]
    return {
        "versions": {"python": platform.python_version(), **versions},
        "platform": platform.platform(),
        "devices": f"{jax.device_count()} × {device.device_kind}",
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


@contextlib.contextmanager
def _folder(options: flags.Options, name: str, names: Sequence[str]) -> Iterator[Path]:
    """The run's folder, which process 0 makes if it isn't there, and holds against others.

    Raises:
      ValueError: if it can't be used, is in use, or holds something and the run isn't to be
        resumed.
    """
    with contextlib.ExitStack() as held:
        yield Path(processes.from_leader(lambda: str(_make_folder(options, name, names, held))))


def _make_folder(
    options: flags.Options, name: str, names: Sequence[str], held: contextlib.ExitStack
) -> Path:
    out = options.out
    if out is not None and out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file, but must be a folder")
    try:
        out = next_folder(name, names) if out is None else out
        folder.make(out)
    except OSError as error:
        raise ValueError(
            f"{out} can't be written: {error.strerror}; choose another --out"
        ) from error
    full = f"{out} isn't empty; go on with --resume, or choose another --out"
    if not (options.resume or (out / folder.LOCK).exists() or folder.is_empty(out)):
        raise ValueError(full)  # no run's folder, in which no lock is left
    held.enter_context(folder.hold(out))
    if not (options.resume or folder.is_empty(out)):
        raise ValueError(full)
    return out


def next_folder(name: str, names: Sequence[str]) -> Path:
    """Makes the first folder under runs/ whose number is free, whoever else is looking for one.

    Raises:
      OSError: if it can't be made.
    """
    method = "-".join(names) if len("-".join(names)) < 60 else f"{len(names)}-runs"
    taken = [int(n) for p in Path("runs").glob(f"{name}-{method}-*")
             if (n := p.name.rpartition("-")[2]).isdigit()]  # fmt: skip
    for number in itertools.count(max(taken, default=0) + 1):
        out = Path("runs") / f"{name}-{method}-{number}"
        with contextlib.suppress(FileExistsError):
            out.mkdir(parents=True)
            return out
    raise AssertionError("numbers don't end")


def _train(
    built: Mapping[str, experiment.Experiment],
    found: Sequence[plan.Plan],
    seeds: int,
    out: Path,
    options: flags.Options,
    mesh: Mesh | None,
) -> None:
    """Trains all planned runs, each in a folder of its own if there are several."""
    from jcl.report import page  # matplotlib, which other commands shouldn't wait for

    runs: list[report.Run] = []
    for one, name in zip(found, plan.folders(found), strict=True):
        place = out if len(found) == 1 else out / name
        # finished before an interruption; a file that is missing or cut is written again
        run = report.finished(place) if processes.is_leader() else None
        if processes.from_leader(lambda found=run: found is None):  # type: ignore[misc]
            run = _fit(built[repr(one.config)], one, seeds, place, options, mesh)
            signals.stop()
        runs += [run] if run else []
    if not processes.is_leader():
        return
    if len(runs) > 1:
        report.group(out, runs)
    html = page.draw(out)
    signals.look()  # the last: all files are written
    for run in runs:
        screen.matrix(run)
        screen.ability(run)
    screen.table(runs)
    screen.console().print(f"results: {out}\nreport:  {html}", soft_wrap=True)


def _with_diverged(label: str, first: int, seeds: int, diverged: Mapping[int, int]) -> str:
    """A point's label, which says if its members, from number `first` on, diverged."""
    steps = [diverged[m] for m in range(first, first + seeds) if m in diverged]
    if not steps:
        return label
    who = "" if len(steps) == seeds else f"{len(steps)} of {seeds} seeds "
    print(f"jcl: {label}: {who}diverged at step {min(steps)}", file=sys.stderr)
    return f"{label} ({who}diverged)"


def _fit(
    built: experiment.Experiment,
    one: plan.Plan,
    seeds: int,
    place: Path,
    options: flags.Options,
    mesh: Mesh | None,
) -> report.Run | None:
    """One run, and its report if this is process 0."""
    setup = experiment.setup(
        built, one.calls, seeds, one.points, mesh=mesh, gradient_norm=options.gradient_norm
    )
    signals.stop()
    stream = setup.stream
    unit = ("tokens", built.tokens_per_row) if built.tokens_per_row else ("examples", 1)
    members = seeds * len(one.points)
    title = one.name if members == 1 else f"{one.name} × {members}"
    held_out = [f"{test} held out" for test in stream.tests if built.validate is not None]
    columns = (*stream.tests, *built.probe_names, *held_out)
    watch = screen.Watch(title, len(stream.names), columns, unit)
    evaluate = experiment.evaluate_all(built, stream)
    listeners: list[Any] = [watch, *flags.listeners(options, place, one.name, columns)]
    with watch:
        result = fit(
            *setup, evaluate=evaluate, out=place, resume=options.resume,
            chunk=built.chunk, checkpoint_every=options.checkpoint_every, on_event=listeners,
            collections=experiment.collections_of(built, setup.program),
            higher_is_better=built.higher_is_better, **flags.within(options),
        )  # fmt: skip
    assert result.scores is not None
    class_facts = experiment.test_facts(built, setup, result.state)
    if not processes.is_leader():
        return None
    labels = [_with_diverged(label, p * seeds, seeds, result.diverged)
              for p, label in enumerate(one.labels)]  # fmt: skip
    facts = {
        "method": one.name,
        "experiment": built.name,
        "scenario": built.scenario,
        "measure": built.measure,
        "higher_is_better": built.higher_is_better,
        "seeds": seeds,
        "family": one.family,
        "outer": one.outer,
        **result_facts(setup.program, stream, result),
        **stages_end(**flags.within(options), held_out=built.validate is not None),
        **class_facts,
    }
    scores = result.scores.reshape(len(one.points), seeds, *result.scores.shape[-2:])
    tasks = len(stream.tests)
    probes = {name: scores[..., tasks + i] for i, name in enumerate(built.probe_names)}
    sweeps = len(one.points) > 1
    validation = scores[:, :, -1, -len(held_out) :].mean(-1) if held_out and sweeps else None
    return report.write(place, facts, one.points, labels, scores[..., :tasks], probes, validation)
