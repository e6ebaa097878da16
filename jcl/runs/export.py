"""Exports a run's model: a folder that transformers loads, a GGUF file, or its adapters alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from jcl import report
from jcl.method import Params, check
from jcl.models.gguf_write import QUANTISATIONS
from jcl.models.pretrained import HEAD
from jcl.models.tensors import check_free
from jcl.program import State
from jcl.runs import experiment
from jcl.runs.load import load_run


class Ended(NamedTuple):
    """A finished run of one member."""

    built: experiment.Experiment
    setup: experiment.Setup
    state: State
    """The last."""
    summary: dict[str, Any]
    """What its `summary.json` says."""
    settings: dict[str, Any]
    """What its `config.json` says."""
    numbers: list[int]
    """Which task the rows of each test are of."""
    labels: list[str]
    """The names of the classes, in the order of the head's columns; none where there are none."""


def write(run: Path, to: Path, adapters: bool = False, gguf: str = "", task: str = "") -> Path:
    """Exports the last checkpoint of a run, or the current state of a life.

    One device holds the whole model here, whatever mesh it was trained on.

    Args:
      run: a run's folder, which may be one of several side by side.
      to: the folder to write, new or empty; or a new file whose name ends with .gguf.
      adapters: whether the adapters are written alone, as PEFT folders (see
        `jcl.runs.export_adapters`). If not, methods' changes and adapters are folded in.
      gguf: in which numbers a .gguf file holds the model, one of `QUANTISATIONS`; "" is f16.
      task: the test task for whose rows the model is exported; "" is for methods that read the same
        parameters for all tasks.

    Raises:
      ValueError: if these don't go together, it is no finished run of one seed, its model can't be
        saved, or its methods do more than what is to be written holds.
    """
    _check_asked(to, adapters, gguf, task)  # before a model is loaded
    ended = _load(run, task)
    if adapters:
        from jcl.runs import export_adapters

        return export_adapters.write(ended, to)
    tasks = ended.summary["tasks"]
    one = ended.numbers[tasks.index(task)] if task else None
    params = experiment.merged_params(*ended[:3], one)
    from jcl import models  # transformers, which other commands shouldn't wait for

    params = _with_labels(params, ended)
    if to.suffix == ".gguf":
        wanted = "a folder, for a .gguf file has no place for a head of classes"
        check(HEAD not in params, "to", str(to), wanted)
        return models.save_gguf(ended.built.model, params, to, gguf or "f16")
    out = models.save(ended.built.model, params, to, labels=ended.labels)
    (out / "README.md").write_text(card(ended.summary, ended.settings))
    return out


def _with_labels(params: Params, ended: Ended) -> Params:
    """The parameters with those columns of a head of classes that have a label as yet."""
    if HEAD not in params or not ended.labels:
        return params
    head = {name: x[..., : len(ended.labels)] for name, x in params[HEAD].items()}
    return {**params, HEAD: head}


def _check_asked(to: Path, adapters: bool, gguf: str, task: str) -> None:
    file = to.suffix == ".gguf"
    check(gguf in ("", *QUANTISATIONS), "gguf", gguf, f"one of {QUANTISATIONS}")
    check(file or not gguf, "to", str(to), "a file that ends with .gguf, where --gguf is given")
    check(not (file and adapters), "to", str(to), "a folder, where --adapters is given")
    check(not (task and adapters), "task", task, "left out with --adapters, which writes all tasks")
    if file:
        check(not to.exists(), "to", str(to), "a file that isn't there yet")
    else:
        check_free(to)


def _load(run: Path, task: str) -> Ended:
    found = report.load(run)
    if len(found) != 1 or found[0].folder != run:
        several = ", ".join(str(r.folder) for r in found)
        raise ValueError(f"{run} holds {len(found)} runs, so name one of them: {several}")
    summary = found[0].summary
    check(task in ("", *summary["tasks"]), "task", task, f"one of {summary['tasks']}")
    if not any((place / "config.json").is_file() for place in (run, run.absolute().parent)):
        raise ValueError(
            f"{run} has no config.json, for it was trained from Python, where its model is; save "
            "it there by jcl.models.save"
        )
    loaded = load_run(run)
    built, settings = loaded.experiment, loaded.settings
    if loaded.program.members is not None:
        raise ValueError(
            f"{run} trained {loaded.program.members} members at once, but must have trained one: a "
            "single seed, nothing swept"
        )
    if built.model is None:
        raise ValueError(f"{built.name} has no pretrained model, so there is nothing to export")
    labels: list[str] = []
    if "life" in settings:
        from jcl.runs.life.book import Book

        settings = {**settings, "config": {"model": settings["life"]["model"]}}
        labels = Book(run).labels
    setup = experiment.Setup(*loaded[:4])
    return Ended(built, setup, loaded.state, summary, settings, loaded.numbers, labels)


def card(summary: dict[str, Any], settings: dict[str, Any]) -> str:
    """The model card: stream, methods and scores, as Markdown."""
    base = settings["config"].get("model", "a model")
    head = f"| after | {' | '.join(summary['tasks'])} |"
    rule = "|---" * (len(summary["tasks"]) + 1) + "|"
    when = ["before", *summary["stages"]]
    rows = [
        f"| {name} | {' | '.join('' if x is None else f'{x:.3f}' for x in row)} |"
        for name, row in zip(when, summary["matrix"], strict=True)
    ]
    measures = [
        f"- {report.title(m)}: {report.format_mean(summary[m])} ({summary[m]['definition']})"
        for m in report.MEASURES
    ]
    kind = (
        "data that came bit by bit" if "life" in settings else f"{summary['scenario']}-incremental"
    )
    lines = [
        f"# {base} after {summary['experiment']}", "",
        f"Trained with [jcl](https://pypi.org/project/jcl-kit) from `{base}` through the stages "
        f"{', '.join(summary['stages'])} ({kind}) under "
        f"`{summary['method']}`.", "",
        f"## Scores ({summary['measure']})", "", head, rule, *rows, "", *measures, "",
    ]  # fmt: skip
    if "probes" in summary:
        probes = summary["probes"]
        lines += [
            "## General ability (share of right answers)", "",
            f"| after | {' | '.join(probes['names'])} |", "|---" * (len(probes["names"]) + 1) + "|",
            *(
                f"| {name} | {' | '.join(f'{x:.3f}' for x in row)} |"
                for name, row in zip(when, probes["matrix"], strict=True)
            ), "",
        ]  # fmt: skip
    versions = ", ".join(f"{k} {v}" for k, v in settings.get("versions", {}).items())
    made = f"`{settings['command']}`" + (f", with {versions}" if versions else "")
    lines += ["## How to make it again", "", f"{made}.", ""]
    lines += [
        f"Its methods in `{Path(path).name}` are those of the file whose sha256 is `{digest}`.\n"
        for path, digest in settings.get("files", {}).items()
    ]
    return "\n".join(lines)
