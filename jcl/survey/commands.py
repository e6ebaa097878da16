"""The commands of a row: on data that is here, and on files such as the paper's."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys

from jcl.runs import experiment, launch
from jcl.survey.table import Paper, find

PREFIX = "survey:"
RECIPE = "recipe"
"""The experiment that runs the nodes of a row."""
BESIDE_FILES = {"--order", "--batch", "--scenario", "--score", "--evaluate-every"}
"""Flags of experiments that say nothing of what a method needs, so that files can take the place of
the experiment's data."""


def arguments(paper: Paper) -> list[str]:
    """What `jcl run` takes for a row, or Python for the script of one; [] if nothing runs it."""
    if paper.script:
        name, *rest = shlex.split(paper.script)
        return [f"experiments/{name}.py", *rest]
    if paper.nodes:
        return [RECIPE, "--nodes", paper.nodes, *shlex.split(paper.flags)]
    if not paper.experiment:
        return []
    return [paper.experiment, *shlex.split(paper.flags), *_methods(paper)]


def _methods(paper: Paper) -> list[str]:
    return [word for method in paper.methods for word in ("--method", method)]


def here(paper: Paper) -> str:
    """The command that runs a row on data that is here; "" if nothing does."""
    found = arguments(paper)
    return shlex.join([*(["python"] if paper.script else ["jcl", "run"]), *found]) if found else ""


def on_files(paper: Paper) -> str:
    """The command for files such as the paper's; "" if that takes a few lines of Python."""
    if paper.nodes:
        stages = [node.partition(":")[0] for node in re.split("->", paper.nodes)]
        names = dict.fromkeys(re.findall(r"[A-Za-z]\w*", " ".join(stages)))
        files = [f"{name}={name.upper()}.jsonl" for name in names if name != "written"]
        run = ["jcl", "run", f"{PREFIX}{paper.id}"]
        return shlex.join([*run, "--model", "MODEL", "--files", *files])
    if paper.script.startswith("editing "):
        return f"{here(paper)} --facts zsre --file zsre_mend_eval.json"
    if paper.experiment == "alignment":
        return f"{here(paper)} --model MODEL --order hh:FOLDER shp:FOLDER"
    flags = {word for word in shlex.split(paper.flags) if word.startswith("--")}
    if paper.methods and paper.experiment != "multimodal" and flags <= BESIDE_FILES:
        data = ["--data", "first=FILE.jsonl", "--data", "second=FILE.jsonl"]
        method = ["--method", paper.methods[0]]
        return shlex.join(["jcl", "run", "finetune", "--model", "MODEL", *data, *method])
    return ""


def run(args: list[str]) -> int:
    """`jcl run`, whose experiment may also be a row of the survey, as `survey:2310.14152`.

    Further flags go to the row's experiment; a `--method` runs beside those of the row.

    Raises:
      ValueError: if there is no such row, or nothing runs it, and as `launch.run` does.
    """
    if not args or not args[0].startswith(PREFIX):
        return launch.run(args)
    paper = find(args[0].removeprefix(PREFIX))
    found = arguments(paper)
    if not found:
        needed = f"; it needs {', '.join(paper.needs)}" if paper.needs else f": {paper.recipe}"
        raise ValueError(f"{paper.title} is {paper.status}, so nothing runs it{needed}")
    if not paper.script:
        return launch.run([*found, *args[1:]])
    script, *rest = found
    place = experiment.folder().parent / script
    return subprocess.run([sys.executable, str(place), *rest, *args[1:]]).returncode
