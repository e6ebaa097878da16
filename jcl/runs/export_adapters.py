"""Exports a run's adapters, prompts or prefixes as PEFT folders, for what serves many of them.

Which there are is read off the parameters and the soft prompt with which the model is called for
each task, whatever the methods are: one adapter if it is the same for all tasks; one a task if they
differ; one a stage if it is a sum of the stages' pairs.
"""

from __future__ import annotations

import functools
import inspect
import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcl import trees
from jcl.data.registry.archives import SOURCES
from jcl.data.registry.fetch import fetched
from jcl.mechanisms import adapters
from jcl.method import Batch, Call, Params, check
from jcl.models.tensors import make_readable
from jcl.program import State
from jcl.runs import experiment, expression, reading
from jcl.runs.export import Ended, card

Leaves = dict[str, np.ndarray]
"""An adapter's leaves by path."""
_SOFT = ("embeddings", "embedding_segments")


def write(ended: Ended, to: Path) -> Path:
    """Writes the adapters of a run, with a card and the keys by which methods infer the task.

    Args:
      ended: the run.
      to: the folder to write, new or empty. It is a PEFT folder itself if there is one adapter, and
        else has one by the name of each task or stage.

    Raises:
      ValueError: if there are no adapters, PEFT has no place for them, the base has learned too, or
        methods do more to the model.
    """
    from jcl import models  # transformers, which other commands shouldn't wait for

    built, made, state, summary, settings, numbers, _ = ended
    read = _readings(built, made, state, numbers)
    none = f"one with adapters, which {summary['method']} leaves none of; leave --adapters out"
    check(bool(read[0]), "run", str(summary["experiment"]), none)
    plain = trees.by_path(adapters.without_adapters(state.params))
    own = trees.by_path(built.model.params)  # a kernel in int8 has other leaves
    more = [path for path in plain if path not in own and path.rpartition("/")[0] not in own]
    check(not more, "parameters", more, "left out, for a PEFT folder holds none but adapters")
    named, use = _named(read, state, summary)
    source = _base(settings["config"].get("model"), built.model)
    base = str(to.absolute() / "base") if source is None else source
    to.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=to.parent, prefix=f".{to.name}-") as folder:
        work = Path(folder) / "adapters"
        for name, leaves in named.items():
            params = adapters.without_adapters(state.params)
            for path, leaf in leaves.items():
                at, _, last = path.rpartition("/")
                params = adapters.with_subtree(params, at, {last: jnp.asarray(leaf)})
            models.save_adapter(built.model, params, work / name, scale=1.0, base=base)
        if source is None:
            models.save(built.model, built.model.params, work / "base")
        lines = [card(summary, settings), "## How to serve it", "", f"The base is `{base}`. {use}"]
        lines += _routers(ended, [*named], work)
        (work / "README.md").write_text("\n".join([*lines, ""]))
        if to.exists():
            to.rmdir()
        shutil.move(str(work), to)
    return to


def _readings(
    built: experiment.Experiment, made: experiment.Setup, state: State, numbers: list[int]
) -> list[Leaves]:
    """The adapters with which the model is called for rows of each task, pairs with their factor.

    Raises:
      ValueError: if methods do more to the model than that.
    """

    @functools.wraps(built.apply)
    def called(params: Params, batch: Batch, call: Call = Call()) -> Any:
        return params, {k: batch[k] for k in _SOFT if k in batch}

    reader, kept = experiment.unrouted(built._replace(apply=called), made, state)
    plain, _ = experiment.unrouted(built, made, state)
    batch = reading.first_batches(made.stream)[0]

    @jax.jit
    def read(state: State, task: jax.Array) -> Any:
        rows = reading.of_task(batch, task)
        params, soft = reader.program.predict(state, rows)
        call = (Call(collections=state.collections),) if state.collections else ()
        found = built.apply(params, {**rows, **soft}, *call)
        apart = reading.largest_difference(plain.program.predict(state, rows), found)
        leaves = {p: x for p, x in trees.by_path(params).items() if adapters.is_adapter(p)}
        return leaves, {k: x[0] for k, x in soft.items()}, apart

    found = []
    for task in numbers:
        leaves, soft, apart = jax.tree.map(np.asarray, read(kept, jnp.int32(task)))
        wanted = "one that changes nothing but adapters, for them to be used without it"
        check(bool(apart < 1e-2), "method", plain.program.method.name, wanted)
        if soft:
            prompt = soft["embeddings"]
            leaves["prompt/table"] = prompt[
                soft.get("embedding_segments", np.ones(len(prompt))) > 0
            ]
        found.append(leaves)
    return found


