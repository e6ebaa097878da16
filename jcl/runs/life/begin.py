"""Begins a life: reads the first files, chooses what nobody has said, and writes config.json."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from jcl import report
from jcl.method import check
from jcl.parallel import processes
from jcl.runs import own
from jcl.runs.life.life import Life
from jcl.runs.life.plan import Given, rows_of
from jcl.runs.life.rows import Kind, form_of
from jcl.runs.life.settings import (
    Settings,
    check_settings,
    flags_of,
    length_for,
    method_for,
    rate_for,
    room_for,
)
from jcl.runs.life.tasks import longest
from jcl.runs.life.work import Work, load_model
from jcl.training import checkpoint
from jcl.training import folder as folders


def begin(
    folder: str | Path,
    model: str,
    rows: Given,
    *,
    task: Kind | None = None,
    method: str = "",
    lr: float = 0.0,
    length: int = 0,
    room: int = 0,
    facts: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = lambda text: None,
    **more: Any,
) -> Life:
    """A new life in a folder, which has learned nothing yet.

    Args:
      folder: new or empty.
      model: a folder, a name that `jcl fetch` knows, or a Hugging Face id.
      rows: the first stage's, as for `Life.stage`, by whose size and labels what is left out here
        is chosen.
      task: what rows are; None is what their columns say.
      method: an expression; "" is replay, on low-rank pairs where the model is large.
      lr: AdamW's rate; 0 is one for the model's size.
      length: how many tokens a row has; 0 is what holds 95 % of the rows.
      room: how many classes the head has room for; 0 is twice as many as there are, and eight more.
      facts: what config.json says beside the settings; its command is made whole by their flags.
      say: takes a line for each thing that was chosen.
      more: other fields of `Settings`.

    Raises:
      ValueError: if something can't be as it is given.
    """
    folder = Path(folder)
    rows = rows_of(rows, task)
    check(bool(rows), "number of rows", 0, "at least 1")
    with contextlib.ExitStack() as held:
        processes.from_leader(lambda: _hold_new(folder, held))
        kind = task or form_of(rows[0])
        if Path(model).expanduser().exists():
            model = str(Path(model).expanduser().resolve())
        start = Settings(model, kind, method or "naive()", lr or 1e-3, length or 32, **more)
        loaded = load_model(check_settings(start))
        size = sum(x.size for x in jax.tree.leaves(loaded.params))
        if not method:
            method = method_for(size, kind)
            say(f"method: {method} (for {size / 1e6:,.1f} million parameters)")
        method = own.absolute(method, Path.cwd())
        if not lr:
            lr = rate_for(size, method)
            say(f"lr: {lr:g} (AdamW, for that size)")
        if not length:
            most = longest(kind, rows[:2000], loaded.tokenizer)
            length = length_for(most, loaded.config.context)
            say(f"length: {length} tokens (95 % of the first rows have at most {most})")
        if kind == "classify" and not room:
            labels = {row["label"] for row in rows}
            room = room_for(len(labels))
            say(f"room: {room} classes, of which the first stage has {len(labels)}")
        settings = dataclasses.replace(start, method=method, lr=lr, length=length, room=room)
        work = Work(check_settings(settings), loaded, method, (), settings.room)
        _ = work.ask  # which may not be there
        facts = facts or {}
        typed = facts.get("command", f"jcl run finetune --model {shlex.quote(model)}")
        told = {
            **facts, "command": f"{typed} {shlex.join(flags_of(settings))}",
            "life": dataclasses.asdict(settings), "weights": work.fingerprint,
            "files": own.digests([method]),
        }  # fmt: skip
        processes.from_leader(lambda: report.save_json(folder / "config.json", told))
        shared = checkpoint.is_shared(folder)
        check(shared, "folder", str(folder), "one that all processes share")
    return Life(folder, loaded)


def _hold_new(folder: Path, held: contextlib.ExitStack) -> None:
    folders.make(folder)
    held.enter_context(folders.hold(folder))
    check(folders.is_empty(folder), "folder", str(folder), "new or empty")


def named(text: str) -> tuple[str, list[Path]]:
    """A stage's name and files, of `jan=a.jsonl,b.csv`; without a name it is the file's.

    Raises:
      ValueError: if there is no file, or the name can't be one.
    """
    name, equals, rest = text.partition("=")
    files = [Path(part).expanduser() for part in (rest if equals else text).split(",") if part]
    check(bool(files), "data", text, "a file, or name=file")
    name = name if equals else files[0].name.partition(".")[0]
    good = bool(name.strip()) and not set(name) & set("<>=,\n")
    check(good, "name of the stage", name, "a word without < > = and commas")
    for path in files:
        check(path.exists(), "data", str(path), "a file or a folder that is there")
    return name, files
