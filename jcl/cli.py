"""The command line: `jcl run`, `list`, `explain`, `compare`, `report`, `export`, `edit`, and so on.

Exit codes: 0 done, 2 for what was given wrongly, 3 for a run that diverged, 75 after SIGTERM and 76
if another process was lost, both to be started again with `--resume`; 130 after Ctrl-C.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import inspect
import os
import platform
import shlex
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import tyro
from jax.sharding import Mesh
from rich.markup import escape
from tyro.conf import arg

import jcl
from jcl import experiment, expression, flags, plan, processes, report, screen
from jcl import mesh as meshes
from jcl.method import check

USAGE = """usage: jcl COMMAND ...

  jcl run EXPERIMENT|FILE.py   train through a stream of tasks; writes a folder with the results
  jcl list                     experiments, methods, streams and models
  jcl explain --method EXPR    what a method does in each phase of a step
  jcl compare DIR...           a table and a figure over runs
  jcl report DIR               draws a run's figures and report.html again
  jcl export RUN --to DIR      a run's model as a folder that transformers loads, with a card
  jcl edit MODEL PROMPT ANSWER --to DIR      writes a fact into a model
  jcl shardings --model NAME --mesh fsdp=8   where a model's parameters lie on a mesh
  jcl fetch NAME               gets a model or a data set; without a name, lists them

  jcl run digits               seconds; then try --method "er(capacity=500) + ewc(strength=10.)"
  jcl COMMAND --help           what a command takes
