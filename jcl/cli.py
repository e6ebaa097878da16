"""The command line: `jcl run`, `list`, `explain`, `compare`, `report`, `export`, `edit`, and so on.

Exit codes: 0 done, 1 a short form isn't as expected, 2 wrong arguments, 3 the run diverged, 4 a
stage's state wasn't accepted, 75 stopped by SIGTERM, 76 another process was lost (start again with
`--resume` after either), 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import inspect
import os
import sys
import traceback
import typing
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro
from tyro.conf import arg

from jcl import __version__, report
from jcl.chain import explain
from jcl.parallel import mesh as meshes
from jcl.parallel import processes, signals
from jcl.report import screen
from jcl.runs import expression, flags
from jcl.runs.cache import cache
from jcl.survey import commands
from jcl.survey import listing as survey

USAGE = """usage: jcl COMMAND ...

  jcl run EXPERIMENT|FILE.py   train through a stream of tasks; writes a folder with the results
  jcl run finetune --model MODEL --data jan=FILE   tunes a model on files, stage by stage
  jcl continue RUN --data NAME=FILE                learns another stage on the state of the last
  jcl log RUN                  what it learned when, of which data, with which scores
  jcl diff RUN STAGE STAGE     what got better and worse between two states, item by item
  jcl rollback RUN --to STAGE  makes the state after an earlier stage the current one
  jcl forget RUN --data FILE   takes rows out of every memory and every file of a run
  jcl list [NAME]              experiments, methods, streams and models; or one of them whole
  jcl explain --method EXPR    what a method does in each phase of a step
  jcl compare DIR...           a table and a figure over runs; --baseline naive --latex tests them
  jcl report DIR               draws a run's figures and report.html again
  jcl export RUN --to DIR      a run's model as a folder that transformers loads, with a card;
                               --adapters alone for PEFT, --to model.gguf for llama.cpp
  jcl edit MODEL PROMPT ANSWER --to DIR      writes a fact into a model
  jcl shardings --model NAME --mesh fsdp=8   where a model's parameters lie on a mesh
  jcl reproduce NAME           runs a published protocol; without a name, lists them and verdicts;
                               --quick is a short form, --table writes the page's table
  jcl survey ID                what a paper does and how it is done here; without an id, all of
                               them, by --section, --status, --mechanism, --needs; --json;
                               jcl run survey:ID runs it
  jcl fetch NAME               gets a model or a data set; without a name, lists them;
                               --list shows what is cached, --remove NAME removes it

  jcl run digits               seconds; then try --method "er(capacity=500) + ewc(strength=10.)"
  jcl COMMAND --help           what a command takes