def _named(
    read: list[Leaves], state: State, summary: dict[str, Any]
) -> tuple[dict[str, Leaves], str]:
    """The adapters by the names of their folders, "" for the only one, and how they are used."""
    alike = all(
        leaves.keys() == read[0].keys()
        and all(np.array_equal(x, read[0][path]) for path, x in leaves.items())
        for leaves in read
    )
    if not alike:
        names = _folders(summary["tasks"])
        return dict(zip(names, read, strict=True)), (
            "Each folder is the adapter for rows of the task that it is called after: "
            f"{', '.join(f'`{name}`' for name in names)}."
        )
    pairs = _pairs(read[0], trees.by_path(state.params))
    if len(pairs) == 1:
        return {"": read[0]}, "This folder is the adapter, for rows of all tasks."
    # the last pair learns in all stages beyond the others', and is fresh where there are none
    stages = summary["stages"]
    last = len(pairs) - 1
    names = _folders([*stages[:last], *(["+".join(stages[last:])] if stages[last:] else [])])
    every = ", ".join(f'"{name}"' for name in names)
    return dict(zip(names, pairs, strict=False)), (
        "Each folder is the pair that a stage trained beside those before it, and the model is the "
        "base with the sum of all: load each by `load_adapter(folder, adapter_name=folder)`, then "
        f"`model.base_model.set_adapter([{every}])`."
    )


def _pairs(leaves: Leaves, own: dict[str, Any]) -> list[Leaves]:
    """The low-rank pairs that are joined along r in each one that is read, in the stages' order."""
    first = [path for path in leaves if adapters.is_pair(path) and path.endswith("/a")]
    ranks = {path: own[path].shape[-1] for path in first}
    counts = {leaves[path].shape[-1] // rank for path, rank in ranks.items()}
    if counts != {max(counts, default=1)} or counts == {1}:
        return [leaves]
    found = []
    for k in range(counts.pop()):
        pair = dict(leaves)
        for path, rank in ranks.items():
            part = slice(k * rank, (k + 1) * rank)
            at = path.removesuffix("a")
            pair[path], pair[f"{at}b"] = leaves[path][..., part], leaves[f"{at}b"][..., part, :]
        found.append(pair)
    return found


def _folders(names: list[str]) -> list[str]:
    """Different names that a folder can have, none of them `base`."""
    found: list[str] = []
    for name in names:
        short = re.sub(r"[^\w.+=-]+", "-", name).strip("-.") or "task"
        while short in [*found, "base"]:
            short += "+"
        found.append(short)
    return found


def _base(name: Any, model: Any) -> str | None:
    """Where PEFT finds the base: a folder or a Hugging Face id; None if it must be written."""
    if not isinstance(name, str) or not name:
        return None
    folder = fetched(name) if name in SOURCES else Path(name)
    if folder is not None and (folder / "config.json").is_file():
        from jcl import models

        return str(folder.resolve()) if models.shapes(folder)[0] == model.config else None
    return name if name.count("/") == 1 and not name.startswith((".", "/", "~")) else None


def _routers(ended: Ended, names: list[str], work: Path) -> list[str]:
    """Writes what methods know that say which task a row is of, and returns lines that say so."""
    from safetensors.numpy import save_file

    lines = []
    for part in ended.setup.program.method.parts:
        if part.routes:
            state = ended.state.methods[part.name]
            tensors = {k: np.array(x) for k, x in trees.by_path(state).items()}
            save_file(tensors, work / "router.safetensors")
            make_readable(work)
            factory = expression.factories().get(part.name)
            about = (inspect.getdoc(factory) or "").split("\n\n")[:2]
            said = {
                "method": ended.summary["method"],
                "tasks": names,
                "tensors": {k: list(x.shape) for k, x in tensors.items()},
                "use": "The folder of a row is the one in `tasks` at the index that this gives. "
                + " ".join(" ".join(about).split()),
            }
            (work / "router.json").write_text(json.dumps(said, indent=2))
            lines += ["", f"Which folder a row needs, `router.json` says: {said['use']}"]
    return lines