"""
COMMANDS = ("run", "list", "explain", "compare", "report", "export", "edit", "shardings", "fetch")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    warnings.formatwarning = lambda message, *rest, **more: f"warning: {message}\n"
    with processes.preemptible():
        try:
            code = _dispatch(args)
        except BaseException as error:
            processes.verdict()
            code = _code(error)
        processes.finish(code)
    return code


def _code(error: BaseException) -> int:
    """The exit code of what was raised, which is printed as a sentence."""
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, processes.Preempted):
        return processes.PREEMPTED
    if isinstance(error, BrokenPipeError):  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    known = isinstance(error, (ValueError, OSError, ImportError))
    if not known or os.environ.get("JCL_TRACEBACK"):
        if not processes.watched():
            raise error
        traceback.print_exception(error)  # at once, where JAX would first wait for the others
        return 1
    print(f"jcl: {' '.join(str(error).split())}", file=sys.stderr)
    return 2


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    if args[0] == "--version":
        print(jcl.__version__)
        return 0
    command, rest = args[0], args[1:]
    if command not in COMMANDS:
        raise ValueError(f"no command is called {command!r}{expression.near(command, COMMANDS)}")
    return {
        "run": _run,
        "list": lambda a: _call(_list, "list", a),
        "explain": lambda a: _call(_explain, "explain", a),
        "compare": lambda a: _call(_compare, "compare", a),
        "report": lambda a: _call(_report, "report", a),
        "export": lambda a: _call(_export, "export", a),
        "edit": lambda a: _call(_edit, "edit", a),
        "shardings": lambda a: _call(_shardings, "shardings", a),
        "fetch": lambda a: _call(_fetch, "fetch", a),
    }[command](rest)


def _call(function: Any, command: str, args: list[str]) -> int:
    @functools.wraps(function)
    def held(*given: Any, **named: Any) -> Any:  # so that nothing is done before all is read
        return lambda: function(*given, **named)

    names = list(inspect.signature(function).parameters)
    flags.parse(held, args, f"jcl {command}", function.__doc__, names)()
    return 0


def _run(args: list[str]) -> int:
    """Trains through a stream of tasks."""
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
    if not distributed and any(a.startswith(("--seeds", "--sweep", "--mesh")) for a in rest):
        _spread()
    _cache()
    module = experiment.load(path)
    options, config = flags.read(path.stem, module, rest)
    check(options.seeds >= 1, "seeds", options.seeds, "at least 1")
    check(options.checkpoint_every >= 1, "checkpoint-every", options.checkpoint_every, "at least 1")
    if options.distributed is not None:
        processes.start(options.distributed)
        if not processes.leader():
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 process 0 says it
    request: dict[str, Any] = {
        "experiment": path.stem,
        "file": str(path.resolve()),
        "config": dataclasses.asdict(config),
        "methods": list(options.method or getattr(module, "METHODS", ())),
        "seeds": options.seeds,
        "sweep": list(options.sweep),
        "mesh": options.mesh,
    }
    processes.same("command", request)
    if options.resume:
        request = processes.of_leader(lambda: flags.resumed(options, module, request, rest)[0])
        config = flags.restored(module, request)
    if request["mesh"] is None and processes.several():
        request["mesh"] = "data=-1"
    mesh = meshes.make(None, **meshes.parse(request["mesh"])) if request["mesh"] else None
    if hasattr(module, "nodes"):
        return _pipeline(module, config, name, rest, options, request, mesh)
    found = plan.plans(request["methods"], request["sweep"], config)
    # built once for equal configs, and before there is a folder: it may object
    built = {repr(one.config): module.build(one.config) for one in _distinct(found)}
    out = _folder(options, path.stem, plan.folders(found))
    _begun(out, name, rest, request)
    with _stoppable(name, out) as code:
        _train(built, found, request["seeds"], out, options, mesh)
    return code[0]


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
    from jcl import nodes, pipeline

    if processes.several():
        raise ValueError(
            f"{name} is a pipeline, which runs in one process; leave out --distributed"
        )
    if options.method or options.sweep:
        raise ValueError(f"{name} is a pipeline, whose nodes have their methods; see its settings")
    listed = module.nodes(config)
    costs = pipeline.examine(listed)  # before there is a folder: it may object
    names = [test for gauge in pipeline.gauges(listed) for test in gauge.names]

    def watch(node: pipeline.Node) -> screen.Watch:
        each = node.experiment.tokens_per_row
        unit = ("tokens", each) if each else ("examples", 1)
        stages = len(node.experiment.stream(0).names)
        return screen.Watch(f"{node.name}: {node.method}", stages, names, unit)

    out = _folder(options, request["experiment"], ["pipeline"])
    _begun(out, name, args, request)
    with _stoppable(name, out) as code:
        seeds = request["seeds"]
        result = pipeline.run(
            listed, out, seeds=seeds, resume=options.resume, costs=costs, watch=watch, mesh=mesh,
            checkpoint_every=options.checkpoint_every,
        )  # fmt: skip
        summary = nodes.write(out, request["experiment"], listed, result)
        html = nodes.draw(out, listed, result, summary)
        nodes.show(summary)
        screen.console().print(f"results: {out}\nreport:  {html}", soft_wrap=True)
    return code[0]


def _begun(out: Path, name: str, args: Sequence[str], request: dict[str, Any]) -> None:
    """Notes what a folder was begun with, unless it was before."""
    if processes.leader() and not (out / "config.json").exists():
        command = shlex.join(["jcl", "run", name, *args])
        report.save_json(out / "config.json", {"command": command, **request, **_versions()})


@contextlib.contextmanager
def _stoppable(name: str, out: Path) -> Iterator[list[int]]:
    """Gives the exit code of what may be interrupted, or may diverge."""
    code = [0]
    again = shlex.join(["jcl", "run", name, "--out", str(out), "--resume"])

    def say(text: str) -> None:
        if processes.leader():  # the others end alike
            print(f"jcl: {text}", file=sys.stderr)

    try:
        yield code
    except KeyboardInterrupt:
        say(f"stopped, what was trained is saved; go on with: {again}")
        code[0] = 130
    except processes.Preempted:
        say(f"told to stop by SIGTERM, what was trained is saved; go on with: {again}")
        code[0] = processes.PREEMPTED
    except jcl.Diverged as error:
        say(str(error))
        code[0] = 3


def _distinct(found: Sequence[plan.Plan]) -> list[plan.Plan]:
    """One plan for each config."""
    return list({repr(one.config): one for one in found}.values())


def _spread() -> None:
    """A host device for each core, so that members on CPU are trained side by side."""
    given = os.environ.get("XLA_FLAGS", "")
    if "xla_force_host_platform_device_count" not in given:  # what a user has set stays
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        os.environ["XLA_FLAGS"] = f"{given} --xla_force_host_platform_device_count={cores}".strip()


def _cache() -> None:
    """Keeps what is compiled for the next run, which halves a short one, where jax has no place."""
    import jax

    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        # code for one processor must not be run on another that shares the home
        info = Path("/proc/cpuinfo")
        lines = info.read_text().splitlines() if info.exists() else [platform.processor()]
        kinds = {x for x in lines if not info.exists() or x.startswith(("flags", "Features"))}
        machine = hashlib.sha256(repr(sorted(kinds)).encode()).hexdigest()[:12]
        jax.config.update("jax_compilation_cache_dir", str(home / "jcl" / machine))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def _versions() -> dict[str, Any]:
    names = ("jcl-kit", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    found = {dist.metadata["Name"]: dist.version for dist in metadata.distributions()}
    versions = {name: found[name] for name in names if name in found}
    import jax

    device = jax.devices()[0]
    return {
        "versions": {"python": platform.python_version(), **versions},
        "platform": platform.platform(),
        "devices": f"{jax.device_count()} × {device.device_kind}",
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def _folder(options: flags.Options, name: str, names: Sequence[str]) -> Path:
    """The run's folder, made if need be, by process 0 if there are several.

    Raises:
      ValueError: if it holds something already and isn't to be resumed.
    """
    return Path(processes.of_leader(lambda: str(_made(options, name, names))))


def _made(options: flags.Options, name: str, names: Sequence[str]) -> Path:
    out = options.out
    if out is None:
        method = "-".join(names) if len("-".join(names)) < 60 else f"{len(names)}-runs"
        taken = [int(n) for p in Path("runs").glob(f"{name}-{method}-*")
                 if (n := p.name.rpartition("-")[2]).isdigit()]  # fmt: skip
        out = Path("runs") / f"{name}-{method}-{max(taken, default=0) + 1}"
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file, but must be a folder")
    if out.exists() and any(out.iterdir()) and not options.resume:
        raise ValueError(f"{out} isn't empty; go on with --resume, or choose another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
        report.writable(out)
    except OSError as error:
        raise ValueError(
            f"{out} can't be written: {error.strerror}; choose another --out"
        ) from error
    return out


def _train(
    built: Mapping[str, experiment.Experiment],
    found: Sequence[plan.Plan],
    seeds: int,
    out: Path,
    options: flags.Options,
    mesh: Mesh | None,
) -> None:
    """Trains what is planned, each run in a folder of its own where there are several."""
    from jcl import page  # matplotlib, which other commands shouldn't wait for

    runs: list[report.Run] = []
    for one, name in zip(found, plan.folders(found), strict=True):
        folder = out if len(found) == 1 else out / name
        if not processes.of_leader((folder / "summary.json").is_file):
            run = _fit(built[repr(one.config)], one, seeds, folder, options, mesh)
            runs += [run] if run else []
        elif processes.leader():  # finished before the interruption
            runs += report.load(folder)
    if not processes.leader():
        return
    if len(runs) > 1:
        report.group(out, runs)
    html = page.draw(out)
    for run in runs:
        screen.matrix(run)
        screen.ability(run)
    screen.table(runs)
    screen.console().print(f"results: {out}\nreport:  {html}", soft_wrap=True)


def _fit(
    built: experiment.Experiment,
    one: plan.Plan,
    seeds: int,
    folder: Path,
    options: flags.Options,
    mesh: Mesh | None,
) -> report.Run | None:
    """One run, and its report if this is process 0."""
    setup = experiment.setup(built, one.calls, seeds, one.points, mesh=mesh)
    stream = setup.stream
    unit = ("tokens", built.tokens_per_row) if built.tokens_per_row else ("examples", 1)
    members = seeds * len(one.points)
    title = one.name if members == 1 else f"{one.name} × {members}"
    columns = (*stream.tests, *built.probe_names)
    watch = screen.Watch(title, len(stream.names), columns, unit)
    with watch.events(folder / "tensorboard") if processes.leader() else watch:
        result = jcl.fit(
            *setup, evaluate=experiment.scored(built), out=folder, resume=options.resume,
            chunk=built.chunk, checkpoint_every=options.checkpoint_every, on_event=watch,
        )  # fmt: skip
    assert result.scores is not None
    if not processes.leader():
        return None
    facts = {
        "method": one.name,
        "experiment": built.name,
        "scenario": built.scenario,
        "measure": built.measure,
        "higher_is_better": built.higher_is_better,
        "seeds": seeds,
        "stages": list(stream.names),
        "stage_tasks": list(stream.tasks),
        "tasks": list(stream.tests),
        "family": one.family,
        "outer": one.outer,
        "wall_seconds": result.wall_seconds,
        "compile_seconds": result.compile_seconds,
        "examples_per_second": result.examples_per_second,
        "step_traces": result.step_traces,
        "peak_memory_bytes": result.peak_memory_bytes,
        "pipeline": jcl.explain(setup.program.method),
    }
    scores = result.scores.reshape(len(one.points), seeds, *result.scores.shape[-2:])
    tasks = len(stream.tests)
    probes = {name: scores[..., tasks + i] for i, name in enumerate(built.probe_names)}
    return report.write(folder, facts, one.points, one.labels, scores[..., :tasks], probes)


def _list() -> None:
    """Lists experiments, methods and editors with their arguments, streams and models."""
    from jcl import data, edit, models

    console = screen.console()

    def section(title: str, rows: Sequence[tuple[str, str]]) -> None:
        console.print(f"[bold]{title}")
        for name, text in rows:
            console.print(f"  {escape(name)}\n      [dim]{escape(text)}", soft_wrap=True)

    known = [(name, experiment.headline(path)) for name, path in experiment.available().items()]
    streams = [getattr(data, name) for name in data.__all__]
    section("experiments (jcl run NAME)", known)
    section("methods (--method)", [_described(f) for f in expression.factories().values()])
    section("editors (jcl edit --method)", [_described(f) for f in edit.EDITORS.values()])
    section("streams (jcl.data)", [_described(f) for f in streams if inspect.isfunction(f)])
    kinds = {name: m for name, m in vars(models).items() if inspect.ismodule(m)}
    section("models (jcl.models)", [(n, _headline(m)) for n, m in kinds.items() if n != "layers"])


def _headline(documented: Any) -> str:
    return (inspect.getdoc(documented) or "").partition("\n")[0]


def _described(function: Any) -> tuple[str, str]:
    """A call with its defaults, and the first line of what it says of itself."""
    shown = []
    for name, parameter in inspect.signature(function).parameters.items():
        default = parameter.default
        text = getattr(default, "__name__", None) or repr(default)
        shown.append(name if default is parameter.empty else f"{name}={text}")
    return f"{function.__name__}({', '.join(shown)})", _headline(function)


def _explain(method: Annotated[str, arg(metavar="EXPR")]) -> None:
    """Prints what a method does in each phase of a step, in the order in which it will run."""
    print(jcl.explain(expression.build(expression.parse(method))))


def _compare(
    dirs: Annotated[tuple[Path, ...], tyro.conf.Positional, arg(metavar="DIR...")],
    out: Annotated[Path, arg(metavar="PNG")] = Path("comparison.png"),
) -> None:
    """Prints a table of several runs' measures, and draws them side by side."""
    from jcl import page

    if not dirs:
        raise ValueError("jcl compare needs folders of runs")
    runs = [run for folder in dirs for run in report.load(folder)]
    page.compare(runs, out)
    screen.table(runs)
    screen.console().print(f"figure: {out}", soft_wrap=True)