"""
LIFE = {
    "continue": "go_on",
    "rollback": "rollback",
    "log": "log",
    "diff": "diff",
    "forget": "forget",
}
"""Commands of a life, and the functions of `jcl.runs.life.commands` that do them."""
COMMANDS = (
    "run",
    *LIFE,
    "list",
    "explain",
    "compare",
    "report",
    "export",
    "edit",
    "shardings",
    "reproduce",
    "survey",
    "fetch",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code.

    Without `argv` it is the process's own command, and a signal ends the process; with it, it is a
    caller's, whose handlers stay.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    _hide_libtpu()
    warnings.formatwarning = lambda message, *rest, **more: f"warning: {message}\n"
    with signals.take_over() if argv is None else contextlib.nullcontext():
        try:
            code = _dispatch(args)
        except BaseException as error:
            processes.exit_if_peer_lost()
            code = _code(error)
        processes.finish(code)
    return code


def _hide_libtpu() -> None:
    """Keeps JAX from libtpu where there is no TPU, for it would print five lines of errors.

    JAX tries libtpu wherever it is installed, and no level of logging silences that. It finds it by
    an import, which None in `sys.modules` refuses, or by the variable that such an import sets.
    Nothing changes on a TPU VM, for there JAX has set `tpu,cpu` when it was imported; nor where the
    user has said something by JAX_PLATFORMS (empty is JAX's own search) or JAX_FORCE_TPU_INIT. A
    chip that this JAX doesn't know yet has a device file all the same, /dev/accel0 or /dev/vfio/0,
    as Ray counts them too. To look for these takes microseconds.
    """
    chips = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")
    if jax.config.jax_platforms is None and not chips:  # type: ignore[attr-defined]
        sys.modules["libtpu"] = None  # type: ignore[assignment]
        os.environ.pop("TPU_LIBRARY_PATH", None)


def _code(error: BaseException) -> int:
    """The exit code for an error, which is printed as a sentence."""
    if isinstance(error, KeyboardInterrupt):
        print("jcl: stopped by Ctrl-C", file=sys.stderr)
        return signals.INTERRUPTED
    if isinstance(error, signals.Preempted):
        print(f"jcl: {error}", file=sys.stderr)
        return signals.PREEMPTED
    if isinstance(error, BrokenPipeError):  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    known = isinstance(error, (ValueError, OSError, ImportError))
    if not known or os.environ.get("JCL_TRACEBACK"):
        if not processes.is_watched():
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
        print(__version__)
        return 0
    command, rest = args[0], args[1:]
    if command not in COMMANDS:
        raise ValueError(f"no command is called {command!r}{expression.near(command, COMMANDS)}")
    if command in LIFE or args[:2] == ["run", "finetune"]:
        from jcl.runs.life import commands as life  # transformers, which others shouldn't wait for

        if command in LIFE:
            return _call(getattr(life, LIFE[command]), command, rest)
        return _call(life.finetune, "run finetune", rest[1:])
    return {
        "run": commands.run,
        "list": lambda a: _call(_list, "list", a),
        "explain": lambda a: _call(_explain, "explain", a),
        "compare": lambda a: _call(_compare, "compare", flags.with_default(a, "--latex", "-")),
        "report": lambda a: _call(_report, "report", a),
        "export": lambda a: _call(_export, "export", a),
        "edit": lambda a: _call(_edit, "edit", a),
        "shardings": lambda a: _call(_shardings, "shardings", a),
        "reproduce": lambda a: _call(_reproduce, "reproduce", a),
        "survey": lambda a: _call(survey.command, "survey", a),
        "fetch": lambda a: _call(_fetch, "fetch", a),
    }[command](rest)


def _call(function: Any, command: str, args: list[str]) -> int:
    @functools.wraps(function)
    def held(*given: Any, **named: Any) -> Any:  # so that nothing is done before all is read
        return lambda: function(*given, **named)

    hints = typing.get_type_hints(function, include_extras=True)
    names = [name for name in inspect.signature(function).parameters
             if tyro.conf.Positional not in getattr(hints[name], "__metadata__", ())]  # fmt: skip
    return flags.parse(held, args, f"jcl {command}", function.__doc__, names)() or 0


def _list(name: Annotated[str, tyro.conf.Positional, arg(metavar="NAME")] = "") -> None:
    """Lists experiments, methods and editors with their arguments, streams and models.

    Args:
      name: of one of them, which is shown whole; a file's own methods by ./mine.py:pull, or
        ./mine.py for all that it has.
    """
    from jcl.runs import listing

    listing.show(name) if name else listing.show_all()


def _explain(method: Annotated[str, arg(metavar="EXPR")]) -> None:
    """Prints what a method does in each phase of a step, in the order in which it will run."""
    print(explain(expression.build(expression.parse(method))))


def _compare(
    dirs: Annotated[tuple[Path, ...], tyro.conf.Positional, arg(metavar="DIR...")],
    out: Annotated[Path, arg(metavar="PNG")] = Path("comparison.png"),
    baseline: Annotated[str, arg(metavar="METHOD")] = "",
    latex: Annotated[Path | None, arg(metavar="FILE")] = None,
) -> None:
    """Prints a table of several runs' measures, and draws them side by side.

    Args:
      dirs: folders of runs.
      out: the figure.
      baseline: a row, such as naive, from which the others are told by paired t tests over seeds.
      latex: where to write the table with its tests for LaTeX; without a file, to the terminal.
    """
    from jcl.report import comparison, page
    from jcl.report import latex as tables

    if not dirs:
        raise ValueError("jcl compare needs folders of runs")
    if latex is not None and latex.is_dir():
        raise ValueError(f"--latex {latex} is a folder, but must be a file to write")
    runs = [run for folder in dirs for run in report.load(folder)]
    tested = comparison.compare(runs, baseline) if baseline or latex is not None else None
    page.compare(runs, out)
    if tested is not None and latex == Path("-"):
        print(tables.table(tested), end="")  # alone, so that it can be sent into a file
        return
    if tested is None:
        screen.table(runs)
    else:
        screen.comparison(tested)
    if tested is not None and latex is not None:
        tables.write(tested, latex)
        screen.console().print(f"table:  {latex}", soft_wrap=True)
    screen.console().print(f"figure: {out}", soft_wrap=True)


def _report(dir: Annotated[Path, tyro.conf.Positional, arg(metavar="DIR")]) -> None:
    """Draws a run's figures and its report.html again, from what is in its folder."""
    from jcl.report import page

    if "life" in report.load_settings(dir):
        from jcl.runs.life import Life

        drawn = Life(dir).report()
        if drawn is None:
            raise ValueError(f"{dir} has learned nothing yet, so there is nothing to report")
        print(drawn)
        return
    print(page.draw(dir))


def _export(
    run: Annotated[Path, tyro.conf.Positional, arg(metavar="RUN")],
    to: Annotated[Path, arg(metavar="DIR")],
    adapters: tyro.conf.FlagCreatePairsOff[bool] = False,
    gguf: Annotated[str, arg(metavar="KIND")] = "",
    task: Annotated[str, arg(metavar="NAME")] = "",
) -> None:
    """Writes a run's model, adapters merged, as a Hugging Face folder with a model card.

    Args:
      run: the run's folder.
      to: the folder to write, new or empty; or a file that ends with .gguf, for llama.cpp.
      adapters: writes adapters or prompts alone, as PEFT folders, one a stage where each has its
        own, with the keys by which a method infers the task.
      gguf: f16, q8_0 or f32, the numbers in a .gguf file; by default f16.
      task: the task for which the model is folded, where a method reads each task by other weights.
    """
    from jcl.runs import export

    print(export.write(run, to, adapters, gguf, task))


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
    from jcl.runs import edit  # transformers, which other commands shouldn't wait for

    cache()
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
    from jcl.runs import shardings

    given = expression.build(expression.parse(method)) if method else None
    found = shardings.plan(model, meshes.parse(mesh), given)
    if json is not None:
        report.save_json(json, shardings.facts(found))
    screen.shardings(f"{found.model} over {found.axes}", found.rows, found.totals)


def _reproduce(
    name: Annotated[str, tyro.conf.Positional, arg(metavar="NAME")] = "",
    quick: tyro.conf.FlagCreatePairsOff[bool] = False,
    table: tyro.conf.FlagCreatePairsOff[bool] = False,
    show: tyro.conf.FlagCreatePairsOff[bool] = False,
    cells: tuple[str, ...] = (),
    out: Annotated[Path | None, arg(metavar="DIR")] = None,
) -> int:
    """Runs a published protocol and judges ours beside the paper's; without a name, lists them.

    Cells that are kept already aren't run again; one that was cut short goes on.

    Args:
      name: a protocol.
      quick: a short form, without NAME those of all, with expectations of their own; the exit
        code is 1 if one isn't met.
      table: writes the table of all protocols into experiments/README.md.
      show: what is kept already; runs nothing.
      cells: the cells to run, such as "none task"; all by default.
      out: the folder of results; by default that beside the protocols.
    """
    from jcl.runs import reproduce

    return reproduce.command(name, quick, table, show, cells, out)


def _fetch(
    name: Annotated[str, tyro.conf.Positional, arg(metavar="NAME")] = "",
    to: Annotated[Path | None, arg(metavar="DIR")] = None,
    list: tyro.conf.FlagCreatePairsOff[bool] = False,
    remove: Annotated[str, arg(metavar="NAME")] = "",
) -> None:
    """Gets a model or a data set, or a hub's org/model; without a name, lists what there is.

    Args:
      name: what to get.
      to: the folder to unpack it into, new or empty; by default one in the cache.
      list: what is in the cache: names, packages, sizes, dates and folders.
      remove: what to remove from the cache.
    """
    from jcl.data.registry import fetch

    if bool(name) + list + bool(remove) > 1:
        raise ValueError("jcl fetch takes one of NAME, --list and --remove NAME at a time")
    if to is not None and not name:
        raise ValueError(f"--to is {str(to)!r}, but nothing is named that is to be unpacked there")
    if list:
        found = fetch.cached()
        wide = max((len(one.package) for one in found), default=0)
        for one in found:
            size, when = f"{one.size / 1e6:.1f} MB", f"{one.when:%Y-%m-%d %H:%M}"
            print(f"{one.name:<14} {one.package:<{wide}} {size:>9}  {when}  {one.folder}")
        return
    if remove:
        gone = fetch.remove(remove)
        print(f"removed {gone.folder}: {gone.size / 1e6:.1f} MB freed")
        return
    if name:
        print(fetch.fetch(name, to, lambda line: print(line, file=sys.stderr)))
        return
    for known, source in fetch.SOURCES.items():
        size = f"{source.size / 1e6:.1f} MB"
        print(f"{known:<14} {size:>8}  {source.about}; {source.licence}")