def _report(dir: Annotated[Path, tyro.conf.Positional, arg(metavar="DIR")]) -> None:
    """Draws a run's figures and its report.html again, from what is in its folder."""
    from jcl import page

    print(page.draw(dir))


def _export(
    run: Annotated[Path, tyro.conf.Positional, arg(metavar="RUN")],
    to: Annotated[Path, arg(metavar="DIR")],
) -> None:
    """Writes a run's model, adapters merged, as a Hugging Face folder with a model card."""
    from jcl import export

    print(export.write(run, to))


def _edit(
    model: Annotated[str, tyro.conf.Positional, arg(metavar="MODEL")],
    prompt: Annotated[str, tyro.conf.Positional, arg(metavar="PROMPT")],
    answer: Annotated[str, tyro.conf.Positional, arg(metavar="ANSWER")],
    to: Annotated[Path, arg(metavar="DIR")],
    subject: str = "",
    method: Annotated[str, arg(metavar="EXPR")] = "rome",
    text: Annotated[Path | None, arg(metavar="FILE")] = None,
) -> None:
    """Writes a fact into a model, and the model as a folder that transformers loads.

    Args:
      model: what jcl fetch gets, such as smollm2, a folder, or a Hugging Face id.
      prompt: such as "The capital of France is".
      answer: how the model is to go on, such as Lyon.
      to: the folder to write, new or empty.
      subject: what the fact is about; by default the last words of the prompt with a capital.
      method: rome, memit, alphaedit or ft_l, maybe with arguments: "rome(layer=4, steps=40)".
      text: what the model knows is to be judged by; by default speeches in English.
    """
    from jcl import edit  # transformers, which other commands shouldn't wait for

    _cache()
    done = edit.write(model, prompt, answer, to, subject, method, text)
    print(f"before: {done.before}\nafter:  {done.after}\nmodel:  {done.folder}")


def _shardings(
    model: Annotated[str, arg(metavar="NAME")],
    mesh: Annotated[str, arg(metavar="AXES")],
    method: Annotated[str, arg(metavar="EXPR")] = "",
    json: Annotated[Path | None, arg(metavar="FILE")] = None,
) -> None:
    """Prints where a model lies on a mesh, which needs neither its weights nor devices.

    Args:
      model: tiny, llama-1b, llama-8b or llama-70b; what jcl fetch gets, a folder with a
        config.json, or a Hugging Face id.
      mesh: sizes of data, fsdp, expert, sequence and tensor, such as "fsdp=16,tensor=4".
      method: for a decoder, what this method and AdamW keep beside the parameters.
      json: where to write the same.
    """
    from jcl import shardings

    given = expression.build(expression.parse(method)) if method else None
    found = shardings.plan(model, meshes.parse(mesh), given)
    if json is not None:
        report.save_json(json, shardings.facts(found))
    screen.shardings(f"{found.model} over {found.axes}", found.rows, found.totals)


def _fetch(
    name: Annotated[str, tyro.conf.Positional, arg(metavar="NAME")] = "",
    to: Annotated[Path | None, arg(metavar="DIR")] = None,
) -> None:
    """Gets a model or a data set, or a hub's org/model; without a name, lists what there is."""
    from jcl.data import fetch

    if name:
        print(fetch.fetch(name, to, lambda line: print(line, file=sys.stderr)))
        return
    for known, source in fetch.SOURCES.items():
        size = f"{source.size / 1e6:.1f} MB"
        print(f"{known:<14} {size:>8}  {source.about}; {source.licence}")
